"""A guest's network card: a veth pair, one end a port of br0, the other ``eth0`` in the guest's network namespace.

Address and MAC belong to the guest, not to the node: they are the same wherever it runs. There is no default route: nothing leaves the LAN.
"""

from __future__ import annotations

import contextlib
import hashlib
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from emulab.node.link_bridge import in_namespace

if TYPE_CHECKING:
    from emulab.command import Argv, Runner

GUEST_DEVICE = "eth0"
_NAME_MAX = 15  # IFNAMSIZ - 1
_TCP_BUCKETS = 16384


def guest_mac(ip: str) -> str:
    """02:65:6d and the last three bytes of the IPv4 address: locally administered, unique on the LAN, the same on every node."""
    packed = IPv4Address(ip).packed
    return "02:65:6d:" + ":".join(f"{byte:02x}" for byte in packed[1:])


def port_name(guest: str) -> str:
    """Name of the guest's port on its node: "vm-<guest>", shortened by a hash where Linux would refuse it (15 characters)."""
    name = f"vm-{guest}"
    if len(name) <= _NAME_MAX:
        return name
    return f"{name[: _NAME_MAX - 5]}-{hashlib.sha256(guest.encode()).hexdigest()[:4]}"


def give_own_tcp_tables(sysctl: Path = Path("/proc/sys/net/ipv4/tcp_child_ehash_entries")) -> None:
    """Network namespaces made on this node from now on have TCP tables of their own (Linux >= 6.1; without, nothing changes).

    Otherwise who lists a guest's connections, as every freeze does several times, searches the table of the whole machine: 5 ms each time
    with 24 GB of memory, 0.5 ms in one of this size. It has room for 8192 connections in TIME_WAIT.
    """
    with contextlib.suppress(OSError):
        sysctl.write_text(str(_TCP_BUCKETS))


def pair_command(port: str, netns: str, *, mac: str, mtu: int = 1500) -> Argv:
    """Create the pair with the far end already in the namespace (a path), under its final name and MAC."""
    size = ("mtu", str(mtu))
    return ("ip", "link", "add", "name", port, *size, "type", "veth", "peer", "name", GUEST_DEVICE, *size, "address", mac, "netns", netns)


def inside_commands(address: str, prefix: int) -> list[Argv]:
    """To be run in the guest's namespace: loopback and card up, address set, port 80 open to a guest's own root."""
    return [
        ("ip", "link", "set", "dev", "lo", "up"),
        ("ip", "addr", "replace", f"{address}/{prefix}", "brd", "+", "dev", GUEST_DEVICE),
        ("ip", "link", "set", "dev", GUEST_DEVICE, "up"),
        ("sysctl", "-q", "-w", "net.ipv4.ip_unprivileged_port_start=0"),
    ]


def plug_commands(port: str, netns: str, *, address: str, prefix: int = 24, mtu: int = 1500) -> list[Argv]:
    """Everything up to, but not including, attaching the port to br0: a migration does that only when the guest may be heard."""
    return [
        pair_command(port, netns, mac=guest_mac(address), mtu=mtu),
        *in_namespace(netns, inside_commands(address, prefix)),
        ("ip", "link", "set", "dev", port, "up"),
    ]


def unplug_command(port: str) -> Argv:
    """Removes both ends."""
    return ("ip", "link", "del", "dev", port)


def plug(port: str, netns: str, runner: Runner, *, address: str, prefix: int = 24, mtu: int = 1500) -> None:
    """Create the guest's card in the namespace ``netns`` (a path). A port left over under this name is removed first.

    Raises CommandError; nothing of the pair is left then.
    """
    runner.try_run(unplug_command(port))
    try:
        runner.run_all(plug_commands(port, netns, address=address, prefix=prefix, mtu=mtu))
    except BaseException:
        runner.try_run(unplug_command(port))
        raise


def unplug(port: str, runner: Runner) -> None:
    """Remove the pair; no error if it is gone already (it dies with the guest's namespace)."""
    runner.try_run(unplug_command(port))
