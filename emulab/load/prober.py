"""An open-loop prober: asks for a small file every few milliseconds, whatever the answers do, and notes when each answer comes.

Closed-loop users stop asking while the server is away, so they see an outage only a few times each. The prober asks on an absolute
timetable, in a process of its own, pipelined on one kept-alive connection (which keeps one worker of a prefork server busy). Answers
come in the order of the requests (RFC 9112, section 9.3.2). A probe on a connection that breaks, or that cannot be opened, is lost;
nothing is sent twice.

``python -m emulab.load.prober --target 198.18.0.100:80 --interval 0.01 --duration 180 --out probes.csv``

Stops by itself, or on SIGTERM, with everything written. Columns: ``n,intended_s,sent_s,done_s,error``; a lost probe has no ``done_s``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import json
import os
import select
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import NamedTuple

from emulab import clock
from emulab.errors import LoadError, UsageError

COLUMNS = "n,intended_s,sent_s,done_s,error"
_RECONNECT_S = 0.1
_LAST_ANSWERS_S = 0.5


class Probe(NamedTuple):
    """A probe on its way."""

    n: int
    intended_s: float
    sent_s: float


class Prober:
    """Sends probes on a timetable and writes one line for each.

    Args:
        host: IPv4 address or name of the server.
        port: its TCP port.
        path: what to ask for; a small static file.
        interval_s: time from probe to probe.
        duration_s: how long to go on; infinity is allowed.
        out: the file of records.
        timeout_s: a connection on which nothing was answered for this long is given up.

    """

    def __init__(
        self, host: str, port: int, path: str, *, interval_s: float, duration_s: float, out: Path, timeout_s: float = 60.0
    ) -> None:
        if interval_s <= 0 or duration_s <= 0:
            raise UsageError("a prober needs an interval and a duration above 0 s")
        name = host if port == 80 else f"{host}:{port}"
        self._address = (socket.gethostbyname(host), port)
        self._request = f"GET {path} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: emulab-prober\r\n\r\n".encode()
        self._interval_s = interval_s
        self._duration_s = duration_s
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None
        self._connected = False
        self._tried_s = float("-inf")
        self._heard_s = 0.0
        self._waiting: deque[Probe] = deque()
        self._unsent = b""
        self._answer = b""
        self._lines: list[str] = [COLUMNS + "\n"]
        self._file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._stop = False
        self.sent = self.lost = 0
        self.longest_gap_s = 0.0
        self._last_done_s: float | None = None

    def stop(self) -> None:
        """Let ``run`` end soon; may be called from a signal handler."""
        self._stop = True

    def run(self) -> None:
        """Probe until the duration is over or ``stop`` is called, then wait a moment for answers on their way and write the rest."""
        first = clock.now()
        until = first + self._duration_s
        n = 0
        due = first
        flush = first + 1.0
        while not self._stop and due < until:
            now = clock.now()
            while due <= now and due < until:
                self._send(n, due)
                n += 1
                due = first + n * self._interval_s
                now = clock.now()
            if now >= flush:
                self._flush()
                flush = now + 1.0
            self._watch(now)
            self._serve(max(0.0, due - clock.now()))
        patience = clock.now() + _LAST_ANSWERS_S
        while self._waiting and self._sock is not None and (left := patience - clock.now()) > 0:
            self._serve(left)
        self._drop("unanswered")
        self._flush()
        os.close(self._file)

    def _send(self, n: int, intended: float) -> None:
        self.sent += 1
        now = clock.now()
        if self._sock is None and now - self._tried_s >= _RECONNECT_S:
            self._connect(now)
        if self._sock is None:
            self._note(Probe(n, intended, now), None, "not connected")
            return
        if not self._waiting:
            self._heard_s = now
        self._waiting.append(Probe(n, intended, now))
        self._unsent += self._request
        if self._connected:
            self._push()

    def _connect(self, now: float) -> None:
        self._tried_s = self._heard_s = now
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connected = False
        try:
            self._sock.connect(self._address)
            self._connected = True
        except BlockingIOError:
            pass
        except OSError as error:
            self._drop(_name(error))

    def _push(self) -> None:
        assert self._sock is not None
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self._drop(_name(error))

    def _serve(self, wait_s: float) -> None:
        """Wait until something can be read or written, or the time is over; do it."""
        if self._sock is None:
            select.select((), (), (), wait_s)
            return
        wants_write = (self._sock,) if self._unsent or not self._connected else ()
        try:
            readable, writable, _ = select.select((self._sock,), wants_write, (), wait_s)
        except InterruptedError:
            return
        if writable:
            if not self._connected:
                code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self._drop(errno.errorcode.get(code, str(code)))
                    return
                self._connected = True
            self._push()
        if readable and self._sock is not None and self._connected:
            self._read()

    def _read(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(_name(error))
            return
        now = clock.now()
        if not data:
            self._drop("closed by the server")
            return
        self._heard_s = now
        self._answer += data
        while (edge := self._answer.find(b"\r\n\r\n")) >= 0 and self._waiting:
            head = self._answer[:edge].lower()
            at = head.find(b"\r\ncontent-length:")
            try:
                status = int(head[9:12])
                length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            except ValueError:
                self._drop("not an HTTP answer")
                return
            if len(self._answer) < edge + 4 + length:
                return
            self._answer = self._answer[edge + 4 + length :]
            self._note(self._waiting.popleft(), now, None if status == 200 else f"status {status}")
            if b"\r\nconnection: close" in head:
                self._drop("closed by the server")
                return

    def _watch(self, now: float) -> None:
        if self._sock is not None and self._waiting and now - self._heard_s > self._timeout_s:
            self._drop("timeout")

    def _drop(self, reason: str) -> None:
        """Give up the connection: what waits on it is lost."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._unsent = self._answer = b""
        while self._waiting:
            self._note(self._waiting.popleft(), None, reason)

    def _note(self, probe: Probe, done_s: float | None, error: str | None) -> None:
        done = "" if done_s is None else f"{done_s:.6f}"
        self._lines.append(f"{probe.n},{probe.intended_s:.6f},{probe.sent_s:.6f},{done},{error or ''}\n")
        if done_s is None:
            self.lost += 1
            return
        if self._last_done_s is not None:
            self.longest_gap_s = max(self.longest_gap_s, done_s - self._last_done_s)
        self._last_done_s = done_s

    def _flush(self) -> None:
        data = memoryview("".join(self._lines).encode())
        self._lines.clear()
        while data:
            data = data[os.write(self._file, data) :]


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0) or str(error)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m emulab.load.prober", description="Probe a web server on a fixed timetable.")
    parser.add_argument("--target", required=True, metavar="HOST:PORT")
    parser.add_argument("--path", default="/probe.txt")
    parser.add_argument("--interval", type=float, default=0.01, metavar="SECONDS")
    parser.add_argument("--duration", type=float, default=float("inf"), metavar="SECONDS", help="default: until SIGTERM")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="give up a silent connection after this long")
    parser.add_argument("--out", type=Path, required=True, help="CSV file; a summary is written beside it, ending in .json")
    args = parser.parse_args(argv)
    host, _, port = args.target.rpartition(":")
    try:
        prober = Prober(
            host, int(port), args.path, interval_s=args.interval, duration_s=args.duration, out=args.out, timeout_s=args.timeout
        )
    except (OSError, ValueError, LoadError) as error:
        sys.stderr.write(f"prober: {error}\n")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: prober.stop())
    # A late prober would blame the server: no pauses for garbage, and first in the queue for a processor where that is allowed.
    gc.disable()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    prober.run()
    summary = {"interval_s": args.interval, "sent": prober.sent, "lost": prober.lost, "longest_gap_s": prober.longest_gap_s}
    args.out.with_suffix(".json").write_text(json.dumps(summary), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
