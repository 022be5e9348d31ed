"""``emulab doctor``: what this machine needs, and the repair."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.text import Text

from emulab.cli.console import Steps, out
from emulab.doctor import Result, all_items, check_all, repair

_STYLES = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failed": ("FAILED", "bold red"), "skipped": ("skipped", "dim")}


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Repair what fails; says what it changes on this machine.")] = False,
    tests: Annotated[bool, typer.Option("--tests", help="Include what only the project's own tests need.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Check the machine; exit with 3 if something is missing."""
    if fix:
        with Steps() as progress:
            results = repair(all_items(tests=tests), progress.say, lambda _: None)
    else:
        results = check_all(all_items(tests=tests))
    if json_output:
        out.out(json.dumps([as_dict(result) for result in results], indent=2), highlight=False)
    else:
        for result in results:
            print_result(result)
    if any(result.failed for result in results):
        raise typer.Exit(3)


def as_dict(result: Result) -> dict[str, object]:
    return {
        "name": result.item.name,
        "status": result.finding.status,
        "text": result.finding.text,
        "remedy": result.remedy,
        "repaired": result.repaired,
    }


def print_result(result: Result) -> None:
    """``ok        container engine   Docker 20.10.24``, and the remedy below it."""
    word, style = _STYLES[result.finding.status]
    line = Text.assemble((f"{'repaired' if result.repaired else word:9}", "green" if result.repaired else style))
    line.append(f" {result.item.name:22} ")
    line.append(result.finding.text)
    out.print(line)
    if result.remedy:
        out.print(Text(f"{'':10}{'':22} -> {result.remedy}", style="bold"))
