"""What a scenario's values must be to each other: hosts that exist, guests that fit, migrations that go somewhere in time."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from emulab.scenario.model import AUTO, Migration, Scenario
from emulab.scenario.problems import Location, Problem, did_you_mean
from emulab.scenario.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class NodeSize:
    """What a node can give to a guest: cores and memory of the machine under it."""

    cores: int
    memory_bytes: int


def check(scenario: Scenario, node: NodeSize | None = None) -> list[Problem]:
    """All problems between values that are fine by themselves. ``node``: size of a node; None = not checked."""
    return [*_guests(scenario, node), *_addresses(scenario), *_timing(scenario), *_destinations(scenario)]


def _guests(scenario: Scenario, node: NodeSize | None) -> Iterator[Problem]:
    hosts = scenario.topology.host_names
    for name, guest in scenario.guests.items():
        here: Location = ("guests", name)
        if guest.host not in hosts:
            yield Problem(
                (*here, "host"),
                f"no such host: {guest.host!r}, there are {', '.join(hosts)}",
                did_you_mean(guest.host, hosts),
                (("topology", "hosts"),),
            )
        if node is not None and guest.memory > node.memory_bytes:
            yield Problem(
                (*here, "memory"), f"the guest is larger than its node: {format_size(guest.memory)} of {node.memory_bytes / 2**30:.1f} GiB"
            )
        if node is not None and guest.vcpus > node.cores:
            yield Problem((*here, "vcpus"), f"the guest is larger than its node: {guest.vcpus} of {node.cores} cores")


def _addresses(scenario: Scenario) -> Iterator[Problem]:
    topology = scenario.topology
    taken = {topology.address(node): node for node in topology.node_names}
    network = IPv4Network(topology.subnet)
    outside = {str(network.network_address), str(network.broadcast_address), topology.nth_address(1)}  # .1: the engine's bridge
    for name, guest in scenario.guests.items():
        if guest.address == AUTO:
            continue
        here: Location = ("guests", name, "address")
        if IPv4Address(guest.address) not in network or guest.address in outside:
            yield Problem(here, f"{guest.address} is not a free address of the LAN {topology.subnet}", because_of=(("topology", "subnet"),))
        elif guest.address in taken:
            yield Problem(here, f"{guest.address} is the address of {taken[guest.address]} already")
        taken.setdefault(guest.address, name)


def _timing(scenario: Scenario) -> Iterator[Problem]:
    steady = scenario.load.steady
    late = [(n, migration.at) for n, migration in enumerate(scenario.migrations) if migration.at >= steady]
    if not late:
        return
    longer, earlier = format_duration(2 * max(at for _, at in late)), format_duration(steady / 2)
    hint = f"make it longer, as with --steady {longer}, or migrate earlier, as with --set migrations.{late[0][0] + 1}.at={earlier}"
    for n, at in late:
        text = f"{format_duration(at)} is outside of the steady state of {format_duration(steady)}"
        yield Problem(("migrations", n, "at"), text, hint, because_of=(("load", "steady"),))


def _destinations(scenario: Scenario) -> Iterator[Problem]:
    hosts, guests = scenario.topology.host_names, scenario.guests
    where: dict[str, str | None] = {name: guest.host for name, guest in guests.items()}  # None: decided by an "auto" before
    for n, migration in in_order(scenario):
        here: Location = ("migrations", n)
        if migration.vm not in guests:
            yield Problem(
                (*here, "vm"), f"no such guest: {migration.vm!r}, there are {', '.join(guests)}", did_you_mean(migration.vm, guests)
            )
            continue
        current = where[migration.vm]
        if migration.to == AUTO:
            where[migration.vm] = None
            if len(hosts) < 2:
                yield Problem((*here, "to"), "there is no second host to go to", because_of=(("topology", "hosts"),))
            continue
        if migration.to not in hosts:
            yield Problem(
                (*here, "to"),
                f"no such host: {migration.to!r}, there are {', '.join(hosts)}",
                did_you_mean(migration.to, hosts),
                (("topology", "hosts"),),
            )
        elif migration.to == current:
            yield Problem(
                (*here, "to"),
                f"the destination is the source: {migration.vm} is on {current} already",
                because_of=(("guests", migration.vm, "host"), *((("migrations", m, key)) for m in range(n) for key in ("to", "at"))),
            )
        where[migration.vm] = migration.to


def in_order(scenario: Scenario) -> list[tuple[int, Migration]]:
    """Migrations by the time they start, each with its index in the file; ties in the file's order."""
    return sorted(enumerate(scenario.migrations), key=lambda item: item[1].at)
