"""The result of a run in one or two plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulab.analysis.units import duration, listing, plural

if TYPE_CHECKING:
    from emulab.analysis.model import Load, Migration, Operation, Sla


def story(status: str, load: Load, sla: Sla, operations: dict[str, Operation], migrations: list[Migration]) -> str:
    """What happened to the guest, what its users noticed, and whether the agreement held."""
    if status != "complete":
        ended = "was stopped before its end" if status == "aborted" else "failed"
        if load.operations == 0:
            return f"The run {ended}; nothing was measured in steady state."
        return f"The run {ended}: what follows covers the {load.operations} operations measured until then. " + _moves(load, migrations)
    if load.operations == 0:
        return "No operation was completed in steady state: there is nothing to judge."
    return " ".join((_moves(load, migrations), _agreement(sla, operations) + _beside(load)))


def _moves(load: Load, migrations: list[Migration]) -> str:
    if not migrations:
        return f"{plural(load.users, 'user')} and no migration: {plural(load.errors, 'operation')} failed."
    return f"With {plural(load.users, 'user')}, {_lower(' '.join(_move(migration) for migration in migrations))}"


def _move(migration: Migration) -> str:
    who = f"{migration.vm} from {migration.source} to {migration.destination}"
    if migration.outcome != "committed":
        return f"Moving {who} was given up; the guest stayed on {migration.source}, and {_failures(migration)}."
    took, stopped = duration(migration.total_s), duration(migration.blackout_s)
    sentence = f"Moving {who} took {took}; no task ran for {stopped}"
    if migration.client_stall_s is not None:
        sentence += f", clients got no answer for {duration(migration.client_stall_s)}"
    return f"{sentence}, and {_failures(migration)}."


def _failures(migration: Migration) -> str:
    return "no request failed" if migration.requests_failed == 0 else f"{plural(migration.requests_failed, 'request')} failed"


def _agreement(sla: Sla, operations: dict[str, Operation]) -> str:
    if sla.pass90 and sla.pass99:
        return "Every operation kept its limit at 90 % and at 99 %."
    if sla.pass90:
        return f"Every operation kept its limit at 90 %; at 99 % {_broken(sla.broken99, operations)}."
    return f"At 90 % {_broken(sla.broken90, operations)}." + ("" if sla.pass99 else f" At 99 % {_broken(sla.broken99, operations)}.")


def _beside(load: Load) -> str:
    """Failures are no part of the percentiles: say so."""
    return f" {plural(load.errors, 'failed operation')} not counted in these." if load.errors else ""


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _broken(names: list[str], operations: dict[str, Operation]) -> str:
    measured = [name for name in names if operations[name].sla99.samples]
    silent = [name for name in names if not operations[name].sla99.samples]
    parts = []
    if measured:
        parts.append(f"{listing(measured)} broke {'its limit' if len(measured) == 1 else 'their limits'}")
    if silent:
        parts.append(f"{listing(silent)} {'was' if len(silent) == 1 else 'were'} never measured")
    return " and ".join(parts)
