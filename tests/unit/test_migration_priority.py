"""Work for guests that run waits for them; work inside a freeze does not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from emulab import clock
from emulab.migration.priority import GiveWay, behind_guests, patience


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
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [19, before, 0, before]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may come back")
def test_patience_ends(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    give_way = GiveWay(patience_s=3.0)
    seen: list[int] = []

    def work() -> None:
        for instant in (100.1, 102.9, 103.1):
            now[0] = instant
            give_way()
            seen.append(nice_of(threading.get_native_id()))
        now[0] = 100.2
        give_way()
        give_way.end()
        seen.append(nice_of(threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [19, 19, 0, 0]


def test_only_a_guest_with_cpu_time_to_give_is_waited_for():
    spin = [subprocess.Popen((sys.executable, "-c", "while True: pass")) for _ in range(6)]
    try:
        time.sleep(0.2)
        pids = [process.pid for process in spin]
        assert patience(pids, vcpus=1.0) == 0
        assert patience(pids, vcpus=4.0) > 0
        assert patience([os.getppid(), 4194304], vcpus=1.0) > 0
    finally:
        for process in spin:
            process.kill()
            process.wait()
