"""Programs that the agent runs for a caller: their output is passed on line by line, and they end when the caller goes."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from emulab import clock

_GRACE_S = 8.0
_STDERR_KEPT = 20_000


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the whole process group to end, wait, insist."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        try:
            process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_streamed(
    argv: Sequence[str], *, timeout_s: float, emit: Callable[[dict[str, Any]], None], gone: Callable[[], bool], cwd: str | None = None
) -> dict[str, Any]:
    """Run to the end, ``timeout_s`` or the caller's departure. Emits {"line": text} per line of standard output."""
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    pending, errors = b"", b""
    end = clock.now() + timeout_s
    reason = ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        try:
            while selector.get_map():
                for key, _ in selector.select(timeout=0.2):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stderr:
                        errors = (errors + data)[-_STDERR_KEPT:]
                    else:
                        *lines, pending = (pending + data).split(b"\n")
                        for line in lines:
                            emit({"line": line.decode(errors="replace")})
                if clock.now() > end:
                    reason = f"stopped after {timeout_s:g} s"
                    break
                if gone():
                    reason = "the caller has gone"
                    break
            if not reason:
                process.wait(timeout=max(1.0, end - clock.now()))
        except subprocess.TimeoutExpired:
            reason = f"stopped after {timeout_s:g} s"
        finally:
            _end(process) if process.poll() is None or reason else None
    return {"code": process.returncode, "stderr": errors.decode(errors="replace"), "reason": reason}
