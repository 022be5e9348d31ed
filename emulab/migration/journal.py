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


def entries(path: Path = JOURNAL) -> dict[str, dict[str, Any]]:
    """The newest line of each migration, with the fields of its older lines below it. Lines that cannot be read are left out."""
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "migration" in entry:
            key = str(entry["migration"])
            found[key] = {**found.pop(key, {}), **entry}  # moved to the end: later migrations of a guest win
    return found


def compact(path: Path = JOURNAL, *, beyond: int = 1 << 20, keep: int = 256) -> None:
    """Keep the newest line of the last ``keep`` migrations if the journal is larger than ``beyond`` bytes. Nobody may write meanwhile."""
    if not path.exists() or path.stat().st_size <= beyond:
        return
    partial = path.with_name(f"{path.name}.new")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in list(entries(path).values())[-keep:])
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def last_state(migration: str, path: Path = JOURNAL) -> str:
    """The newest state of a migration, or "unknown"."""
    return str(entries(path).get(migration, {}).get("state", "unknown"))
