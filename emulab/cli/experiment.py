"""``emulab experiment``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emulab.cli.console import Steps, out, print_error
from emulab.cli.overrides import parse_settings
from emulab.experiment.folder import RUNS
from emulab.scenario import NodeSize


def experiment(
    scenario: Annotated[str, typer.Option("--scenario", help="A shipped scenario's name or the path of a YAML file.")] = "one-migration",
    users: Annotated[str | None, typer.Option(help="Concurrent users.")] = None,
    steady: Annotated[str | None, typer.Option(help="Length of the steady state, for example 120 or 10min.")] = None,
    seed: Annotated[str | None, typer.Option(help="Decides operations, delays, data and destinations.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other key, such as migrations.1.to=host3.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = RUNS,
    mend: Annotated[bool, typer.Option("--repair", help="First bring what this machine lacks; says what it changes.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave nodes and guests up at the end.")] = False,
) -> None:
    """Run a scenario: nodes, links, guests, load, migrations, records, report."""
    from emulab.experiment.workflow import run_experiment
    from emulab.report.text import print_summary

    overrides = {"users": users, "steady": steady, "seed": seed, **parse_settings(settings)}
    with Steps() as progress:
        folder, summary, failure = run_experiment(
            scenario, overrides, size=machine_size(), progress=progress, runs=runs, keep=keep, mend=mend
        )
    print_summary(summary, out)
    out.print(f"report: {folder.path / 'report.html'}", markup=False)
    if failure is not None:
        print_error(failure.message, failure.hint)
        raise typer.Exit(failure.exit_code)


def machine_size() -> NodeSize:
    """What a node of this machine can give to a guest."""
    import os

    import psutil

    return NodeSize(cores=os.cpu_count() or 1, memory_bytes=psutil.virtual_memory().total)
