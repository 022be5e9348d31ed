"""``emulab migrate``: move guests now, predict what that would take, or give up what is under way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from emulab.cli.console import Steps, out
from emulab.cli.moving import Move, move_all, pair_up
from emulab.errors import UsageError
from emulab.migration.strategies import STRATEGIES
from emulab.scenario.units import parse_duration, parse_rate
from emulab.testbed import Testbed


def migrate(
    names: Annotated[list[str], typer.Argument(metavar="GUEST...", help="Names of the guests.")],
    to: Annotated[list[str] | None, typer.Option("--to", help="Destination host; once for all guests, or once for each.")] = None,
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(STRATEGIES)}.")] = "pre-copy",
    dirty_tracker: Annotated[str, typer.Option(help="auto, soft-dirty or write-protect.")] = "auto",
    freeze_budget: Annotated[str, typer.Option(help="Blackout to aim for, with unit: rounds end when it is predicted.")] = "300ms",
    max_rounds: Annotated[int, typer.Option(min=1, help="Pre-copy rounds at most.")] = 8,
    max_blackout: Annotated[
        str | None, typer.Option(help="Refuse, before anything happens, a migration whose blackout is predicted to be longer.")
    ] = None,
    auto_converge: Annotated[
        bool, typer.Option("--auto-converge", help="Throttle a guest that writes memory faster than it can be sent.")
    ] = False,
    deadline: Annotated[str, typer.Option(help="Longest time frozen; then the guest goes on where it was.")] = "20s",
    link_budget: Annotated[str | None, typer.Option(help="Rate that each migration may use, such as 300mbit.")] = None,
    in_sequence: Annotated[bool, typer.Option("--in-sequence", help="Several guests one after the other, not in parallel.")] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only predict time, bytes and blackout, with --to for that host; nothing is changed."),
    ] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Give up the migration that is under way; possible until its commit.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the full record, of several guests a list.")] = False,
) -> None:
    """Move running guests to other hosts with their memory, connections and addresses.

    Ctrl-C, and the end of this command for any other reason, gives up a migration that has not been committed: the guest stays where it
    is. After the commit it goes on to its end.
    """
    if abort:
        _abort(names)
        return
    options = {
        "strategy": strategy,
        "dirty_tracker": dirty_tracker,
        "freeze_budget_s": _quantity("--freeze-budget", freeze_budget, parse_duration, "300ms"),
        "max_rounds": max_rounds,
        "max_blackout_s": None if max_blackout is None else _quantity("--max-blackout", max_blackout, parse_duration, "500ms"),
        "auto_converge": auto_converge,
        "deadline_s": _quantity("--deadline", deadline, parse_duration, "20s"),
        "link_budget_bit_s": 0 if link_budget is None else _quantity("--link-budget", link_budget, parse_rate, "300mbit"),
    }
    if plan:
        _plan(names, to or [], options, json_output=json_output)
        return
    if not to:
        raise UsageError("where to?", hint="--to host3, or --plan to see what it would take")
    moves = pair_up(names, to)
    with Steps() as progress:
        move_all(moves, options, progress, in_sequence=in_sequence)
    records = [move.record for move in moves if move.record]
    if json_output:
        out.out(json.dumps(records[0] if len(moves) == 1 and records else records, indent=2), highlight=False)
    else:
        for move in moves:
            if move.record:
                out.print(_moved(move, move.record), markup=False)
    for failed in (move.error for move in moves if move.error):
        raise failed


def _quantity(option: str, text: str, parse: Callable[[object], float], example: str) -> float:
    """Raises UsageError for a quantity without unit, or one that is not above zero."""
    try:
        value = parse(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}", hint=f"for example {example}") from error
    if value <= 0:
        raise UsageError(f"{option} {text!r}: must be above zero", hint=f"for example {example}")
    return value


def _moved(move: Move, record: dict[str, Any]) -> str:
    took = f"in {record['total_s']:.2f} s: blackout {record['blackout_s'] * 1000:.0f} ms, {len(record['rounds'])} rounds"
    wire = f"{record['bytes_on_wire'] / 1e6:.1f} MB on the wire, {record['tcp_established']} TCP connections kept"
    return f"{move.name} moved from {record['source']} to {move.to} {took}, {wire}"


def _abort(names: Sequence[str]) -> None:
    testbed = Testbed()
    for name in names:
        node = testbed.abort_migration(name)
        out.print(f"the migration of {name} was aborted: it runs on {node}", markup=False)


def _plan(names: Sequence[str], to: Sequence[str], options: dict[str, Any], *, json_output: bool) -> None:
    testbed = Testbed()
    destinations = [move.to for move in pair_up(names, to)] if to else [None] * len(names)
    plans = [testbed.plan_migration(name, options, where) for name, where in zip(names, destinations, strict=True)]
    if json_output:
        out.out(json.dumps(plans[0] if len(plans) == 1 else plans, indent=2), highlight=False)
        return
    for name, plan in zip(names, plans, strict=True):
        for line in plan_lines(name, plan):
            out.print(line, markup=False)


def plan_lines(name: str, plan: dict[str, Any]) -> list[str]:
    """A plan as text: what was found, what is expected, what the blackout consists of."""
    found = plan["inventory"]
    memory = f"{plan['resident_bytes'] / 1e6:.0f} MB resident, {plan['proportional_bytes'] / 1e6:.0f} MB with what tasks share counted once"
    took = f"about {plan['total_s']:.1f} s in all, {plan['rounds']} rounds, {plan['bytes_on_wire'] / 1e6:.1f} MB on the wire"
    written = plan["dirty_pages_per_s"] * 4096 / 1e6
    kept = f", {plan['kept']:.0%} of its pages are kept there" if plan["kept"] else ""
    parts = ", ".join(f"{part} {seconds * 1000:.0f}" for part, seconds in plan["blackout"].items())
    return [
        f"{name}: {found['tasks']} tasks with {found['mappings']} mappings, {memory}, writes {written:.1f} MB/s{kept}",
        f"  by {plan['strategy']}: {took}, blackout {plan['blackout_s'] * 1000:.0f} ms",
        f"  blackout in ms: {parts}",
    ]
