"""Moving one guest or several at once, with a live line each; Ctrl-C gives up what has not been committed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emulab.agent.rpc import RemoteError
from emulab.cli.console import Steps
from emulab.errors import EmulabError, MigrationError, UsageError
from emulab.testbed import Testbed

_UNDO_S = 60.0


@dataclass
class Move:
    """One guest on its way: what was asked for, and how it ended."""

    name: str
    to: str
    number: int
    record: dict[str, Any] | None = None
    error: EmulabError | None = None
    line: str = ""
    ended: threading.Event = field(default_factory=threading.Event)


def pair_up(names: Sequence[str], destinations: Sequence[str]) -> list[Move]:
    """One destination for all, or one for each. Raises UsageError."""
    if len(set(names)) != len(names):
        raise UsageError("a guest is named twice", hint="each guest moves once")
    if len(destinations) == 1:
        destinations = list(destinations) * len(names)
    if len(destinations) != len(names):
        raise UsageError(
            f"{len(names)} guests and {len(destinations)} destinations",
            hint="give --to once for all guests, or once for each in their order",
        )
    return [Move(name, to, number) for number, (name, to) in enumerate(zip(names, destinations, strict=True), start=1)]


def move_all(moves: Sequence[Move], options: dict[str, Any], progress: Steps, *, in_sequence: bool) -> None:
    """Move every guest; returns when all have ended. What failed is in ``Move.error``; in sequence, the first failure ends it.

    On Ctrl-C what is under way is given up, unless it is past its commit, and what has not begun does not begin.
    """
    testbed = Testbed()
    threads: list[threading.Thread] = []
    try:
        for move in moves:
            thread = threading.Thread(target=_move, args=(testbed, move, moves, options, progress), name=move.name, daemon=True)
            thread.start()
            threads.append(thread)
            if in_sequence:
                _wait([move])
                if move.error:
                    break
        _wait(moves[: len(threads)])
    except KeyboardInterrupt:
        for move in moves[: len(threads)]:
            if not move.ended.is_set():
                _give_up(move, progress)
        raise


def _move(testbed: Testbed, move: Move, moves: Sequence[Move], options: dict[str, Any], progress: Steps) -> None:
    prefix = f"{move.name}: " if len(moves) > 1 else ""

    def show(event: dict[str, Any]) -> None:
        if event.get("name") == "migration.progress":
            move.line = prefix + live_line(event)
            progress.live(" | ".join(other.line for other in moves if other.line))
        elif text := describe(event):
            progress.say(prefix + text)

    try:
        move.record = testbed.migrate(move.name, move.to, options, number=move.number, on_event=show)
    except RemoteError as error:
        move.error = _explained(error)
    except EmulabError as error:
        move.error = error
    finally:
        move.line = ""
        move.ended.set()


def _wait(moves: Sequence[Move]) -> None:
    for move in moves:
        while not move.ended.wait(0.2):  # in steps, so that Ctrl-C is heard
            pass


def _give_up(move: Move, progress: Steps) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        try:
            node = Testbed().abort_migration(move.name)
            progress.say(f"given up: {move.name} runs on {node}")
        except EmulabError as error:
            move.ended.wait(_UNDO_S)  # past its commit: it only has to end
            progress.say(f"{move.name} runs on {move.to}" if move.record else error.message)


def live_line(row: dict[str, Any]) -> str:
    """What a row ``migration.progress`` says."""
    phase = f"round {row['round']}" if row.get("round") else str(row["phase"])
    parts = [phase, f"{row['bytes_sent'] / 1e6:.1f} MB sent", f"{row['bytes_left'] / 1e6:.1f} MB left"]
    if row["dirty_bytes_per_s"]:
        parts.append(f"guest writes {row['dirty_bytes_per_s'] / 1e6:.1f} MB/s")
    if row["expected_blackout_s"]:
        parts.append(f"blackout about {row['expected_blackout_s'] * 1000:.0f} ms")
    return ", ".join([*parts, f"{row['eta_s']:.0f} s left"])


def describe(event: dict[str, Any]) -> str:
    """A line for the user, or nothing, for a row of the timeline."""
    name, kind = event.get("name"), event.get("kind")
    if name == "migration.round" and kind == "end":
        return (
            f"round {event['n']}: {event['pages']} pages, {event['bytes'] / 1e6:.2f} MB sent, frozen for {event['frozen_s'] * 1000:.0f} ms"
        )
    if name == "migration.throttle":
        return f"throttled to {event['vcpus']:g} vCPUs ({event['share']:.0%} withheld): {event['reason']}"
    if name == "migration.stop_rule":
        return f"rounds end: {event['reason']}"
    if name == "migration.freeze" and kind == "end":
        return f"frozen: {event['tasks']} tasks"
    if name == "migration.abort":
        return f"aborted: {str(event['reason']).removeprefix('aborted: ')}"
    return ""


def _explained(error: RemoteError) -> EmulabError:
    """Keep the CRIU logs of a failed migration beside the user and say where."""
    if error.kind == "UsageError":
        return UsageError(error.message, hint=error.hint)
    if error.kind != "AbortedError":
        return error
    logs = (error.details or {}).get("logs", {}) if isinstance(error.details, dict) else {}
    hint = error.hint
    if logs:
        folder = Path("runs") / "migrate-logs"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in logs.items():
            (folder / name).write_text(text)
        hint = hint if "CRIU logs" not in hint else f"CRIU's logs: {folder}"
    return MigrationError(error.message, hint=hint)
