"""Frames of a moving guest, on a real bridge between real namespaces: none is lost, and they arrive in their order.

The client can be cut off before the frames are released: then nothing but the kept frames can have brought what the guest receives.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket
import struct
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from emulab.command import Runner
from emulab.migration.hold import FrameHold, announce

sys.path.insert(0, str(Path(__file__).parents[1]))
from waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CLONE_NEWNET = 0x40000000
CLIENT, GUEST, OTHER = "198.18.64.10", "198.18.64.100", "198.18.64.101"
MACS = {CLIENT: "02:65:6d:12:40:0a", GUEST: "02:65:6d:12:40:64", OTHER: "02:65:6d:12:40:65"}
UPLINK, PORT, OTHER_PORT = "up0", "vm-guest", "vm-other"


def sh(*argv):
    return Runner().run(argv).stdout


class Namespace:
    def __init__(self, label):
        self.name = f"em-{label}-{uuid.uuid4().hex[:6]}"
        sh("ip", "netns", "add", self.name)

    def ip(self, *words):
        sh("ip", "-n", self.name, *words)

    @contextmanager
    def entered(self):
        """Sockets and threads made in this block belong to the namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            assert libc.setns(there, CLONE_NEWNET) == 0
            yield
        finally:
            assert libc.setns(home, CLONE_NEWNET) == 0
            os.close(home)
            os.close(there)

    def delete(self):
        Runner().try_run(("ip", "netns", "del", self.name))


