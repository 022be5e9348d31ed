"""Work for guests that run waits for them; work inside a freeze does not."""

from __future__ import annotations

import os
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


def work_for(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_only_who_has_worked_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(priority, "running", lambda: 100)
    give_way = GiveWay(patience_s=10.0)
    work_for(0.002)
    give_way()
    left = give_way.left_s
    assert left < 9.99
    for _ in range(100):
        give_way()
    assert give_way.left_s == left


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may come back")
@pytest.mark.parametrize(("stay", "after"), [(False, 0), (True, 19)])
def test_patience_ends(monkeypatch: pytest.MonkeyPatch, stay: bool, after: int):
    monkeypatch.setattr(priority, "running", lambda: 100)
    give_way = GiveWay(patience_s=0.05, stay_behind=stay)
    seen: list[int] = []

    def work() -> None:
        while give_way.left_s > 0:
            work_for(0.002)
            give_way()
            seen.append(nice_of(threading.get_native_id()))
        work_for(0.002)
        started = time.monotonic()
        give_way()
        assert time.monotonic() - started < 0.014
        seen.append(nice_of(threading.get_native_id()))
        give_way.end()
        seen.append(nice_of(threading.get_native_id()))

    in_a_thread(work)
    assert 4 <= len(seen) <= 8  # of at most 15 ms each
    assert seen[:-2] == [19] * (len(seen) - 2)
    assert seen[-2:] == [after, 0]


def test_it_waits_for_an_idle_moment_and_no_longer(monkeypatch: pytest.MonkeyPatch):
    looks = iter([100, 100, 1])
    work_for(0.002)
    monkeypatch.setattr(priority, "running", lambda: next(looks))
    give_way = GiveWay(patience_s=10.0)
    assert list(give_way.between(["a"])) == ["a"]
    assert next(looks, "none left") == "none left"
    assert 9.9 < give_way.left_s < 10.0 - 0.002


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
    before = min(running() for _ in range(20))
    spin = [subprocess.Popen((sys.executable, "-c", "while True: pass")) for _ in range(4)]
    try:
        time.sleep(0.3)
        assert max(running() for _ in range(20)) >= before + 3
    finally:
        for process in spin:
            process.kill()
            process.wait()


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


def test_a_wait_under_way_does_not_undo_the_decision_that_nobody_waits(monkeypatch: pytest.MonkeyPatch):
    give_way = GiveWay(10.0)

    def busy_until_decided() -> int:
        give_way.hurry()
        return 1

    monkeypatch.setattr(priority, "running", busy_until_decided)
    work_for(0.002)
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
