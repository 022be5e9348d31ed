"""The part of summary.json that tells of migrations, and the stretch of time that each of them disturbed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from emulab.analysis import blackout, connections, downtime, model, recovery
from emulab.analysis.interval import Interval
from emulab.analysis.quantities import count, finite, number, seconds, text
from emulab.analysis.run import Migration, Run, probe_interval_s

if TYPE_CHECKING:
    import pandas as pd

    from emulab.analysis.accounting import Steady


@dataclass(frozen=True)
class Affected:
    """A migration with the stretch of time it disturbed and what "ordinary" was before it."""

    migration: Migration
    interval: Interval
    recovery_s: float
    medians: dict[str, float]


def affected(run: Run, steady: Steady | None) -> list[Affected]:
    """Each migration of a run, in their order."""
    found: list[Affected] = []
    for n, migration in enumerate(run.migrations):
        if steady is None:
            found.append(Affected(migration, recovery.affected(migration, math.nan, migration.end_s), math.nan, {}))
            continue
        later = [other.start_s for other in run.migrations[n + 1 :]]
        until = max(min([steady.interval.end_s, *later]), migration.start_s)
        # Ordinary is what it was before the first migration: after it, a backlog may still be there.
        before = steady.counted[steady.counted["end_s"] < run.migrations[0].start_s]
        recovered = recovery.recovery_s(run.operations, recovery.ordinary_limits(before), migration.resume_s, until)
        found.append(Affected(migration, recovery.affected(migration, recovered, until), recovered, recovery.medians(before)))
    return found


def describe(run: Run, steady: Steady | None, item: Affected) -> model.Migration:
    """One entry of ``migrations``."""
    migration, raw = item.migration, item.migration.raw
    origin = run.origin_s
    counted = steady.counted if steady else None
    rounds_end = migration.freeze_s if math.isfinite(migration.freeze_s) else migration.end_s
    hit = connections.overlapping(run.requests, item.interval)
    operations = run.operations
    failed = operations[(operations["outcome"] == "error") & (operations["start_s"] < item.interval.end_s)]
    rounds = [_round(entry, item, counted, origin) for entry in migration.rounds]
    predictions = [entry.predicted_blackout_s for entry in rounds if entry.kind == "pre-dump" and entry.predicted_blackout_s is not None]
    return model.Migration(
        id=migration.id,
        vm=migration.vm,
        source=migration.source,
        destination=migration.destination,
        strategy=text(raw.get("strategy")),
        dirty_tracker=text(raw.get("dirty_tracker")),
        outcome=migration.outcome,
        reason=migration.reason,
        start_s=finite(migration.start_s - origin),
        freeze_at_s=finite(migration.freeze_s - origin),
        resume_at_s=finite(migration.resume_s - origin),
        total_s=finite(migration.total_s),
        blackout_s=finite(migration.blackout_s),
        client_stall_s=finite(downtime.client_stall_s(run.probes, item.interval, probe_interval_s(run))),
        network_hold_s=finite(migration.network_hold_s),
        recovery_s=finite(item.recovery_s),
        affected_s=finite(item.interval.length_s),
        slowdown=finite(_slowdown(counted, item, Interval(migration.start_s, rounds_end))[0]),
        rounds=rounds,
        phases={name: finite(value) for name, value in migration.phases.items()},
        blackout=[model.Step(name=step.name, start_s=step.start_s, duration_s=step.length_s) for step in blackout.steps(run, migration)],
        bytes_on_wire=count(raw.get("bytes_on_wire")),
        bytes_of_pages=count(raw.get("bytes_of_pages")),
        tasks=count(raw.get("tasks")),
        tcp_established=count(raw.get("tcp_established")),
        stop_rule=text(raw.get("stop_rule")),
        stop_reason=text(raw.get("stop_reason")),
        predicted_blackout_s=finite(number(raw.get("predicted_blackout_s", predictions[-1] if predictions else None))),
        predicted={str(name): finite(number(value)) for name, value in (raw.get("predicted") or {}).items()},
        throttle=[_throttle_step(step, origin) for step in raw.get("throttle") or ()],
        requests_failed=int(connections.failed(hit).sum()),
        operations_failed=int((failed["end_s"].fillna(np.inf) > item.interval.start_s).sum()),
        probes_lost=downtime.lost(run.probes, item.interval),
        connections=connection_counts(run, item.interval),
    )


def _round(entry: dict[str, Any], item: Affected, counted: pd.DataFrame | None, origin: float) -> model.Round:
    start, duration = number(entry.get("start_s")), number(entry.get("duration_s"))
    slow, samples = _slowdown(counted, item, Interval(start, start + duration))
    return model.Round(
        n=int(entry.get("n", 0)),
        kind=str(entry.get("kind", "")),
        start_s=finite(start - origin),
        pages=count(entry.get("pages")) or 0,
        bytes=count(entry.get("bytes")) or 0,
        bytes_on_wire=count(entry.get("bytes_on_wire")) or 0,
        layer_bytes=count(entry.get("layer_bytes")) or 0,
        duration_s=finite(duration),
        frozen_s=finite(number(entry.get("frozen_s"))),
        predicted_blackout_s=finite(number(entry.get("predicted_blackout_s"))),
        dirty_pages_per_s=finite(number(entry.get("dirty_pages_per_s"))),
        dirty_pages=count(entry.get("dirty_pages")),
        throttle=finite(number(entry.get("throttle"))),
        slowdown=finite(slow),
        slowdown_samples=samples,
    )


def _throttle_step(step: dict[str, Any], origin: float) -> model.ThrottleStep:
    at, share, vcpus = (finite(number(step.get(key))) for key in ("at_s", "share", "vcpus"))
    return model.ThrottleStep(at_s=None if at is None else at - origin, share=share, vcpus=vcpus)


def _slowdown(counted: pd.DataFrame | None, item: Affected, interval: Interval) -> tuple[float, int]:
    if counted is None or not math.isfinite(interval.length_s):
        return math.nan, 0
    return recovery.slowdown(counted, item.medians, interval)


def connection_counts(run: Run, interval: Interval | None) -> model.ConnectionCounts:
    keepalive = seconds(run.section("workload").get("keepalive"), 5.0)
    reopened = connections.reopenings(run.requests, keepalive)
    return model.ConnectionCounts(**asdict(connections.connections(run.requests, reopened, interval)))
