"""``emulab bench``: our migration beside stock CRIU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emulab.cli.console import Steps, out


def bench(
    repetitions: Annotated[int, typer.Option(min=1, help="Migrations per setting and method.")] = 5,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="GROUP", help="Measure only this; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Once each and small: shows that everything works, not how fast it is.")] = False,
    resume: Annotated[Path | None, typer.Option(help="A bench whose samples are kept for what is not measured now.")] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders go: below it, bench/.")] = Path("runs"),
    mend: Annotated[bool, typer.Option("--repair", help="First bring what this machine lacks; says what it changes.")] = False,
) -> None:
    """Measure our migration beside stop-and-copy with runc and pre-copy with stock CRIU; 35 to 40 minutes, on a testbed of its own."""
    from emulab.bench.figures import Extent
    from emulab.bench.run import run_bench
    from emulab.bench.text import rows_table

    extent = Extent(repetitions=1 if quick else repetitions, quick=quick)
    with Steps() as progress:
        record = run_bench(only=only or (), extent=extent, progress=progress, resume=resume, runs=runs, mend=mend)
    if not out.is_terminal:
        out.width = 200  # nobody's window: a log has room
    out.print(rows_table(record.rows))
    out.print(f"page: {record.folder.path / 'bench.html'}", markup=False)
