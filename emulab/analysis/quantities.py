"""Durations as a resolved scenario writes them."""

from __future__ import annotations

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
