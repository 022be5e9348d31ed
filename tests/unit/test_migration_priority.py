"""Work for guests that run waits for them; work inside a freeze does not."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count

import pytest

from emulab.criu.commands import CriuCall
from emulab.criu.standby import start
from emulab.migration import priority
from emulab.migration.priority import GiveWay, Signs, behind_guests, running


def nice_of(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may come back")
def test_a_thread_waits_for_guests_and_comes_back_and_no_other_thread_does():
    seen: list[int] = []

    def work() -> None:
        mine = threading.get_native_id()
        for yes in (True, False):
            behind_guests(yes=yes)
            seen.extend((nice_of(mine), nice_of(main)))

    main, before = threading.get_native_id(), nice_of(threading.get_native_id())
    in_a_thread(work)
    assert seen == [19, before, 0, before]


class Hours:
    """Time that passes only by waiting and by ``work``, whatever else this machine does; in place of two modules."""

    def __init__(self) -> None:
        self._s = 0.0
        self.worked_s = 0.0

    def now(self) -> float:
        return self._s

    def sleep(self, seconds: float) -> None:
        self._s += seconds

    def thread_time(self) -> float:
        return self.worked_s

    def work(self, seconds: float) -> None:
        self._s += seconds
        self.worked_s += seconds


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    hours = Hours()
    monkeypatch.setattr(priority, "clock", hours)
    monkeypatch.setattr(priority, "time", hours)
    return hours


def test_only_who_has_worked_waits(monkeypatch: pytest.MonkeyPatch, hours: Hours):
    monkeypatch.setattr(priority, "running", lambda: 100)
    give_way = GiveWay(patience_s=10.0)
    hours.work(0.003)
    give_way()
    left = give_way.left_s
    assert left < 9.97
    for _ in range(5):
        give_way()
        hours.work(0.0003)
    assert give_way.left_s == left
    hours.work(0.001)
    give_way()
    assert give_way.left_s < left


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may come back")
@pytest.mark.parametrize(("stay", "after"), [(False, 0), (True, 19)])
def test_patience_ends(monkeypatch: pytest.MonkeyPatch, hours: Hours, stay: bool, after: int):
    monkeypatch.setattr(priority, "running", lambda: 100)
    give_way = GiveWay(patience_s=0.11, stay_behind=stay)
    seen: list[int] = []
    waits: list[float] = []

    def work() -> None:
        for _ in range(4):
            hours.work(0.003)
            started = hours.now()
            give_way()
            waits.append(hours.now() - started)
            seen.append(nice_of(threading.get_native_id()))
        give_way.end()
        seen.append(nice_of(threading.get_native_id()))

    in_a_thread(work)
    assert all(0.0399 < wait < 0.0501 for wait in waits[:3])  # to the look at which it is too long
    assert waits[3] == 0.0
    assert seen == [19, 19, 19, after, 0]


def test_it_waits_for_an_idle_moment_and_no_longer(monkeypatch: pytest.MonkeyPatch, hours: Hours):
    looks = iter([100, 100, 1])
    hours.work(0.003)
    monkeypatch.setattr(priority, "running", lambda: next(looks))
    give_way = GiveWay(patience_s=10.0)
    assert list(give_way.between(["a"])) == ["a"]
    assert next(looks, "none left") == "none left"
    assert give_way.left_s == pytest.approx(10.0 - 0.02)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may come back")
def test_a_program_that_stops_the_guest_does_not_wait_for_it():
    found: list[int] = []

    def work() -> None:
        behind_guests()
        with start(CriuCall(("sleep", "10"))) as process:
            found.append(os.getpriority(os.PRIO_PROCESS, process.pid))
            process.kill()

    in_a_thread(work)
    assert found == [0]


def test_tasks_that_run_are_counted_on_the_whole_machine():
    """Whatever else comes and goes: stopped and going on in turn, the same tasks make the difference."""
    spin = [subprocess.Popen((sys.executable, "-c", "while True: pass")) for _ in range(4)]
    more: list[int] = []
    try:
        for _ in range(15):
            counted = []
            for what in (signal.SIGSTOP, signal.SIGCONT):
                for process in spin:
                    process.send_signal(what)
                time.sleep(0.02)
                counted.append(min(running() for _ in range(10)))
            more.append(counted[1] - counted[0])
    finally:
        for process in spin:
            process.kill()
            process.wait()
    assert 3 <= statistics.median(more) <= 5


def asked() -> int:
    """Bytes that reach a guest which answers somebody."""
    return int(1e6 * time.monotonic())


def judged(pids: list[int], vcpus: float, cpu_s: Callable[[], float], received: Callable[[], int] = asked) -> tuple[float, bool]:
    give_way = GiveWay(10.0)
    give_way.judge(Signs(pids, vcpus, cpu_s, received))
    return give_way.left_s, give_way.stays_behind


def test_a_guest_is_treated_as_it_is_busy():
    spin = [subprocess.Popen((sys.executable, "-c", "while True: pass")) for _ in range(6)]
    try:
        time.sleep(0.2)
        pids = [process.pid for process in spin]
        assert judged(pids, 1.0, time.monotonic) == (0.0, False)
        assert judged(pids, 4.0, time.monotonic) == (10.0, False)
        assert judged(pids, 4.0, time.monotonic, lambda: 5000) == (0.0, True)  # nobody asks it for anything
        assert judged([os.getppid(), 4194304], 1.0, lambda: 0.01 * time.monotonic()) == (0.0, True)
    finally:
        for process in spin:
            process.kill()
            process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may come back")
def test_a_judgement_that_comes_after_the_end_puts_nobody_behind():
    give_way = GiveWay(10.0)
    seen: list[int] = []

    def work() -> None:
        give_way.end()
        give_way.judge(Signs([os.getppid()], 1.0, lambda: 0.0, asked))
        give_way()
        seen.append(nice_of(threading.get_native_id()))

    in_a_thread(work)
    assert seen == [0]
    assert (give_way.left_s, give_way.stays_behind) == (0.0, False)


def test_a_wait_under_way_does_not_undo_the_decision_that_nobody_waits(monkeypatch: pytest.MonkeyPatch, hours: Hours):
    give_way = GiveWay(10.0)

    def busy_until_decided() -> int:
        give_way.hurry()
        return 1

    monkeypatch.setattr(priority, "running", busy_until_decided)
    hours.work(0.003)
    give_way()
    assert give_way.left_s == 0.0


@pytest.mark.parametrize(
    ("tasks", "without", "waits"),
    [
        (1, (), False),
        (1, (8,), False),
        (1, range(0, 20, 2), True),
        (1, range(15, 30), True),
        (1, (3, 9), False),
        (4, (), False),
        (4, (0, 5), False),
        (4, range(9), True),
    ],
)
def test_only_a_guest_that_mostly_queues_up_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tasks: int, without: Sequence[int], waits: bool
):
    """One task of ``tasks`` is ready at every look but some."""
    asked = count()
    monkeypatch.setattr(priority, "_EVERY_S", 0.001)
    monkeypatch.setattr(priority, "_wants_to_run", lambda pid: pid == 1 and next(asked) not in without)
    monkeypatch.setattr(priority, "_QUEUED", 0.5)
    assert judged(list(range(1, tasks + 1)), 1.0, time.monotonic) == (10.0 if waits else 0.0, False)
