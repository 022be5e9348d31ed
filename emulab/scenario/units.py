"""Quantities with units: "1gbit", "300ms", "2GiB". A bare number is refused: 1000 is not a rate, 30 is not a time.

Parsed values are plain numbers in base units (bit/s, seconds, bytes); formatting gives text that parses back to the same number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

if TYPE_CHECKING:
    from collections.abc import Mapping

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµ/]*)")
_LARGEST = 10**15


@dataclass(frozen=True)
class Unit:
    """One kind of quantity. ``factors`` map the unit as it is written back to its size in base units, largest first."""

    noun: str
    example: str
    factors: Mapping[str, Decimal]
    whole: bool
    aliases: Mapping[str, str]

    def parse(self, value: object) -> float:
        """Text with a unit -> base units. Raises ValueError with a sentence for the user."""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"must be {self.noun} such as {self.example}")  # noqa: TRY004 - pydantic collects ValueErrors only
        match = _QUANTITY.fullmatch(str(value).strip())
        if match is None:
            raise ValueError(f"must be {self.noun} such as {self.example}")
        number, unit = Decimal(match[1]), match[2]
        if not unit:
            raise ValueError(f"needs a unit, as in {self.example} ({', '.join(reversed(list(self.factors)))})")
        by_name = {name.lower(): factor for name, factor in self.factors.items()}
        factor = by_name.get(self.aliases.get(unit.lower(), unit).lower())
        if factor is None:
            raise ValueError(f"has an unknown unit {unit!r}: use one of {', '.join(reversed(list(self.factors)))}")
        if abs(number) > _LARGEST:
            raise ValueError("is too large")
        return int(number * factor) if self.whole else float(number * factor)

    def format(self, value: float) -> str:
        """The shortest exact form, in the largest unit that needs no decimals, else in the base unit."""
        exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        for name, factor in self.factors.items():
            count = exact / factor
            if exact and count == count.to_integral_value():
                return f"{int(count)}{name}"
        base = next(name for name, factor in self.factors.items() if factor == 1)
        return f"{int(value) if value == int(value) else repr(value)}{base}"


RATE = Unit(
    "a rate",
    "1gbit",
    {"gbit": Decimal(10**9), "mbit": Decimal(10**6), "kbit": Decimal(1000), "bit": Decimal(1)},
    whole=True,
    aliases={f"{name}/s": name for name in ("gbit", "mbit", "kbit", "bit")},  # not "gbps": bytes for tc, bits for most people
)
DURATION = Unit(
    "a time",
    "30s",
    {"h": Decimal(3600), "min": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001"), "us": Decimal("0.000001")},
    whole=False,
    aliases={"µs": "us", "sec": "s"},
)
SIZE = Unit(
    "a size",
    "2GiB",
    {
        "GiB": Decimal(2**30),
        "GB": Decimal(10**9),
        "MiB": Decimal(2**20),
        "MB": Decimal(10**6),
        "KiB": Decimal(1024),
        "KB": Decimal(1000),
        "B": Decimal(1),
    },
    whole=True,
    aliases={},
)


def parse_rate(value: object) -> int:
    """Read "1gbit", "100 mbit", "2.5gbit/s" as bit/s. Decimal multiples, as on network cards."""
    return int(RATE.parse(value))


def parse_duration(value: object) -> float:
    """Read "300ms", "30 s", "2min" as seconds."""
    return float(DURATION.parse(value))


def parse_size(value: object) -> int:
    """Read "2GiB" (2^31) or "2GB" (2 * 10^9) as bytes."""
    return int(SIZE.parse(value))


def format_rate(bit_s: int) -> str:
    return RATE.format(bit_s)


def format_duration(seconds: float) -> str:
    return DURATION.format(seconds)


def format_size(size: int) -> str:
    return SIZE.format(size)


def _schema(unit: Unit) -> Any:
    names = sorted(unit.factors, key=len, reverse=True)
    return WithJsonSchema({"type": "string", "pattern": rf"^\s*[0-9.]+\s*({'|'.join(names)})\s*$", "examples": [unit.example]})


def _positive(parsed: float) -> None:
    if parsed <= 0:
        raise ValueError("must be above 0")


def _rate(value: object) -> int:
    parsed = parse_rate(value)
    _positive(parsed)
    return parsed


def _size(value: object) -> int:
    parsed = parse_size(value)
    _positive(parsed)
    return parsed


def _duration(value: object) -> float:
    parsed = parse_duration(value)
    if parsed < 0:
        raise ValueError("must not be below 0")
    return parsed


def _positive_duration(value: object) -> float:
    parsed = parse_duration(value)
    _positive(parsed)
    return parsed


Rate = Annotated[int, BeforeValidator(_rate), PlainSerializer(format_rate, return_type=str), _schema(RATE)]
Size = Annotated[int, BeforeValidator(_size), PlainSerializer(format_size, return_type=str), _schema(SIZE)]
Duration = Annotated[float, BeforeValidator(_duration), PlainSerializer(format_duration, return_type=str), _schema(DURATION)]
PositiveDuration = Annotated[
    float, BeforeValidator(_positive_duration), PlainSerializer(format_duration, return_type=str), _schema(DURATION)
]
