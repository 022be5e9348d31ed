"""Ways to move a guest, behind one interface: ours and the two baselines, each watched from outside by the same program."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from emulab.bench.remote import Remote
from emulab.errors import EmulabError
from emulab.testbed import Testbed

WATCH = "emulab.bench.watch"
SETTLED_S = 2.0  # to start the watchers takes the CPU from a loaded guest; what queued up meanwhile is served first
_NEAR_S = 0.1
_LONGEST_S = 240.0


class MoveError(EmulabError):
    pass


@dataclass(frozen=True)
class Move:
    """One finished migration as measured. Instants monotonic seconds, sizes bytes.

    ``blackout_s`` is seen from outside; ``self_blackout_s`` is what the method says. ``wire_bytes`` left through the source's uplink during
    the migration, ``guest_bytes`` of them are frames of the guest itself (answers to its clients).
    """

    start_s: float
    end_s: float
    freeze_s: float
    resume_s: float
    blackout_s: float
    self_blackout_s: float | None
    wire_bytes: int
    guest_bytes: int
    tasks: int
    rounds: list[dict[str, Any]]
    phases: dict[str, float]
    stages: dict[str, float]
    stop_reason: str
    record: dict[str, Any] = field(repr=False, default_factory=dict)
    watch_gap_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.end_s - self.start_s


def stopped_at(changes: list[tuple[float, str]], *, ordered_s: float | None, known_s: float | None) -> float | None:
    """Instant at which the blackout began on the source.

    ``known_s``: the method knows when all had stopped: the change nearest to that, None if there is none near. Otherwise the first one
    after the method gave the order (``ordered_s``): a dump's own stops and goes come later.
    """
    stops = [at for at, state in changes if state == "stopped"]
    if known_s is not None:
        nearest = min(stops, key=lambda at: abs(at - known_s), default=None)
        return nearest if nearest is not None and abs(nearest - known_s) <= _NEAR_S else None
    return min((at for at in stops if at >= (ordered_s or 0.0)), default=None)


def resumed_at(changes: list[tuple[float, str]]) -> float | None:
    """Instant at which the restored tasks were let go: the last change from *stopped* to *runs*."""
    return max((at for (_, before), (at, after) in pairwise(changes) if before == "stopped" and after == "runs"), default=None)


class Mover(Protocol):
    """``key``: ours, stop-and-copy, pre-dump. ``move`` leaves the guest running at ``to``; ``leave`` removes it there."""

    key: str

    def move(self, testbed: Testbed, guest: str, to: str) -> Move: ...

    def leave(self, testbed: Testbed, guest: str) -> None: ...


class Watched:
    """Watchers on both nodes for the duration of one migration, and ``settled_s`` before it."""

    def __init__(self, testbed: Testbed, guest: str, source: str, to: str, settled_s: float = SETTLED_S) -> None:
        self._stack = ExitStack()
        self._remotes = [self._stack.enter_context(Remote(testbed.project, node, WATCH, guest)) for node in (source, to)]
        for remote in self._remotes:
            remote.expect("watching")
        time.sleep(settled_s)

    def finish(self) -> tuple[dict[str, Any], dict[str, Any]]:
        for remote in self._remotes:
            remote.end_input()
        source, destination = (remote.json() for remote in self._remotes)
        self._stack.close()
        return source, destination

    def close(self) -> None:
        self._stack.close()


def measured(report: Mapping[str, Any], source: Mapping[str, Any], destination: Mapping[str, Any], *, freeze_known: bool) -> Move:
    """A ``Move`` of a method's report and what the watchers saw."""
    reported = report.get("freeze_s") if freeze_known else None
    seen_stop = stopped_at(list(map(tuple, source["changes"])), ordered_s=report.get("freeze_order_s"), known_s=reported)
    seen_resume = resumed_at(list(map(tuple, destination["changes"])))
    freeze = seen_stop if seen_stop is not None else report.get("freeze_s") or report["freeze_order_s"]
    resume = seen_resume if seen_resume is not None else report["resume_s"]
    own = report["resume_s"] - reported if reported is not None else None
    return Move(
        start_s=report["start_s"],
        end_s=report["end_s"],
        freeze_s=freeze,
        resume_s=resume,
        blackout_s=resume - freeze,
        self_blackout_s=own,
        wire_bytes=source["tx_end"] - source["tx_start"],
        guest_bytes=source["guest_tx_end"] - source["guest_tx_start"],
        tasks=int(report.get("tasks", 0)),
        rounds=list(report["rounds"]),
        phases=dict(report["phases"]),
        stages=dict(report.get("stages", {})),
        stop_reason=str(report.get("stop_reason", "")),
        record=dict(report),
        watch_gap_s=max(source["longest_gap_s"], destination["longest_gap_s"]),
    )


class Ours:
    """The migration of this project, with its default options or others; watched for ``settled_s`` before it begins."""

    def __init__(self, options: Mapping[str, Any] | None = None, *, settled_s: float = SETTLED_S) -> None:
        self.key = "ours"
        self._options = dict(options or {})
        self._settled_s = settled_s

    def move(self, testbed: Testbed, guest: str, to: str) -> Move:
        watched = Watched(testbed, guest, str(testbed.find(guest)["node"]), to, self._settled_s)
        try:
            record = within(_LONGEST_S, lambda: testbed.migrate(guest, to, dict(self._options)))
            return measured(record, *watched.finish(), freeze_known=True)
        finally:
            watched.close()

    def leave(self, testbed: Testbed, guest: str) -> None:
        testbed.stop_guest(guest)


class Stock:
    """A baseline: ``method`` of ``emulab.bench.source`` with one of its settings."""

    def __init__(self, method: str, setting: str) -> None:
        self.key = method
        self.setting = setting
        self._receiver: Remote | None = None

    def move(self, testbed: Testbed, guest: str, to: str) -> Move:
        node = str(testbed.find(guest)["node"])
        address = testbed.addresses[to]
        # All started, then all waited for: each needs some tenths of a second to be there.
        self._receiver = Remote(testbed.project, to, "emulab.bench.receiver", address)
        with Remote(testbed.project, node, "emulab.bench.source", self.key, guest, address, self.setting) as source:
            watched = Watched(testbed, guest, node, to)
            try:
                self._receiver.expect("listening")
                source.expect("ready")
                source.say()
                report = source.json()
                seen = watched.finish()
            finally:
                watched.close()
        if "error" in report:
            raise MoveError(f"{self.key} of {guest}: {report['error']}")
        self._receiver.expect("served")
        return measured(report, *seen, freeze_known=False)

    def leave(self, testbed: Testbed, guest: str) -> None:
        del testbed, guest
        if self._receiver:
            self._receiver.end()
            self._receiver = None


def within(limit_s: float, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of ``work``, or MoveError after so many seconds: an unattended bench goes on."""
    found: list[dict[str, Any]] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if failed:
        raise failed[0]
    if not found:
        raise MoveError(f"the migration has not ended after {limit_s:g} s")
    return found[0]
