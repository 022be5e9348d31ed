"""A node's link in real network namespaces: a switch, two nodes, guests. Skipped without root; nothing of the host's network is touched."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emulab.command import Command, Outcome, Runner, execute
from emulab.node import link as links
from emulab.node.calibrate import client_argv, expected_goodput, parse_result, server_argv
from emulab.node.link import Link, LinkState
from emulab.node.netlink import DISABLED, FORWARDING, Netlink, inside

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

GIGABIT = 1_000_000_000
PYTHON = sys.executable


class Namespace:
    """A network namespace; ``runner`` executes commands inside it."""

    def __init__(self, label: str) -> None:
        self.name = f"em-{label}-{uuid.uuid4().hex[:6]}"
        self.path = f"/run/netns/{self.name}"
        Runner().run(("ip", "netns", "add", self.name))
        self.runner = Runner(self._inside)
        self.runner.run(("ip", "link", "set", "dev", "lo", "up"))

    def _inside(self, command: Command) -> Outcome:
        return execute(replace(command, argv=("nsenter", f"--net={self.path}", *command.argv)))

    def popen(self, argv: tuple[str, ...]) -> subprocess.Popen[str]:
        return subprocess.Popen(("nsenter", f"--net={self.path}", *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def delete(self) -> None:
        Runner().try_run(("ip", "netns", "del", self.name))


class Lan:
    """Two nodes on a switch, as the container engine would hand them over: a bare eth0 with address and MAC."""

    addresses = ("198.18.0.11", "198.18.0.12")

    def __init__(self) -> None:
        self.switch = Namespace("sw")
        self.nodes = [Namespace("n1"), Namespace("n2")]
        self.guests: list[Namespace] = []
        run = self.switch.runner.run
        run(("ip", "link", "add", "name", "sw", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0"))
        run(("ip", "link", "set", "dev", "sw", "up"))
        for n, (node, address) in enumerate(zip(self.nodes, self.addresses, strict=True)):
            peer = ("peer", "name", "eth0", "netns", node.path)
            run(("ip", "link", "add", "name", f"p{n}", "type", "veth", *peer))
            run(("ip", "link", "set", "dev", f"p{n}", "master", "sw", "up"))
            node.runner.run(("ip", "addr", "add", f"{address}/24", "brd", "+", "dev", "eth0"))
            node.runner.run(("ip", "link", "set", "dev", "eth0", "up"))

    def guest(self, node: Namespace, name: str, address: str) -> Namespace:
        inside = Namespace(name)
        self.guests.append(inside)
        port = links.port_name(name)
        links.plug(port, inside.path, node.runner, address=address)
        links.port_attach(port, node.runner)
        return inside

    def delete(self) -> None:
        for namespace in (*self.guests, *self.nodes, self.switch):
            namespace.delete()


@pytest.fixture
def lan() -> Iterator[Lan]:
    lan = Lan()
    try:
        yield lan
    finally:
        lan.delete()


@pytest.fixture
def shaped(lan: Lan) -> Lan:
    for node in lan.nodes:
        Link(node.runner).ensure(GIGABIT)
    return lan


def settings(state: LinkState) -> LinkState:
    """A link's state without its counters."""
    up, down = (s and replace(s, sent_bytes=0, dropped=0, backlog_bytes=0) for s in (state.up, state.down))
    return replace(state, up=up, down=down)


def reaches(source: Namespace, address: str, *, timeout_s: float = 0.5) -> bool:
    """True if a TCP connection to a closed port is answered (by a reset), i.e. frames pass both ways."""
    code = f"import socket; s=socket.socket(); s.settimeout({timeout_s}); print(s.connect_ex(({address!r}, 9)))"
    return source.runner.run((PYTHON, "-c", code)).stdout.strip() == "111"


def flow(client: Namespace, server: Namespace, address: str, *, rate_bit_s: int, seconds: float = 1.0) -> dict[str, float]:
    """Best of up to three tries each way between two namespaces, in bit/s."""
    process = server.popen(server_argv(PYTHON, address, 5999))
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        argv = client_argv(PYTHON, address, 5999, rate_bit_s=rate_bit_s, tolerance=0.05, seconds=seconds)
        result = parse_result(client.runner.run(argv).stdout)
        return {"up": result.up_best, "down": result.down_best, "rtt": result.rtt_idle_s}
    finally:
        process.kill()
        process.communicate()


