"""What is measured: groups of cases, each case one migration of a fresh guest (or several, of one that stays).

The movers of a case take turns within a repetition, so that a machine that grows slower or faster does so for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from emulab.bench.bed import SOURCE, TO, Bed, room_for, touch_memory
from emulab.bench.model import OURS, PRE_DUMP, STOP_AND_COPY, Sample, percentile, sample
from emulab.bench.movers import SETTLED_S, Move, Mover, Ours, Stock
from emulab.bench.remote import Remote
from emulab.errors import EmulabError

Plan = Iterator["Case"]
WORKERS = (32, 64, 128)
JUDGED = 64
DIRTY_MB_S = (5, 20, 50, 100)
DIRTY_MEMORY_MB = 128
TASKS = (1, 8, 32, 128, 256)
MEMORY_MB = (64, 256, 1024, 4096)
SETTINGS = (
    (PRE_DUMP, "quota"), (PRE_DUMP, "no-quota"), (PRE_DUMP, "ptrace"), (PRE_DUMP, "read"),
    (STOP_AND_COPY, "plain"), (STOP_AND_COPY, "zstd"),
)  # fmt: skip
PROBE_S = 0.005
SHARE = 0.7  # of capacity
_STILL_NEEDED = 3.2  # times the memory of a guest that runs: its images on both nodes, and its memory at the destination
_STEADY_S = 3.0
_WARM_S = 2.0
_DRAINED_S = 15.0  # at 70 % of capacity what has queued up in 4 s needs 9 s to be gone
_BEFORE_S = 5.0
_ORDERING_S = 0.5  # the order to migrate is on its way, and costs the clients some CPU
_IDLE_S = 2.5  # longer than the site's keep-alive: every connection is closed


@dataclass(frozen=True)
class Extent:
    """How much of everything. ``quick``: once each, small sizes: shows that it works, not how fast."""

    repetitions: int = 5
    quick: bool = False

    @property
    def fewer(self) -> int:
        return max(1, (self.repetitions + 1) // 2)

    def some(self, values: Sequence[int]) -> Sequence[int]:
        return values[:2] if self.quick else values


@dataclass(frozen=True)
class Case:
    """One thing to measure: ``run`` yields samples. ``left_out``: why it is not tried."""

    group: str
    setting: str
    mover: str
    repetition: int
    run: Callable[[], Iterator[Sample]]
    left_out: str = ""


class Bench:
    """All groups over one bed. ``best``: setting of each baseline, found by ``choose``."""

    def __init__(self, bed: Bed, extent: Extent, best: dict[str, str] | None = None) -> None:
        self._bed = bed
        self._extent = extent
        self.best = {STOP_AND_COPY: "plain", PRE_DUMP: "no-quota", **(best or {})}
        self.groups: dict[str, Callable[[], Plan]] = {
            "settings": self.settings,
            "web": self.web,
            "dirty": self.dirty,
            "idle": self.idle,
            "visit": self.visit,
            "stall": self.stall,
            "response": self.response,
            "tasks": self.tasks,
            "memory": self.memory,
        }

    def mover(self, key: str) -> Mover:
        return Ours() if key == OURS else Stock(key, self.best[key])

    # -- groups ------------------------------------------------------------------------------------------------------------------------

    def settings(self) -> Plan:
        """Each baseline with each of its settings, saturated: the better one is used from then on."""
        workers = 32 if self._extent.quick else 64
        for repetition in range(1 if self._extent.quick else 2):
            for method, setting in SETTINGS:
                if method == STOP_AND_COPY and repetition:
                    continue  # a second copy tells nothing new
                yield self._web_case("settings", workers, Stock(method, setting), repetition, saturated=True, name=f"{method}, {setting}")

    def web(self) -> Plan:
        for repetition in range(self._extent.repetitions):
            for workers in self._extent.some(WORKERS):
                for saturated in (True, False):
                    for key in (OURS, PRE_DUMP, STOP_AND_COPY):
                        # (a) has no rounds, so it costs the same time whatever the guest does: fewer of them tell enough.
                        if key == STOP_AND_COPY and (not saturated or repetition >= self._extent.fewer):
                            continue
                        # As often as asked for: what is judged.
                        if not saturated and workers != JUDGED and repetition >= self._extent.fewer:
                            continue
                        yield self._web_case("web", workers, self.mover(key), repetition, saturated=saturated)

    def dirty(self) -> Plan:
        for repetition in range(self._extent.fewer):
            for rate in self._extent.some(DIRTY_MB_S):
                for key in (OURS, PRE_DUMP, STOP_AND_COPY):
                    if key == STOP_AND_COPY and repetition:
                        continue
                    setting = f"{rate} MB/s dirtied of {DIRTY_MEMORY_MB} MiB"
                    yield self._known_case("dirty", setting, key, repetition, memory_mb=DIRTY_MEMORY_MB, dirty_mb_s=rate)

    def idle(self) -> Plan:
        size = 256 if self._extent.quick else 1024
        for repetition in range(self._extent.repetitions):
            for key in (OURS, PRE_DUMP, STOP_AND_COPY):
                if key == OURS or repetition < 2:
                    yield self._known_case("idle", f"idle, {size} MiB", key, repetition, memory_mb=size)

    def tasks(self) -> Plan:
        for repetition in range(1 if self._extent.repetitions < 5 else 2):
            for count in self._extent.some(TASKS):
                for key in (OURS, PRE_DUMP):
                    yield self._known_case("tasks", f"{count} tasks", key, repetition, memory_mb=16, tasks=count)

    def memory(self) -> Plan:
        for size in self._extent.some(MEMORY_MB):
            for key in (OURS, PRE_DUMP):
                yield self._known_case("memory", f"{size} MiB", key, 0, memory_mb=size)

    def visit(self) -> Plan:
        """There, back, and there again: the second time the host has seen the guest before."""
        workers = 32 if self._extent.quick else 64
        for repetition in range(self._extent.repetitions):
            yield Case("visit", f"{workers} workers, idle", OURS, repetition, lambda r=repetition: self._visits(workers, r))  # type: ignore[misc]

    def stall(self) -> Plan:
        workers = 32 if self._extent.quick else 64
        for repetition in range(self._extent.repetitions):
            for key in (OURS, PRE_DUMP):
                if key == PRE_DUMP and repetition >= self._extent.fewer:
                    continue
                yield self._web_case("stall", workers, self.mover(key), repetition, saturated=False, probed=True)

    def response(self) -> Plan:
        workers = 32 if self._extent.quick else 64
        moves = 2 if self._extent.quick else 1 + self._extent.repetitions
        yield Case("response", f"{workers} workers, {SHARE:.0%} of capacity", OURS, 0, lambda: self._responses(workers, moves))

    # -- one case ----------------------------------------------------------------------------------------------------------------------

    def _known_case(
        self, group: str, setting: str, key: str, repetition: int, *, memory_mb: float, dirty_mb_s: float = 0.0, tasks: int = 1
    ) -> Case:
        mover = self.mover(key)

        def run() -> Iterator[Sample]:
            with self._bed.known(memory_mb=memory_mb, dirty_mb_s=dirty_mb_s, tasks=tasks) as guest:
                touch_memory(int(_STILL_NEEDED * memory_mb * 2**20))
                time.sleep(1.0)
                fields = {"memory_mb": memory_mb, "dirty_mb_s": dirty_mb_s, "mover_setting": getattr(mover, "setting", "")}
                yield sample(group, setting, key, repetition, **fields, **self._move(mover, guest, TO))
                self._bed.close(mover, guest)

        return Case(group, setting, key, repetition, run, room_for((1 + _STILL_NEEDED) * memory_mb * 2**20 + 2**30))

    def _web_case(
        self, group: str, workers: int, mover: Mover, repetition: int, *, saturated: bool, probed: bool = False, name: str = ""
    ) -> Case:
        state = "saturated" if saturated else "idle but for the probes" if probed else "idle"
        setting = f"{workers} workers, {state}"

        def run() -> Iterator[Sample]:
            fields: dict[str, Any] = {"workers": workers, "load": state, "mover_setting": getattr(mover, "setting", ""), "variant": name}
            with self._bed.web(workers) as guest:
                load: Remote | None = self._bed.clients("closed", clients=workers - 2)
                try:
                    time.sleep(_STEADY_S if saturated else _WARM_S)
                    if not saturated and load:
                        load.end()
                        load = self._probes() if probed else None
                        time.sleep(_IDLE_S)
                    moved = self._move(mover, guest, TO)
                    if load:
                        time.sleep(0.5)
                        load.end_input()
                        seen = load.json()
                        fields |= saw(seen, moved, probed=probed)
                finally:
                    if load:
                        load.end()
                yield sample(group, setting, mover.key, repetition, **fields, **moved)
                self._bed.close(mover, guest)

        return Case(group, setting, mover.key, repetition, run)

    def _move(self, mover: Mover, guest: str, to: str) -> dict[str, Any]:
        try:
            move = mover.move(self._bed.testbed, guest, to)
            self._bed.verify(guest)
        except BaseException:
            if mover.key != OURS:  # ours is undone by itself, and the guest runs on
                self._bed.close(mover, guest)
            raise
        return fields_of(move)

    def _visits(self, workers: int, repetition: int) -> Iterator[Sample]:
        mover = self.mover(OURS)
        with self._bed.web(workers) as guest:
            with self._bed.clients("closed", clients=workers - 2):
                time.sleep(_WARM_S)
            time.sleep(_IDLE_S)
            for visit, to in enumerate((TO, SOURCE, TO)):
                fields = {"workers": workers, "visit": ("first", "back", "second")[visit]}
                yield sample("visit", f"{workers} workers, idle", OURS, repetition, **fields, **self._move(mover, guest, to))
                time.sleep(1.0)

    def _responses(self, workers: int, moves: int) -> Iterator[Sample]:
        """One guest that goes back and forth under an open-loop load at a share of what it can do."""
        # What watches costs some 3 % of a CPU: it is there in both of what is compared.
        mover = Ours(settled_s=SETTLED_S + _BEFORE_S)
        setting = f"{workers} workers, {SHARE:.0%} of capacity"
        with self._bed.web(workers) as guest:
            capacity = self._capacity(workers)
            moved: list[dict[str, Any]] = []
            errors: list[str] = []
            with self._bed.clients("open", clients=workers - 2, rate=f"{SHARE * capacity:.2f}") as load, self._probes() as probe:
                for _ in range(moves):
                    time.sleep(_DRAINED_S)
                    try:
                        here = str(self._bed.testbed.find(guest)["node"])
                        moved.append(self._move(mover, guest, SOURCE if here == TO else TO))
                    except EmulabError as failure:  # one that was undone leaves the guest where it was: the next one can be tried
                        errors.append(failure.message)
                time.sleep(2.0)
                load.end_input()
                seen = load.json()
                probe.end_input()
                probes = probe.json()
            for n, one in enumerate(moved):
                parted = response_times(seen["rows"], one)
                fields = {
                    "workers": workers,
                    "capacity_ops_s": capacity,
                    "errors": seen["errors"],
                    **parted,
                    **saw(probes, one, probed=True),
                }
                yield sample("response", setting, OURS, n, **fields, **one)
            for n, error in enumerate(errors):
                yield sample("response", setting, OURS, len(moved) + n, workers=workers) | {"error": error}

    def _capacity(self, workers: int) -> float:
        """Operations per second at saturation."""
        with self._bed.clients("closed", clients=workers - 2) as load:
            time.sleep(2 if self._extent.quick else 5)
            load.end_input()
            return steady_rate(load.json())

    def _probes(self) -> Remote:
        return self._bed.clients("probe", interval=PROBE_S)


def fields_of(move: Move) -> dict[str, Any]:
    fields = asdict(move)
    record = fields.pop("record")
    said = {"bytes_on_wire_self": record.get("bytes_on_wire"), "in_place": record.get("restored_in_place")}
    return {**fields, "total_s": move.total_s, **said}


def steady_rate(seen: dict[str, Any]) -> float:
    """Operations per second in the second half of a run: the first may still be warming up."""
    middle = (seen["start_s"] + seen["end_s"]) / 2
    last = max((intended + latency for intended, latency in seen["rows"]), default=middle)
    done = sum(intended + latency >= middle for intended, latency in seen["rows"])
    if not done or last <= middle:
        raise EmulabError("no request was answered at saturation")
    return float(done / (last - middle))


def saw(seen: dict[str, Any], moved: dict[str, Any], *, probed: bool) -> dict[str, Any]:
    """What clients noticed of a migration."""
    if probed:
        stall = longest_gap([done for _, done in seen["rows"]], moved["start_s"], moved["end_s"] + 0.5)
        return {"stall_s": None if stall is None else stall - PROBE_S}
    before = [row for row in seen["rows"] if row[0] + row[1] < moved["start_s"]]
    first = min((row[0] for row in before), default=moved["start_s"])
    rate = len(before) / (moved["start_s"] - first) if before else 0.0
    return {"ops_s_before": rate, "errors": seen["errors"]}


def longest_gap(done: list[float], start_s: float, end_s: float) -> float | None:
    """Longest time without an answer between the two instants; None if nothing was answered there."""
    inside = sorted(at for at in done if start_s - 0.1 <= at <= end_s)
    return max((b - a for a, b in pairwise(inside)), default=None)


def response_times(rows: list[list[float]], moved: dict[str, Any]) -> dict[str, Any]:
    """Latencies in the seconds before a migration, watched as it is, and during its rounds (pooled later).

    A request that was on its way when the guest froze counts without the blackout: the rounds are judged here, not the freeze.
    """
    start, freeze, resume = moved["start_s"], moved["freeze_s"], moved["resume_s"]
    calm = start - _ORDERING_S
    before = [latency for at, latency in rows if calm - _BEFORE_S <= at and at + latency < calm]
    rounds = []
    for at, latency in rows:
        if start <= at < freeze:
            rounds.append(latency - (resume - freeze) if at + latency > resume else latency)
    return {
        "latencies_before": before,
        "latencies_rounds": rounds,
        "p99_before_s": percentile(before, 0.99),
        "p99_rounds_s": percentile(rounds, 0.99),
    }
