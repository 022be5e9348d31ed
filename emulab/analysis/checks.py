"""Faban's own checks of a run: the mix against its long-run shares, delays against their plan, users against throughput."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workloads.olio.driver.mix import MIX

if TYPE_CHECKING:
    import pandas as pd

    from emulab.analysis.interval import Interval

MIX_TOLERANCE = 0.02  # absolute; Faban's default
DELAY_TOLERANCE = 0.02  # relative; Olio's setting
USERS_PER_RATE_LIMIT = 5.25  # s; Olio's check, the ideal is 4.966


@dataclass(frozen=True)
class Delays:
    """Mean delays between operations in seconds: as the driver drew them, and as it kept them."""

    drawn_s: float
    achieved_s: float
    samples: int

    @property
    def deviation(self) -> float:
        """Achieved against drawn, relative. Positive: operations started late."""
        return self.achieved_s / self.drawn_s - 1 if self.drawn_s > 0 else math.nan

    @property
    def holds(self) -> bool:
        return abs(self.deviation) <= DELAY_TOLERANCE


def mix(counted: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Per operation (share measured, long-run share of the matrix). Measured is NaN if nothing was counted."""
    counts = counted["operation"].value_counts()
    total = int(counts.sum())
    return {name: (int(counts.get(name, 0)) / total if total else math.nan, share) for name, share in MIX.stationary().items()}


def delays(operations: pd.DataFrame, interval: Interval, pacing: str) -> Delays:
    """Delays after operations that start inside the interval and are followed by one of the same user that does too.

    With pacing ``cycle`` a delay runs from start to start, with ``think`` from end to start.
    """
    ordered = operations.sort_values(["user", "seq"], kind="stable")
    following = ordered.groupby("user")["start_s"].shift(-1)
    achieved = following - ordered["end_s" if pacing == "think" else "start_s"]
    inside = (ordered["start_s"] >= interval.start_s) & (following < interval.end_s) & ordered["cycle_s"].notna() & achieved.notna()
    if not inside.any():
        return Delays(math.nan, math.nan, 0)
    return Delays(float(np.mean(ordered.loc[inside, "cycle_s"])), float(np.mean(achieved[inside])), int(inside.sum()))
