"""A node's link as commands: what is asked of ip, tc and bridge, and what is read from their answers (recorded)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from emulab.command import Command, Outcome, Runner
from emulab.errors import EmulabError
from emulab.node import link_bridge as bridge
from emulab.node import link_shape as shape
from emulab.node.link import Link, guest_mac, plug, port_name
from emulab.node.link_guest import plug_commands

GIGABIT = 10**9

QDISCS = """[{"kind":"htb","handle":"e31:","root":true,"refcnt":3,
"options":{"r2q":10,"default":"0x1","direct_packets_stat":0,"direct_qlen":1000},
"bytes":4242,"packets":3,"drops":2,"overlimits":0,"requeues":0,"backlog":0,"qlen":0},{"kind":"bfifo","handle":"e32:","parent":"e31:1",
"options":{"limit":1514000},"bytes":4242,"packets":3,"drops":2,"overlimits":0,"requeues":0,"backlog":1514,"qlen":1}]"""
# iproute2 6.15 (Debian 13) and 6.1 (Debian 12) about the same class.
CLASSES_6_15 = """[{"class":"htb","handle":"e31:1","root":true,"leaf":"0xe32","prio":0,"quantum":65536,"rate":123049414,"ceil":123049414,
"linklayer":"ethernet","burst":131074,"burst_cell":1,"mpu_rate":0,"cburst":131074,"cburst_cell":1,"mpu_ceil":0,"level":0,
"stats":{"bytes":0,"packets":0,"drops":0,"overlimits":0,"requeues":0,"backlog":0,"qlen":0}}]"""
CLASSES_6_1 = """class htb e31:1 root leaf e32: prio 0 quantum 65536 rate 984395Kbit ceil 984395Kbit linklayer ethernet \
burst 130924b/1 mpu 0b cburst 128Kb/1 mpu 0b level 0
 Sent 0 bytes 0 pkt (dropped 0, overlimits 0 requeues 0)
 backlog 0b 0p requeues 0
"""
NOQUEUE = '[{"kind":"noqueue","handle":"0:","root":true,"refcnt":2,"options":{}}]'


def interface(name: str, **changes: Any) -> dict[str, Any]:
    return {"ifname": name, "address": "02:42:c6:12:00:0b", "mtu": 1500, "flags": ["BROADCAST", "UP"], "addr_info": [], **changes}


ADDRESS = {"family": "inet", "local": "198.18.0.11", "prefixlen": 24, "scope": "global"}
BARE = [interface("lo", address="00:00:00:00:00:00", mtu=65536), interface("eth0", addr_info=[ADDRESS])]


def parsed(*items: dict[str, Any]) -> dict[str, bridge.Interface]:
    return bridge.parse_interfaces(*answers(*items))


def answers(*items: dict[str, Any]) -> tuple[str, str]:
    """As ip gives it: links in one answer, addresses in another."""
    links = [{key: value for key, value in item.items() if key != "addr_info"} for item in items]
    return json.dumps(links), json.dumps([{"ifname": item["ifname"], "addr_info": item["addr_info"]} for item in items])


class Machine:
    """Answers by the start of a command; remembers all that was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, command: Command) -> Outcome:
        self.asked.append(command.argv)
        line = command.shell()
        text = next((text for start, text in self.answers.items() if line.startswith(start)), "")
        return Outcome(command, 1 if text == "fail" else 0, text, text, 0.0, 0.0)

    def changes(self) -> list[str]:
        return [" ".join(argv) for argv in self.asked if "-j" not in argv]


# -- rates ---------------------------------------------------------------------------------------------------------------------------------


def test_the_line_rate_becomes_a_rate_of_counted_frames() -> None:
    assert shape.frame_equivalent(GIGABIT) == 984_395_319
    assert shape.frame_equivalent(10**7) == 9_843_953


@pytest.mark.parametrize("rate", [0, -1])
def test_no_rate_at_all_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        shape.frame_equivalent(rate)


@pytest.mark.parametrize(("rate", "burst"), [(GIGABIT, 125_000), (10**10, 1_250_000), (10**7, 67_050)])
def test_a_burst_is_a_millisecond_but_at_least_a_gso_segment(rate: int, burst: int) -> None:
    assert shape.burst_bytes(rate) == burst


def test_commands_of_a_gigabit_link() -> None:
    rate = "984395319bit"
    assert [" ".join(argv) for argv in (shape.root_command("eth0"), *shape.rate_commands("eth0", GIGABIT))] == [
        "tc qdisc replace dev eth0 root handle e31: htb default 1",
        f"tc class replace dev eth0 parent e31: classid e31:1 htb rate {rate} ceil {rate} burst 125000 cburst 125000 quantum 65536",
        "tc qdisc replace dev eth0 parent e31:1 handle e32: bfifo limit 1514000",
    ]


