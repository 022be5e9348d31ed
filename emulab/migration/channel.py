"""The connection between two agents: TLS 1.2 with a pre-shared key that `up` hands to every node.

The key authenticates both sides and every record carries a sequence number, so nothing unauthenticated or replayed is accepted. Messages
are a JSON header and a binary payload, both length-prefixed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emulab import clock
from emulab.errors import EmulabError

PORT = 7070
MAX_HEADER = 16 * 1024 * 1024
MAX_PAYLOAD = 64 * 1024 * 1024
_BULK = 16384  # payloads from this size on are paced; smaller messages are the conversation, which must not wait
_PIECE = 65536
# TLS cuts what it sends into records of at most 16 KiB and adds a header, a nonce and a tag to each.
_RECORD, _RECORD_EXTRA = 16384, 5 + 8 + 16
_HEAD = struct.Struct(">II")
_HANDSHAKE_S = 5.0
_IDENTITY = "emulab"
_CIPHERS = "PSK-AES128-GCM-SHA256:PSK-AES256-GCM-SHA384"


class PeerError(EmulabError):
    """The other agent refused or failed, or the connection broke. ``details`` is what it sent along, such as a CRIU log."""

    def __init__(self, message: str, *, hint: str = "", details: Any = None) -> None:
        super().__init__(message, hint=hint)
        self.details = details


class PeerLostError(PeerError):
    """The connection broke: what the other side did last is not known."""


@dataclass(frozen=True)
class Incoming:
    """One received message."""

    kind: str
    fields: dict[str, Any]
    payload: bytes


class Pacer:
    """A token bucket: ``take`` waits until so many bytes may go. ``rate`` in bytes/s."""

    def __init__(self, rate: float, *, burst: float = _PIECE) -> None:
        self._rate = rate
        self._burst_s = burst / rate
        self._free_at = 0.0  # when everything taken so far has been earned

    def take(self, size: int) -> None:
        now = clock.now()
        self._free_at = max(self._free_at, now - self._burst_s) + size / self._rate
        if self._free_at > now:
            time.sleep(self._free_at - now)


class Meter:
    """Rate of a link in bytes/s, from how long large payloads took. None until a quarter of a second was spent on them."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._bytes = 0
        self._seconds = 0.0

    def add(self, size: int, seconds: float) -> None:
        self._bytes += size
        self._seconds += seconds
        if self._seconds >= 0.25:
            seen = self._bytes / self._seconds
            self.rate = seen if self.rate is None else (self.rate + seen) / 2
            self._bytes, self._seconds = 0, 0.0


