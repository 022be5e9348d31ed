"""Which operations count, as Faban counts them, and what is listed beside them.

An operation counts when it starts at or after the end of ramp-up and ends before the end of steady state. Errors and operations that
had not ended by then are no part of the percentiles; they are counted beside them, because an error storm would otherwise look fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from emulab.analysis.interval import Interval


@dataclass(frozen=True)
class Steady:
    """Steady state: the counted operations (with ``response_s`` and ``corrected_s``), errors, unfinished ones, and its bounds.

    ``response_s`` = end - actual start (Faban's). ``corrected_s`` = end - intended start: what somebody would have seen who did not
    wait for the previous operation (no coordinated omission).
    """

    interval: Interval
    counted: pd.DataFrame
    errors: pd.DataFrame
    unfinished: pd.DataFrame
    offered: int

    @property
    def offered_per_s(self) -> float:
        return self.offered / self.interval.length_s

    @property
    def done_per_s(self) -> float:
        return len(self.counted) / self.interval.length_s


def steady_state(operations: pd.DataFrame, interval: Interval) -> Steady:
    """Split the operations of a run. ``offered`` counts intended starts inside steady state."""
    started = operations[(operations["start_s"] >= interval.start_s) & (operations["start_s"] < interval.end_s)]
    ended = started["end_s"] < interval.end_s  # False for NaN
    failed = started["outcome"] == "error"
    counted = started[ended & (started["outcome"] == "ok")]
    counted = counted.assign(
        response_s=counted["end_s"] - counted["start_s"],
        # A first operation may start a little before its plan; waiting is never negative.
        corrected_s=counted["end_s"] - np.minimum(counted["intended_s"], counted["start_s"]),
    )
    intended = operations["intended_s"]
    return Steady(
        interval=interval,
        counted=counted,
        errors=started[failed],
        unfinished=started[~failed & ~(ended & (started["outcome"] == "ok"))],
        offered=int(((intended >= interval.start_s) & (intended < interval.end_s)).sum()),
    )
