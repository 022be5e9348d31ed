"""What the blackout consists of: the steps between the last instant at the source and the first at the destination."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulab.analysis.run import Migration, Run

STEPS = ("freeze", "dump", "transfer", "restore", "resume")
OTHER = "other"
NEGLIGIBLE = 0.01  # of the blackout


@dataclass(frozen=True)
class Step:
    """A part of the blackout: seconds after its begin, and how long."""

    name: str
    start_s: float
    length_s: float


def steps(run: Run, migration: Migration) -> list[Step]:
    """Steps in order of time, from the timeline; stretches that no step covers are ``other``.

    If the timeline lacks them, the durations of ``phases`` are laid end to end. Empty if the guest was not frozen or never resumed.
    """
    if not math.isfinite(migration.blackout_s) or not math.isfinite(migration.freeze_s):
        return []
    found = _from_timeline(run, migration) or _from_phases(migration)
    return _fill(found, migration.blackout_s)


def _from_timeline(run: Run, migration: Migration) -> list[Step]:
    begin, end = migration.freeze_s, migration.freeze_s + migration.blackout_s
    found = []
    for name in STEPS:
        for span in run.spans(f"migration.{name}", migration.id):
            first, last = max(span.start_s, begin), min(span.end_s, end)
            if last > first:
                found.append(Step(name, first - begin, last - first))
    commits = [float(row["mono_s"]) for row in run.events("migration.commit", migration.id)]
    if commits and begin <= commits[-1] < end:
        found.append(Step("resume", commits[-1] - begin, end - commits[-1]))
    return sorted(found, key=lambda step: step.start_s)


def _from_phases(migration: Migration) -> list[Step]:
    found: list[Step] = []
    at = 0.0
    for name in STEPS:
        length = min(migration.phases.get(name, 0.0), migration.blackout_s - at)
        if length > 0:
            found.append(Step(name, at, length))
            at += length
    return found


def _fill(found: list[Step], blackout_s: float) -> list[Step]:
    """Insert ``other`` where nothing is covered for more than 1 % of the blackout."""
    result: list[Step] = []
    negligible = NEGLIGIBLE * blackout_s
    at = 0.0
    for step in found:
        if step.start_s - at > negligible:
            result.append(Step(OTHER, at, step.start_s - at))
        result.append(step)
        at = max(at, step.start_s + step.length_s)
    if blackout_s - at > negligible:
        result.append(Step(OTHER, at, blackout_s - at))
    return result
