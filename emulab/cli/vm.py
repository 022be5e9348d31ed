"""``emulab vm``: guests, wherever they run."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from emulab.cli.console import out
from emulab.cli.moving import live_line
from emulab.errors import UsageError
from emulab.node.guest import GuestSpec
from emulab.node.rootfs import STORAGES
from emulab.scenario.units import parse_size
from emulab.testbed import Testbed

app = typer.Typer(help="Start, stop, list and enter guests.", no_args_is_help=True)


@app.command("list")
def list_guests() -> None:
    """List guests with their node, address and limits."""
    table = Table("guest", "node", "state", "address", "vcpus", "memory", "tasks", "image", "migration", box=None)
    for guest in Testbed().guests():
        memory = f"{guest['memory_bytes'] / 2**30:g} GiB"
        table.add_row(
            guest["name"],
            guest["node"],
            guest["state"],
            guest["address"],
            f"{guest['vcpus']:g}",
            memory,
            str(guest["tasks"]),
            guest["image"],
            moving(guest),
        )
    out.print(table if table.row_count else "no guest runs")


def moving(guest: dict[str, Any]) -> str:
    """How far a guest that is leaving has come; empty for one that stays."""
    row = guest.get("migration")
    if row is None:
        return ""
    return f"leaving: {live_line(row)}" if row else "leaving"


@app.command("start")
def start(
    name: Annotated[str, typer.Argument(help="Name of the guest.")],
    on: Annotated[str, typer.Option("--on", help="Host to start it on.")],
    image: Annotated[str | None, typer.Option(help="Guest image; by default olio-<name>.")] = None,
    address: Annotated[str | None, typer.Option(help="IPv4 address on the LAN; by default the next free one from .100.")] = None,
    vcpus: Annotated[float, typer.Option(help="CPU limit.")] = 1.0,
    memory: Annotated[str, typer.Option(help="Memory limit with unit.")] = "1GiB",
    storage: Annotated[str, typer.Option(help="Writable layer: local, moves with the guest; shared, on a volume of all hosts.")] = "local",
    env: Annotated[list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Variable for the guest's first process.")] = None,
) -> None:
    """Start a guest."""
    testbed = Testbed()
    if not 0 < vcpus <= (os.cpu_count() or 1):
        raise UsageError(f"{vcpus:g} vcpus do not fit this machine's {os.cpu_count()}", hint="--vcpus 1")
    try:
        size = parse_size(memory)
    except ValueError as error:
        raise UsageError(f"memory {memory!r}: {error}", hint="for example 512MiB or 2GiB") from error
    variables = {}
    for one in env or ():
        key, equals, value = one.partition("=")
        if not equals:
            raise UsageError(f"--env {one!r} is not NAME=VALUE")
        variables[key] = value
    taken = {str(guest["address"]) for guest in testbed.guests()}
    free = next(a for n in range(100, 250) if (a := f"{testbed.settings.lan_prefix}.{n}") not in taken)
    if address in taken:
        raise UsageError(f"address {address} is taken by another guest", hint=f"free: {free}")
    if storage not in STORAGES:
        raise UsageError(f"unknown storage {storage!r}", hint=f"one of {', '.join(STORAGES)}")
    spec = GuestSpec(
        name=name, image=image or f"olio-{name}", address=address or free, vcpus=vcpus, memory_bytes=size, env=variables, storage=storage
    )
    guest = testbed.start_guest(on, spec)
    out.print(f"{name} runs on {on} at {guest['address']}", markup=False)


@app.command("stop")
def stop(name: Annotated[str, typer.Argument(help="Name of the guest.")]) -> None:
    """Stop a guest wherever it is; its writable layer goes with it."""
    node = Testbed().stop_guest(name)
    out.print(f"stopped {name} on {node}", markup=False)


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    name: Annotated[str, typer.Argument(help="Name of the guest.")],
    command: Annotated[list[str], typer.Argument(help="Command and arguments.")],
) -> None:
    """Run a command inside a guest, with this terminal."""
    testbed = Testbed()
    node, argv = testbed.enter_argv(name, command[1:] if command[0] == "--" else command)
    terminal = ("-t",) if sys.stdin.isatty() and sys.stdout.isatty() else ()
    sys.stdout.flush()
    # The engine's own command carries terminal size and signals.
    os.execvp("docker", ("docker", "exec", "-i", *terminal, testbed.project.container(node), *argv))  # noqa: S606


@app.command("logs")
def logs(
    name: Annotated[str, typer.Argument(help="Name of the guest.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many.")] = 100,
) -> None:
    """Show the end of what a guest wrote."""
    testbed = Testbed()
    text = testbed.call(str(testbed.find(name)["node"]), "vm.logs", name=name, lines=lines)
    out.out(text, highlight=False)
