"""The end of a run on a terminal: the same numbers as the report's, from summary.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from emulab.analysis import units
from emulab.analysis.split import PHASES
from emulab.report import page

if TYPE_CHECKING:
    from rich.console import Console

Summary = dict[str, Any]
_WIDE = 124  # columns of a terminal that shows the agreement and its phases in one table
_TONES = {"good": "green", "bad": "bold red", "warn": "yellow", "": ""}


def print_summary(summary: Summary, console: Console) -> None:
    """Print headline, agreement, migrations and the paper's numbers as tables."""
    console.print()
    console.print(Text(summary["story"]), style="bold")
    if summary["error"]:
        console.print(
            Text(f"The run {'was stopped' if summary['status'] == 'aborted' else 'failed'}: {summary['error']}"), style="bold red"
        )
    console.print()
    console.print(headline_table(summary))
    console.print()
    wide = console.width >= _WIDE
    console.print(agreement_table(summary, phases=wide))
    if not wide and any(row["phases"] for row in summary["operations"].values()):
        console.print()
        console.print(phase_table(summary))
    if summary["migrations"]:
        console.print()
        console.print(migration_table(summary))
    if summary["paper"]:
        console.print()
        console.print(paper_table(summary))


def headline_table(summary: Summary) -> Table:
    """The report's cards, one a row."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for card in page.cards(summary):
        table.add_row(escape(card.label), Text(card.value, style=_TONES[card.tone]), escape(card.sub))
    return table


def agreement_table(summary: Summary, *, phases: bool = True) -> Table:
    """Per operation: limit, worst window at 90 and 99 %, and (``phases``) the percentiles before, during and after."""
    sla = summary["sla"]
    window = units.short(units.duration(sla["window_s"]))
    table = _table(f"Service level: {'all of steady state' if sla['whole_steady'] else 'worst window'} ({window}), 90 % / 99 %")
    names = _phases(summary) if phases else []
    table.add_column("Operation", no_wrap=True)
    for name in ("n", "limit", "90 %", "99 %", *names, "errors", "unfinished"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in summary["operations"].items():
        table.add_row(
            escape(name),
            units.count(row["count"]),
            units.short(units.duration(row["limit_s"])),
            _held(row["sla90"]["worst_s"], passed=row["sla90"]["pass"]),
            _held(row["sla99"]["worst_s"], passed=row["sla99"]["pass"]),
            *(_phase(row["phases"].get(phase)) for phase in names),
            units.count(row["errors"]),
            units.count(row["unfinished"]),
        )
    return table


def phase_table(summary: Summary) -> Table:
    """Per operation: 90th and 99th percentile before, during and after. For narrow terminals."""
    table = _table("Before, during, after: 90 % / 99 %")
    table.add_column("Operation", no_wrap=True)
    for name in _phases(summary):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in summary["operations"].items():
        table.add_row(escape(name), *(_phase(row["phases"].get(phase)) for phase in _phases(summary)))
    return table


def _phases(summary: Summary) -> list[str]:
    return [name for name in PHASES if any(name in row["phases"] for row in summary["operations"].values())]


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _held(value: float | None, *, passed: bool) -> Text:
    if value is None:
        return Text("no samples", style="yellow")
    return Text(units.duration(value) if passed else f"{units.duration(value)} ✕", style="green" if passed else "bold red")


def _phase(values: dict[str, Any] | None) -> Text:
    if values is None or not values["count"]:
        return Text(units.NOTHING, style="dim")
    return Text(" / ").join([_held(values["p90_s"], passed=values["pass90"]), _held(values["p99_s"], passed=values["pass99"])])


def migration_table(summary: Summary) -> Table:
    """One column per migration, one row per fact."""
    moves = summary["migrations"]
    table = _table("Migration" if len(moves) == 1 else "Migrations")
    table.add_column("", style="dim")
    for move in moves:
        table.add_column(escape(f"{move['vm']}: {move['source']} → {move['destination']}"), justify="right")
    table.add_row("Outcome", *(Text(move["outcome"], style="green" if move["outcome"] == "committed" else "bold red") for move in moves))
    if any(move["reason"] for move in moves):
        table.add_row("Reason", *(Text(move["reason"] or units.NOTHING) for move in moves))
    for row in zip(*(page.facts(move) for move in moves), strict=True):
        table.add_row(row[0][0], *(value for _, value in row))
    table.add_row("Rounds", *(units.count(len(move["rounds"])) for move in moves))
    return table


def paper_table(summary: Summary) -> Table:
    """The paper's numbers beside this run's."""
    table = _table("Beside the paper (its values are second hand)")
    table.add_column("")
    for name in ("paper", "here", "ratio"):
        table.add_column(name, justify="right")
    for row in page.paper_rows(summary):
        table.add_row(row["label"], row["paper"], row["here"], units.ratio(row["ratio"]))
    return table
