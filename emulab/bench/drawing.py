"""Figures of the page, in the report's own model of figures: both renderers draw them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emulab.analysis.units import duration, percent
from emulab.bench.model import MOVERS, OURS, PRE_DUMP, STOP_AND_COPY, Sample, percentile, spread, usable
from emulab.bench.rows import GROWTHS, line_of, own_bytes
from emulab.report.figures.model import Figure, Panel, Series, nice_ceiling

COLOURS = {OURS: "done", PRE_DUMP: "source", STOP_AND_COPY: "other"}
SHORT = {OURS: "ours", PRE_DUMP: "(b) pre-dump", STOP_AND_COPY: "(a) stop-and-copy"}
_QUANTITIES: tuple[tuple[str, str, Callable[[Sample], float]], ...] = (
    ("Blackout", "s", lambda one: float(one["blackout_s"])),
    ("Total migration time", "s", lambda one: float(one["total_s"])),
    ("Bytes on the wire", "bytes", own_bytes),
)
_STEPS = {"freeze": "step-freeze", "dump": "step-dump", "transfer": "step-transfer", "restore": "step-restore", "resume": "step-resume"}


def all_figures(samples: Sequence[Sample]) -> list[Figure]:
    """Those for which there are samples."""
    found = [
        _beside(samples, "web", "The web guest", "Medians by number of workers and load, logarithmic."),
        _beside(samples, "dirty", "A guest that dirties memory", "Medians by the rate at which it writes new content, logarithmic."),
        _beside(samples, "idle", "An idle guest of incompressible memory", "Medians, logarithmic."),
        _response(samples),
        _growth(samples, "tasks", "Growth with tasks", "tasks", lambda one: float(one["tasks"])),
        _growth(samples, "memory", "Growth with memory", "GiB of incompressible memory", lambda one: one["memory_mb"] / 1024),
        *_phases(samples),
    ]
    return [figure for figure in found if figure is not None]


def _beside(samples: Sequence[Sample], group: str, title: str, caption: str) -> Figure | None:
    """Bars of every method, one category per setting."""
    known = usable(samples, group=group)
    settings = sorted(
        {one["setting"] for one in known}, key=lambda text: ("idle" in text, int("".join(filter(str.isdigit, text.split()[0])) or 0))
    )
    movers = [key for key in MOVERS if any(one["mover"] == key for one in known)]
    if not settings:
        return None
    panels: list[Panel] = []
    for name, unit, value in _QUANTITIES:
        series, everything = [], []
        for key in movers:
            medians = [spread(map(value, usable(known, setting=setting, mover=key)), unit) for setting in settings]
            numbers = np.array([one.median if one else np.nan for one in medians])
            everything += [number for number in numbers.tolist() if number > 0]
            series.append(Series("bars", SHORT[key], settings, numbers, COLOURS[key], legend=not panels))
        if not everything:
            continue
        panels.append(Panel(name, unit, series, (min(everything) / 2, max(everything) * 1.6), log=True))
    return Figure(f"bench-{group}", title, caption, panels, height=230 * len(panels) + 60)


def _growth(samples: Sequence[Sample], group: str, title: str, x_title: str, x: Callable[[Sample], float]) -> Figure | None:
    known = usable(samples, group=group)
    if not known:
        return None
    widest = max(map(x, known)) * 1.05
    panels: list[Panel] = []
    for key, what in GROWTHS:
        series = []
        for mover in (OURS, PRE_DUMP):
            points = [(x(one), float(one[key])) for one in known if one["mover"] == mover]
            if not points:
                continue
            across, up = (np.array(values) for values in zip(*points, strict=True))
            series.append(Series("points", SHORT[mover], across, up, COLOURS[mover], size=8, legend=not panels))
            if line := line_of(samples, group, mover, x, key):
                ends = np.array([0.0, widest])
                fitted = np.array([line.at(0.0), line.at(widest)])
                series.append(Series("line", f"{SHORT[mover]}, fitted", ends, fitted, COLOURS[mover], dash=True, legend=False))
        panels.append(Panel(what.capitalize(), "s", series, (0.0, nice_ceiling(max(float(one[key]) for one in known)))))
    return Figure(
        f"bench-{group}",
        title,
        "Every migration, and the least-squares line of each method; its numbers are in the table.",
        panels,
        x_title=x_title,
        x_range=(0.0, widest),
        height=480,
    )


def _response(samples: Sequence[Sample]) -> Figure | None:
    known = usable(samples, group="response")
    series, names = [], ["median", "90 %", "99 %"]
    for key, name, color in (("latencies_before", "no migration", "before"), ("latencies_rounds", "during the rounds", "during")):
        pooled = [value for one in known for value in one[key]]
        values = [percentile(pooled, share) for share in (0.5, 0.9, 0.99)]
        if any(value is None for value in values):
            return None
        series.append(Series("bars", name, names, np.array(values, float), color))
    top = nice_ceiling(max(float(np.max(np.asarray(one.y, float))) for one in series))
    caption = "Requests of all migrations together, from their intended instants; the blackout itself is taken out."
    return Figure("bench-response", "Response times during the rounds", caption, [Panel("", "s", series, (0.0, top))], height=300)


def _phases(samples: Sequence[Sample]) -> list[Figure]:
    """Where ours spends its time: medians of the phases of every setting of the web guest."""
    figures = []
    known = usable(samples, group="web", mover=OURS)
    for n, setting in enumerate(dict.fromkeys(one["setting"] for one in known)):
        these = usable(known, setting=setting)
        phases: dict[str, Any] = {}
        rounds = spread((sum(r["duration_s"] for r in one["rounds"] if r["kind"] != "final") for one in these), "s")
        for name in dict.fromkeys(["layer", "rounds", *(name for one in these for name in one["phases"])]):
            found = rounds if name == "rounds" else spread((one["phases"].get(name) for one in these), "s")
            if found and found.median:
                phases[name] = found.median
        if not phases:
            continue
        total = spread((one["total_s"] for one in these), "s")
        assert total is not None
        phases["other"] = max(0.0, total.median - sum(phases.values()))
        starts = np.concatenate([[0.0], np.cumsum(list(phases.values()))[:-1]])
        series = Series(
            "spans",
            "phase",
            np.array(list(phases.values())),
            list(phases),
            "step-other",
            base=starts,
            text=[f"{duration(length)} · {percent(length / total.median, 0)}" for length in phases.values()],
            colors=[_STEPS.get(name, "step-other") for name in phases],
            legend=False,
        )
        title = f"Where {duration(total.median)} of our migration went: {setting}"
        caption = "Medians of the phases, one after another. From freeze on the guest stands still."
        figures.append(
            Figure(
                f"bench-phases-{n}",
                title,
                caption,
                [Panel("", "s", [series], (0.0, 1.0))],
                x_title="seconds",
                x_range=(0.0, max(total.median, sum(phases.values())) * 1.2),
                height=300,
            )
        )
    return figures
