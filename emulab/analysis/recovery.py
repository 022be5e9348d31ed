"""How long users feel a migration: slowdown while rounds run, and the time until response times are ordinary again after resume."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from emulab.analysis.interval import Interval
from emulab.analysis.percentiles import percentile

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from emulab.analysis.run import Migration

WINDOW_S = 1.0
STEP_S = 0.1
SLOW_SHARE = 0.10
REFERENCE_PERCENT = 95
FEWEST_REFERENCES = 20


def ordinary_limits(before: pd.DataFrame) -> dict[str, float]:
    """p95 of the response times (``response_s``) before the migration, per operation, where at least 20 were measured."""
    limits = {}
    for name, group in before.groupby("operation"):
        if len(group) >= FEWEST_REFERENCES:
            limits[str(name)] = percentile(group["response_s"].to_numpy(float), REFERENCE_PERCENT)
    return limits


def recovery_s(operations: pd.DataFrame, limits: dict[str, float], resume_s: float, until_s: float) -> float:
    """Seconds from resume until the backlog is gone; NaN if it never is before ``until_s`` or nothing is known from before.

    Gone means: the first second, looked for in steps of 0.1 s, in which operations complete and at most 10 % of them failed or took
    longer than the p95 that their kind had before the migration. ``operations``: all of the run, as recorded.
    """
    if not limits or not math.isfinite(resume_s):
        return math.nan
    near = operations[(operations["end_s"] >= resume_s) & (operations["end_s"] < until_s + WINDOW_S)]
    near = near[near["operation"].isin(list(limits))].sort_values("end_s")
    end = near["end_s"].to_numpy(float)
    limit = near["operation"].map(limits).to_numpy(float)
    slow = ((end - near["start_s"].to_numpy(float)) > limit) | (near["outcome"] != "ok").to_numpy()
    grid = resume_s + STEP_S * np.arange(max(0, math.floor((until_s - resume_s) / STEP_S) + 1))
    low, high = np.searchsorted(end, grid), np.searchsorted(end, grid + WINDOW_S)
    total = np.concatenate(([0], np.cumsum(slow)))
    completed, slow_ones = high - low, total[high] - total[low]
    ordinary = (completed > 0) & (slow_ones <= SLOW_SHARE * completed)
    return float(grid[int(np.argmax(ordinary))] - resume_s) if ordinary.any() else math.nan


def affected(migration: Migration, recovered_s: float, until_s: float) -> Interval:
    """The "during" of a migration: its start to its end, or until the backlog is gone if that is later.

    A committed migration from which the load never recovered lasts until ``until_s`` (next migration or end of steady state).
    """
    end = migration.end_s if math.isfinite(migration.end_s) else until_s
    if math.isfinite(migration.resume_s):
        end = max(end, migration.resume_s + recovered_s) if math.isfinite(recovered_s) else max(end, until_s)
    return Interval(migration.start_s, end)


def medians(before: pd.DataFrame) -> dict[str, float]:
    """Median response time per operation."""
    return {str(name): percentile(group["response_s"].to_numpy(float), 50) for name, group in before.groupby("operation")}


def slowdown(operations: pd.DataFrame, ordinary: dict[str, float], interval: Interval) -> tuple[float, int]:
    """Median of response time / median of the same operation before, over operations started in the interval; and how many.

    1.0 = no slowdown. NaN without operations.
    """
    inside = operations[(operations["start_s"] >= interval.start_s) & (operations["start_s"] < interval.end_s)]
    inside = inside[inside["operation"].isin(list(ordinary))]
    ratio: NDArray[np.float64] = inside["response_s"].to_numpy(float) / inside["operation"].map(ordinary).to_numpy(float)
    return percentile(ratio, 50), len(ratio)
