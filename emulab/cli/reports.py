"""``emulab report`` and ``emulab compare``: from run folders alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emulab.cli.console import out


def report(run: Annotated[Path, typer.Argument(help="A run folder.")] = Path("runs/latest")) -> None:
    """Analyse a run folder again and build its report."""
    from emulab.analysis.summary import write_summary
    from emulab.report import build_report
    from emulab.report.text import print_summary

    summary = write_summary(run)
    path = build_report(run)
    print_summary(summary, out)
    out.print(f"report: {path}", markup=False)


def compare(runs: Annotated[list[Path], typer.Argument(help="Two or more run folders.")]) -> None:
    """Key figures of several runs side by side."""
    from emulab.report.compare import print_comparison

    print_comparison(runs, out)