class Node:
    """A node with its bridge: the client behind the uplink, two guests on ports."""

    def __init__(self):
        self.node = Namespace("node")
        self.spaces = {address: Namespace(label) for address, label in ((CLIENT, "cl"), (GUEST, "gu"), (OTHER, "ot"))}
        self.node.ip("link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        self.node.ip("link", "set", "br0", "up")
        for (address, space), port in zip(self.spaces.items(), (UPLINK, PORT, OTHER_PORT), strict=True):
            mac = MACS[address]
            self.node.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", space.name)
            self.node.ip("link", "set", port, "master", "br0", "up")
            space.ip("addr", "add", f"{address}/24", "dev", "eth0")
            space.ip("link", "set", "eth0", "up")
            for other, other_mac in MACS.items():
                if other != address:
                    space.ip("neigh", "add", other, "lladdr", other_mac, "dev", "eth0", "nud", "permanent")

    def socket(self, address, kind):
        with self.spaces[address].entered():
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(20)
        return made

    def listen(self, address):
        server = self.socket(address, socket.SOCK_STREAM)
        server.bind((address, 80))
        server.listen()
        return server

    def hold(self):
        with self.node.entered():
            return FrameHold(UPLINK, MACS[GUEST])

    def release(self, hold):
        with self.node.entered():
            return hold.release(PORT)

    def unplug(self):
        self.node.ip("link", "set", PORT, "nomaster")

    def plug(self):
        self.node.ip("link", "set", PORT, "master", "br0")

    def delete(self):
        for space in (*self.spaces.values(), self.node):
            space.delete()


@pytest.fixture
def node():
    node = Node()
    try:
        yield node
    finally:
        node.delete()


@pytest.fixture
def hold(node):
    hold = node.hold()
    yield hold
    hold.close()


def numbered(sender, address, numbers):
    for number in numbers:
        sender.sendto(struct.pack(">I", number), (address, 9))


def received(receiver, count):
    return [struct.unpack(">I", receiver.recv(100))[0] for _ in range(count)]


def test_frames_are_kept_in_order_and_released_in_order(node, hold):
    client, guest = node.socket(CLIENT, socket.SOCK_DGRAM), node.socket(GUEST, socket.SOCK_DGRAM)
    with client, guest:
        guest.bind((GUEST, 9))
        node.unplug()
        numbered(client, GUEST, range(200))
        wait_until(lambda: len(hold.frames) == 200)
        guest.setblocking(False)
        with pytest.raises(BlockingIOError):
            guest.recv(100)
        guest.settimeout(20)
        assert node.release(hold) == 200
        assert received(guest, 200) == list(range(200))


def test_frames_that_come_late_are_released_by_the_next_call(node, hold):
    client, guest = node.socket(CLIENT, socket.SOCK_DGRAM), node.socket(GUEST, socket.SOCK_DGRAM)
    with client, guest:
        guest.bind((GUEST, 9))
        node.unplug()
        numbered(client, GUEST, range(3))
        wait_until(lambda: len(hold.frames) == 3)
        assert node.release(hold) == 3
        numbered(client, GUEST, range(3, 5))
        node.release(hold)
        assert received(guest, 5) == list(range(5))
        assert hold.released == 5


def test_frames_for_others_are_left_alone(node, hold):
    client, other = node.socket(CLIENT, socket.SOCK_DGRAM), node.socket(OTHER, socket.SOCK_DGRAM)
    with client, other:
        other.bind((OTHER, 9))
        numbered(client, OTHER, range(10))
        assert received(other, 10) == list(range(10))
        assert node.release(hold) == 0


def test_what_the_guest_itself_sends_is_not_kept(node, hold):
    """It leaves through the same card."""
    client, guest = node.socket(CLIENT, socket.SOCK_DGRAM), node.socket(GUEST, socket.SOCK_DGRAM)
    with client, guest:
        client.bind((CLIENT, 9))
        numbered(guest, CLIENT, range(10))
        assert received(client, 10) == list(range(10))
        assert node.release(hold) == 0


def test_large_segments_survive_a_client_that_is_gone(node, hold):
    """On one machine a frame is a TCP segment of many frames whose checksum nobody has computed yet."""
    with node.listen(GUEST) as server, node.socket(CLIENT, socket.SOCK_STREAM) as client:
        client.connect((GUEST, 80))
        guest, _ = server.accept()
        with guest:
            client.sendall(b"x" * 200_000)  # lets the congestion window grow
            assert len(receive(guest, 200_000)) == 200_000
            node.unplug()
            node.release(hold)
            content = os.urandom(60_000)
            client.sendall(content)
            wait_until(lambda: max((len(frame) for frame in hold.frames), default=0) > 9000)
            node.spaces[CLIENT].ip("link", "set", "eth0", "down")  # no retransmission can help now
            assert hold.frames
            node.release(hold)
            first = guest.recv(65536)
            assert len(first) > 9000
            assert content.startswith(first)


def receive(connection, size):
    parts = bytearray()
    while len(parts) < size and (part := connection.recv(min(65536, size - len(parts)))):
        parts += part
    return bytes(parts)


def test_a_transfer_goes_on_over_several_holds(node, hold):
    """Its bytes are those that were sent, and it loses nothing: each time the guest is reached again by the very frames that were kept."""
    content = os.urandom(4_000_000) * 10
    with node.listen(GUEST) as server, node.socket(CLIENT, socket.SOCK_STREAM) as client:
        client.connect((GUEST, 80))
        guest, _ = server.accept()
        with guest:
            got = []
            sender = threading.Thread(target=lambda: (client.sendall(content), client.shutdown(socket.SHUT_WR)))
            reader = threading.Thread(target=lambda: got.append(hashlib.sha256(receive(guest, len(content) + 1)).hexdigest()))
            sender.start()
            reader.start()
            for _ in range(3):
                node.unplug()
                node.release(hold)
                time.sleep(0.05)
                node.plug()
                node.release(hold)
                time.sleep(0.02)
            sender.join(60)
            reader.join(60)
            assert got == [hashlib.sha256(content).hexdigest()]
    assert hold.released > 0


def test_an_announcement_makes_the_switch_send_the_guests_frames_this_way(node):
    """The guest was on another port; after one announcement from here its frames come here."""
    client, here = node.socket(CLIENT, socket.SOCK_DGRAM), node.socket(OTHER, socket.SOCK_DGRAM)
    with client, here:
        with node.spaces[GUEST].entered():
            announce("eth0", MACS[GUEST], GUEST, times=1)  # a later one could come after the other
        wait_until(lambda: learned(node, MACS[GUEST]) == PORT)
        with node.spaces[OTHER].entered():
            announce("eth0", MACS[GUEST], GUEST, times=1)
        wait_until(lambda: learned(node, MACS[GUEST]) == OTHER_PORT)


def learned(node, mac):
    lines = sh("bridge", "-n", node.node.name, "fdb", "show", "br", "br0").splitlines()
    return next((line.split()[2] for line in lines if line.startswith(mac) and "permanent" not in line), None)


def test_a_hold_on_an_interface_that_is_not_there_is_an_error(node):
    with node.node.entered(), pytest.raises(OSError, match="No such device"):
        FrameHold("none0", MACS[GUEST])
