"""The agents' side of post-copy: the two processes that outlive them, started, spoken to, and found again by an agent's successor."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from emulab import clock
from emulab.errors import EmulabError
from emulab.migration.channel import PeerError, connect
from emulab.node.guest import Guests, start_ticks

log = logging.getLogger("emulab.migration.lazy")

STATES = Path("/run/emulab")


class Helper:
    """One such process. It reads lines from us and answers with lines of JSON; without us it goes on by itself."""

    module = ""

    def __init__(self) -> None:
        env = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE") if name in os.environ}
        self._process = subprocess.Popen(
            (sys.executable, "-m", self.module), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True
        )
        self._state: Path | None = None
        self._kept = False
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, line: str) -> None:
        """Raises EmulabError if it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EmulabError(f"{self.module} ended with {self._process.wait()}") from error

    def hear(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Its next line. Raises EmulabError if it has ended or says nothing, or if it says why it cannot go on."""
        assert self._process.stdout is not None
        end = None if timeout_s is None else clock.now() + timeout_s
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            left = None if end is None else max(0.0, end - clock.now())
            if not select.select([descriptor], [], [], left)[0]:
                raise EmulabError(f"{self.module} said nothing for {timeout_s} s")
            part = os.read(descriptor, 65536)
            if not part:
                raise EmulabError(f"{self.module} ended with {self._process.wait()}")
            self._rest += part
        line, self._rest = self._rest.split(b"\n", 1)
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise EmulabError(str(said["error"]))
        return said

    def remember(self, kind: str, call: dict[str, Any]) -> None:
        """On disk, readable by root alone: what a successor of this agent has to know about it."""
        self._state = state_of(kind, str(call["key"]))
        self._state.touch(mode=0o600)
        self._state.write_text(json.dumps({"pid": self.pid, "ticks": start_ticks(self.pid), **call}))

    def keep(self) -> None:
        """From now on it goes on whatever becomes of us."""
        self.tell("keep")
        self._kept = True

    def close(self) -> None:
        """It ends by itself once it does not hear us any more. One that was told to keep on is left alone until it has done its work."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            if self._kept:
                return
            self._process.kill()
            self._process.wait()
        if self._state:
            self._state.unlink(missing_ok=True)


class ServerProcess(Helper):
    """Serves the pages of a guest that is about to freeze here.

    ``port``: where; ``offered``: file that says what the other side has kept of them.
    """

    module = "emulab.migration.lazy.server"

    @classmethod
    def start(cls, *, guest: str, key: str, host: str, secret: bytes, port: int = 0, limit_bytes_s: float = 0.0, offered: str = "") -> Self:
        server = cls()
        where = {"host": host, "secret": secret.hex(), "port": port, "limit_bytes_s": limit_bytes_s}
        call = {"guest": guest, "key": key, "offered": offered, **where}
        server.tell(json.dumps(call))
        server.port = int(server.hear(20)["port"])
        server.remember("out", {**call, "port": server.port})
        return server

    def __init__(self) -> None:
        super().__init__()
        self.port = 0


class DaemonProcess(Helper):
    """Fetches the pages of a guest that arrives here."""

    module = "emulab.migration.lazy.daemon"

    def __init__(self) -> None:
        super().__init__()
        self._reach = ("", 0, b"", "")

    def attend(
        self, *, guest: str, key: str, folder: Path, host: str, port: int, secret: bytes, kept: dict[str, Any] | None = None
    ) -> None:
        """Make it ready for CRIU to restore from ``folder``. ``kept``: see ``Visit.handed_on``, where the source knows what was kept.

        Raises EmulabError if it cannot reach the source.
        """
        call = {"guest": guest, "key": key, "folder": str(folder), "host": host, "port": port, "secret": secret.hex(), "kept": kept}
        self._reach = (host, port, secret, key)
        self.tell(json.dumps(call))
        self.hear(20)
        self.remember("in", {"guest": guest, "key": key})

    def report_loss(self, reason: str) -> None:
        """The guest here is no more: its frozen original need not wait for anybody."""
        host, port, secret, key = self._reach
        try:
            peer = connect(host, secret, port=port)
            try:
                peer.ask("pages", key=key, timeout_s=10)
                peer.ask("done", reason=reason, timeout_s=30)
            finally:
                peer.close()
        except PeerError as error:
            log.warning("the source of %s cannot be told that it was ended: %s", key, error.message)


def state_of(kind: str, key: str) -> Path:
    return STATES / f"lazy-{kind}-{key}.json"


def left_behind(kind: str) -> list[dict[str, Any]]:
    """What an agent before this one remembered about such processes."""
    found = []
    for path in STATES.glob(f"lazy-{kind}-*.json"):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
    return found


def find(kind: str, key: str) -> dict[str, Any] | None:
    """The same about the one of a migration."""
    return next((state for state in left_behind(kind) if state["key"] == key), None)


def lives(state: dict[str, Any]) -> bool:
    return start_ticks(int(state["pid"])) == int(state["ticks"])


def forget(kind: str, state: dict[str, Any]) -> None:
    state_of(kind, str(state["key"])).unlink(missing_ok=True)


def end(kind: str, key: str) -> None:
    """Nobody needs this one any longer: the guest runs where its memory is."""
    state = find(kind, key)
    if state is None:
        return
    if lives(state):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(state["pid"]), signal.SIGKILL)
    forget(kind, state)


def await_arrival(state: dict[str, Any]) -> None:
    """Until the daemon of an agent before this one has ended."""
    while lives(state):
        time.sleep(0.1)
    forget("in", state)


def serve_on(state: dict[str, Any], guests: Guests) -> None:
    """The source of a post-copy whose agent was killed after the commit: see to it that the frozen guest is served to the last page."""
    name = str(state["guest"])
    guests.forget(name)
    while not lives(state):
        if not guests.has_tasks(name):
            break
        try:
            server = ServerProcess.start(
                guest=name,
                key=str(state["key"]),
                host=str(state["host"]),
                secret=bytes.fromhex(str(state["secret"])),
                port=int(state["port"]),
            )
            server.keep()
            server.hear()
            server.close()
            return
        except EmulabError as error:
            log.warning("pages of %s: %s", name, error.message)
            time.sleep(0.5)
    while lives(state):
        time.sleep(0.1)
    forget("out", state)
