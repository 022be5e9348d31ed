"""What a migration is asked to do and what it reports: plain data that both agents and the command line share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from emulab import clock
from emulab.errors import MigrationError, UsageError
from emulab.migration.rounds import Round
from emulab.migration.strategies import STRATEGIES

Emit = Callable[[dict[str, Any]], None]
Pause = Callable[[float], None]


@dataclass(frozen=True)
class Options:
    """How to migrate.

    ``freeze_budget_s``: blackout aimed for. ``min_rounds``, ``max_rounds``: of pre-copy. ``max_blackout_s``: longest blackout allowed: a
    migration that is predicted to exceed it does not happen. ``deadline_s``: longest time frozen before the source is resumed.
    ``auto_converge``: throttle a guest that writes too fast. ``link_budget_bit_s``: of the line, 0 for all of it. ``page_store``:
    refer to pages that the destination kept from an earlier visit, and keep this guest's pages here when it has left. ``hold_at``: for
    fault tests: stand still for so many seconds at the beginning of a phase (its name in the timeline without "migration.": layer, round,
    freeze, dump, transfer, restore, commit, resume).
    """

    strategy: str = "pre-copy"
    dirty_tracker: str = "auto"
    freeze_budget_s: float = 0.3
    max_rounds: int = 8
    min_rounds: int = 1
    deadline_s: float = 20.0
    auto_converge: bool = False
    max_blackout_s: float | None = None
    link_budget_bit_s: int = 0
    page_store: bool = True
    hold_at: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Options:
        options = cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})
        if options.strategy not in STRATEGIES:
            raise UsageError(f"unknown strategy {options.strategy!r}", hint=f"one of {', '.join(STRATEGIES)}")
        return options


@dataclass
class Report:
    """The record of one migration: a row of ``migrations.json``. Instants are monotonic seconds, sizes bytes."""

    id: int
    vm: str
    source: str
    destination: str
    strategy: str
    dirty_tracker: str
    start_s: float
    outcome: str = "aborted"
    reason: str = ""
    end_s: float = 0.0
    freeze_s: float | None = None
    resume_s: float | None = None
    network_hold_s: float | None = None
    frames_held: int = 0
    rounds: list[Round] = field(default_factory=list)
    bytes_on_wire: int = 0
    bytes_of_pages: int = 0
    pages_distinct: int = 0
    pages_zero: int = 0
    pages_from_store: int = 0  # which the destination had kept from an earlier visit
    bytes_from_store: int = 0
    pages_changed: int = 0  # of which only the difference from an earlier version crossed
    pages_filled: int = 0  # at the destination, in the memory of large tasks before the freeze
    restored_in_place: bool | None = None  # False: CRIU made the mappings alone, since an earlier restore had failed there
    layer_bytes: int = 0
    tasks: int = 0
    tcp_established: int = 0
    pages_faulted: int = 0  # post-copy: pages for which a task of the guest had to wait, and how long
    fault_p50_s: float = 0.0
    fault_max_s: float = 0.0
    stop_rule: str = ""
    stop_reason: str = ""
    predicted_blackout_s: float | None = None
    predicted: dict[str, float] = field(default_factory=dict)  # its parts
    throttle: list[dict[str, float]] = field(default_factory=list)  # steps: instant, share of CPU withheld, vCPUs left
    phases: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)  # instants of CRIU's restore hooks

    def as_dict(self) -> dict[str, Any]:
        record = asdict(self)
        record["total_s"] = self.end_s - self.start_s
        both = self.freeze_s is not None and self.resume_s is not None
        record["blackout_s"] = (self.resume_s or 0.0) - (self.freeze_s or 0.0) if both else None
        return record


class AbortedError(MigrationError):
    """A migration that was undone. ``details``: {"report": row of migrations.json, "logs": {file name: text}, "running_on": node}."""

    def __init__(self, message: str, *, hint: str, details: dict[str, Any]) -> None:
        super().__init__(message, hint=hint)
        self.details = details


class Timeline:
    """Emits the phases of one migration as rows of ``timeline.ndjson``. ``hold_at``: see ``Options``; ``pause``: how to wait."""

    def __init__(
        self, emit: Emit, source: str, migration: int, hold_at: Mapping[str, float] | None = None, pause: Pause = time.sleep
    ) -> None:
        self._emit = emit
        self._source = source
        self._id = migration
        self._hold_at = hold_at or {}
        self._pause = pause

    def mark(self, name: str, kind: str = "event", *, at: float | None = None, **fields: Any) -> float:
        """Emit one row and return its instant. ``at``: an instant in the past, otherwise now."""
        instant = clock.now() if at is None else at
        self._emit({"mono_s": instant, "wall": clock.wall(), "source": self._source, "name": name, "kind": kind, "id": self._id, **fields})
        if kind != "end" and (held_s := self._hold_at.get(name.removeprefix("migration."))):
            self._pause(held_s)
        return instant
