"""CPU, memory and links of nodes and guests, on the time axis of the response times."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from emulab.report.figures import bands
from emulab.report.figures.model import Figure, Label, Limit, Panel, Series, nice_ceiling, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from emulab.analysis import Analysis

BIN_S = 0.5
_GUEST_COLORS = ("web", "db", "op-PersonDetail", "op-EventDetail")


def use(analysis: Analysis) -> Figure | None:
    """CPU, memory, links. Guests by name, wherever they run; nodes that take part in a migration, and the head. None without samples."""
    rates = analysis.rates
    if rates.empty:
        return None
    run = analysis.run
    zero = run.origin_s
    guests = [str(name) for name in sorted(rates.loc[rates["kind"] == "guest", "name"].unique(), key=lambda name: (name != "web", name))]
    sources = list(dict.fromkeys(migration.source for migration in run.migrations))
    destinations = list(dict.fromkeys(migration.destination for migration in run.migrations))
    colors = dict(zip(guests, _GUEST_COLORS * 3, strict=False))
    cpu: list[Series] = []
    whole: list[Series] = []
    memory: list[Series] = []
    link: list[Series] = []
    for name in guests:
        rows = rates[(rates["kind"] == "guest") & (rates["name"] == name)]
        cpu.append(_line(rows, "cores", f"{name}", colors[name], zero, width=2.0))
        memory.append(_line(rows, "memory_bytes", f"{name}", colors[name], zero, width=2.0))
    head = rates[(rates["kind"] == "node") & (rates["node"] == "head")]
    if not head.empty:
        cpu.append(_line(head, "cores", "head (load)", "head", zero))
    machine = rates[rates["kind"] == "machine"]
    if not machine.empty:
        whole.append(_line(machine, "cores", "whole machine", "other", zero))
    for node in dict.fromkeys([*sources, *destinations]):
        rows = rates[(rates["kind"] == "node") & (rates["node"] == node)]
        color = "source" if node in sources[:1] else "destination"
        if rows.empty:
            continue
        cpu.append(_line(rows, "cores", node, color, zero, width=1.2))
        memory.append(_line(rows, "memory_bytes", f"{node} (all)", color, zero, dash=True))
        if node in sources:
            link.append(_line(rows, "tx_bit_s", f"{node} sends", color, zero))
        if node in destinations:
            link.append(
                _line(rows, "rx_bit_s", f"{node} receives", color if node not in sources else "destination", zero, dash=node in sources)
            )
    if not head.empty:
        link.append(_line(head, "rx_bit_s", "head receives", "head", zero))
    limit = run.manifest.get("links", {}).get("rate_bit_s") or run.calibration.get("asked", {}).get("rate_bit_s")
    limits = [Limit(float(limit), "link rate", "muted")] if isinstance(limit, int | float) else []
    present = run.manifest.get("host", {}).get("cores")
    cores = [Limit(float(present), "all cores", "muted")] if isinstance(present, int) else []
    panels = [
        _panel("CPU in use, cores", "cores", cpu, weight=1.3),
        _panel("CPU of the whole machine, cores", "cores", whole, cores, weight=0.6),
        _panel("Memory", "bytes", memory),
        _panel("Link", "bit/s", link, limits),
    ]
    at = rates["t_s"].to_numpy(float) - zero
    return Figure(
        key="resources",
        title="CPU, memory and links",
        caption=f"Means over {BIN_S:g} s. A guest's line follows it from node to node; a node's numbers include its guests.",
        panels=[panel for panel in panels if panel.series],
        x_title="seconds of steady state",
        x_range=(float(at.min()) - 1, float(at.max()) + 1),
        bands=[*bands.ramps(run), *bands.bands(run, run.migrations, zero_s=zero)],
        marks=bands.marks(run.migrations, zero_s=zero),
        height=840,
        linked=True,
    )


def _line(rows: pd.DataFrame, column: str, name: str, color: str, zero: float, *, width: float = 1.6, dash: bool = False) -> Series:
    """Means over bins; a gap longer than a few bins breaks the line."""
    at = rows["t_s"].to_numpy(float) - zero
    values = rows[column].to_numpy(float)
    known = np.isfinite(values)
    at, values = at[known], values[known]
    if len(at) == 0:
        return Series("line", name, np.array([]), np.array([]), color, width=width, dash=dash, legend=False)
    number = np.floor(at / BIN_S).astype(np.int64)
    bins, position = np.unique(number, return_inverse=True)
    mean = np.bincount(position, weights=values) / np.bincount(position)
    x, y = _broken((bins + 0.5) * BIN_S, mean)
    return Series("line", name, x, y, color, width=width, dash=dash, legend=False)


def _broken(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    gaps = np.flatnonzero(np.diff(x) > 4 * BIN_S) + 1
    return np.insert(x, gaps, x[gaps - 1] + BIN_S), np.insert(y, gaps, math.nan)


def _panel(title: str, unit: str, series: list[Series], limits: Sequence[Limit] = (), *, weight: float = 1.0) -> Panel:
    drawn = [item for item in series if len(item.x)]
    top = nice_ceiling(max([float(np.nanmax(np.asarray(item.y, float))) for item in drawn] + [limit.y for limit in limits], default=1.0))
    labels = [Label(_last(item), item.name, item.color) for item in drawn]
    return Panel(title, unit, drawn, (0.0, top), labels=spread(labels, (0.0, top), gap=0.11 / weight), limits=limits, weight=weight)


def _last(series: Series) -> float:
    """Level of the last tenth of a line, where its name is written."""
    values = np.asarray(series.y, float)
    values = values[np.isfinite(values)]
    return float(np.median(values[-max(1, len(values) // 12) :]))
