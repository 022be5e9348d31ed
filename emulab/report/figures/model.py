"""A figure as data: what is drawn, not how. The two renderers (plotly for the page, matplotlib for SVG) draw the same figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Kind = Literal["points", "line", "step", "bars", "spans"]
MAX_POINTS = 50_000
_LABEL_GAP = 0.075  # of a panel's height: one line of text


@dataclass(frozen=True)
class Series:
    """One set of marks. x and y in base units; ``color`` is a key of the palette.

    ``spans`` are horizontal bars from ``base`` of length x at the categories y; ``bars`` are vertical at the categories x.
    """

    kind: Kind
    name: str
    x: NDArray[np.float64] | Sequence[str]
    y: NDArray[np.float64] | Sequence[str]
    color: str
    base: NDArray[np.float64] | None = None
    symbol: Literal["circle", "diamond", "cross"] = "circle"
    size: float = 4.5
    opacity: float = 1.0
    width: float = 1.6
    dash: bool = False
    fill: bool = False
    casing: bool = False  # a rim in the colour of the page, to be seen among points
    legend: bool = True
    text: Sequence[str] = ()
    colors: Sequence[str] = ()


@dataclass(frozen=True)
class Label:
    """Text at the right end of a line, in its colour, instead of a legend."""

    y: float
    text: str
    color: str


@dataclass(frozen=True)
class Limit:
    """A horizontal line with a name."""

    y: float
    text: str
    color: str = "muted"
    side: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``unit`` formats ticks and hover: "s", "cores", "bytes" ..."""

    title: str
    unit: str
    series: Sequence[Series]
    y_range: tuple[float, float]
    log: bool = False
    log_x: bool = False
    labels: Sequence[Label] = ()
    limits: Sequence[Limit] = ()
    weight: float = 1.0
    x_title: str = ""
    stacked: bool = False


@dataclass(frozen=True)
class Band:
    """A shaded stretch of time over all panels. ``band`` is a key of palette.BANDS."""

    start: float
    end: float
    band: str
    label: str = ""


@dataclass(frozen=True)
class Mark:
    """A vertical line over all panels."""

    x: float
    label: str
    color: str = "resume"


@dataclass(frozen=True)
class Figure:
    """A titled figure: panels stacked on one x axis, or (``columns``) side by side with an axis each."""

    key: str
    title: str
    caption: str
    panels: Sequence[Panel]
    x_title: str = ""
    x_range: tuple[float, float] | None = None
    bands: Sequence[Band] = ()
    marks: Sequence[Mark] = ()
    columns: int = 1
    height: int = 420
    linked: bool = False  # zooming moves the other linked figures too
    notes: Sequence[str] = field(default=())


def spread(labels: Sequence[Label], y_range: tuple[float, float], *, log: bool = False, gap: float = _LABEL_GAP) -> list[Label]:
    """Move labels apart so that none covers another; they keep their order and stay inside the range."""
    low, high = (np.log10(y_range[0]), np.log10(y_range[1])) if log else y_range
    if not labels or high <= low:
        return list(labels)
    ordered = sorted(labels, key=lambda label: label.y)
    wanted = [min(max(float(((np.log10(label.y) if log else label.y) - low) / (high - low)), 0.0), 1.0) for label in ordered]
    # Labels that touch form a group around the mean of their places; groups that touch become one.
    groups: list[list[float]] = []
    for value in wanted:
        groups.append([value])
        while len(groups) > 1 and _bottom(groups[-1], gap) < _top(groups[-2], gap) + gap:
            last = groups.pop()
            groups[-1] += last
    at = [_bottom(group, gap) + gap * i for group in groups for i in range(len(group))]
    placed = [low + value * (high - low) for value in at]
    return [Label(float(10**y if log else y), label.text, label.color) for y, label in zip(placed, ordered, strict=True)]


def _bottom(group: list[float], gap: float) -> float:
    height = gap * (len(group) - 1)
    return min(max(sum(group) / len(group) - height / 2, 0.0), max(0.0, 1.0 - height))


def _top(group: list[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (len(group) - 1)


def thin(count: int, limit: int = MAX_POINTS) -> NDArray[np.int64]:
    """Indices of an even selection of at most ``limit`` of ``count`` rows. Only drawing is thinned, never a number."""
    if count <= limit:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, limit).astype(np.int64))


def nice_ceiling(value: float) -> float:
    """A little above the value, on a round number, for the upper end of an axis."""
    if not np.isfinite(value) or value <= 0:
        return 1.0
    scale = 10.0 ** np.floor(np.log10(value))
    for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10):
        if value * 1.05 <= step * scale:
            return float(step * scale)
    return float(12 * scale)
