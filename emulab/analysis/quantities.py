"""Values as a resolved scenario and a record write them, and as JSON takes them."""

from __future__ import annotations

import math
from typing import Any

from emulab.analysis.records import RunError
from emulab.scenario.units import DURATION


def seconds(value: Any, default: float) -> float:
    """Seconds of "30s", "10ms" or a plain number; ``default`` for None. Raises RunError for anything else."""
    if value is None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return DURATION.parse(value)
    except ValueError as error:
        raise RunError(f"scenario.resolved.yaml: {value!r} {error}") from error


def finite(value: float | None) -> float | None:
    """JSON knows no NaN and no infinity: null instead. Rounded to 1 ns, far below any clock's noise."""
    return None if value is None or not math.isfinite(value) else round(float(value), 9)


def number(value: Any) -> float:
    """NaN for anything that is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def count(value: Any) -> int | None:
    """None for anything that is not a finite number."""
    found = number(value)
    return int(found) if math.isfinite(found) else None


def text(value: Any) -> str | None:
    return None if value is None else str(value)
