"""Child processes that cannot outlive their parent, however it ends: the kernel kills them with it (``PR_SET_PDEATHSIG``, prctl(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from typing import TYPE_CHECKING

from emulab import clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec nothing may be loaded


def start(argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program that is killed when the calling thread ends. Its output goes to ``log``, in whose folder it runs."""
    parent = os.getpid()

    def bind_to_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            cwd=log.parent,
            preexec_fn=bind_to_parent,  # noqa: PLW1509 - one prctl, with its library loaded before
        )


def end(children: Sequence[subprocess.Popen[bytes]], *, patience_s: float, grace_s: float = 1.0) -> list[int]:
    """Wait for children to end by themselves for ``patience_s``, then SIGTERM, after ``grace_s`` SIGKILL. Returns their exit codes."""
    _wait(children, patience_s)
    for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for child in children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(number)
        _wait(children, limit_s)
    return [-1 if child.returncode is None else child.returncode for child in children]


def _wait(children: Sequence[subprocess.Popen[bytes]], limit_s: float) -> None:
    deadline = clock.now() + limit_s
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - clock.now()))