def test_shaping_is_read_from_json_and_from_the_older_text() -> None:
    new, old = shape.parse_shaping(QDISCS, CLASSES_6_15), shape.parse_shaping(QDISCS, CLASSES_6_1)
    assert new == shape.Shaping(984_395_312, 984_395_312, 131_074, 131_074, 65_536, 1_514_000, 4242, 2, 1514)
    assert old == shape.Shaping(984_395_000, 984_395_000, 130_924, 131_072, 65_536, 1_514_000, 4242, 2, 1514)
    assert new is not None
    assert abs(new.line_rate_bit_s - GIGABIT) < 10


@pytest.mark.parametrize("qdiscs", ["", "[]", "[{}]", NOQUEUE, QDISCS.replace("e31:", "1:")])
def test_what_is_not_ours_is_not_shaped_by_us(qdiscs: str) -> None:
    assert not shape.is_shaped(qdiscs)
    assert shape.parse_shaping(qdiscs, CLASSES_6_15) is None


# -- structure -----------------------------------------------------------------------------------------------------------------------------


def test_building_a_link_from_the_bare_interface() -> None:
    routes = '[{"dst":"198.18.0.0/24","protocol":"kernel"},{"dst":"203.0.113.0/24","gateway":"198.18.0.1","metric":5,"protocol":"static"}]'
    options = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
    assert [" ".join(argv) for argv in bridge.build_commands(parsed(*BARE), routes)] == [
        f"ip link add name br0 address 02:42:c6:12:00:0b mtu 1500 {options}",
        f"ip link add name br-up mtu 1500 {options}",
        "ip link add name up0 mtu 1500 type veth peer name up1 mtu 1500",
        "ip link set dev br-up arp off",
        "ip link set dev up0 master br-up",
        "ip link set dev up1 master br0",
        "ip link set dev up0 up",
        "ip link set dev up1 up",
        "ip link set dev br-up up",
        "ip link set dev br0 up",
        "ip addr add 198.18.0.11/24 brd + dev br0",
        "ip link set dev eth0 address 06:42:c6:12:00:0b",
        "ip addr flush dev eth0",
        "ip link set dev eth0 master br-up",
        "ip route replace 203.0.113.0/24 via 198.18.0.1 dev br0 metric 5",
    ]


def test_ports_get_no_ipv6_addresses_where_the_kernel_has_ipv6() -> None:
    with_ipv6 = parsed(interface("eth0", addr_info=[ADDRESS], inet6_addr_gen_mode="eui64"))
    modes = [argv[4] for argv in bridge.build_commands(with_ipv6) if "addrgenmode" in argv]
    assert modes == ["br0", "br-up", "up0", "up1", "eth0"]


BUILT = [
    interface("eth0", address="06:42:c6:12:00:0b", master="br-up"),
    interface("br0", addr_info=[ADDRESS]),
    interface("br-up", flags=["BROADCAST", "NOARP", "UP"]),
    interface("up0", master="br-up"),
    interface("up1", master="br0"),
]


BUILT_ANSWERS = dict(zip(("ip -j -d link", "ip -j -4 addr"), answers(*BUILT), strict=True))


def test_a_standing_link_needs_nothing() -> None:
    assert bridge.build_commands(parsed(*BUILT)) == []


def test_an_interrupted_build_is_completed() -> None:
    # br0 has address and MAC, eth0 has not given its own up yet.
    halfway = parsed(interface("eth0", addr_info=[ADDRESS]), *BUILT[1:])
    assert [" ".join(argv) for argv in bridge.build_commands(halfway)] == [
        "ip link set dev eth0 address 06:42:c6:12:00:0b",
        "ip addr flush dev eth0",
        "ip link set dev eth0 master br-up",
    ]


def test_undoing_gives_mac_and_address_back() -> None:
    assert [" ".join(argv) for argv in bridge.undo_commands(parsed(*BUILT))] == [
        "ip link set dev eth0 nomaster",
        "ip link set dev eth0 address 02:42:c6:12:00:0b",
        "ip link del dev br0",
        "ip link del dev br-up",
        "ip link del dev up0",
        "ip addr add 198.18.0.11/24 brd + dev eth0",
    ]
    assert bridge.undo_commands(parsed(*BARE)) == []


