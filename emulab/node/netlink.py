"""The few network changes that happen inside a blackout, asked of the kernel directly.

A program for each (``ip``, ``bridge``, ``nsenter``) costs 3-10 ms of standing still, a message 50 microseconds. Everything outside of the
blackout goes through those programs (``link``). Message layouts: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Self

from emulab.errors import EmulabError

_NEWLINK, _SETLINK, _NEWADDR, _NEWNEIGH = 16, 19, 20, 28
_REQUEST, _ACK, _REPLACE, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
_NLMSG_ERROR = 2
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_NET_NS_PID = 1, 3, 10, 12, 18, 19
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_BRPORT_STATE, _NESTED = 1, 0x8000
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_NDA_DST, _NDA_LLADDR = 1, 2
_REACHABLE, _STALE, _NTF_MASTER = 0x02, 0x04, 0x04
_IFF_UP = 1
_AF_BRIDGE = 7
_CLONE_NEWNET = 0x40000000

DISABLED, FORWARDING = 0, 3  # states of a bridge port (linux/if_bridge.h)


class NetlinkError(EmulabError):
    """The kernel refused a change. ``number``: the errno."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.number = number


def _attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


def _link(index: int, *, family: int = 0, up: bool = False) -> bytes:
    flags = _IFF_UP if up else 0
    return struct.pack("=BxHiII", family, 0, index, flags, flags)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _index(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError as error:
        raise NetlinkError(f"cannot change the device {device}", errno.ENODEV) from error


class Netlink:
    """A connection to the network namespace of the thread that opens it. Methods raise NetlinkError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(5.0)
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _change(self, what: str, kind: int, body: bytes, flags: int = 0) -> None:
        self._number += 1
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, self._number, 0) + body)
        while True:
            data = self._socket.recv(65536)
            size, answer, _, number, _ = struct.unpack_from("=IHHII", data)
            if number != self._number or answer != _NLMSG_ERROR or size < 20:
                continue
            (code,) = struct.unpack_from("=i", data, 16)
            if code:
                raise NetlinkError(what, -code)
            return

    # -- links -------------------------------------------------------------------------------------------------------------------------

    def up(self, device: str) -> None:
        self._change(f"cannot bring {device} up", _NEWLINK, _link(_index(device), up=True))

    def attach(self, device: str, bridge: str) -> None:
        """Make a device a port of a bridge, up."""
        master = _attribute(_IFLA_MASTER, struct.pack("=I", _index(bridge)))
        self._change(f"cannot attach {device} to {bridge}", _NEWLINK, _link(_index(device), up=True) + master)

    def port_state(self, device: str, state: int) -> None:
        """``state``: DISABLED drops every frame to and from the port, FORWARDING lets them pass."""
        info = _attribute(_IFLA_PROTINFO | _NESTED, _attribute(_BRPORT_STATE, struct.pack("=B", state)))
        self._change(f"cannot change the port {device}", _SETLINK, _link(_index(device), family=_AF_BRIDGE) + info)

    def learn(self, device: str, mac: str) -> None:
        """Tell the bridge that ``mac`` is behind its port ``device``."""
        body = struct.pack("=BxxxiHBB", _AF_BRIDGE, _index(device), _REACHABLE, _NTF_MASTER, 0)
        self._change(f"cannot note {mac} at {device}", _NEWNEIGH, body + _attribute(_NDA_LLADDR, _mac(mac)), _CREATE | _REPLACE)

    def pair(self, device: str, *, pid: int, name: str, mac: str) -> None:
        """Make a veth pair: ``device`` here, the other end, ``name``, in the network namespace of a process.

        Making it there takes a fraction of a millisecond. Moving a device there takes 17-60 ms: the kernel waits for all its readers.
        """
        peer = _link(0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0") + _attribute(_IFLA_ADDRESS, _mac(mac))
        peer += _attribute(_IFLA_NET_NS_PID, struct.pack("=I", pid))
        info = _attribute(_INFO_KIND, b"veth") + _attribute(_INFO_DATA | _NESTED, _attribute(_VETH_PEER | _NESTED, peer))
        body = _link(0) + _attribute(_IFLA_IFNAME, device.encode() + b"\0") + _attribute(_IFLA_LINKINFO | _NESTED, info)
        self._change(f"cannot make the pair {device}, {name}", _NEWLINK, body, _CREATE | _EXCLUSIVE)

    # -- addresses ---------------------------------------------------------------------------------------------------------------------

    def address(self, device: str, address: str, prefix: int) -> None:
        network = IPv4Network(f"{address}/{prefix}", strict=False)
        body = struct.pack("=BBBBi", socket.AF_INET, prefix, 0, 0, _index(device))
        own = socket.inet_aton(address)
        body += _attribute(_IFA_LOCAL, own) + _attribute(_IFA_ADDRESS, own) + _attribute(_IFA_BROADCAST, network.broadcast_address.packed)
        self._change(f"cannot give {device} the address {address}", _NEWADDR, body, _CREATE | _REPLACE)

    def neighbour(self, device: str, address: str, mac: str) -> None:
        """Note a neighbour as once known: used at once, confirmed later."""
        body = struct.pack("=BxxxiHBB", socket.AF_INET, _index(device), _STALE, 0, 0)
        body += _attribute(_NDA_DST, socket.inet_aton(address)) + _attribute(_NDA_LLADDR, _mac(mac))
        self._change(f"cannot note the neighbour {address}", _NEWNEIGH, body, _CREATE | _REPLACE)


def inside(namespace: Path, act: Callable[[], None]) -> None:
    """Run ``act`` in a network namespace, given by its path. Raises what it raises.

    It runs in a thread of its own: entering a namespace changes the thread that does it, and nothing else.
    """
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            with namespace.open("rb") as handle:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(handle.fileno(), _CLONE_NEWNET):
                    number = ctypes.get_errno() or errno.EINVAL
                    raise OSError(number, os.strerror(number), str(namespace))
            act()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def set_up_guest(device: str, address: str, prefix: int, neighbours: Iterable[tuple[str, str]]) -> None:
    """In the guest's namespace: loopback and card up, address and known neighbours set, port 80 open to a guest's own root."""
    with Netlink() as netlink:
        netlink.up("lo")
        netlink.address(device, address, prefix)
        netlink.up(device)
        for ip, mac in neighbours:
            netlink.neighbour(device, ip, mac)
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
