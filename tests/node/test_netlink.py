"""Network changes inside a blackout, on real bridges and namespaces; the answers are read back with iproute2."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from emulab.command import Runner
from emulab.migration import guestnet
from emulab.node.link_bridge import BRIDGE
from emulab.node.netlink import DISABLED, FORWARDING, Netlink, NetlinkError, inside

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

MAC, PORT = "02:65:6d:12:00:64", "vm-web"


@pytest.fixture
def node():
    """A namespace with a bridge; its path."""
    name = f"em-netlink-{uuid.uuid4().hex[:6]}"
    run = Runner().run
    run(("ip", "netns", "add", name))
    try:
        run(("ip", "-n", name, "link", "add", "name", BRIDGE, "type", "bridge"))
        run(("ip", "-n", name, "link", "set", "dev", BRIDGE, "up"))
        yield Path("/run/netns") / name
    finally:
        Runner().try_run(("ip", "netns", "del", name))


@pytest.fixture
def guest(node):
    """A process in a network namespace of its own, as CRIU makes it: empty."""
    process = subprocess.Popen(("nsenter", f"--net={node}", "unshare", "--net", "sleep", "60"))
    end = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/comm").read_text().strip() != "sleep":
        assert time.monotonic() < end
        time.sleep(0.005)
    yield process.pid
    process.kill()
    process.wait()


def ask(namespace, *argv):
    return json.loads(Runner().run(("nsenter", f"--net={namespace}", *argv)).stdout)


def test_the_card_moves_into_the_guests_namespace_ready_to_answer_at_once(node, guest):
    inside(node, lambda: guestnet.enter_namespace(PORT, MAC, guest, "198.18.0.100", 24, [("198.18.0.10", "02:42:c6:12:00:0a")]))
    there = f"/proc/{guest}/ns/net"
    links = {link["ifname"]: link for link in ask(there, "ip", "-j", "addr", "show")}
    assert set(links) == {"lo", "eth0"}
    assert all("UP" in link["flags"] for link in links.values())
    assert links["eth0"]["address"] == MAC
    (address,) = (entry for entry in links["eth0"]["addr_info"] if entry["family"] == "inet")
    assert (address["local"], address["prefixlen"], address["broadcast"]) == ("198.18.0.100", 24, "198.18.0.255")
    (neighbour,) = ask(there, "ip", "-j", "neigh", "show", "dev", "eth0")
    assert (neighbour["dst"], neighbour["lladdr"], neighbour["state"]) == ("198.18.0.10", "02:42:c6:12:00:0a", ["STALE"])
    ports = Runner().run(("nsenter", f"--net={there}", "sysctl", "-n", "net.ipv4.ip_unprivileged_port_start")).stdout
    assert ports.strip() == "0"


def test_the_guest_still_knows_its_neighbours_when_the_kernel_has_noticed_its_new_card(node, guest):
    """Links that change are looked at once a second; a guest may stay apart from the bridge that long."""
    inside(node, lambda: guestnet.enter_namespace(PORT, MAC, guest, "198.18.0.100", 24, [("198.18.0.10", "02:42:c6:12:00:0a")]))
    time.sleep(2.5)
    assert [entry["dst"] for entry in ask(f"/proc/{guest}/ns/net", "ip", "-j", "neigh", "show", "dev", "eth0")] == ["198.18.0.10"]


def test_the_port_joins_the_bridge_which_knows_the_guest_behind_it(node, guest):
    inside(node, lambda: guestnet.enter_namespace(PORT, MAC, guest, "198.18.0.100", 24, []))
    inside(node, lambda: guestnet.attach(PORT, MAC))
    (port,) = ask(node, "bridge", "-j", "link", "show")
    assert (port["ifname"], port["master"], port["state"]) == (PORT, BRIDGE, "forwarding")
    entry = next(entry for entry in ask(node, "bridge", "-j", "fdb", "show", "dev", PORT) if entry["mac"] == MAC)
    assert (entry["master"], entry["state"]) == (BRIDGE, "")


def test_a_port_is_blocked_and_let_go_again(node, guest):
    inside(node, lambda: guestnet.enter_namespace(PORT, MAC, guest, "198.18.0.100", 24, []))
    inside(node, lambda: guestnet.attach(PORT, MAC))

    def turn(state):
        with Netlink() as netlink:
            netlink.port_state(PORT, state)

    for state, name in ((DISABLED, "disabled"), (FORWARDING, "forwarding")):
        inside(node, lambda state=state: turn(state))
        assert ask(node, "bridge", "-j", "link", "show")[0]["state"] == name


def test_a_card_is_not_made_twice(node, guest):
    inside(node, lambda: guestnet.enter_namespace(PORT, MAC, guest, "198.18.0.100", 24, []))
    with pytest.raises(NetlinkError, match=f"cannot make the pair {PORT}, eth0: File exists"):
        inside(node, lambda: guestnet.enter_namespace(PORT, MAC, guest, "198.18.0.100", 24, []))


def test_what_the_kernel_refuses_is_said(node, guest):
    inside(node, lambda: guestnet.enter_namespace(PORT, MAC, guest, "198.18.0.100", 24, []))

    def attach_to_no_bridge():
        with Netlink() as netlink:
            netlink.attach(PORT, "lo")

    with pytest.raises(NetlinkError, match=f"cannot attach {PORT} to lo: "):
        inside(node, attach_to_no_bridge)
    with pytest.raises(NetlinkError, match="vm-none: No such device"):
        inside(node, lambda: guestnet.attach("vm-none", MAC))
    with pytest.raises(FileNotFoundError):
        inside(Path("/proc/0/ns/net"), lambda: None)


def test_only_the_thread_that_acts_enters_the_namespace(node):
    before = Path("/proc/thread-self/ns/net").readlink()
    seen = []
    inside(node, lambda: seen.append(Path("/proc/thread-self/ns/net").readlink()))
    assert seen[0] != before
    assert Path("/proc/thread-self/ns/net").readlink() == before
