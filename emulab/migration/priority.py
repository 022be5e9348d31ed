"""Who gets a CPU first: while guests run, they do, before what is only copied for them; inside a freeze there is nothing more urgent."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self, TypeVar

from emulab import clock
from emulab.nice import BEHIND, FIRST, NORMAL, renice
from emulab.node.guest import Guest
from emulab.node.sampler_read import INTERFACES, cpu_used_s, parse_interfaces

T = TypeVar("T")

PATIENCE_S = 60.0
_LONGEST_S = 0.04
_LOOK_S = 0.01
_PIECE_S = 0.002
_EVERY_S, _FEW_LOOKS, _SOME_LOOKS, _LOOKS, _MOST_LOOKS = 0.04, 4, 20, 30, 22
_IDLE = 0.02  # of one CPU
_UNASKED = 1000  # bytes that reach a guest meanwhile: fewer are the neighbours' announcements
_QUEUED = 3.0  # tasks that want to run for each virtual CPU: more is a guest that has no time to give


def behind_guests(*, yes: bool = True) -> None:
    """Let this thread wait for guests, or no longer."""
    renice(threading.get_native_id(), BEHIND if yes else NORMAL)


def go_first(pid: int) -> None:
    """Let a process that others wait for go before all of them."""
    renice(pid, FIRST)


@dataclass(frozen=True)
class Signs:
    """By what a guest is judged: its tasks and virtual CPUs, the CPU time that it has used so far, and the bytes of frames sent to it."""

    pids: Sequence[int]
    vcpus: float
    cpu_s: Callable[[], float]
    received: Callable[[], int]

    @classmethod
    def of(cls, guest: Guest) -> Self:
        port = guest.spec.port
        return cls(
            guest.cgroup.pids(),
            guest.spec.vcpus,
            lambda: cpu_used_s(guest.cgroup.name),
            lambda: parse_interfaces(INTERFACES.read_bytes()).get(port, (0, 0))[1],
        )


class GiveWay:
    """Called often by each thread that copies for a guest that runs.

    After two milliseconds of work it lets the thread wait for an idle moment: one in which a CPU stays free for a request that comes in.
    A thread's nice value says nothing to tasks of other control groups, such as the guest's database on another node of this machine.

    No wait is longer than ``_LONGEST_S``, so that the copying goes on, and those of all threads together not longer than ``patience_s``.
    After that they are as urgent as others, or stay behind the guests of their own node (``stay_behind``).
    """

    def __init__(self, patience_s: float, *, stay_behind: bool = False) -> None:
        self.left_s = patience_s
        self.stays_behind = stay_behind
        self._decides = threading.Lock()
        self._ended = False
        self._of_thread = threading.local()
        self._behind: dict[int, bool] = {}  # of each thread that has called
        self._most = max(1, len(os.sched_getaffinity(0)) - 1)

    def __call__(self) -> bool:
        """Returns whether the guest is one to wait for."""
        thread, behind = threading.get_native_id(), self.waits or self.stays_behind
        if self._behind.get(thread) != behind:  # a new thread has the priority of the one that started it
            self._behind[thread] = behind
            behind_guests(yes=behind)
        if not self.waits or time.thread_time() - getattr(self._of_thread, "worked", 0.0) < _PIECE_S:
            return self.waits
        started = clock.now()
        while running() > self._most and clock.now() - started < _LONGEST_S:
            time.sleep(_LOOK_S)
        with self._decides:  # it may have been decided meanwhile that nobody waits
            self.left_s = max(0.0, self.left_s - (clock.now() - started))
        self._of_thread.worked = time.thread_time()
        return self.waits

    def judge_meanwhile(self, signs: Signs) -> None:
        """``judge`` in a thread of its own: the work begins as if this guest were one to wait for."""
        threading.Thread(target=self.judge, args=(signs,), name="manners", daemon=True).start()

    def judge(self, signs: Signs) -> None:
        """Find out in 0.2 to 1.2 s whether this guest is one to wait for.

        One whose tasks queue up for its CPUs at most looks is not: it would starve what copies, and make each round longer in which it
        writes anew (128 saturated web workers took 22 instead of 10 s to move). Nor is one that does nothing, or that nobody asks for
        anything. Of 64 saturated web workers 60 want to run at nearly every look, at 70 % of their capacity seldom more than two; but what
        queues up while the machine is away for a moment is worked off for twice as long. So it takes 0.8 s to find out, and longer if no
        more than half of all tasks queue up.
        """
        since, used, received = clock.now(), signs.cpu_s(), signs.received()
        queued, crowded = 0, True
        for look in range(1, _LOOKS + 1):
            time.sleep(_EVERY_S)
            ready = sum(map(_wants_to_run, signs.pids))
            queued += ready > _QUEUED * signs.vcpus
            crowded = queued == look and crowded and ready > len(signs.pids) / 2
            if (crowded and look >= _SOME_LOOKS) or queued == _MOST_LOOKS:
                return self.hurry()
            if look >= _FEW_LOOKS and signs.cpu_s() - used < _IDLE * (clock.now() - since):
                return self._never_mind()
            if look - queued > _LOOKS - _MOST_LOOKS:
                return None if signs.received() - received >= _UNASKED else self._never_mind()
        return None

    def _never_mind(self) -> None:
        """Nobody waits, but none is in a hurry."""
        with self._decides:  # the guest may stand still already, and then nobody is to be behind anybody
            self.left_s, self.stays_behind = 0.0, not self._ended

    def hurry(self) -> None:
        """Nobody waits any longer, not even a thread that will not call for a while."""
        with self._decides:
            self.left_s, self.stays_behind = 0.0, False
        for thread in list(self._behind):
            if Path(f"/proc/self/task/{thread}").exists():
                renice(thread, NORMAL)
                self._behind[thread] = False

    @property
    def waits(self) -> bool:
        return self.left_s > 0

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, with a wait before each."""
        for item in items:
            self()
            yield item

    def end(self) -> None:
        """The same for good; this thread may have been started by one that waited."""
        self._ended = True
        self.hurry()
        self()


def is_waited_for(guest: Guest) -> bool:
    """Whether a migration would wait for this guest. See ``judge``."""
    give_way = GiveWay(PATIENCE_S)
    give_way.judge(Signs.of(guest))
    return give_way.waits


@functools.cache
def _load() -> FileIO:
    """Kept open: threads look a hundred times a second, and to open it is most of a look."""
    return FileIO("/proc/loadavg")


def running() -> int:
    """Tasks of the whole machine that run or want to, this thread among them."""
    return int(os.pread(_load().fileno(), 100, 0).split()[3].partition(b"/")[0])


def _wants_to_run(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].startswith(b"R")
    except OSError:
        return False
