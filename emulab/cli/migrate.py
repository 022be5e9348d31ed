"""``emulab migrate``: move a guest now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from emulab.cli.console import Steps, out
from emulab.errors import MigrationError, UsageError
from emulab.migration.strategies import STRATEGIES
from emulab.node.rpc import RemoteError
from emulab.scenario.units import parse_duration
from emulab.testbed import Testbed


def migrate(
    name: Annotated[str, typer.Argument(help="Name of the guest.")],
    to: Annotated[str, typer.Option("--to", help="Destination host.")],
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(STRATEGIES)}.")] = "pre-copy",
    dirty_tracker: Annotated[str, typer.Option(help="auto, soft-dirty or write-protect.")] = "auto",
    freeze_budget: Annotated[str, typer.Option(help="Blackout to aim for, with unit.")] = "300ms",
    max_rounds: Annotated[int, typer.Option(min=1, help="Pre-copy rounds at most.")] = 8,
    json_output: Annotated[bool, typer.Option("--json", help="Print the full record.")] = False,
) -> None:
    """Move a running guest to another host with its memory, connections and address."""
    try:
        budget = parse_duration(freeze_budget)
    except ValueError as error:
        raise UsageError(f"freeze budget {freeze_budget!r}: {error}", hint="for example 300ms") from error
    options = {"strategy": strategy, "dirty_tracker": dirty_tracker, "freeze_budget_s": budget, "max_rounds": max_rounds}
    with Steps() as progress:

        def show(event: dict[str, Any]) -> None:
            if text := describe(event):
                progress.say(text)

        try:
            record = Testbed().migrate(name, to, options, on_event=show)
        except RemoteError as error:
            raise _failed(error) from error
    if json_output:
        out.out(json.dumps(record, indent=2), highlight=False)
    else:
        out.print(
            f"{name} moved from {record['source']} to {to} in {record['total_s']:.2f} s: blackout {record['blackout_s'] * 1000:.0f} ms, "
            f"{len(record['rounds'])} rounds, {record['bytes_on_wire'] / 1e6:.1f} MB on the wire, "
            f"{record['tcp_established']} TCP connections kept",
            markup=False,
        )


def describe(event: dict[str, Any]) -> str:
    """A line for the user, or nothing, for a row of the timeline."""
    name, kind = event.get("name"), event.get("kind")
    if name == "migration.round" and kind == "end":
        return (
            f"round {event['n']}: {event['pages']} pages, {event['bytes'] / 1e6:.2f} MB sent, frozen for {event['frozen_s'] * 1000:.0f} ms"
        )
    if name == "migration.stop_rule":
        return f"rounds end: {event['reason']}"
    if name == "migration.freeze" and kind == "end":
        return f"frozen: {event['tasks']} tasks"
    if name == "migration.abort":
        return f"aborted: {event['reason']}"
    return ""


def _failed(error: RemoteError) -> Exception:
    """Keep the CRIU logs of a failed migration beside the user and say where."""
    if error.kind == "UsageError":
        return UsageError(error.message, hint=error.hint)
    logs = (error.details or {}).get("logs", {}) if isinstance(error.details, dict) else {}
    hint = error.hint
    if logs:
        folder = Path("runs") / "migrate-logs"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in logs.items():
            (folder / name).write_text(text)
        hint = f"CRIU's logs: {folder}"
    return MigrationError(error.message, hint=hint)
