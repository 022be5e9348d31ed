"""Who gets a CPU first: while guests run, they do, before what is only copied for them; inside a freeze there is nothing more urgent."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from emulab import clock

T = TypeVar("T")

PATIENCE_S = 60.0
_LONGEST_S = 0.015
_LOOK_S = 0.001
_PIECE_S = 0.001
_LOOKS, _EVERY_S = 9, 0.025
_IDLE = 0.02  # of one CPU
_QUEUED = 3.0  # tasks that want to run for each virtual CPU: more is a guest that has no time to give
_BEHIND, _NORMAL, _FIRST = 19, 0, -20


def behind_guests(*, yes: bool = True) -> None:
    """Let this thread wait for guests, or no longer."""
    _be(threading.get_native_id(), _BEHIND if yes else _NORMAL)


def go_first(pid: int) -> None:
    """Let a process that others wait for go before all of them."""
    _be(pid, _FIRST)


def _be(task: int, nice: int) -> None:
    with contextlib.suppress(OSError):  # to come back, or to go first, takes CAP_SYS_NICE
        os.setpriority(os.PRIO_PROCESS, task, nice)


def give_way_to(pids: Sequence[int], vcpus: float, cpu_s: Callable[[], float]) -> GiveWay:
    """How to treat a guest while its memory is copied, from looking at it for 0.2 s at most. ``cpu_s``: CPU time it has used so far.

    One whose tasks queue up for its CPUs already is not waited for: it would starve what copies, and make each round longer in which it
    writes anew (128 saturated web workers took 22 instead of 10 s to move). Nor is one that does nothing.
    """
    since, used = clock.now(), cpu_s()
    seen = Counter[bool]()
    while max(seen[False], seen[True]) <= _LOOKS // 2:
        time.sleep(_EVERY_S)
        seen[sum(map(_wants_to_run, pids)) > _QUEUED * vcpus] += 1
    if seen[True] > seen[False]:
        return GiveWay(0.0)
    idle = cpu_s() - used < _IDLE * (clock.now() - since)
    return GiveWay(0.0 if idle else PATIENCE_S, stay_behind=idle)


def _wants_to_run(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].startswith(b"R")
    except OSError:
        return False


class GiveWay:
    """Called often by each thread that copies for a guest that runs.

    After each millisecond of work it lets the thread wait for an idle moment: one in which a CPU stays free for a request that comes in.
    A thread's nice value says nothing to tasks of other control groups, such as the guest's database on another node of this machine.

    No wait is longer than ``_LONGEST_S``, so that the copying goes on, and those of all threads together not longer than ``patience_s``.
    After that they are as urgent as others, or stay behind the guests of their own node (``stay_behind``).
    """

    def __init__(self, patience_s: float, *, stay_behind: bool = False) -> None:
        self.left_s = patience_s
        self.stays_behind = stay_behind
        self._of_thread = threading.local()
        self._most = max(1, len(os.sched_getaffinity(0)) - 1)

    def __call__(self) -> None:
        behind = self.left_s > 0 or self.stays_behind
        if getattr(self._of_thread, "behind", None) != behind:  # a new thread has the priority of the one that started it
            self._of_thread.behind = behind
            behind_guests(yes=behind)
        if self.left_s <= 0 or time.thread_time() - getattr(self._of_thread, "worked", 0.0) < _PIECE_S:
            return
        started = clock.now()
        while running() > self._most and clock.now() - started < _LONGEST_S:
            time.sleep(_LOOK_S)
        self.left_s -= clock.now() - started
        self._of_thread.worked = time.thread_time()

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, with a wait before each."""
        for item in items:
            self()
            yield item

    def end(self) -> None:
        """Nobody waits any longer."""
        self.left_s, self.stays_behind = 0.0, False
        self()


def running(path: str = "/proc/loadavg") -> int:
    """Tasks of the whole machine that run or want to, this thread among them."""
    with open(path, "rb", buffering=0) as file:
        return int(file.read(100).split()[3].partition(b"/")[0])
