"""The bench's testbed and its guests: each migration gets a fresh guest, so that nothing of the one before helps or hinders it."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from emulab import clock
from emulab.bench.movers import Mover
from emulab.bench.remote import Remote
from emulab.engine.recipe import NODE
from emulab.engine.settings import Settings
from emulab.engine.streaming import Say, quiet
from emulab.errors import EmulabError
from emulab.experiment import guests, warm
from emulab.node.guest import GuestSpec
from emulab.scenario import Scenario, load_scenario, resolve
from emulab.testbed import Testbed
from emulab.testbed.testbed import HOSTS, PYTHON
from workloads.olio.loader import counts

WEB, KNOWN = "web", "known"
SOURCE, TO, DATABASE = "host1", "host3", "host5"
CLIENTS = "emulab.bench.clients"
_PROGRAM = Path(__file__).with_name("guest_program.py")
_ASK = "import sys, urllib.request as u\nfor p in sys.argv[1:]: u.urlopen(p, timeout=20).read()"
_CLEAN = """
import shutil, sys
from emulab.command import Runner
from emulab.errors import EmulabError
from emulab.migration import store
from emulab.node.cgroup import guest_cgroup
from emulab.node.guest import Guests
for name in sys.argv[1:]:
    store.discard(name)  # pages kept of it would make the next guest of this name a second visit
    try:
        guest_cgroup(name).thaw()
    except EmulabError:
        pass
    Guests(Runner()).discard_name(name)
shutil.rmtree("/run/emulab/bench", ignore_errors=True)
"""


class Bed:
    """Six nodes with room in memory for the largest guest, and the database of the site."""

    def __init__(self, settings: Settings, say: Say = quiet) -> None:
        self.testbed = Testbed(settings)
        self._say = say
        self._database = False

    @property
    def address(self) -> str:
        return f"{self.testbed.settings.lan_prefix}.120"

    # -- guests ------------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def known(self, *, memory_mb: float, dirty_mb_s: float = 0.0, tasks: int = 1, vcpus: float = 1.0) -> Iterator[str]:
        """The guest whose memory is known; yields its name once its memory is filled."""
        spec = GuestSpec(
            name=KNOWN,
            image="bench",
            address=self.address,
            vcpus=vcpus,
            memory_bytes=int((memory_mb * 1.1 + 64 + tasks * 4) * 2**20),
            argv=("python3", "-c", _PROGRAM.read_text()),
            env={"MEMORY_MB": f"{memory_mb:g}", "DIRTY_MB_S": f"{dirty_mb_s:g}", "TASKS": str(tasks)},
        )
        try:
            self.testbed.start_guest(SOURCE, spec, tag=NODE)
            self._wait_answer(f"http://{self.address}/")
            yield KNOWN
        finally:
            self.clear(KNOWN)

    @contextmanager
    def web(self, workers: int) -> Iterator[str]:
        """The web server of the site, its pages compiled and cached."""
        scenario = self.scenario(workers)
        self._ensure_database(scenario)
        try:
            self.testbed.start_guest(SOURCE, guests.guest_specs(scenario)[WEB])
            warm.warm_up(self.testbed, scenario, times=2)
            yield WEB
        finally:
            self.clear(WEB)

    def scenario(self, workers: int) -> Scenario:
        overrides: dict[str, str | None] = {
            "users": "25",
            "topology.subnet": self.testbed.settings.subnet,
            "workload.data_ratio": "40",
            "workload.workers": str(workers),
            "guests.web.host": SOURCE,
            "guests.db.host": DATABASE,
        }
        return resolve(load_scenario("one-migration", overrides))

    def _ensure_database(self, scenario: Scenario) -> None:
        if self._database:
            return
        self._say("the database of the site")
        self.testbed.start_guest(DATABASE, guests.guest_specs(scenario)["db"])
        guests.load_data(self.testbed, scenario)
        self._database = True

    def web_address(self) -> str:
        return str(self.scenario(32).guests[WEB].address)

    def _wait_answer(self, url: str, timeout_s: float = 120.0) -> None:
        end = clock.now() + timeout_s
        while not self.answers(url):
            if clock.now() > end:
                raise EmulabError(f"the guest at {url} does not answer")
            time.sleep(0.2)

    def answers(self, *urls: str) -> bool:
        return self.testbed.project.exec_run("head", (PYTHON, "-c", _ASK, *urls), timeout_s=60).ok

    def verify(self, guest: str) -> None:
        """After a migration it serves. Raises EmulabError."""
        url = f"http://{self.web_address()}/index.php" if guest == WEB else f"http://{self.address}/"
        if not self.answers(url):
            raise EmulabError(f"{guest} does not serve after its migration")

    def clear(self, guest: str) -> None:
        """Whatever became of a guest, nothing of it stays on any host."""
        with suppress(EmulabError):
            self.testbed.stop_guest(guest)
        nodes = [node for node in HOSTS if node != DATABASE]
        with ThreadPoolExecutor(len(nodes)) as pool:
            list(pool.map(lambda node: self.testbed.project.exec_run(node, (PYTHON, "-c", _CLEAN, guest), timeout_s=60), nodes))

    def close(self, mover: Mover, guest: str) -> None:
        with suppress(EmulabError):
            mover.leave(self.testbed, guest)

    # -- load --------------------------------------------------------------------------------------------------------------------------

    def clients(self, mode: str, **options: Any) -> Remote:
        """Start clients of the web guest on the head; they go on until ``end_input``."""
        size = counts(25, 40)
        known = {"people": size.registered_users, "events": size.events, "tags": size.tags} if mode != "probe" else {}
        words = [word for key, value in {**known, **options}.items() for word in (f"--{key}", str(value))]
        host = options.pop("host", None) or self.web_address()
        remote = Remote(self.testbed.project, "head", CLIENTS, mode, host, *words, timeout_s=900)
        remote.expect("started")
        return remote


def touch_memory(size: int) -> None:
    """Have ``size`` bytes of free memory at hand: what a virtual machine's host has taken back costs 20 us a page at its next use."""
    with mmap.mmap(-1, max(size, mmap.PAGESIZE)) as memory:
        memory[:: mmap.PAGESIZE] = bytes(-(-len(memory) // mmap.PAGESIZE))


def room_for(memory_bytes: float) -> str:
    """Empty if the machine has that much memory to spare, otherwise what it has."""
    free = psutil.virtual_memory().available
    return "" if memory_bytes < free else f"needs {memory_bytes / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
