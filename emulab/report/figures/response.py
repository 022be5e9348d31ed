"""Response times: over the whole run, around a freeze, and as distributions before, during and after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from emulab.analysis.units import count, duration, short
from emulab.analysis.windows import rolling
from emulab.report.figures import bands
from emulab.report.figures.model import Figure, Label, Limit, Mark, Panel, Series, nice_ceiling, spread, thin
from emulab.report.palette import OPERATIONS, operation

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from emulab.analysis import Analysis, Migration

WRITES = ("AddPerson", "AddEvent")
ZOOM_S = 10.0
_CROWDED = 12_000  # points: smaller and fainter ones from there
_PERCENTS = (50, 90, 99)


def over_time(analysis: Analysis) -> Figure | None:
    """Every operation of the run by its start, with rolling percentiles of all of them. None without operations."""
    run = analysis.run
    table = _timed(run.operations)
    if table.empty:
        return None
    zero = run.origin_s
    drawn = table.iloc[thin(len(table))]
    start = table["start_s"].to_numpy(float) - zero
    good = (table["outcome"] == "ok").to_numpy()
    response = table["response_s"].to_numpy(float)
    first, last = float(start.min()), float(start.max())
    # Enough operations for a 99th percentile, and no more wiggles than a screen can show.
    width = float(np.clip(110 * (last - first) / len(table), max(2.0, (last - first) / 200), 30.0))
    grid = np.arange(first, last, max(0.25, width / 8))
    lines = rolling(start[good], response[good], grid, width, *_PERCENTS)
    low = 10.0 ** math.floor(math.log10(max(1e-4, float(np.quantile(response, 0.002)))))
    y_range = (low, max(10 * low, float(response.max()) * 1.4))
    crowded = len(drawn) > _CROWDED
    series = _points(drawn, zero, opacity=0.2 if crowded else 0.42, size=3.2 if crowded else 4.5)
    labels = []
    for percent, line in zip(_PERCENTS, lines, strict=True):
        key = f"p{percent}"
        series.append(Series("line", f"{percent}th percentile", grid, line, key, width=2.2, legend=False, casing=True))
        known = line[np.isfinite(line)]
        if len(known):
            labels.append(Label(float(known[-1]), key, key))
    notes = [f"Percentiles are taken over {short(duration(round(width, 1)))} around each point, over all operations."]
    if len(drawn) < len(table):
        notes.append(f"{count(len(drawn))} of {count(len(table))} points are drawn; all of them count in every number.")
    return Figure(
        key="response-time",
        title="Response time of every operation",
        caption="Each dot is one whole user operation, where it started. The lines are rolling percentiles of all operations together.",
        panels=[Panel("", "s", series, y_range, log=True, labels=spread(labels, y_range, log=True))],
        x_title="seconds of steady state",
        x_range=(first - 1, last + 1),
        bands=[*bands.ramps(run), *bands.bands(run, run.migrations, zero_s=zero)],
        marks=bands.marks(run.migrations, zero_s=zero),
        height=460,
        linked=True,
        notes=notes,
    )


def around_freeze(analysis: Analysis, migration: Migration) -> Figure | None:
    """Operations and probes from 10 s before freeze to 10 s after resume, and how many operations were waiting. None without a freeze."""
    run = analysis.run
    if not math.isfinite(migration.freeze_s):
        return None
    zero = migration.freeze_s
    resume = migration.resume_s if math.isfinite(migration.resume_s) else migration.end_s
    low, high = -ZOOM_S, (resume - zero if math.isfinite(resume) else 0.0) + ZOOM_S
    table = _timed(run.operations)
    at = table["start_s"] - zero
    near = table[(at >= low) & (at <= high)]
    probes = run.probes.assign(at=run.probes["intended_s"] - zero, wait=run.probes["done_s"] - run.probes["intended_s"])
    probes = probes[(probes["at"] >= low) & (probes["at"] <= high) & probes["wait"].notna()]
    probes = probes.iloc[thin(len(probes), 20_000)]
    series = [
        Series("points", "probe (open loop)", probes["at"].to_numpy(float), probes["wait"].to_numpy(float), "probe", size=2.6, opacity=0.8),
        *_points(near, zero, opacity=0.85, size=6.0),
    ]
    values = np.concatenate([np.asarray(item.y, float) for item in series] or [np.array([0.1])])
    top = nice_ceiling(float(values.max()) if len(values) else 0.1)
    flight_x, flight_y = _in_flight(run.operations, zero, low, high)
    return Figure(
        key=f"freeze-{migration.id}",
        title=f"Ten seconds around the freeze of {migration.vm}",
        caption="A probe is sent every few milliseconds, whatever happened to the last one: the slope is time that clients spent waiting. "
        "Below: operations begun and not yet answered.",
        panels=[
            Panel("Time until the answer", "s", series, (0.0, top), weight=2.0),
            Panel(
                "Operations under way",
                "count",
                [Series("step", "under way", flight_x, flight_y, "done", fill=True, legend=False)],
                (0.0, nice_ceiling(float(flight_y.max()) if len(flight_y) else 1.0)),
            ),
        ],
        x_title="seconds from the freeze",
        x_range=(low, high),
        bands=bands.bands(run, [migration], zero_s=zero, detailed=True),
        marks=[Mark(item.x, f"runs again after {duration(migration.blackout_s)}") for item in bands.marks([migration], zero_s=zero)],
        height=520,
    )


def distribution(analysis: Analysis) -> Figure | None:
    """Share of operations slower than t, before, during and after the migrations. None without counted operations."""
    if analysis.steady is None or analysis.steady.counted.empty:
        return None
    phases = analysis.phases or {"whole run": analysis.steady.counted}
    series = []
    for name, table in phases.items():
        if table.empty:
            continue
        values = np.sort(table["response_s"].to_numpy(float))
        share = 1 - np.arange(len(values)) / len(values)
        picked = thin(len(values), 2000)
        color = name if name in ("before", "during", "after") else "done"
        series.append(Series("line", f"{name} ({count(len(values))})", values[picked], share[picked], color, width=2.2))
    slowest = max(float(np.asarray(item.x, float).max()) for item in series)
    fastest = min(float(np.asarray(item.x, float).min()) for item in series)
    return Figure(
        key="distribution",
        title="How many operations were slower than a given time",
        caption="Read at 10 % for the 90th percentile and at 1 % for the 99th. Numbers in brackets: operations.",
        panels=[
            Panel(
                "",
                "share",
                series,
                (min(1 / max(2, len(analysis.steady.counted)), 5e-3), 1.0),
                log=True,
                log_x=True,
                limits=[Limit(0.10, "10 %: 90th percentile", side="left"), Limit(0.01, "1 %: 99th percentile", side="left")],
            ),
        ],
        x_title="response time",
        x_range=(fastest * 0.8, slowest * 1.3),
        height=380,
    )


def sla_windows(analysis: Analysis, name: str = "HomePage") -> Figure | None:
    """The paper's figure: percentiles of one operation over the sliding window. None if steady state is not longer than that."""
    steady, window = analysis.steady, analysis.rule.window_s
    if steady is None or steady.interval.length_s <= 1.05 * window or name not in analysis.rule.limits_s:
        return None
    rows = steady.counted[steady.counted["operation"] == name]
    if rows.empty:
        return None
    start = rows["start_s"].to_numpy(float) - analysis.run.origin_s
    ends = np.arange(window, steady.interval.length_s + 0.5, 1.0)
    lines = rolling(start, rows["response_s"].to_numpy(float), ends - window / 2, window, 90, 99)
    limit = analysis.rule.limits_s[name]
    top = nice_ceiling(max(limit, float(np.nanmax(lines[1]))))
    labels = [Label(float(line[-1]), key, key) for key, line in zip(("p90", "p99"), lines, strict=True) if math.isfinite(line[-1])]
    return Figure(
        key="sla-windows",
        title=f"{name} over the sliding window of {short(duration(window))}",
        caption="Each point looks back over one whole window: the 90th and the 99th percentile that the agreement is about.",
        panels=[
            Panel(
                "",
                "s",
                [
                    Series("line", "90th percentile", ends, lines[0], "p90", width=2.0),
                    Series("line", "99th percentile", ends, lines[1], "p99", width=2.0),
                ],
                (0.0, top),
                labels=spread(labels, (0.0, top)),
                limits=[Limit(limit, f"limit {short(duration(limit))}", "bad")],
            ),
        ],
        x_title="seconds of steady state (end of the window)",
        x_range=(0.0, float(ends[-1]) + 1),
        bands=bands.bands(analysis.run, analysis.run.migrations, zero_s=analysis.run.origin_s),
        marks=bands.marks(analysis.run.migrations, zero_s=analysis.run.origin_s),
        height=340,
    )


