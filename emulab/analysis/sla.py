"""The service level agreement: per operation, a limit that the 90th and the 99th percentile must keep in any window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emulab.analysis.percentiles import percentile
from emulab.analysis.quantities import seconds
from emulab.analysis.windows import Worst, worst_window

if TYPE_CHECKING:
    import pandas as pd

    from emulab.analysis.interval import Interval

PERCENTS = (90, 99)
WINDOW_S = 300.0

# The paper's limits, equal to max90th in Olio's UIDriver.java.
LIMITS_S = {"HomePage": 1.0, "Login": 1.0, "TagSearch": 2.0, "EventDetail": 2.0, "PersonDetail": 2.0, "AddPerson": 3.0, "AddEvent": 4.0}


@dataclass(frozen=True)
class Rule:
    """Limits per operation and the window over which they must hold."""

    window_s: float
    limits_s: dict[str, float]

    @classmethod
    def from_scenario(cls, section: dict[str, Any]) -> Rule:
        limits = section.get("limits")
        stated = limits if isinstance(limits, dict) and limits else LIMITS_S
        return cls(seconds(section.get("window"), WINDOW_S), {str(name): seconds(value, math.inf) for name, value in stated.items()})


@dataclass(frozen=True)
class Verdict:
    """One operation under one percentile. ``samples`` is the size of the worst window. Nothing measured never passes."""

    passed: bool
    worst: Worst


def judge(values: pd.DataFrame, limit_s: float, percent: int, window_s: float, interval: Interval) -> Verdict:
    """Look at every window of steady state. ``values``: one operation's rows with ``start_s`` and ``response_s``."""
    worst = worst_window(values["start_s"].to_numpy(float), values["response_s"].to_numpy(float), percent, window_s, interval)
    return Verdict(worst.samples > 0 and worst.value_s <= limit_s, worst)


def phase_values(values: pd.DataFrame) -> dict[int, float]:
    """Percentiles over all rows of one phase; NaN without rows."""
    response = values["response_s"].to_numpy(float)
    return {percent: percentile(response, percent) for percent in PERCENTS}
