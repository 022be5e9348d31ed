"""The guest's network during a migration: what is in flight, its neighbours, and plugging it in quickly at the destination."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emulab.command import Runner
from emulab.migration.hold import announce
from emulab.node import link
from emulab.node.guest import Guest
from emulab.node.link_bridge import BRIDGE
from emulab.node.link_guest import GUEST_DEVICE
from emulab.node.netlink import DISABLED, FORWARDING, Netlink, inside, set_up_guest

ESTABLISHED, SYN_RECV, LISTEN = 0x01, 0x03, 0x0A


@dataclass(frozen=True)
class Connections:
    """TCP connections in a network namespace. ``in_flight``: half open, or waiting in an accept queue; CRIU cannot save those."""

    established: int
    in_flight: int


def connections(pid: int) -> Connections:
    """Those in the namespace of a process; none if it has gone."""
    found = in_flight = 0
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            state, queue = int(fields[3], 16), int(fields[4].split(":")[1], 16)
            found += state == ESTABLISHED
            in_flight += state == SYN_RECV or (state == LISTEN and queue > 0)  # a listener's receive queue is its accept queue
    return Connections(found, in_flight)


def neighbours(pid: int, runner: Runner) -> list[tuple[str, str]]:
    """(address, MAC) of the guest's neighbours that are known now."""
    out = runner.try_run(("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-j", "neigh", "show", "dev", GUEST_DEVICE)).stdout
    try:
        entries = json.loads(out or "[]")
    except ValueError:
        return []
    return [(entry["dst"], entry["lladdr"]) for entry in entries if "lladdr" in entry]


def enter_namespace(port: str, mac: str, pid: int, address: str, prefix: int, known: Iterable[Sequence[str]]) -> None:
    """Inside the freeze: the restored guest gets its card. The port stays apart from the bridge until ``attach``."""
    # The first answer after resume must not wait for an address to be resolved: hence the neighbours.
    neighbours = [(ip, hardware) for ip, hardware in known]
    with Netlink() as netlink:
        netlink.pair(port, pid=pid, name=GUEST_DEVICE, mac=mac)
        netlink.up(port)  # first: a card that comes up without a carrier forgets its neighbours when the kernel notices, up to 1 s later
    inside(Path(f"/proc/{pid}/ns/net"), lambda: set_up_guest(GUEST_DEVICE, address, prefix, neighbours))


def block(port: str) -> None:
    """Drop every frame to and from the guest's port from now on."""
    with Netlink() as netlink:
        netlink.port_state(port, DISABLED)


def let_run(guest: Guest) -> None:
    """Back to normal operation on this node: traffic, announcement, tasks, vCPU limit. Safe to repeat."""
    spec = guest.spec
    with Netlink() as netlink:
        netlink.attach(spec.port, BRIDGE)  # only a member can be unblocked, and only an unblocked one learns
        netlink.port_state(spec.port, FORWARDING)
        guest.cgroup.thaw()
        guest.cgroup.set_quota(spec.vcpus)
        netlink.learn(spec.port, spec.mac)
    announce(link.INNER_PORT, spec.mac, spec.address)


def attach(port: str, mac: str) -> None:
    """Make the port a member of br0 and tell br0 that the guest's MAC is now behind it."""
    with Netlink() as netlink:
        netlink.attach(port, BRIDGE)
        netlink.learn(port, mac)