def test_a_built_link_keeps_address_mac_and_mtu_on_br0(lan: Lan) -> None:
    node = lan.nodes[0]
    before = Link(node.runner).show()
    Link(node.runner).ensure(GIGABIT)
    after = Link(node.runner).show()
    assert (before.built, after.built) == (False, True)
    assert (after.address, after.mac, after.mtu) == (before.address, before.mac, before.mtu)
    assert after.up is not None
    assert after.down is not None
    assert abs(after.up.line_rate_bit_s - GIGABIT) < 2000
    assert abs(after.down.line_rate_bit_s - GIGABIT) < 2000


def test_ensure_is_idempotent_and_completes_a_half_built_link(shaped: Lan) -> None:
    node = shaped.nodes[0]
    before = settings(Link(node.runner).show())
    Link(node.runner).ensure(GIGABIT)
    assert settings(Link(node.runner).show()) == before
    node.runner.run(("ip", "link", "del", "dev", "up0"))
    assert not reaches(node, shaped.addresses[1])
    Link(node.runner).ensure(GIGABIT)
    assert reaches(node, shaped.addresses[1])


def test_no_part_of_the_link_speaks_ipv6(shaped: Lan) -> None:
    answer = shaped.nodes[0].runner.run(("ip", "-j", "-d", "link", "show")).stdout
    modes = {item["ifname"]: item.get("inet6_addr_gen_mode", "none") for item in json.loads(answer)}
    del modes["lo"]
    assert modes == dict.fromkeys(("eth0", "br0", "br-up", "up0", "up1"), "none")
    assert shaped.nodes[0].runner.run(("ip", "-6", "-o", "addr", "show", "scope", "link")).stdout == ""


# Prints the MACs that say they have an address.
WHO_HAS = """
import socket, sys, time
wanted, own = (socket.inet_aton(address) for address in sys.argv[1:])
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as wire:
    wire.bind(("br0", 0x0806))
    mac = wire.getsockname()[4]
    wire.send(b"\\xff" * 6 + mac + bytes.fromhex("0806 0001 0800 06 04 0001") + mac + own + bytes(6) + wanted)
    wire.settimeout(0.05)
    heard, end = set(), time.monotonic() + 0.5
    while time.monotonic() < end:
        try:
            frame = wire.recv(64)
        except TimeoutError:
            continue
        if frame[20:22] == b"\\0\\2" and frame[28:32] == wanted:
            heard.add(frame[22:28].hex(":"))
print(*sorted(heard))
"""


def test_only_br0_says_that_it_has_the_nodes_address(shaped: Lan) -> None:
    node, other = shaped.nodes
    heard = other.runner.run((PYTHON, "-c", WHO_HAS, *shaped.addresses)).stdout.split()
    assert heard == [Link(node.runner).show().mac]


def test_nodes_reach_each_other_at_once(shaped: Lan) -> None:
    assert reaches(shaped.nodes[0], shaped.addresses[1])
    assert reaches(shaped.nodes[1], shaped.addresses[0])


def test_other_routes_move_along(lan: Lan) -> None:
    node = lan.nodes[0]
    node.runner.run(("ip", "route", "add", "203.0.113.0/24", "via", lan.addresses[1]))
    Link(node.runner).ensure(GIGABIT)
    route = json.loads(node.runner.run(("ip", "-j", "route", "show", "203.0.113.0/24")).stdout)[0]
    assert (route["dev"], route["gateway"]) == ("br0", lan.addresses[1])


def test_reset_gives_the_bare_interface_back(shaped: Lan) -> None:
    node = shaped.nodes[0]
    built = Link(node.runner).show()
    Link(node.runner).reset()
    Link(node.runner).reset()
    bare = Link(node.runner).show()
    assert (bare.built, bare.up, bare.down) == (False, None, None)
    assert (bare.address, bare.mac) == (built.address, built.mac)
    names = {item["ifname"] for item in json.loads(node.runner.run(("ip", "-j", "link", "show")).stdout)}
    assert names == {"lo", "eth0"}
    assert reaches(node, shaped.addresses[1])


def test_a_gigabit_link_carries_941_mbit_each_way(shaped: Lan) -> None:
    measured = flow(shaped.nodes[0], shaped.nodes[1], shaped.addresses[1], rate_bit_s=GIGABIT)
    expected = expected_goodput(GIGABIT)
    assert measured["up"] == pytest.approx(expected, rel=0.05)
    assert measured["down"] == pytest.approx(expected, rel=0.05)


