"""Frames for a guest that is between two nodes: kept, not dropped.

From the freeze on the destination announces the guest's address, so that every switch sends its frames here, and keeps them; at resume
they go into the guest's port in the order they came. A dropped frame would cost its sender a retransmission timer that doubles.

Frames are read and written with a virtio header (PACKET_VNET_HDR): on one machine a frame is often a TCP segment of up to 64 kB whose
checksum the receiver's "card" was to fill in, and only that header preserves what is still to be done.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address

_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 3
_ETH_P_ARP = 0x0806
_BUFFER = 32 * 1024 * 1024
_VNET_HEADER = 10
_MAX_FRAME = 65536 + 64 + _VNET_HEADER


def parse_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _destination_filter(mac: bytes) -> bytes:
    """Classic BPF program: accept frames whose destination is ``mac``."""
    high, low = struct.unpack(">IH", mac)
    program = [
        (0x20, 0, 0, 0),  # ld [0]: first four bytes
        (0x15, 0, 3, high),  # jeq high, next, reject
        (0x28, 0, 0, 4),  # ldh [4]: last two bytes
        (0x15, 0, 1, low),  # jeq low, accept, reject
        (0x06, 0, 0, 0x7FFFFFFF),
        (0x06, 0, 0, 0),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


@contextlib.contextmanager
def _sending(interface: str) -> Iterator[socket.socket]:
    """A packet socket that only sends. Closing one takes 10 ms, as the kernel waits for all its readers: nobody here waits for that."""
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        packet.bind((interface, 0))
        yield packet
    finally:
        threading.Thread(target=packet.close, name=f"close {interface}").start()


class FrameHold:
    """Keeps the frames for one MAC that arrive on an interface, from creation until ``release`` or ``close``."""

    def __init__(self, interface: str, mac: str) -> None:
        program = _destination_filter(parse_mac(mac))
        self._code = ctypes.create_string_buffer(program)
        self.frames: list[bytes] = []
        self.released = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            filter_argument = struct.pack("HL", len(program) // 8, ctypes.addressof(self._code))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_argument)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._socket.bind((interface, _ETH_P_ALL))
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._collect, name=f"hold {mac}", daemon=True)
        self._thread.start()

    def _drain(self) -> list[bytes]:
        got: list[bytes] = []
        while True:
            try:
                frame, address = self._socket.recvfrom(_MAX_FRAME)
            except (BlockingIOError, OSError):
                return got
            if address[2] != socket.PACKET_OUTGOING:
                got.append(frame)

    def _collect(self) -> None:
        while not self._stop.is_set():
            ready, _, _ = select.select([self._socket], [], [], 0.05)
            if ready:
                with self._lock:
                    self.frames += self._drain()

    def release(self, port: str) -> int:
        """Send what was kept into the guest's port, in order; returns the number of frames. May be called again for late ones."""
        with self._lock, _sending(port) as out:
            out.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            frames = self.frames + self._drain()
            self.frames = []
            for frame in frames:
                with contextlib.suppress(OSError):  # a frame larger than the port's MTU cannot be for this guest
                    out.send(frame)
            self.released += len(frames)
            return len(frames)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)
        self._socket.close()


def announcement(mac: str, address: str) -> bytes:
    """A gratuitous ARP: a broadcast request for the guest's own address, which switches learn the port from."""
    source, ip = parse_mac(mac), IPv4Address(address).packed
    ethernet = b"\xff" * 6 + source + struct.pack(">H", _ETH_P_ARP)
    return ethernet + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + source + ip + bytes(6) + ip


def announce(interface: str, mac: str, address: str, times: int = 3) -> None:
    """Send gratuitous ARPs out of an interface."""
    with _sending(interface) as packet:
        for _ in range(times):
            packet.send(announcement(mac, address))
