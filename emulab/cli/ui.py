"""``emulab ui``: Locust's own web page for interactive load against the same site."""

from __future__ import annotations

from typing import Annotated

import typer

from emulab.cli.console import Steps, out
from emulab.cli.experiment import machine_size
from emulab.cli.overrides import parse_settings
from emulab.engine.lock import exclusive
from emulab.scenario import load_scenario, resolve


def ui(
    users: Annotated[str | None, typer.Option(help="Users that the site is made ready for.")] = None,
    scenario: Annotated[str, typer.Option("--scenario", help="A shipped scenario's name or the path of a YAML file.")] = "one-migration",
    seed: Annotated[str | None, typer.Option(help="Decides operations, delays and data.")] = None,
    mend: Annotated[bool, typer.Option("--repair", help="First bring what this machine lacks; says what it changes.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the scenario.")] = None,
) -> None:
    """Bring up the site and serve Locust's web page on 127.0.0.1 until Ctrl-C; move guests meanwhile with `emulab migrate`."""
    from emulab.experiment.interactive import serve_ui
    from emulab.experiment.workflow import check_machine

    resolved = resolve(load_scenario(scenario, {"users": users, "seed": seed, **parse_settings(settings)}, node=machine_size()))
    with exclusive("emulab ui"), Steps() as progress:
        check_machine(progress, mend=mend)
        serve_ui(
            resolved,
            progress,
            lambda url: out.print(f"load: {url}   move a guest: emulab migrate web --to host3   end: Ctrl-C", markup=False),
        )