def _waited_for_cpu() -> float:
    """Seconds that this thread has been ready to run and did not; 0 where the kernel does not count them."""
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            return int(file.read(100).split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def on_wire(size: int) -> int:
    """Bytes of TLS records for one write of ``size`` bytes."""
    return size + -(-size // _RECORD) * _RECORD_EXTRA


class Peer:
    """One side of a connection. Messages may be sent from several threads; one at a time may wait for one, and none sends meanwhile.

    ``bytes_out`` and ``bytes_in`` count TLS records, which is what TCP carries.
    """

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._pacer: Pacer | None = None
        self.meter = Meter()
        self.bytes_out = 0
        self.bytes_in = 0

    @property
    def local_host(self) -> str:
        """Address of this end."""
        return str(self._connection.getsockname()[0])

    @property
    def remote_host(self) -> str:
        return str(self._connection.getpeername()[0])

    def limit(self, bytes_per_s: float | None) -> None:
        """Send large payloads no faster than this, in bursts of at most 64 KiB; None: as fast as the link allows."""
        self._pacer = Pacer(bytes_per_s) if bytes_per_s else None

    def send(self, kind: str, payload: bytes | bytearray | memoryview = b"", **fields: Any) -> None:
        header = json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode()
        head = _HEAD.pack(len(header), len(payload)) + header
        with self._sending:
            try:
                if len(payload) < _BULK:
                    self._write(head + bytes(payload))
                else:
                    self._write(head)
                    self._write_bulk(memoryview(payload))
            except OSError as error:
                raise PeerLostError(f"the connection between the agents broke while sending {kind}: {error}") from error

    def _write(self, data: bytes | memoryview) -> None:
        self._connection.sendall(data)
        self.bytes_out += on_wire(len(data))

    def _write_bulk(self, payload: memoryview) -> None:
        started, behind = clock.now(), _waited_for_cpu()
        if self._pacer is None:
            self._write(payload)
        else:
            for at in range(0, len(payload), _PIECE):
                piece = payload[at : at + _PIECE]
                self._pacer.take(len(piece))
                self._write(piece)
        # A thread that lets guests go first takes long, which says nothing about the link.
        self.meter.add(len(payload), max(0.0, clock.now() - started - (_waited_for_cpu() - behind)))

    def receive(self, timeout_s: float | None = None) -> Incoming:
        """Next message. Raises PeerLostError at the end of the connection or after the timeout."""
        self._connection.settimeout(timeout_s)
        try:
            header_size, payload_size = _HEAD.unpack(self._exactly(_HEAD.size))
            if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
                raise PeerError(f"oversized message from the other agent ({header_size} + {payload_size} bytes)")
            header = json.loads(self._exactly(header_size))
            payload = self._exactly(payload_size)
            kind = header.pop("kind")
        except TimeoutError as error:
            raise PeerLostError(f"the other agent said nothing for {timeout_s} s") from error
        except OSError as error:
            raise PeerLostError(f"the connection between the agents broke: {error}") from error
        except (ValueError, KeyError, AttributeError) as error:
            raise PeerError(f"malformed message from the other agent: {error}") from error
        self.bytes_in += on_wire(_HEAD.size + header_size + payload_size)
        return Incoming(str(kind), header, bytes(payload))

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = self._connection.recv_into(view)
            if not got:
                raise PeerLostError("the other agent closed the connection")
            view = view[got:]
        return data

    def ask(
        self, kind: str, payload: bytes | bytearray | memoryview = b"", *, timeout_s: float | None = 60.0, **fields: Any
    ) -> dict[str, Any]:
        """Send and wait for the answer ``ok`` (its fields are returned). Raises PeerError for ``error``."""
        self.send(kind, payload, **fields)
        return self.expect_ok(timeout_s)

    def expect_ok(self, timeout_s: float | None = 60.0) -> dict[str, Any]:
        answer = self.receive(timeout_s)
        if answer.kind == "error":
            message, hint = (str(answer.fields.get(key) or "") for key in ("message", "hint"))
            raise PeerError(message or "the other agent failed", hint=hint, details=answer.fields.get("details"))
        if answer.kind != "ok":
            raise PeerError(f"the other agent answered {answer.kind!r} out of turn")
        return answer.fields

    def cut(self) -> None:
        """End the connection from another thread: whoever sends or receives on it now gets PeerLostError."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def drain(self, timeout_s: float) -> None:
        """After the last word: take in what the other side still sends until it closes. Closing over it would reset the connection, and
        a reset may overtake the word.
        """
        end = clock.now() + timeout_s
        with contextlib.suppress(OSError):
            while (left := end - clock.now()) > 0:
                self._connection.settimeout(left)
                if not self._connection.recv(1 << 16):
                    return

    def part(self, timeout_s: float) -> None:
        """Say that nothing more comes, and wait until the other side has done all that it had to do, and closes."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_WR)
        self.drain(timeout_s)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.close()


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A dead peer is noticed in about 6 s even when nothing is being sent.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 6000)


def _context(side: int, secret: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # no certificates: the key authenticates both sides
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    if side == ssl.PROTOCOL_TLS_CLIENT:
        context.set_psk_client_callback(lambda _hint: (_IDENTITY, secret))  # type: ignore[attr-defined]  # Python 3.13, on the nodes
    else:
        context.set_psk_server_callback(lambda _identity: secret)  # type: ignore[attr-defined]
    return context


def connect(host: str, secret: bytes, *, port: int = PORT, timeout_s: float = 5.0) -> Peer:
    """Open a connection to another node's agent. Raises PeerLostError."""
    try:
        plain = socket.create_connection((host, port), timeout=timeout_s)
        _tune(plain)
        return Peer(_context(ssl.PROTOCOL_TLS_CLIENT, secret).wrap_socket(plain))
    except OSError as error:
        raise PeerLostError(f"cannot reach the agent at {host}:{port}: {error}", hint="emulab status shows which nodes are up") from error


class Listener:
    """Accepts other agents on the node's LAN address; each connection is served by ``serve`` in a thread of its own."""

    def __init__(self, host: str, secret: bytes, serve: Callable[[Peer, str], None], *, port: int = PORT) -> None:
        self._secret = secret
        self._serve = serve
        self._socket = socket.create_server((host, port), backlog=16)
        self.port: int = self._socket.getsockname()[1]

    def accept_forever(self) -> None:
        """Runs until ``close``. A connection that fails to authenticate is dropped without an answer."""
        while True:
            try:
                plain, address = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(plain, address[0]), daemon=True, name=f"peer {address[0]}").start()

    def _handle(self, plain: socket.socket, address: str) -> None:
        plain.settimeout(_HANDSHAKE_S)
        with plain.dup() as same:  # wrapping takes the socket over; one who sends a byte now and then would keep its thread for ever
            limit = threading.Timer(_HANDSHAKE_S, _shut, args=(same,))
            limit.start()
            try:
                _tune(plain)
                secure = _context(ssl.PROTOCOL_TLS_SERVER, self._secret).wrap_socket(plain, server_side=True)
            except OSError:
                plain.close()
                return
            finally:
                limit.cancel()
                limit.join()
        peer = Peer(secure)
        try:
            self._serve(peer, address)
        finally:
            peer.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