def _timed(operations: pd.DataFrame) -> pd.DataFrame:
    """Finished operations, in order of their start."""
    table = operations[operations["end_s"].notna()]
    return table.assign(response_s=(table["end_s"] - table["start_s"]).clip(lower=1e-5)).sort_values("start_s")


def _points(table: pd.DataFrame, zero: float, *, opacity: float, size: float = 4.5) -> list[Series]:
    good = table["outcome"] == "ok"
    names = [name for name in OPERATIONS if (good & (table["operation"] == name)).any()]
    names += sorted({str(name) for name in table.loc[good, "operation"].unique()} - set(OPERATIONS))
    found = []
    for name in names:
        rows = table[good & (table["operation"] == name)]
        writes = name in WRITES
        found.append(
            Series(
                "points",
                name,
                rows["start_s"].to_numpy(float) - zero,
                rows["response_s"].to_numpy(float),
                operation(name),
                symbol="diamond" if writes else "circle",
                size=size * 1.35 if writes else size,
                opacity=min(1.0, opacity + 0.3) if writes else opacity,
            )
        )
    if (~good).any():
        rows = table[~good]
        x, y = rows["start_s"].to_numpy(float) - zero, rows["response_s"].to_numpy(float)
        found.append(Series("points", "failed", x, y, "error", symbol="cross", size=9))
    return found


def _in_flight(operations: pd.DataFrame, zero: float, low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps of the number of operations begun and not ended."""
    start = operations["start_s"].to_numpy(float) - zero
    end = operations["end_s"].to_numpy(float) - zero
    end = end[np.isfinite(end)]
    at = np.concatenate((start, end))
    change = np.concatenate((np.ones(len(start)), -np.ones(len(end))))
    order = np.argsort(at, kind="stable")
    at, level = at[order], np.cumsum(change[order])
    inside = (at >= low) & (at <= high)
    before = level[at < low]
    first = before[-1] if len(before) else 0.0
    y = np.concatenate(([first], level[inside], [level[inside][-1] if inside.any() else first]))
    return np.concatenate(([low], at[inside], [high])), y
