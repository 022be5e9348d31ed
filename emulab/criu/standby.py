"""CRIU started before it is needed: what it costs to start and load a program is paid before the freeze, not inside it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from emulab.criu.commands import CriuCall
from emulab.criu.hooks import HookServer, Verdict
from emulab.errors import EmulabError
from emulab.nice import NORMAL, renice

_ANSWER = struct.Struct("=i")
_PATH = "/usr/local/lib/emulab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # our tar comes first


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """A child's whole environment: nothing of the agent's own is passed on."""
    return {"PATH": _PATH, **extra}


def start(call: CriuCall) -> subprocess.Popen[bytes]:
    """Start CRIU now, in a process group of its own: see ``end``."""
    process = subprocess.Popen(
        call.argv,
        env=environment(call.env),
        pass_fds=call.descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    renice(process.pid, NORMAL)  # whoever starts it may wait for guests; a guest that it stops waits for it
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End CRIU unless it has ended, and what one that was killed has left: children to try out the kernel on, which sleep for ever."""
    process.kill()
    if process.wait() < 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class Standby:
    """A CRIU that is loaded and waits (in ``shim.so``) for ``go``. It ends by itself if its agent ends, or at ``close``."""

    def __init__(self, call: CriuCall) -> None:
        self._go, gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            env = {**call.env, "EMULAB_SHIM_GATE": str(gate.fileno())}
            self.process = start(replace(call, env=env, descriptors=(gate.fileno(), *call.descriptors)))
        except BaseException:
            self._go.close()
            raise
        finally:
            gate.close()
        self._open = True

    def go(self) -> subprocess.Popen[bytes]:
        """Let it begin. Raises EmulabError if it is not there any more."""
        try:
            if not self._open:
                raise BrokenPipeError
            self._go.send(b"g", socket.MSG_NOSIGNAL)
        except OSError as error:
            raise EmulabError(f"CRIU ended before it was to begin (code {self.process.poll()})") from error
        self._shut()
        return self.process

    def put(self, orders: bytes, timeout_s: float = 10.0) -> int:
        """Let it put pages into its memory (``struct prefill_order`` of native/shim.h). Not after ``go``.

        Returns how many pages its memory has grown by. Raises EmulabError if it could not.
        """
        try:
            self._go.settimeout(timeout_s)
            self._go.send(orders, socket.MSG_NOSIGNAL)
            (grown,) = _ANSWER.unpack(self._go.recv(_ANSWER.size))
        except (OSError, struct.error) as error:
            raise EmulabError(f"CRIU does not answer: {error}") from error
        if grown < 0:
            raise EmulabError("CRIU has no memory, or no such pages")
        return int(grown)

    def close(self) -> None:
        """Without ``go`` before: it ends and has done nothing. Safe to repeat."""
        if self._open:
            self._shut()
            self.process.wait()

    def _shut(self) -> None:
        if self._open:
            self._open = False
            self._go.close()


class HookedCriu:
    """A CRIU that begins at once, with the server that its action script asks. A verdict that waits must be set free before ``stop``."""

    def __init__(self, call: CriuCall, socket_path: Path, verdicts: Mapping[str, Verdict]) -> None:
        self.hooks = HookServer(socket_path)
        for stage, verdict in verdicts.items():
            self.hooks.on(stage, verdict)
        try:
            self.process = self._start(call)
        except BaseException:
            self.hooks.close()
            raise

    def _start(self, call: CriuCall) -> subprocess.Popen[bytes]:
        return start(call)

    def stop(self, patience_s: float = 10.0) -> None:
        """Wait until it has ended by itself, as after a refusal; for ``patience_s``, then it is ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
        self.kill()

    def kill(self) -> None:
        end(self.process)


class HookedStandby(HookedCriu):
    """The same, but it waits for ``standby.go``."""

    def _start(self, call: CriuCall) -> subprocess.Popen[bytes]:
        self.standby = Standby(call)
        return self.standby.process

    def stop(self, patience_s: float = 10.0) -> None:
        self.standby.close()
        super().stop(patience_s)
