"""What an independent observer saw: gaps between completed probes.

Probes are sent on a fixed schedule, whatever happened to the ones before (open loop), so a stop is seen in full: closed-loop users would
each record one long operation and then be silent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from emulab.analysis.interval import Interval


@dataclass(frozen=True)
class Gap:
    """The longest interval without a completed probe: seconds long, and when it began. NaN if there are no probes."""

    length_s: float
    start_s: float


def longest_gap(probes: pd.DataFrame, interval: Interval | None = None) -> Gap:
    """The longest time between two completions that follow each other and touch the interval (all of the run if None).

    If probes were still sent after the last completion, the gap runs on to the last one sent.
    """
    done = np.sort(probes["done_s"].dropna().to_numpy(float))
    sent = probes["sent_s"].dropna().to_numpy(float)
    if len(sent) == 0:
        return Gap(math.nan, math.nan)
    edges = np.concatenate(([sent.min()], done)) if len(done) == 0 or sent.min() < done[0] else done
    if sent.max() > edges[-1]:
        edges = np.concatenate((edges, [sent.max()]))
    start, end = edges[:-1], edges[1:]
    if interval is not None:
        touching = (end > interval.start_s) & (start < interval.end_s)
        start, end = start[touching], end[touching]
    if len(start) == 0:
        return Gap(math.nan, math.nan)
    worst = int(np.argmax(end - start))
    return Gap(float(end[worst] - start[worst]), float(start[worst]))


def client_stall_s(probes: pd.DataFrame, interval: Interval, probe_interval_s: float) -> float:
    """Longest interval without a completed probe that touches ``interval``, minus the probe's own interval; never below 0."""
    gap = longest_gap(probes, interval)
    return max(0.0, gap.length_s - probe_interval_s) if math.isfinite(gap.length_s) else math.nan


def lost(probes: pd.DataFrame, interval: Interval | None = None) -> int:
    """Probes that were sent (inside the interval) and never answered."""
    if interval is not None:
        probes = probes[(probes["sent_s"] >= interval.start_s) & (probes["sent_s"] < interval.end_s)]
    return int(probes["done_s"].isna().sum())
