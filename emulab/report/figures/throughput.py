"""What users asked for and what they got, per second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from emulab.analysis.units import duration, short
from emulab.report.figures import bands
from emulab.report.figures.model import Figure, Panel, Series, nice_ceiling

if TYPE_CHECKING:
    from emulab.analysis import Analysis


def throughput(analysis: Analysis) -> Figure | None:
    """Intended starts, completed operations and errors per second. None without operations."""
    run = analysis.run
    table = run.operations
    if table.empty:
        return None
    zero = run.origin_s
    offered = table["intended_s"].to_numpy(float) - zero
    ended = (table["end_s"] - zero).to_numpy(float)
    ok = (table["outcome"] == "ok").to_numpy() & np.isfinite(ended)
    failed = (table["outcome"] == "error").to_numpy() & np.isfinite(ended)
    first, last = float(offered.min()), float(np.nanmax(np.concatenate((offered, ended[ok | failed]))))
    width = float(np.clip(np.round(40 * (last - first) / max(1, len(table))), 1.0, 10.0))
    edges = np.arange(np.floor(first), last + width, width)
    if len(edges) < 2:
        return None
    middle = edges[:-1]

    def per_second(instants: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.histogram(instants, edges)[0] / width

    done = per_second(ended[ok])
    series = [
        Series("step", "offered (intended starts)", middle, per_second(offered), "offered", width=1.6),
        Series("step", "done", middle, done, "done", width=2.0),
    ]
    if failed.any():
        series.append(Series("step", "failed", middle, per_second(ended[failed]), "error", width=2.0, fill=True))
    top = nice_ceiling(max(float(np.asarray(item.y, float).max()) for item in series))
    return Figure(
        key="throughput",
        title="Operations offered and done",
        caption=f"Per second, counted over {short(duration(width))}. During a blackout nothing is done; the backlog follows at resume.",
        panels=[Panel("", "per second", series, (0.0, top))],
        x_title="seconds of steady state",
        x_range=(first - 1, last + 1),
        bands=[*bands.ramps(run), *bands.bands(run, run.migrations, zero_s=zero)],
        marks=bands.marks(run.migrations, zero_s=zero),
        height=380,
        linked=True,
    )
