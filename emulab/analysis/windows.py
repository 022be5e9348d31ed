"""Percentiles over every window of a given length, not only over windows that start on a grid.

An operation belongs to the window in which it starts. As a window slides, its content changes only where an operation leaves it or
enters it, so looking at those places covers all positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emulab.analysis.percentiles import percentile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from emulab.analysis.interval import Interval

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Worst:
    """The worst window: its percentile, where it starts (seconds), how many values it holds. NaN and 0 if nothing was measured."""

    value_s: float
    start_s: float
    samples: int


def worst_window(starts: Floats, values: Floats, percent: int, window_s: float, within: Interval) -> Worst:
    """The largest nearest-rank percentile over all windows [t, t + window) inside the interval; the earliest such window.

    If the window does not fit, the whole interval is the one window. ``starts``: in any order, all inside the interval.
    Cost: O(n log n) for n values (a search over the values, each step one pass over all windows).
    """
    if len(starts) == 0:
        return Worst(math.nan, math.nan, 0)
    order = np.argsort(starts, kind="stable")
    at, value = starts[order], values[order]
    if window_s >= within.length_s:
        return Worst(percentile(value, percent), within.start_s, len(value))
    t, low, high = _positions(at, window_s, within.start_s, within.end_s)
    n = high - low
    needed = -(-n * percent // 100)  # rank() of each window

    def windows_reaching(limit: float) -> NDArray[np.bool_]:
        """Windows whose percentile is at least the limit: fewer values than the rank lie below it."""
        below = np.concatenate(([0], np.cumsum(value < limit)))
        return (n > 0) & (below[high] - below[low] < needed)

    candidates = np.unique(value)
    first, last = 0, len(candidates) - 1
    while first < last:
        middle = (first + last + 1) // 2
        if windows_reaching(candidates[middle]).any():
            first = middle
        else:
            last = middle - 1
    index = int(np.argmax(windows_reaching(candidates[first])))
    return Worst(float(candidates[first]), float(t[index]), int(n[index]))


def _positions(at: Floats, window_s: float, begin_s: float, end_s: float) -> tuple[Floats, Ints, Ints]:
    """All windows with different content: start, and the index range of the operations inside.

    Content is constant for t in (change, next change], so the right ends of these stretches represent them.
    """
    last_s = end_s - window_s
    leaving = at[(at >= begin_s) & (at <= last_s)]
    entering = at[(at - window_s >= begin_s) & (at - window_s <= last_s)]
    t = np.concatenate((leaving, entering - window_s, [last_s]))
    low = np.searchsorted(at, t, side="left")
    # By the operation itself, not by t + window, which rounding may put on either side of it.
    high = np.searchsorted(at, np.concatenate((leaving + window_s, entering, [end_s])), side="left")
    order = np.argsort(t, kind="stable")
    return t[order], low[order].astype(np.int64), high[order].astype(np.int64)


def rolling(at: Floats, values: Floats, grid: Floats, width_s: float, *percents: int) -> list[Floats]:
    """Percentiles of the values within width/2 of each point of the grid; NaN where there are none. For figures."""
    order = np.argsort(at, kind="stable")
    ordered_at, ordered = at[order], values[order]
    low = np.searchsorted(ordered_at, grid - width_s / 2, side="left")
    high = np.searchsorted(ordered_at, grid + width_s / 2, side="right")
    result = [np.full(len(grid), math.nan) for _ in percents]
    for i, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        for line, percent in zip(result, percents, strict=True):
            line[i] = percentile(ordered[a:b], percent)
    return result
