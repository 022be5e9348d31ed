"""Samples (one per migration, as measured) and rows (what ``bench.json`` says), as plain data."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMAT_VERSION = 1
OURS, STOP_AND_COPY, PRE_DUMP = "ours", "stop-and-copy", "pre-dump"
MOVERS = {
    OURS: "ours",
    STOP_AND_COPY: "(a) stop-and-copy: runc checkpoint, streamed images, runc restore",
    PRE_DUMP: "(b) pre-copy: CRIU pre-dump rounds to its page server, stock freeze, restore",
}

Sample = dict[str, Any]


def sample(group: str, setting: str, mover: str, repetition: int, **fields: Any) -> Sample:
    """A line of ``raw.ndjson``.

    ``group``: what ``--only`` chooses; ``setting``: one configuration of guest and load in words, the same for every mover and repetition.
    A sample that failed has ``error`` (what went wrong), one that was not tried has ``left_out`` (why).
    """
    return {"group": group, "setting": setting, "mover": mover, "repetition": repetition, "error": "", "left_out": "", **fields}


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of n values of one unit."""

    median: float
    min: float
    max: float
    n: int
    unit: str

    def as_dict(self) -> dict[str, Any]:
        return {"median": self.median, "min": self.min, "max": self.max, "n": self.n, "unit": self.unit}


def spread(values: Iterable[float | None], unit: str) -> Spread | None:
    known = [float(value) for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known), len(known), unit) if known else None


@dataclass(frozen=True)
class Row:
    """One row of ``bench.json``. ``met``: None where there is no goal, or nothing to judge it by."""

    figure: str
    setting: str
    ours: dict[str, Any] | None
    baseline: dict[str, Any] | None
    ratio: float | None
    goal: str
    met: bool | None
    note: str = ""
    phases: dict[str, float] = field(default_factory=dict)  # of ours, seconds: where the time went, if a goal was missed

    def as_dict(self) -> dict[str, Any]:
        return {
            "figure": self.figure, "setting": self.setting, "ours": self.ours, "baseline": self.baseline, "ratio": self.ratio,
            "goal": self.goal, "met": self.met, "note": self.note, "phases": self.phases,
        }  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Least squares y = intercept + slope x. ``residual``: root mean square of what the line leaves; ``r2``: share it explains."""

    intercept: float
    slope: float
    residual: float
    r2: float
    n: int

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def fit(points: Sequence[tuple[float, float]]) -> Line | None:
    """None for fewer than two different x."""
    if len({x for x, _ in points}) < 2:
        return None
    slope, intercept = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    left = [y - (intercept + slope * x) for x, y in points]
    mean = statistics.fmean(y for _, y in points)
    total = sum((y - mean) ** 2 for _, y in points)
    unexplained = sum(value**2 for value in left)
    return Line(intercept, slope, (unexplained / len(points)) ** 0.5, 1 - unexplained / total if total else 1.0, len(points))


def percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1))]


def usable(samples: Iterable[Sample], **wanted: Any) -> list[Sample]:
    """Samples that succeeded and have these fields."""
    return [
        one for one in samples if not one["error"] and not one["left_out"] and all(one.get(key) == value for key, value in wanted.items())
    ]
