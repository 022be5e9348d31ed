"""Ticks that both renderers share: values on round numbers, texts in readable units."""

from __future__ import annotations

import math

import numpy as np

from emulab.analysis import units

_LOG_STEPS = (1.0, 3.0)


def text(value: float, unit: str) -> str:
    """A tick or hover text of a value in that unit."""
    if value == 0:
        return "0"
    if unit == "s":
        return units.duration(value)
    if unit == "bytes":
        return units.size(value)
    if unit == "bytes/s":
        return f"{units.size(value)}/s"
    if unit == "bit/s":
        return units.rate(value)
    if unit == "share":
        return f"{value * 100:g} %"
    return f"{value:g}"


def linear(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round values from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(size * scale for size in (1, 2, 2.5, 5, 10) if raw <= size * scale * 1.001)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def logarithmic(low: float, high: float) -> list[float]:
    """1 and 3 of every decade from low to high; only 1 over more than four decades."""
    steps = _LOG_STEPS if high / low < 1e4 else (1.0,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**decade for decade in decades for step in steps]
    return [value for value in np.round(values, 12).tolist() if low * 0.999 <= value <= high * 1.001]


def ticks(low: float, high: float, unit: str, *, log: bool) -> tuple[list[float], list[str]]:
    """Values and texts of an axis."""
    values = logarithmic(low, high) if log else linear(low, high)
    texts = [units.short(text(value, unit)) for value in values]
    return values, texts
