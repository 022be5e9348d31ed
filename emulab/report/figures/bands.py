"""What was done to the guest, as shaded bands: rounds, freeze to end of transfer, restore; and a line at resume."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from emulab.report.figures.model import Band, Mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulab.analysis import Migration, Run

LEGEND = (
    ("round-odd", "pre-copy round"),
    ("freeze", "blackout: freeze, dump, transfer"),
    ("restore", "blackout: restore, resume"),
)


def bands(run: Run, migrations: Sequence[Migration], *, zero_s: float, detailed: bool = False) -> list[Band]:
    """Bands of the migrations, in seconds after ``zero_s``. ``detailed`` names them."""
    found: list[Band] = []
    for migration in migrations:
        rounds = [item for item in migration.rounds if item.get("kind") != "final" and _known(item.get("start_s"), item.get("duration_s"))]
        for i, item in enumerate(rounds):
            start = float(item["start_s"]) - zero_s
            after = item.get("kind") == "post-copy"
            label = "pages follow" if after else f"round {item.get('n', i + 1)}" if detailed else str(item.get("n", i + 1))
            found.append(Band(start, start + float(item["duration_s"]), "round-even" if i % 2 else "round-odd", label))
        if not _known(migration.freeze_s, migration.resume_s):
            continue
        freeze, resume = migration.freeze_s - zero_s, migration.resume_s - zero_s
        restore = [span.start_s - zero_s for span in run.spans("migration.restore", migration.id)]
        middle = restore[-1] if restore and freeze < restore[-1] < resume else resume
        found.append(
            Band(freeze, middle, "freeze", "freeze, dump, transfer" if detailed and middle < resume else "blackout" if detailed else "")
        )
        if middle < resume:
            found.append(Band(middle, resume, "restore", "restore" if detailed else ""))
    return found


def marks(migrations: Sequence[Migration], *, zero_s: float) -> list[Mark]:
    """A line where each guest ran again."""
    return [Mark(migration.resume_s - zero_s, "resume") for migration in migrations if _known(migration.resume_s)]


def ramps(run: Run) -> list[Band]:
    """Ramp-up and ramp-down, which do not count, in seconds of steady state."""
    if run.steady is None:
        return []
    found: list[Band] = []
    for name, label in (("load.ramp_up", "ramp-up"), ("load.ramp_down", "ramp-down")):
        ended = [span for span in run.spans(name) if math.isfinite(span.end_s)]
        found += [Band(span.start_s - run.origin_s, span.end_s - run.origin_s, "ramp", label) for span in ended]
    return found


def _known(*values: object) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