def test_a_guest_shares_its_nodes_link(shaped: Lan) -> None:
    guest = shaped.guest(shaped.nodes[0], "web", "198.18.0.100")
    measured = flow(guest, shaped.nodes[1], shaped.addresses[1], rate_bit_s=GIGABIT)
    expected = expected_goodput(GIGABIT)
    assert measured["up"] == pytest.approx(expected, rel=0.05)
    assert measured["down"] == pytest.approx(expected, rel=0.05)


def test_the_rate_can_be_changed_live(shaped: Lan) -> None:
    rate = 100_000_000
    Link(shaped.nodes[0].runner).set_rate(rate)
    measured = flow(shaped.nodes[0], shaped.nodes[1], shaped.addresses[1], rate_bit_s=rate)
    assert measured["up"] == pytest.approx(expected_goodput(rate), rel=0.05)
    assert measured["down"] == pytest.approx(expected_goodput(rate), rel=0.05)


def turn(port: str, state: int) -> None:
    with Netlink() as netlink:
        netlink.port_state(port, state)


def test_a_blocked_port_stops_traffic_and_an_unblocked_one_passes_it(shaped: Lan) -> None:
    node = shaped.nodes[0]
    shaped.guest(node, "web", "198.18.0.100")
    assert reaches(shaped.nodes[1], "198.18.0.100")
    inside(Path(node.path), lambda: turn("vm-web", DISABLED))
    assert Link(node.runner).show().ports == {"vm-web": "disabled"}
    assert not reaches(shaped.nodes[1], "198.18.0.100")
    inside(Path(node.path), lambda: turn("vm-web", FORWARDING))
    assert Link(node.runner).show().ports == {"vm-web": "forwarding"}
    assert reaches(shaped.nodes[1], "198.18.0.100")


def test_a_guest_has_its_own_mac_on_every_node(shaped: Lan) -> None:
    def mac(guest: Namespace) -> str:
        found: str = json.loads(guest.runner.run(("ip", "-j", "link", "show", "dev", "eth0")).stdout)[0]["address"]
        return found

    first = shaped.guest(shaped.nodes[0], "web", "198.18.0.100")
    assert mac(first) == "02:65:6d:12:00:64"
    links.unplug("vm-web", shaped.nodes[0].runner)
    second = shaped.guest(shaped.nodes[1], "web", "198.18.0.100")
    assert mac(second) == "02:65:6d:12:00:64"
    assert reaches(shaped.nodes[0], "198.18.0.100")


def test_a_guest_may_listen_below_1024_without_privileges_and_has_no_way_out(shaped: Lan) -> None:
    guest = shaped.guest(shaped.nodes[0], "web", "198.18.0.100")
    assert guest.runner.run(("sysctl", "-n", "net.ipv4.ip_unprivileged_port_start")).stdout.strip() == "0"
    assert guest.runner.run(("ip", "route", "show", "default")).stdout == ""


def test_a_guest_is_plugged_by_the_path_of_a_process(shaped: Lan) -> None:
    inside = Namespace("pid")
    shaped.guests.append(inside)
    process = inside.popen(("sleep", "60"))
    try:
        node = shaped.nodes[0]
        links.plug("vm-pid", f"/proc/{process.pid}/ns/net", node.runner, address="198.18.0.103")
        assert not reaches(shaped.nodes[1], "198.18.0.103")  # plugged, but not yet heard
        links.port_attach("vm-pid", node.runner)
        assert reaches(shaped.nodes[1], "198.18.0.103")
    finally:
        process.kill()
        process.communicate()


def test_a_failed_plug_leaves_nothing(shaped: Lan) -> None:
    node = shaped.nodes[0]
    inside = Namespace("bad")
    shaped.guests.append(inside)
    with pytest.raises(Exception, match="addr"):
        links.plug("vm-bad", inside.path, node.runner, address="198.18.0.100", prefix=99)
    assert node.runner.try_run(("ip", "link", "show", "dev", "vm-bad")).code != 0


def test_a_deleted_lan_leaves_no_namespace_and_no_interface_on_the_host() -> None:
    before = {name for _, name in socket.if_nameindex()}
    lan = Lan()
    Link(lan.nodes[0].runner).ensure(GIGABIT)
    lan.guest(lan.nodes[0], "web", "198.18.0.100")
    names = [namespace.name for namespace in (*lan.nodes, *lan.guests, lan.switch)]
    lan.delete()
    assert not {name for name in names if Path("/run/netns", name).exists()}
    ours = {"br0", "br-up", "up0", "up1", "vm-web"}
    assert not (({name for _, name in socket.if_nameindex()} - before) & ours)
