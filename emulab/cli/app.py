"""The command tree."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

import emulab
from emulab.cli import bench, doctor, experiment, inspect, migrate, nodes, reports, ui, vm

app = typer.Typer(
    name="emulab",
    help="A distributed emulation testbed in containers: what does a live migration cost the users of a service?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_state = {"verbose": False}


def verbose() -> bool:
    return _state["verbose"]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"emulab {emulab.__version__}")
        raise typer.Exit


@app.callback()
def root(
    verbosity: Annotated[bool, typer.Option("--verbose", "-v", help="Show every command and full tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    del version
    _state["verbose"] = verbosity
    logging.basicConfig(level=logging.DEBUG if verbosity else logging.WARNING, format="%(name)s: %(message)s")
    for noisy in ("matplotlib", "urllib3", "docker", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


app.command("experiment")(experiment.experiment)
app.command("validate")(inspect.validate)
app.command("schema")(inspect.schema)
app.command("doctor")(doctor.doctor)
app.command("up")(nodes.up)
app.command("down")(nodes.down)
app.command("gc")(nodes.gc)
app.command("status")(nodes.status)
app.command("migrate")(migrate.migrate)
app.command("ui")(ui.ui)
app.command("bench")(bench.bench)
app.command("report")(reports.report)
app.command("compare")(reports.compare)
app.add_typer(vm.app, name="vm")
app.add_typer(nodes.link_app, name="link")
