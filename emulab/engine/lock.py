"""One experiment at a time per machine. The lock is the kernel's: it ends with its holder, even by kill -9."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from emulab.errors import UsageError


def lock_path() -> Path:
    """``/run/emulab.lock`` for root, else in the user's own runtime folder."""
    if os.geteuid() == 0:
        return Path("/run/emulab.lock")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / "emulab.lock"


@contextmanager
def exclusive(what: str, path: Path | None = None) -> Iterator[None]:
    """Hold the machine's lock. Raises UsageError, naming the holder, if somebody else has it.

    ``what`` is what the holder does, for the one who is refused: "an experiment", "a migration".
    """
    path = path or lock_path()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "unknown holder"
            raise UsageError(
                f"{holder} is under way on this machine", hint="wait for it, or stop it with Ctrl-C in its terminal"
            ) from error
        since = datetime.now(UTC).strftime("%H:%M:%S UTC")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{what} (pid {os.getpid()}, since {since})\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
