"""The agent's side of CRIU's action script: a unix socket on which each stage asks for a verdict."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from emulab import clock

log = logging.getLogger("emulab.criu")

Verdict = Callable[[int], bool]


class HookServer:
    """Serves one CRIU run. ``on(stage, verdict)`` registers what to do; stages without one are answered yes.

    ``times`` holds the monotonic instant at which each stage was first reached.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.times: dict[str, float] = {}
        self._verdicts: dict[str, Verdict] = {}
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen(8)
        self._thread = threading.Thread(target=self._serve, name=f"hooks {path.name}", daemon=True)
        self._thread.start()

    def on(self, stage: str, verdict: Verdict) -> None:
        self._verdicts[stage] = verdict

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    words = connection.recv(256).decode().split()
                    answer = self._answer(words[0], int(words[1]))
                    connection.sendall(b"0" if answer else b"1")
                except (OSError, ValueError, IndexError):
                    log.exception("hook on %s", self.path)

    def _answer(self, stage: str, pid: int) -> bool:
        self.times.setdefault(stage, clock.now())
        verdict = self._verdicts.get(stage)
        if verdict is None:
            return True
        try:
            return verdict(pid)
        except Exception:
            log.exception("hook %s refused", stage)
            return False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
