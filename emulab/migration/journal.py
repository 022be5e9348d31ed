"""The decision of a migration, on disk, on both sides: what a restarted agent would have to know."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from emulab import clock

JOURNAL = Path("/var/lib/emulab/guests/journal.ndjson")


def record(migration: str, state: str, path: Path = JOURNAL, **fields: Any) -> None:
    """Append one line and make it durable before returning. ``state``: prepared, commit, running, released, aborted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"migration": migration, "state": state, "wall": clock.wall(), **fields}) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = "\n" + line  # a crash cut the last line off; it must not swallow this one
        os.write(descriptor, line.encode())
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def last_state(migration: str, path: Path = JOURNAL) -> str:
    """The newest state of a migration, or "unknown"."""
    state = "unknown"
    try:
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("migration") == migration:
                state = str(entry.get("state"))
    except FileNotFoundError:
        pass
    return state
