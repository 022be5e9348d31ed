"""Runs side by side: key figures, as medians with the range where a configuration was repeated."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from emulab.analysis import RunError, load_run, summarise, units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from emulab.analysis import Run

# Destinations rotate and guests start elsewhere from one repetition to the next; texts change nothing.
_VARIES = re.compile(r"seed|description|migrations\.\d+\.to|guests\..*\.(host|address)")

Summary = dict[str, Any]
Comparison = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A number that runs are compared by. ``better``: which direction is good, if one is."""

    key: str
    label: str
    unit: str
    value: Callable[[Summary], float | None]
    better: Literal["low", "high", ""] = "low"


def _load(key: str) -> Callable[[Summary], float | None]:
    def value(summary: Summary) -> float | None:
        found = summary["load"][key]
        return None if found is None else float(found)

    return value


def _move(key: str) -> Callable[[Summary], float | None]:
    """The largest over the committed migrations of a run."""

    def value(summary: Summary) -> float | None:
        found = [float(move[key]) for move in summary["migrations"] if move["outcome"] == "committed" and move[key] is not None]
        return max(found, default=None)

    return value


def _failed(summary: Summary) -> float | None:
    return float(sum(move["requests_failed"] for move in summary["migrations"]))


def _lost(summary: Summary) -> float | None:
    return float(summary["connections"]["lost"])


def _peak(summary: Summary) -> float | None:
    found = summary["resources"]["peak_memory_bytes"]
    return None if found is None else float(found)


def _operation(name: str, key: str) -> Callable[[Summary], float | None]:
    def value(summary: Summary) -> float | None:
        found = summary["operations"].get(name, {}).get(key, {}).get("worst_s")
        return None if found is None else float(found)

    return value


def figures(summaries: Sequence[Summary]) -> list[Figure]:
    """All figures: load, migration, then the two percentiles of every operation that has a limit in one of the runs."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary["operations"]))
    fixed = [
        Figure("ops_per_s", "Operations done per second", "", _load("ops_per_s"), "high"),
        Figure("errors", "Operations failed", "", _load("errors")),
        Figure("total_s", "Whole migration", "s", _move("total_s")),
        Figure("blackout_s", "Blackout", "s", _move("blackout_s")),
        Figure("client_stall_s", "Client stall", "s", _move("client_stall_s")),
        Figure("recovery_s", "Backlog gone after resume", "s", _move("recovery_s")),
        Figure("slowdown", "Slowdown while rounds ran", "ratio", _move("slowdown")),
        Figure("bytes_on_wire", "Bytes on the wire", "bytes", _move("bytes_on_wire")),
        Figure("requests_failed", "Requests failed while migrating", "", _failed),
        Figure("connections_lost", "Connections lost", "", _lost),
        Figure("peak_memory_bytes", "Memory of all nodes", "bytes", _peak),
    ]
    worst = [Figure(f"{name}_{key}", f"{name}, {key[3:]} %", "s", _operation(name, key)) for name in names for key in ("sla90", "sla99")]
    return [*fixed, *worst]


def compare_runs(run_dirs: Sequence[str | Path], *, each: bool = False) -> Comparison:
    """Compare run folders.

    Runs of one scenario by one commit are repetitions and form a group, whatever their seeds and destinations; ``each`` keeps every run
    apart.

    Returns ``{"groups": [{label, runs}], "figures": [{key, label, unit, better, values}]}`` where ``values`` has one entry per group:
    ``{"median", "min", "max", "n"}``, or None where no run of the group has that figure.

    Raises RunError: a folder cannot be read, or none is given.
    """
    if not run_dirs:
        raise RunError("no runs to compare", hint="Give two or more folders below runs/.")
    members: dict[str, list[tuple[Path, Run, Summary]]] = {}
    for n, run_dir in enumerate(run_dirs):
        run = load_run(run_dir)
        key = str(n) if each else json.dumps(_configuration(run), sort_keys=True, default=str)
        members.setdefault(key, []).append((Path(run_dir), run, summarise(run)))
    groups = list(members.values())
    everything = [summary for group in groups for _, _, summary in group]
    labels = _labels([group[0][1] for group in groups], each=each)
    return {
        "groups": [
            {
                "label": label,
                "runs": [{"path": str(path), "id": one["run_id"], "status": one["status"], "seed": one["seed"]} for path, _, one in group],
            }
            for label, group in zip(labels, groups, strict=True)
        ],
        "figures": [
            {
                "key": figure.key,
                "label": figure.label,
                "unit": figure.unit,
                "better": figure.better,
                "values": [_range([figure.value(summary) for _, _, summary in group]) for group in groups],
            }
            for figure in figures(everything)
        ],
    }


def _configuration(run: Run) -> dict[str, str]:
    """What makes a run comparable as a repetition, flat: the scenario without what differs between repetitions, and the commit."""
    flat: dict[str, str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{name}.{key}" if name else str(key), item)
        elif isinstance(value, list):
            for n, item in enumerate(value):
                add(f"{name}.{n}", item)
        elif not _VARIES.fullmatch(name):
            flat[name] = str(value)

    add("", run.scenario)
    git = run.manifest.get("git") or {}
    flat["commit"] = f"{str(git.get('commit') or 'unknown')[:8]}{'+' if git.get('dirty') else ''}"
    return flat


def _labels(runs: Sequence[Run], *, each: bool) -> list[str]:
    """Short names of groups. Those that read the same are told apart by what differs in their configurations."""
    labels = [_label(run) for run in runs]
    configurations = [_configuration(run) for run in runs]
    named = []
    for label, run, configuration in zip(labels, runs, configurations, strict=True):
        rivals = [other for name, other in zip(labels, configurations, strict=True) if name == label]
        differing = [key for key in configuration if any(other.get(key) != configuration[key] for other in rivals)]
        parts = [label, *(f"{key.rpartition('.')[2]} {configuration[key]}" for key in differing)]
        named.append(" · ".join([*parts, str(run.manifest.get("id") or run.path.name)] if each else parts))
    return named


def _label(run: Run) -> str:
    load = run.section("load")
    moves = run.scenario.get("migrations") or []
    strategies = ", ".join(dict.fromkeys(str(move.get("strategy", "pre-copy")) for move in moves))
    parts = [str(run.scenario.get("name", "unnamed")), units.plural(run.users, "user"), f"{load.get('steady', '?')} steady"]
    return " · ".join([*parts, f"{units.plural(len(moves), 'migration')} ({strategies})" if moves else "no migration"])


def _range(values: Sequence[float | None]) -> dict[str, float | int] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": statistics.median(known), "min": min(known), "max": max(known), "n": len(known)}


def text(value: float, unit: str) -> str:
    """A figure's value for people."""
    if unit == "s":
        return units.duration(value)
    if unit == "bytes":
        return units.size(value)
    if unit == "ratio":
        return units.ratio(value)
    return units.short(f"{value:.2f} ") if value != int(value) else units.count(value)


