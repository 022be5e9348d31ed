"""Numbers as people read them: 860 ms, 1.32 s, 314 MB, 941 Mbit/s. Missing values are an en dash."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTHING = "\u2013"


def duration(value: float | None) -> str:
    """Seconds as µs, ms, s or min, three significant digits."""
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    if size == 0:
        return "0 s"
    if size < 0.9995e-3:
        return f"{value * 1e6:.0f} µs"
    if size < 0.9995:
        return f"{significant(value * 1e3)} ms"
    if size < 99.95:
        return f"{significant(value)} s"
    if size < 600:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min"


def size(value: float | None) -> str:
    """Bytes in decimal units, three significant digits."""
    return _scaled(value, "B")


def rate(value: float | None) -> str:
    """bit/s in decimal units, three significant digits."""
    return _scaled(value, "bit/s")


def count(value: float | None) -> str:
    """A whole number, thousands apart by a narrow no-break space."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.0f}".replace(",", "\u202f")


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 1 as per cent."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value * 100:.{digits}f} %"


def ratio(value: float | None) -> str:
    """A factor, as in "times 0.28"."""
    return NOTHING if value is None or not math.isfinite(value) else f"\u00d7{significant(value)}"


def number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def short(text: str) -> str:
    """Without zeros at the end of the fraction: 1.00 s becomes 1 s."""
    number_text, _, unit = text.partition(" ")
    if "." in number_text:
        number_text = number_text.rstrip("0").rstrip(".")
    return f"{number_text} {unit}".strip()


def significant(value: float, digits: int = 3) -> str:
    """That many significant digits, never an exponent."""
    if value == 0 or not math.isfinite(value):
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # first: 0.9999 is 1.00, not 1.000
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:.{decimals}f}"


def plural(n: int, noun: str) -> str:
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def listing(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _scaled(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{significant(value / factor)} {prefix}{unit}"
    return f"{value:.0f} {unit}"
