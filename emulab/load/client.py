"""A small HTTP/1.1 client for one virtual user: one connection, one request at a time, no retries, and every request reported.

Made for measuring, so it does only what a careful browser does with its connection: it keeps the connection alive, honours the idle
timeout that the server advertises (closing a second early, so that no request races with the server's own close), and opens a new one
when the old one was closed. It never sends a request twice. Sockets are gevent's; parsing is a handful of ``bytes.find`` calls, which
costs less than a header-by-header parser with callbacks.

A request's time runs from its first byte out (the connection's first packet, if one must be opened) to the last byte in.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gevent import socket

from emulab import clock
from emulab.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEAD_LIMIT = 65536
_CHUNK = 262144


class RequestError(LoadError):
    """A request got no usable answer; the message says why in a few words and is what the records hold."""


class Exchange(NamedTuple):
    """One request as it is recorded. Times are monotonic seconds; ``size`` is the bytes received; ``status`` is 0 without an answer."""

    method: str
    path: str
    kind: str
    status: int
    start_s: float
    end_s: float
    size: int
    error: str | None
    connection: int
    reused: bool


class Sink(Protocol):
    def __call__(self, exchange: Exchange, /) -> None: ...


class Response(NamedTuple):
    """An answer: status, head (status line and headers, each ended by CRLF) and decoded body."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """First value of a header; its name in lower case."""
        low = self.head.lower()
        at = low.find(b"\r\n" + name + b":")
        if at < 0:
            return None
        at += len(name) + 3
        return self.head[at : self.head.index(b"\r\n", at)].strip()


class Client:
    """The browser of one virtual user.

    Args:
        host: IPv4 address or name of the server; a name is resolved at every connect.
        port: its TCP port.
        sink: called with every finished request, failed ones included.
        timeout_s: limit for a whole request: connect, send and answer.
        keepalive_s: idle timeout assumed of a server that advertises none.

    """

    def __init__(self, host: str, port: int, sink: Sink, *, timeout_s: float, keepalive_s: float) -> None:
        self.address = (host, port)
        self._sink = sink
        self._timeout_s = timeout_s
        self._keepalive_s = self._assumed_keepalive_s = keepalive_s
        self._sock: socket.socket | None = None
        self._deadline = 0.0
        self._last_used_s = 0.0
        self._received = 0
        self._number = -1
        self.connections = 0
        name = host if port == 80 else f"{host}:{port}"
        self._common = (
            f" HTTP/1.1\r\nHost: {name}\r\nUser-Agent: Mozilla/5.0 (emulab)\r\n"
            "Accept: text/html,application/xhtml+xml,image/png,*/*;q=0.5\r\nAccept-Language: en\r\n"
            "Connection: keep-alive\r\n"  # Apache advertises its timeout to those who say so
        ).encode()
        self._cookies: dict[bytes, bytes] = {}
        self._cookie_line = b""

    def get(self, path: str, kind: str, *, headers: bytes = b"") -> Response:
        """GET ``path`` (with its leading slash). ``headers`` are whole lines, each ended by CRLF."""
        return self._exchange("GET", path, kind, headers, b"")

    def post(self, path: str, kind: str, body: bytes, content_type: str) -> Response:
        head = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n".encode()
        return self._exchange("POST", path, kind, head, body)

    def post_alone(self, path: str, kind: str, body: bytes, content_type: str) -> Response:
        """POST over a new connection of its own that is closed afterwards; the kept-alive one is left as it is."""
        kept = (self._sock, self._last_used_s, self._keepalive_s, self._number)
        self._sock = None
        try:
            return self.post(path, kind, body, content_type)
        finally:
            self.close()
            self._sock, self._last_used_s, self._keepalive_s, self._number = kept

    def forget(self) -> None:
        """Drop connection and cookies, as a browser that is closed."""
        self.close()
        self._cookies.clear()
        self._cookie_line = b""

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
            self._keepalive_s = self._assumed_keepalive_s

    @property
    def idle_limit_s(self) -> float:
        """How long the connection may stay idle before we close it, so that the server never closes one that we are about to use."""
        return max(self._keepalive_s - 1.0, self._keepalive_s / 2)

    def rest(self) -> None:
        """Between operations: close the connection if it has been idle for its limit. Not to be called during a request."""
        if self._sock is not None and clock.now() - self._last_used_s >= self.idle_limit_s:
            self.close()

    @property
    def cookies(self) -> Mapping[bytes, bytes]:
        return self._cookies

    def _exchange(self, method: str, path: str, kind: str, headers: bytes, body: bytes) -> Response:
        self._received = 0
        status = 0
        error: str | None = None
        # Looking at an idle connection sends nothing, so it is not part of the request.
        reused = self._usable(clock.now())
        start = clock.now()
        self._deadline = start + self._timeout_s
        try:
            if self._sock is None:
                self._open()
            assert self._sock is not None
            self._sock.settimeout(self._timeout_s)
            self._sock.sendall(b"".join((method.encode(), b" ", path.encode(), self._common, self._cookie_line, headers, b"\r\n", body)))
            response = self._answer()
            status = response.status
        except TimeoutError:
            error = "timeout" if self._sock is not None else "connect timeout"
        except OSError as failure:
            error = ("" if self._sock is not None else "connect: ") + (errno.errorcode.get(failure.errno or 0) or str(failure))
        except RequestError as failure:
            error = failure.message
        except BaseException:
            # The user is being stopped in the middle of a request.
            self.close()
            self._sink(Exchange(method, path, kind, 0, start, clock.now(), self._received, "unfinished", self._number, reused))
            raise
        end = self._last_used_s = clock.now()
        connection = self._number
        if error is not None:
            self.close()
            self._sink(Exchange(method, path, kind, status, start, end, self._received, error, connection, reused))
            raise RequestError(error)
        if status >= 400:
            error = f"status {status}"
        self._sink(Exchange(method, path, kind, status, start, end, self._received, error, connection, reused))
        return response

    def _usable(self, now: float) -> bool:
        """Whether the next request goes out on the open connection; one that is closed or about to be is dropped here."""
        if self._sock is None:
            return False
        idle = now - self._last_used_s
        if idle < 0.05:
            return True
        if idle > self.idle_limit_s:
            self.close()
            return False
        try:
            # Peeks the plain socket: data or an end of file on an idle connection both mean that it is of no more use.
            self._sock._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)  # noqa: SLF001
        except BlockingIOError:
            return True
        except OSError:
            pass
        self.close()
        return False

    def _open(self) -> None:
        self._number = self.connections
        self.connections += 1
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        self._sock = sock

    def _more(self) -> bytes:
        assert self._sock is not None
        self._sock.settimeout(max(0.001, self._deadline - clock.now()))
        data: bytes = self._sock.recv(_CHUNK)
        self._received += len(data)
        return data

    def _need(self) -> bytes:
        data = self._more()
        if not data:
            raise RequestError("closed before the end of the answer" if self._received else "closed without an answer")
        return data

    def _answer(self) -> Response:
        data = b""
        while True:
            edge = data.find(b"\r\n\r\n")
            if edge < 0:
                if len(data) > _HEAD_LIMIT:
                    raise RequestError("answer without an end of its head")
                data += self._need()
                continue
            head, rest = data[: edge + 2], data[edge + 4 :]
            try:
                status = int(head[9:12])
            except ValueError:
                raise RequestError("not an HTTP answer") from None
            if status >= 200:
                break
            data = rest  # after 100 Continue and the like the real answer follows
        low = head.lower()
        keep = head.startswith(b"HTTP/1.1") and b"\r\nconnection: close" not in low
        if status in (204, 304):
            body, extra = b"", rest
        elif (at := low.find(b"\r\ncontent-length:")) >= 0:
            try:
                length = int(low[at + 17 : low.index(b"\r\n", at + 17)])
            except ValueError:
                raise RequestError("bad length of the answer") from None
            body, extra = self._counted(rest, length)
        elif b"\r\ntransfer-encoding: chunked" in low:
            body, extra = self._chunked(rest)
        else:
            body, extra, keep = self._rest(rest), b"", False
        if b"\r\nset-cookie:" in low:
            self._take_cookies(head, low)
        if not keep or extra:
            self.close()
        else:
            self._note_keepalive(low)
        return Response(status, head, body)

    def _counted(self, rest: bytes, length: int) -> tuple[bytes, bytes]:
        missing = length - len(rest)
        if missing <= 0:
            return rest[:length], rest[length:]
        parts = [rest]
        while missing > 0:
            data = self._need()
            missing -= len(data)
            parts.append(data)
        body = b"".join(parts)
        return body[:length], body[length:]

    def _chunked(self, rest: bytes) -> tuple[bytes, bytes]:
        data = bytearray(rest)
        parts: list[bytes] = []
        at = 0
        while True:
            while (eol := data.find(b"\r\n", at)) < 0:
                data += self._need()
            try:
                size = int(data[at:eol].split(b";", 1)[0], 16)
            except ValueError:
                raise RequestError("bad chunk in the answer") from None
            at = eol + 2
            if size == 0:
                break
            while len(data) < at + size + 2:
                data += self._need()
            parts.append(bytes(data[at : at + size]))
            at += size + 2
        while True:  # trailers, up to an empty line
            while (eol := data.find(b"\r\n", at)) < 0:
                data += self._need()
            if eol == at:
                return b"".join(parts), bytes(data[eol + 2 :])
            at = eol + 2

    def _rest(self, rest: bytes) -> bytes:
        parts = [rest]
        while data := self._more():
            parts.append(data)
        return b"".join(parts)

    def _note_keepalive(self, low: bytes) -> None:
        at = low.find(b"\r\nkeep-alive:")
        if at < 0:
            return
        at = low.find(b"timeout=", at, low.index(b"\r\n", at + 2))
        if at < 0:
            return
        end = at + 8
        while low[end : end + 1].isdigit():
            end += 1
        if end > at + 8:
            self._keepalive_s = float(low[at + 8 : end])

    def _take_cookies(self, head: bytes, low: bytes) -> None:
        at = low.find(b"\r\nset-cookie:")
        while at >= 0:
            end = head.index(b"\r\n", at + 2)
            pair, _, attributes = head[at + 13 : end].partition(b";")
            name, _, value = pair.strip().partition(b"=")
            if b"max-age=0" in attributes.lower().replace(b" ", b"") or value == b"deleted":
                self._cookies.pop(name, None)
            else:
                self._cookies[name] = value
            at = low.find(b"\r\nset-cookie:", end)
        line = b"; ".join(name + b"=" + value for name, value in self._cookies.items())
        self._cookie_line = b"Cookie: " + line + b"\r\n" if line else b""
