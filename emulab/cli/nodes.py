"""``emulab up | down | gc | status`` and ``emulab link``: the nodes and their links."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from emulab.cli.console import Steps, out
from emulab.cli.vm import moving
from emulab.engine.lock import exclusive
from emulab.engine.removal import Removed
from emulab.errors import UsageError
from emulab.testbed import Testbed

link_app = typer.Typer(help="Show and change the nodes' links.", no_args_is_help=True)


def up(rate: Annotated[str, typer.Option(help="Line rate of every link, with unit.")] = "1gbit") -> None:
    """Bring up the six nodes with shaped links."""
    bit_s = parse_rate(rate)
    with exclusive("emulab up"), Steps() as progress:
        Testbed().up(progress.say, rate_bit_s=bit_s)


def parse_rate(text: str) -> int:
    """Raises UsageError for a rate without unit, or none at all."""
    from emulab.scenario.units import parse_rate as parse

    try:
        bit_s = parse(text)
    except ValueError as error:
        raise UsageError(f"rate {text!r}: {error}", hint="for example 1gbit or 100mbit") from error
    if bit_s <= 0:
        raise UsageError(f"rate {text!r}: a link needs more than that", hint="for example 1gbit or 100mbit")
    return bit_s


def down() -> None:
    """Remove nodes, networks and guests, also those that an interrupted run left."""
    with exclusive("emulab down"):
        print_removed(Testbed().down())


def gc() -> None:
    """Remove everything of ours: what `down` removes, and the images."""
    with exclusive("emulab gc"):
        print_removed(Testbed().project.gc())


def print_removed(removed: Removed) -> None:
    counts = {"container": removed.containers, "network": removed.networks, "volume": removed.volumes, "image": removed.images}
    parts = [f"{len(names)} {kind}{'s' if len(names) != 1 else ''}" for kind, names in counts.items() if names]
    out.print(f"removed {', '.join(parts)}" if parts else "nothing to remove")
    for kept in removed.kept:
        out.print(f"left alone: {kept}", markup=False)


def status() -> None:
    """Show nodes and guests."""
    testbed = Testbed()
    table = Table("node", "state", "address", "guests", box=None)
    rows = testbed.project.status()
    guests = testbed.guests() if any(row.state == "running" for row in rows) else []
    for row in rows:
        here = [f"{guest['name']} ({_state(guest)})" for guest in guests if guest["node"] == row.name]
        table.add_row(row.name, row.state, testbed.addresses[row.name], ", ".join(here))
    out.print(table)


def _state(guest: dict[str, Any]) -> str:
    return ", ".join(filter(None, (guest["state"], f"{guest['tasks']} tasks", moving(guest))))


@link_app.command("show")
def link_show() -> None:
    """Show what every node's link is shaped to."""
    testbed = Testbed()
    table = Table("node", "address", "up", "down", "burst", "dropped", box=None)
    for node in testbed.running():
        link = testbed.call(node, "link.show")
        cells = [f"{link[way]['line_rate_bit_s'] / 1e6:.1f} Mbit/s" if link[way] else "not shaped" for way in ("up", "down")]
        burst = f"{link['up']['burst_bytes']} B" if link["up"] else ""
        table.add_row(node, link["address"], *cells, burst, str(link["up"]["dropped"]) if link["up"] else "")
    out.print(table)


@link_app.command("set")
def link_set(
    node: Annotated[str, typer.Argument(help="Which node's link.")],
    rate: Annotated[str, typer.Argument(help="Line rate with unit, such as 100mbit.")],
) -> None:
    """Change a node's link while traffic runs."""
    bit_s = parse_rate(rate)
    state = Testbed().call(node, "link.set", rate_bit_s=bit_s)
    out.print(f"{node}: {state['up']['line_rate_bit_s'] / 1e6:.1f} Mbit/s each way")


@link_app.command("measure")
def link_measure(rate: Annotated[str, typer.Option(help="Line rate that is expected.")] = "1gbit") -> None:
    """Measure every node's link each way."""
    bit_s = parse_rate(rate)
    with Steps() as progress:
        record = Testbed().calibrate(bit_s, progress.say)
    table = Table("node", "up", "down", "round trip idle", "under load", box=None)
    for node, link in record["nodes"].items():
        rtts = [f"{link[key] * 1000:.2f} ms" if link[key] is not None else "-" for key in ("rtt_idle_s", "rtt_loaded_s")]
        table.add_row(node, f"{link['up_best'] / 1e6:.1f} Mbit/s", f"{link['down_best'] / 1e6:.1f} Mbit/s", *rtts)
    out.print(table)
