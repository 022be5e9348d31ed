"""One migration: its rounds and the steps of its blackout."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from emulab.analysis.quantities import seconds
from emulab.analysis.units import duration, percent
from emulab.report.figures.model import Figure, Limit, Panel, Series, nice_ceiling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulab.analysis import Analysis

PAGE = 4096


def rounds(analysis: Analysis, migration: dict[str, Any]) -> Figure | None:
    """Bytes, time, dirty rate and predicted blackout of each round. ``migration``: a row of the summary. None without rounds."""
    rows = migration["rounds"]
    if not rows:
        return None
    names = [str(row["n"]) if row["kind"] == "pre-dump" else row["kind"] for row in rows]
    blackout = migration["blackout_s"]
    predicted = _column(rows, "predicted_blackout_s")
    predicted[[row["kind"] != "pre-dump" for row in rows]] = math.nan
    limits = []
    if blackout is not None:
        limits.append(Limit(blackout, f"actual {duration(blackout)}", "resume", side="left"))
    budget = _budget(analysis, migration)
    if budget is not None:
        limits.append(Limit(budget, f"budget {duration(budget)}", "muted", side="left"))
    tops = [*predicted[np.isfinite(predicted)].tolist(), *(limit.y for limit in limits)]
    megabytes, wire = _column(rows, "bytes"), _column(rows, "bytes_on_wire")
    times, frozen = _column(rows, "duration_s"), _column(rows, "frozen_s")
    dirty = _column(rows, "dirty_pages_per_s") * PAGE
    panels = [
        _bars("Data", "bytes", names, [("pages dumped", megabytes, "memory"), ("on the wire", wire, "wire")]),
        _bars("Duration", "s", names, [("whole round", times, "memory"), ("of it frozen", frozen, "frozen")]),
        _bars("Memory dirtied per second", "bytes/s", names, [("dirtied per second", dirty, "predicted")]),
        Panel(
            "Predicted blackout",
            "s",
            [
                Series("line", "predicted after the round", names, predicted, "predicted", width=2.2, legend=False),
                Series("points", "predicted after the round", names, predicted, "predicted", size=8, legend=False),
            ],
            (0.0, nice_ceiling(max(tops, default=1.0))),
            limits=limits,
            x_title="round",
        ),
    ]
    return Figure(
        key=f"rounds-{migration['id']}",
        title="Rounds of pre-copy",
        caption="Pre-copy sends all pages once, then those written since, until a further round would not shorten the blackout.",
        panels=panels,
        columns=4,
        height=300,
    )


def blackout(migration: dict[str, Any]) -> Figure | None:
    """The steps of the blackout one below the other on their time axis. None if there was no blackout."""
    steps = migration["blackout"]
    if not steps:
        return None
    names = [step["name"] for step in steps]
    # A name may come twice ("other"): categories must differ.
    rows = [name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}" for i, name in enumerate(names)]
    starts = np.array([step["start_s"] for step in steps])
    lengths = np.array([step["duration_s"] for step in steps])
    known = ("freeze", "dump", "transfer", "restore", "resume")
    return Figure(
        key=f"blackout-{migration['id']}",
        title=f"What the {duration(migration['blackout_s'])} of blackout consist of",
        caption="From the last instant at which a task of the guest could run at the source to the first at the destination.",
        panels=[
            Panel(
                "",
                "s",
                [
                    Series(
                        "spans",
                        "step",
                        lengths,
                        rows,
                        "step-other",
                        base=starts,
                        text=[f"{duration(length)} · {percent(length / migration['blackout_s'], 0)}" for length in lengths],
                        colors=[f"step-{name}" if name in known else "step-other" for name in names],
                        legend=False,
                    ),
                ],
                (0.0, 1.0),
            ),
        ],
        x_title="after the freeze",
        x_range=(0.0, migration["blackout_s"] * 1.16),
        height=110 + 34 * len(rows),
    )


def _bars(title: str, unit: str, names: Sequence[str], sets: list[tuple[str, np.ndarray[Any, Any], str]]) -> Panel:
    series = [Series("bars", name, names, values, color, legend=len(sets) > 1) for name, values, color in sets]
    top = max((float(np.nanmax(values)) for _, values, _ in sets if np.isfinite(values).any()), default=1.0)
    return Panel(title, unit, series, (0.0, nice_ceiling(top)), x_title="round")


def _column(rows: list[dict[str, Any]], key: str) -> np.ndarray[Any, Any]:
    return np.array([math.nan if row[key] is None else float(row[key]) for row in rows])


def _budget(analysis: Analysis, migration: dict[str, Any]) -> float | None:
    """The freeze budget that the scenario gave to this migration."""
    planned = [item for item in analysis.run.scenario.get("migrations") or [] if isinstance(item, dict)]
    order = [item.id for item in analysis.run.migrations].index(migration["id"])
    if order >= len(planned) or planned[order].get("freeze_budget") is None:
        return None
    return seconds(planned[order]["freeze_budget"], math.nan)
