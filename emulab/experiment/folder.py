"""The run folder while it is being written. Its content is described in ``docs/run-folder.md``."""

from __future__ import annotations

import json
import os
import secrets
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.errors import UsageError

FORMAT_VERSION = 1
RUNS = Path("runs")


class RunFolder:
    """``runs/<scenario>/<UTC time>-<short id>`` and the link ``runs/latest``. Safe to append to from several threads."""

    def __init__(self, scenario: str, base: Path = RUNS) -> None:
        self.id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        self.path = base / scenario / self.id
        self.logs = self.path / "logs"
        try:
            self.logs.mkdir(parents=True)
        except OSError as error:
            raise UsageError(
                f"cannot write the run folder {self.path}: {error.strerror}", hint="run from a folder you may write to"
            ) from error
        self._timeline = (self.path / "timeline.ndjson").open("a", encoding="utf-8")
        self._lock = threading.Lock()
        _point_latest(base, self.path)

    def event(self, name: str, kind: str = "event", *, source: str = "cli", **fields: Any) -> float:
        """Append a row of our own to the timeline; returns its instant."""
        instant = clock.now()
        self.row({"mono_s": instant, "wall": clock.wall(), "source": source, "name": name, "kind": kind, **fields})
        return instant

    def row(self, row: dict[str, Any]) -> None:
        """Append a row that somebody else made."""
        with self._lock:
            if not self._timeline.closed:
                self._timeline.write(json.dumps(row) + "\n")
                self._timeline.flush()

    def write_json(self, name: str, data: Any) -> None:
        """Write a document, whole or not at all."""
        partial = self.path / f".{name}.new"
        partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.path / name)

    def write_text(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8")

    def write_log(self, name: str, text: str) -> Path:
        path = self.logs / name
        path.write_text(text, encoding="utf-8")
        return path

    def close(self) -> None:
        with self._lock:
            self._timeline.close()


def _point_latest(base: Path, target: Path) -> None:
    """Let ``latest`` name this run, in one step."""
    partial = base / f".latest-{os.getpid()}"
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.relative_to(base))
    partial.replace(base / "latest")


def previous_source(base: Path = RUNS) -> str | None:
    """Host that the previous run migrated from: no later run goes there at once (the paper's rule). None if it cannot be told."""
    try:
        migrations = json.loads((base / "latest" / "migrations.json").read_text(encoding="utf-8"))
        return str(migrations[0]["source"]) if migrations else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
