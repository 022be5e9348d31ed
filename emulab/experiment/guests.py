"""Placing the two guests of the site and filling its database."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from emulab import clock
from emulab.command import last_line
from emulab.engine.streaming import Say, quiet
from emulab.errors import EmulabError
from emulab.node.guest import GuestSpec
from emulab.scenario import Scenario
from emulab.testbed import Testbed
from workloads.olio.loader import counts, generate


def guest_specs(scenario: Scenario) -> dict[str, GuestSpec]:
    """What the scenario's guests are, from a resolved scenario. The database comes first: the web server needs it."""
    workload = scenario.workload
    environment = {
        "web": {
            "OLIO_DB_HOST": scenario.guests["db"].address,
            "OLIO_WORKERS": str(workload.workers),
            "OLIO_KEEPALIVE_S": f"{workload.keepalive:g}",
            "OLIO_PROFILE": workload.profile,
        },
        "db": {},
    }
    names = sorted(scenario.guests, key=lambda name: (name != "db", name))
    return {
        name: GuestSpec(
            name=name,
            image=guest.image,
            address=guest.address,
            prefix=int(scenario.topology.subnet.split("/")[1]),
            vcpus=guest.vcpus,
            memory_bytes=guest.memory,
            env=environment.get(name, {}),
            storage=guest.storage,
        )
        for name, guest in ((name, scenario.guests[name]) for name in names)
    }


def place_guests(testbed: Testbed, scenario: Scenario, say: Say = quiet) -> None:
    """Start every guest on its host; guests that are left from before go first."""
    testbed.stop_all_guests()
    for name, spec in guest_specs(scenario).items():
        host = scenario.guests[name].host
        say(f"starting {name} on {host}")
        testbed.start_guest(host, spec, say)


def dataset(scenario: Scenario) -> tuple[int, int]:
    """(users, ratio) for the loader: together they give the scenario's number of registered users."""
    load, workload = scenario.load, scenario.workload
    if workload.registered_users == load.users * workload.data_ratio:
        return load.users, workload.data_ratio
    return int(workload.registered_users), 1


def load_data(testbed: Testbed, scenario: Scenario, say: Say = quiet) -> None:
    """Generate the site's data and stream it into the database guest."""
    users, ratio = dataset(scenario)
    size = counts(users, ratio)
    wait_for_database(testbed)
    say(f"loading {size.registered_users} people, {size.events} events, {size.tags} tags")
    node, command = testbed.enter_argv("db", ("mariadb", "olio"))
    _stream_into(testbed, node, command, generate(users, ratio, scenario.seed))


def _stream_into(testbed: Testbed, node: str, command: tuple[str, ...], blocks: Iterable[bytes]) -> None:
    with testbed.project.exec_stream(node, command) as stream:
        # Answers are read while we write, or both sides would wait for each other.
        reader = threading.Thread(target=stream.read_all, daemon=True)
        reader.start()
        pending = bytearray()
        for block in blocks:
            pending += block
            if len(pending) > 1 << 18:
                stream.write(bytes(pending))
                pending.clear()
        stream.write(bytes(pending))
        stream.close_stdin()
        reader.join()
        if stream.wait() != 0:
            raise EmulabError(f"the database refused the data: {last_line(stream.stderr, 'no reason given')}")


def wait_for_database(testbed: Testbed, timeout_s: float = 120.0) -> None:
    end = clock.now() + timeout_s
    while True:
        try:
            testbed.exec_in_guest("db", ("mariadb", "olio", "--execute", "SELECT 1"), timeout_s=20)
        except EmulabError as error:
            if clock.now() > end:
                raise EmulabError(f"the database did not start: {error.message}", hint="emulab vm logs db") from error
            time.sleep(0.1)
        else:
            return