def test_a_node_without_its_lan_is_an_error_with_a_hint() -> None:
    for found in (parsed(BARE[0]), parsed(interface("eth0"))):
        with pytest.raises(EmulabError) as caught:
            bridge.build_commands(found)
        assert "LAN" in caught.value.hint


def test_the_uplink_is_the_interface_on_the_lan() -> None:
    published = interface("eth0", addr_info=[{**ADDRESS, "local": "172.18.0.2"}])
    lan = interface("eth1", addr_info=[ADDRESS])
    assert bridge.find_uplink(parsed(published, lan), "198.18.0.0/24") == "eth1"
    assert bridge.find_uplink(parsed(published, *BUILT[1:], interface("eth1", master="br-up")), "198.18.0.0/24") == "eth1"
    with pytest.raises(EmulabError, match="no interface"):
        bridge.find_uplink(parsed(published), "198.18.0.0/24")


@pytest.mark.parametrize(("mac", "other"), [("02:42:c6:12:00:0b", "06:42:c6:12:00:0b"), ("be:6c:ed:41:8e:06", "ba:6c:ed:41:8e:06")])
def test_the_uplinks_new_mac_is_another_local_one(mac: str, other: str) -> None:
    assert bridge.outer_mac(mac) == other


def test_guest_ports_and_their_state() -> None:
    port = interface("vm-web", master="br0", linkinfo={"info_slave_data": {"state": "disabled"}})
    assert bridge.bridge_ports(parsed(*BUILT, port)) == {"vm-web": "disabled"}


# -- the whole -----------------------------------------------------------------------------------------------------------------------------


def test_ensuring_a_standing_shaped_link_only_sets_its_rate() -> None:
    machine = Machine()
    machine.answers = {**BUILT_ANSWERS, "tc -j -s qdisc": QDISCS, "ip -j route": "[]"}
    Link(Runner(machine)).ensure(GIGABIT)
    expected = [*shape.rate_commands("eth0", GIGABIT), *shape.rate_commands("up0", GIGABIT)]
    assert machine.changes() == [" ".join(argv) for argv in expected]


def test_a_bad_rate_touches_nothing() -> None:
    machine = Machine()
    with pytest.raises(ValueError, match="above 0"):
        Link(Runner(machine)).ensure(0)
    assert machine.asked == []


def test_show_says_what_the_rate_stands_for() -> None:
    machine = Machine()
    machine.answers = {**BUILT_ANSWERS, "tc -j -s qdisc": QDISCS, "tc -j -s -d class": CLASSES_6_15}
    state = Link(Runner(machine)).show()
    record = json.loads(json.dumps(state.as_dict()))
    assert (record["built"], record["address"], record["mac"]) == (True, "198.18.0.11/24", "02:42:c6:12:00:0b")
    assert abs(record["up"]["line_rate_bit_s"] - GIGABIT) < 10
    assert machine.changes() == []
    assert replace(state, up=None, down=None).as_dict()["up"] is None


# -- guests --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ip", "mac"), [("198.18.0.100", "02:65:6d:12:00:64"), ("10.1.2.3", "02:65:6d:01:02:03")])
def test_a_guests_mac_follows_from_its_address(ip: str, mac: str) -> None:
    assert guest_mac(ip) == mac


def test_port_names_fit_the_kernel_and_stay_apart() -> None:
    assert port_name("web") == "vm-web"
    long = [port_name(f"a-very-long-name-{n}") for n in range(3)]
    assert all(len(name) <= 15 for name in long)
    assert len(set(long)) == 3


def test_plugging_a_guest_by_path() -> None:
    assert [" ".join(argv) for argv in plug_commands("vm-web", "/proc/42/ns/net", address="198.18.0.100")] == [
        "ip link add name vm-web mtu 1500 type veth peer name eth0 mtu 1500 address 02:65:6d:12:00:64 netns /proc/42/ns/net",
        "nsenter --net=/proc/42/ns/net ip link set dev lo up",
        "nsenter --net=/proc/42/ns/net ip addr replace 198.18.0.100/24 brd + dev eth0",
        "nsenter --net=/proc/42/ns/net ip link set dev eth0 up",
        "nsenter --net=/proc/42/ns/net sysctl -q -w net.ipv4.ip_unprivileged_port_start=0",
        "ip link set dev vm-web up",
    ]


def test_a_plug_that_fails_is_taken_out_again() -> None:
    machine = Machine()
    machine.answers = {"nsenter --net=/x ip addr": "fail"}
    with pytest.raises(EmulabError):
        plug("vm-web", "/x", Runner(machine), address="198.18.0.100")
    assert machine.changes()[-1] == "ip link del dev vm-web"
