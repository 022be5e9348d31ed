"""Rows for people: the same words on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from emulab.analysis import units
from emulab.bench.model import Row


def cell(value: dict[str, Any] | None) -> str:
    """Median with the range, or a fitted line."""
    if value is None:
        return units.NOTHING
    if "slope" in value:
        return (
            f"{units.duration(value['intercept'])} + {units.duration(value['slope'])} per {value['per']} "
            f"(residual {units.duration(value['residual'])}, R² {value['r2']:.3f})"
        )
    middle = _one(value["median"], value["unit"])
    if value["n"] == 1 or value["min"] == value["max"]:
        return middle
    return f"{middle} ({_one(value['min'], value['unit'])} … {_one(value['max'], value['unit'])})"


def _one(value: float, unit: str) -> str:
    return units.size(value) if unit == "bytes" else units.duration(value)


def verdict(row: Row) -> str:
    return {True: "met", False: "missed", None: ""}[row.met]


def rows_table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    table = Table(title="Bench: median (least … greatest)", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, side in (
        ("figure", "left"),
        ("setting", "left"),
        ("ours", "right"),
        ("baseline", "right"),
        ("ratio", "right"),
        ("goal", "left"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("")
    for row in rows:
        tone = {True: "green", False: "red", None: ""}[row.met]
        words = row.note if row.met is False and row.note else " ".join(part for part in (verdict(row), row.note) if part)
        table.add_row(
            *(escape(text) for text in (row.figure, row.setting, cell(row.ours), cell(row.baseline))),
            units.ratio(row.ratio),
            escape(row.goal),
            f"[{tone}]{escape(words)}[/{tone}]" if tone else escape(words),
        )
    return table