def cell(values: dict[str, Any] | None, unit: str) -> str:
    """Median, and the range if there are several."""
    if values is None:
        return units.NOTHING
    middle = text(values["median"], unit)
    return middle if values["n"] == 1 else f"{middle} ({text(values['min'], unit)} .. {text(values['max'], unit)})"


def change(first: dict[str, Any] | None, other: dict[str, Any] | None) -> float | None:
    """Other median / first median; None where that means nothing."""
    if first is None or other is None or first["median"] == 0:
        return None
    return float(other["median"] / first["median"])


def print_comparison(run_dirs: Sequence[str | Path], console: Console, *, each: bool = False) -> None:
    """Compare run folders on a terminal."""
    console.print(comparison_table(compare_runs(run_dirs, each=each)))


def comparison_table(comparison: Comparison) -> Table:
    """For a terminal: one row per figure, one column per group, the first group as the base of the changes."""
    table = Table(
        title="Comparison: median (min .. max), change against the first column",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("")
    for group in comparison["groups"]:
        runs = len(group["runs"])
        table.add_column(escape(group["label"]) + (f"\n{runs} runs" if runs > 1 else ""), justify="right")
    for row in comparison["figures"]:
        cells = [cell(values, row["unit"]) for values in row["values"]]
        ratios = [change(row["values"][0], values) for values in row["values"]]
        shown = [cells[0], *(f"{one}  {units.ratio(by)}" if by is not None else one for one, by in zip(cells[1:], ratios[1:], strict=True))]
        table.add_row(escape(row["label"]), *(escape(one) for one in shown))
    return table


def comparison_html(comparison: Comparison) -> str:
    """A self-contained page with the same table."""
    from emulab.report.build import environment

    rows = [
        {
            "label": row["label"],
            "cells": [
                {"text": cell(values, row["unit"]), **_tone(change(row["values"][0], values) if i else None, row["better"])}
                for i, values in enumerate(row["values"])
            ],
        }
        for row in comparison["figures"]
    ]
    return environment().get_template("compare.html.j2").render(groups=comparison["groups"], rows=rows)


def _tone(by: float | None, better: str) -> dict[str, Any]:
    if by is None or not better or abs(by - 1) < 0.05:
        return {"change": by, "tone": ""}
    return {"change": by, "tone": "ok" if (by < 1) == (better == "low") else "no"}


def comparison_json(comparison: Comparison) -> str:
    return json.dumps(comparison, indent=2, allow_nan=False) + "\n"
