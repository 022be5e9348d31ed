"""The guest's network during a migration: what is in flight, its neighbours, and plugging it in quickly at the destination."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from emulab.command import Argv, Runner
from emulab.migration.hold import announce
from emulab.node import link
from emulab.node.guest import Guest
from emulab.node.link_guest import GUEST_DEVICE

ESTABLISHED, SYN_RECV, LISTEN = 0x01, 0x03, 0x0A


def tcp_table(pid: int) -> list[tuple[int, int]]:
    """(state, receive queue) of each TCP socket in the namespace of a process. A listener's receive queue is its accept queue."""
    rows = []
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            rows.append((int(fields[3], 16), int(fields[4].split(":")[1], 16)))
    return rows


def established(pid: int) -> int:
    return sum(state == ESTABLISHED for state, _ in tcp_table(pid))


def in_flight(pid: int) -> int:
    """Connections that no task owns yet: half open, or waiting in an accept queue. CRIU cannot save those."""
    return sum((state == SYN_RECV) or (state == LISTEN and queue > 0) for state, queue in tcp_table(pid))


def neighbours(pid: int, runner: Runner) -> list[tuple[str, str]]:
    """(address, MAC) of the guest's neighbours that are known now."""
    out = runner.try_run(("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-j", "neigh", "show", "dev", GUEST_DEVICE)).stdout
    try:
        entries = json.loads(out or "[]")
    except ValueError:
        return []
    return [(entry["dst"], entry["lladdr"]) for entry in entries if "lladdr" in entry]


def batch_lines(address: str, prefix: int, known: Iterable[Sequence[str]]) -> str:
    """Input of ``ip -batch`` inside the guest's new namespace."""
    lines = [
        "link set dev lo up",
        f"addr add {address}/{prefix} brd + dev {GUEST_DEVICE}",
        f"link set dev {GUEST_DEVICE} up",
        # The first answer after resume must not wait for an address to be resolved.
        *(f"neigh replace {ip} lladdr {mac} nud stale dev {GUEST_DEVICE}" for ip, mac in known),
    ]
    return "\n".join(lines) + "\n"


def prepare_port_command(port: str, mac: str) -> list[Argv]:
    """Before the freeze: the pair exists, its guest end still on the node."""
    return [
        ("ip", "link", "add", "name", port, "type", "veth", "peer", "name", _peer_name(port), "address", mac),
        ("ip", "link", "set", "dev", port, "up"),
    ]


def _peer_name(port: str) -> str:
    return f"x{port}"[:15]


def enter_namespace(port: str, pid: int, address: str, prefix: int, known: Iterable[Sequence[str]], runner: Runner) -> None:
    """Inside the freeze: two short programs move the card into the restored guest's namespace and set it up."""
    namespace = f"/proc/{pid}/ns/net"
    runner.run(("ip", "link", "set", "dev", _peer_name(port), "name", GUEST_DEVICE, "netns", str(pid)))
    script = "echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start; exec ip -batch -"
    runner.run(("nsenter", f"--net={namespace}", "sh", "-c", script), stdin=batch_lines(address, prefix, known).encode())


def let_run(guest: Guest, runner: Runner) -> None:
    """Back to normal operation on this node: traffic, announcement, tasks, vCPU limit. Safe to repeat."""
    spec = guest.spec
    link.port_attach(spec.port, runner)  # only a member can be unblocked, and only an unblocked one learns
    link.port_unblock(spec.port, runner)
    guest.cgroup.thaw()
    guest.cgroup.set_quota(spec.vcpus)
    attach(spec.port, spec.mac, runner)
    announce(link.INNER_PORT, spec.mac, spec.address)


def attach(port: str, mac: str, runner: Runner) -> None:
    """Make the port a member of br0 and tell br0 that the guest's MAC is now behind it."""
    link.port_attach(port, runner)
    runner.run(("bridge", "fdb", "replace", mac, "dev", port, "master", "dynamic"))
