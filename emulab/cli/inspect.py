"""``emulab validate`` and ``emulab schema``: scenarios without running them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from emulab.cli.console import out
from emulab.cli.experiment import machine_size
from emulab.cli.overrides import parse_settings
from emulab.scenario import load_scenario, plan, resolve, scenario_schema, shipped_scenarios, to_yaml


def validate(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario's name or the path of a YAML file.")] = "one-migration",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as users=200.")] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print it with every default filled in.")] = False,
    shipped: Annotated[bool, typer.Option("--list", help="List the scenarios that come with emulab.")] = False,
) -> None:
    """Check a scenario and show what it would do."""
    if shipped:
        for name, path in shipped_scenarios().items():
            out.print(f"{name:20} {load_scenario(str(path)).description}", markup=False)
        return
    checked = resolve(load_scenario(scenario, parse_settings(settings), node=machine_size()))
    if resolved:
        out.out(to_yaml(checked), highlight=False)
        return
    out.print(f"{checked.name}: {checked.load.users} users, {checked.load.steady:g} s steady, seed {checked.seed}", markup=False)
    for move in plan(checked):
        out.print(f"  at {move.at_s:g} s: {move.vm} from {move.source} to {move.destination} by {move.options['strategy']}", markup=False)


def schema() -> None:
    """Print the JSON Schema of scenario files."""
    out.out(json.dumps(scenario_schema(), indent=2), highlight=False)
