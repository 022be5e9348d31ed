"""How far a migration is, told about five times a second while the guest still runs."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Self

from emulab.errors import EmulabError
from emulab.migration.dump import pages_in
from emulab.migration.pages import PAGE

if TYPE_CHECKING:
    from emulab.migration.departure import Departure

log = logging.getLogger("emulab.migration")

INTERVAL_S = 0.2


class Progress:
    """Emits rows ``migration.progress`` from a thread of its own for the length of the block."""

    def __init__(self, leaving: Departure, phase: str, *, expected_bytes: float, pages: int = 0, number: int = 0) -> None:
        """``expected_bytes``: on the wire in this phase; ``pages``: that a round is expected to send."""
        self._leaving = leaving
        self._phase = phase
        self._expected = expected_bytes
        self._pages = pages
        self._number = number
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._before = self._leaving.peer.bytes_out
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            try:
                row = self.row()
            except (OSError, EmulabError):  # a folder that goes away
                continue
            self._leaving.control.progress = row
            self._leaving.timeline.mark("migration.progress", **row)

    def row(self) -> dict[str, Any]:
        """``bytes_sent`` by the whole migration, ``bytes_left`` of this phase (an estimate), ``eta_s`` until the guest runs elsewhere."""
        leaving = self._leaving
        sent = leaving.peer.bytes_out
        left = max(0.0, self._expected - (sent - self._before))
        if self._number:  # pages that exist but were not sent yet are known better than expected
            written = pages_in(leaving.folder / str(self._number))
            self._pages = max(self._pages, written)
        last = leaving.report.rounds[-1] if leaving.report.rounds else None
        blackout = leaving.expected_blackout_s
        return {
            "phase": self._phase,
            "round": self._number,
            "bytes_sent": sent,
            "bytes_left": int(left),
            "pages": self._pages,
            "dirty_bytes_per_s": int(last.dirty_pages_per_s * PAGE) if last else 0,
            "expected_blackout_s": round(blackout, 3),
            "eta_s": round(left / leaving.wire.link_bytes_s + blackout, 2),
        }
