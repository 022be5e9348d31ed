"""Percentiles, exact from the rows.

The definition is *nearest rank*: the p-th percentile of n values is the ceil(n*p/100)-th smallest. It is always a value that was
measured, and "the 90th percentile is at most L" is the same as "at least 90 % of the values are at most L".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rank(n: int, percent: int) -> int:
    """Which of n sorted values (from 1) is the percentile. Integer arithmetic: 0.07 * 100 is not 7 in floating point."""
    return -(-n * percent // 100)


def percentile(values: NDArray[np.float64], percent: int) -> float:
    """Nearest-rank percentile (percent in 1..100); NaN without values."""
    n = len(values)
    if n == 0:
        return math.nan
    k = rank(n, percent) - 1
    return float(np.partition(values, k)[k])


def percentiles(values: NDArray[np.float64], *percents: int) -> tuple[float, ...]:
    """Several percentiles with one sort."""
    if len(values) == 0:
        return tuple(math.nan for _ in percents)
    ordered = np.sort(values)
    return tuple(float(ordered[rank(len(ordered), percent) - 1]) for percent in percents)


def faban_percentile(values: NDArray[np.float64], percent: int, largest_limit_s: float = 4.0) -> float:
    """The percentile as Faban would report it, for comparison with published numbers; NaN without values.

    Buckets of largest limit / 200 (20 ms for Olio) up to 1.5 times that limit, then ten times as wide, 369 in all; the upper edge of
    the first bucket whose cumulative count reaches the integer part of n*p. Source: akara/faban, engine/Metrics.java.
    """
    n = len(values)
    if n == 0:
        return math.nan
    fine = largest_limit_s / 200
    fine_count, coarse_count = 300, 69
    top = fine * fine_count
    index = np.where(
        values < top,
        np.floor(values / fine + 1e-9),
        fine_count + np.floor((values - top) / (10 * fine) + 1e-9),
    ).astype(np.int64)
    counts = np.bincount(np.clip(index, 0, fine_count + coarse_count - 1))
    reached = int(np.searchsorted(np.cumsum(counts), max(1, n * percent // 100)))
    if reached < fine_count:
        return round((reached + 1) * fine, 9)
    return round(top + (reached - fine_count + 1) * 10 * fine, 9)
