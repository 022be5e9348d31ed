"""A node's uplink as two bridges, so that both directions can be shaped on egress.

::

    LAN ── eth0 ─┐           ┌─ up1 ──┐
                 br-up       │        br0 (the node's address and MAC) ── vm-web, vm-db … (guests)
          up0 ───┘ ══ veth ══┘

What goes up leaves through eth0, what comes down leaves br-up through up0; an HTB on each shapes one direction for the node and all its
guests. Alternatives measured in namespaces (one flow, GSO on, 2 cores): unshaped, this structure carries about 11.5 Gbit/s against 13.8
of a bare veth and 13 of ``tc ... mirred redirect`` between eth0 and up0; shaped to 1 Gbit/s all three give 941 Mbit/s for the same CPU
(about 0.12 s per second, both ends together). Bridges need no classifier module (``matchall`` is missing on some kernels) and no ifb
module, which a container cannot load, so the bridges win.

br0 takes the MAC that the container engine gave to eth0, so the node stays reachable under it. eth0 gets another: a bridge delivers frames
for the MAC of one of its own ports to itself, and br-up would swallow everything that is meant for the node.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

from emulab.errors import EmulabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from emulab.command import Argv, Runner

UPLINK = "eth0"
BRIDGE = "br0"
OUTER_BRIDGE = "br-up"
OUTER_PORT = "up0"  # end of the veth pair in br-up: its egress is the node's download
INNER_PORT = "up1"  # end in br0: what arrives here has passed the shaper

# No waiting for STP, no multicast querier that frames for guests would have to wait for.
_BRIDGE_OPTIONS = ("type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")

# Two questions: only `link` tells the IPv6 mode, only `addr` the addresses.
LINKS_COMMAND: Argv = ("ip", "-j", "-d", "link", "show")
ADDRESSES_COMMAND: Argv = ("ip", "-j", "-4", "addr", "show")
# Where br_netfilter is loaded, bridged frames would pass the node's iptables and conntrack. -e: not an error where it is absent.
BYPASS_FILTER_COMMAND: Argv = (
    *("sysctl", "-e", "-q", "-w"),
    *("net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0", "net.bridge.bridge-nf-call-arptables=0"),
)


@dataclass(frozen=True)
class Interface:
    """One network interface. ``addresses`` are IPv4 as "198.18.0.11/24"; ``port_state`` is its state as a bridge port."""

    name: str
    mac: str
    mtu: int
    up: bool
    master: str | None
    addresses: tuple[str, ...]
    port_state: str | None
    ipv6_addresses_on: bool  # it gives itself a link-local IPv6 address (and sends frames to announce it)
    arp_on: bool


def parse_interfaces(links_json: str, addresses_json: str) -> dict[str, Interface]:
    """The answers to ``LINKS_COMMAND`` and ``ADDRESSES_COMMAND``, by name."""
    addresses = {item["ifname"]: item["addr_info"] for item in json.loads(addresses_json or "[]") if "ifname" in item}
    return {item["ifname"]: _interface(item, addresses.get(item["ifname"], [])) for item in json.loads(links_json) if "ifname" in item}


def _interface(item: Mapping[str, Any], addresses: Sequence[Mapping[str, Any]]) -> Interface:
    return Interface(
        name=item["ifname"],
        mac=item.get("address", ""),
        mtu=item["mtu"],
        up="UP" in item["flags"],
        master=item.get("master"),
        addresses=tuple(f"{a['local']}/{a['prefixlen']}" for a in addresses if a.get("family") == "inet"),
        port_state=item.get("linkinfo", {}).get("info_slave_data", {}).get("state"),
        ipv6_addresses_on=item.get("inet6_addr_gen_mode", "none") != "none",
        arp_on="NOARP" not in item["flags"],
    )


def find_uplink(interfaces: Mapping[str, Interface], subnet: str) -> str:
    """Name of the interface on the LAN ``subnet``. A node with two networks (the head) may have it as eth0 or eth1."""
    if (bridge := interfaces.get(OUTER_BRIDGE)) is not None:
        for interface in interfaces.values():
            if interface.master == bridge.name and interface.name != OUTER_PORT:
                return interface.name
    network = IPv4Network(subnet)
    for interface in interfaces.values():
        if any(IPv4Address(address.split("/")[0]) in network for address in interface.addresses):
            return interface.name
    raise EmulabError(f"no interface of this node has an address in {subnet}", hint="is the node attached to the emulated LAN?")


def outer_mac(mac: str) -> str:
    """MAC for eth0 once br0 has taken its own: the same with the locally administered bit set and the next bit turned."""
    first, rest = int(mac[:2], 16), mac[2:]
    return f"{(first | 0x02) ^ 0x04:02x}{rest}"


def routes_command(device: str) -> Argv:
    return ("ip", "-j", "route", "show", "dev", device)


def build_commands(interfaces: Mapping[str, Interface], routes_json: str = "[]", *, uplink: str = UPLINK) -> list[Argv]:
    """What is still missing of the structure, in order; empty when it stands. ``routes_json``: routes through the uplink, moved along."""
    port = interfaces.get(uplink)
    if port is None:
        raise EmulabError(f"this node has no interface {uplink}", hint="is the node attached to the emulated LAN?")
    none = Interface("", "", 0, up=False, master=None, addresses=(), port_state=None, ipv6_addresses_on=port.ipv6_addresses_on, arp_on=True)
    inner, outer, up0, up1 = (interfaces.get(name, none) for name in (BRIDGE, OUTER_BRIDGE, OUTER_PORT, INNER_PORT))
    if not port.addresses and not inner.addresses:
        raise EmulabError(f"{uplink} has no IPv4 address to move to {BRIDGE}", hint="is the node attached to the emulated LAN?")
    mtu, mac = str(port.mtu), inner.mac or port.mac
    commands: list[Argv] = []
    if not inner.name:
        commands.append(("ip", "link", "add", "name", BRIDGE, "address", mac, "mtu", mtu, *_BRIDGE_OPTIONS))
    if not outer.name:
        commands.append(("ip", "link", "add", "name", OUTER_BRIDGE, "mtu", mtu, *_BRIDGE_OPTIONS))
    if not up0.name:
        commands.append(("ip", "link", "add", "name", OUTER_PORT, "mtu", mtu, "type", "veth", "peer", "name", INNER_PORT, "mtu", mtu))
    # br-up and its ports carry frames, they do not take part, and the LAN is IPv4: no addresses of their own, no frames to announce them.
    commands += [
        ("ip", "link", "set", "dev", name, "addrgenmode", "none")
        for name, interface in ((BRIDGE, inner), (OUTER_BRIDGE, outer), (OUTER_PORT, up0), (INNER_PORT, up1), (uplink, port))
        if interface.ipv6_addresses_on
    ]
    # A host answers ARP requests for any address of its own on every interface: br-up, which sees the request first, would answer with its
    # own MAC beside br0's. Whoever keeps that answer sends past br0, into nothing, until its entry has aged (some 10 s).
    if outer.arp_on:
        commands.append(("ip", "link", "set", "dev", OUTER_BRIDGE, "arp", "off"))
    if up0.master != OUTER_BRIDGE:
        commands.append(("ip", "link", "set", "dev", OUTER_PORT, "master", OUTER_BRIDGE))
    if up1.master != BRIDGE:
        commands.append(("ip", "link", "set", "dev", INNER_PORT, "master", BRIDGE))
    for name, interface in ((OUTER_PORT, up0), (INNER_PORT, up1), (OUTER_BRIDGE, outer), (BRIDGE, inner)):
        if not interface.up:
            commands.append(("ip", "link", "set", "dev", name, "up"))
    commands += [("ip", "addr", "add", a, "brd", "+", "dev", BRIDGE) for a in port.addresses if a not in inner.addresses]
    if port.mac == mac:
        commands.append(("ip", "link", "set", "dev", uplink, "address", outer_mac(mac)))
    if port.addresses:
        commands.append(("ip", "addr", "flush", "dev", uplink))
    if port.master != OUTER_BRIDGE:
        commands.append(("ip", "link", "set", "dev", uplink, "master", OUTER_BRIDGE))
    return commands + _route_commands(routes_json, BRIDGE)


def undo_commands(interfaces: Mapping[str, Interface], routes_json: str = "[]", *, uplink: str = UPLINK) -> list[Argv]:
    """Give the uplink its MAC, address and routes back and remove bridges and veth pair; empty when nothing stands."""
    commands: list[Argv] = []
    port, inner = interfaces.get(uplink), interfaces.get(BRIDGE)
    if port is not None and port.master == OUTER_BRIDGE:
        commands.append(("ip", "link", "set", "dev", uplink, "nomaster"))
    if port is not None and inner is not None and port.mac == outer_mac(inner.mac):
        commands.append(("ip", "link", "set", "dev", uplink, "address", inner.mac))
    commands += [("ip", "link", "del", "dev", name) for name in (BRIDGE, OUTER_BRIDGE, OUTER_PORT) if name in interfaces]
    if port is not None and inner is not None:
        commands += [("ip", "addr", "add", a, "brd", "+", "dev", uplink) for a in inner.addresses if a not in port.addresses]
        commands += _route_commands(routes_json, uplink)
    return commands


def _route_commands(routes_json: str, device: str) -> list[Argv]:
    """Routes that do not come back by themselves with the address (the kernel adds the connected ones)."""
    commands = []
    for route in json.loads(routes_json or "[]"):
        if route.get("dst") and route.get("protocol") != "kernel":
            via = ("via", str(route["gateway"])) if "gateway" in route else ()
            metric = ("metric", str(route["metric"])) if "metric" in route else ()
            commands.append(("ip", "route", "replace", str(route["dst"]), *via, "dev", device, *metric))
    return commands


# -- ports of br0 ------------------------------------------------------------------------------------------------------------------------


def port_attach(port: str, runner: Runner) -> None:
    """Make an interface a port of br0, up and forwarding."""
    runner.run(("ip", "link", "set", "dev", port, "master", BRIDGE, "up"))


def bridge_ports(interfaces: Mapping[str, Interface]) -> dict[str, str]:
    """Guest ports of br0 and their states ("forwarding", "disabled" …)."""
    return {i.name: i.port_state or "unknown" for i in interfaces.values() if i.master == BRIDGE and i.name != INNER_PORT}


def in_namespace(path: str, commands: Sequence[Argv]) -> list[Argv]:
    """The same commands inside a network namespace given by path: "/proc/<pid>/ns/net" or a pinned one."""
    return [("nsenter", f"--net={path}", *command) for command in commands]
