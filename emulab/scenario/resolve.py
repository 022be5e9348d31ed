"""Every "auto" of a scenario made definite: workers, registered users, addresses, destinations. A run records the resolved form."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from emulab.scenario.checks import check, in_order
from emulab.scenario.model import AUTO, FIRST_GUEST, Guest, Migration, Scenario
from emulab.scenario.problems import Problem, refuse

MIN_WORKERS = 16
_SPARE, _EXTRA = 1.25, 10


@dataclass(frozen=True)
class PlannedMigration:
    """One migration with both ends known. ``id`` counts from 1 in order of time; ``at_s`` from the start of the steady state."""

    id: int
    vm: str
    source: str
    destination: str
    at_s: float
    options: dict[str, Any]  # as ``emulab.migration.model.Options``


def workers_needed(users: int, *, keepalive_s: float, mean_s: float) -> int:
    """Prefork workers for a number of users.

    Each open connection holds one worker. After an operation it stays open for ``keepalive_s``, or until the user's next operation if that
    is sooner; with exponential delays of mean ``mean_s`` it is open for the share 1 - exp(-keepalive/mean) of the time. A quarter more and
    ten cover the chance of many at once (for 100 users about five standard deviations) and the operations themselves.
    """
    share = 1 - math.exp(-keepalive_s / mean_s)
    return max(MIN_WORKERS, math.ceil(users * share * _SPARE + _EXTRA))


def resolve(scenario: Scenario, *, previous_source: str | None = None) -> Scenario:
    """Fill in every "auto". The same scenario, seed and previous source give the same result.

    Args:
        scenario: a checked scenario.
        previous_source: host that the previous run migrated from; a run's destination is never that host (the paper's rule).

    Raises:
        UsageError: if a migration has nowhere to go.

    """
    load, workload = scenario.load, scenario.workload
    workers = workers_needed(load.users, keepalive_s=workload.keepalive, mean_s=load.mean) if workload.workers == AUTO else workload.workers
    registered = load.users * workload.data_ratio if workload.registered_users == AUTO else workload.registered_users
    resolved = scenario.model_copy(
        update={
            "workload": workload.model_copy(update={"workers": workers, "registered_users": registered}),
            "guests": _addressed(scenario),
        }
    )
    resolved = _with_destinations(resolved, previous_source)
    if problems := check(resolved):
        raise refuse(scenario.name, problems)
    return resolved


def plan(scenario: Scenario) -> list[PlannedMigration]:
    """The migrations in order of time, each from where the one before left the guest. Needs a resolved scenario (ValueError)."""
    where = {name: guest.host for name, guest in scenario.guests.items()}
    planned = []
    for number, (_, migration) in enumerate(in_order(scenario), start=1):
        if migration.to == AUTO:
            raise ValueError("the plan of a scenario is known once it is resolved")
        planned.append(
            PlannedMigration(
                id=number,
                vm=migration.vm,
                source=where[migration.vm],
                destination=migration.to,
                at_s=migration.at,
                options=_options(migration),
            )
        )
        where[migration.vm] = migration.to
    return planned


def _options(migration: Migration) -> dict[str, Any]:
    return {
        "strategy": migration.strategy,
        "dirty_tracker": migration.dirty_tracker,
        "freeze_budget_s": migration.freeze_budget,
        "max_rounds": migration.max_rounds,
        "max_blackout_s": migration.max_blackout,
        "auto_converge": migration.auto_converge,
        "deadline_s": migration.deadline,
        "link_budget_bit_s": migration.link_budget or 0,
    }


def _addressed(scenario: Scenario) -> dict[str, Guest]:
    taken = {guest.address for guest in scenario.guests.values()}
    guests, n = {}, FIRST_GUEST
    for name, guest in scenario.guests.items():
        address = guest.address
        if address == AUTO:
            while (address := scenario.topology.nth_address(n)) in taken:
                n += 1
            taken.add(address)
        guests[name] = guest.model_copy(update={"address": address})
    return guests


def _with_destinations(scenario: Scenario, previous_source: str | None) -> Scenario:
    where = {name: guest.host for name, guest in scenario.guests.items()}
    avoided = dict.fromkeys(where, previous_source)
    migrations = list(scenario.migrations)
    ordered = in_order(scenario)
    for position, (n, migration) in enumerate(ordered):
        source = where[migration.vm]
        if migration.to == AUTO:
            others = {host for name, host in where.items() if name != migration.vm}
            # An explicit destination that follows must not find the guest there already.
            later = next((m.to for _, m in ordered[position + 1 :] if m.vm == migration.vm), AUTO)
            allowed = [host for host in scenario.topology.host_names if host not in {source, later}]
            destination = _choose(scenario, n, allowed, others, avoided[migration.vm])
            migrations[n] = migration.model_copy(update={"to": destination})
        where[migration.vm], avoided[migration.vm] = migrations[n].to, source
    return scenario.model_copy(update={"migrations": tuple(migrations)})


def _choose(scenario: Scenario, n: int, allowed: list[str], others: set[str], avoided: str | None) -> str:
    """A host at random (by the scenario's seed), not the previous source and not another guest's host where that leaves a choice."""
    best = [host for host in allowed if host != avoided and host not in others]
    free = best or [host for host in allowed if host not in others] or [host for host in allowed if host != avoided] or allowed
    if not free:
        raise refuse(scenario.name, [Problem(("migrations", n, "to"), "there is no other host to go to")])
    return random.Random(f"{scenario.seed}/{n}").choice(free)
