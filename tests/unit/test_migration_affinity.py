"""A guest and its CRIU on one CPU while it is saved; the guest has its own affinities back afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from emulab.migration.affinity import OneCpu, release_all, threads

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")

SLEEPER = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); time.sleep(60)"


@pytest.fixture
def task():
    """A process with two threads."""
    process = subprocess.Popen((sys.executable, "-c", SLEEPER))
    end = time.monotonic() + 20
    while len(threads([process.pid])) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    yield process.pid
    process.kill()
    process.wait()


def affinities(pid):
    return {thread: os.sched_getaffinity(thread) for thread in threads([pid])}


def test_every_thread_and_the_saver_share_one_cpu_until_they_are_let_go(task):
    saver = subprocess.Popen(("sleep", "60"))
    mine = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(task, {mine[0]})
    before = affinities(task)
    assert len(before) == 2
    assert sorted(map(len, before.values())) == [1, len(mine)]
    try:
        one = OneCpu([task], saver.pid, "web-1")
        shared = {frozenset(cpus) for cpus in (*affinities(task).values(), os.sched_getaffinity(saver.pid))}
        assert [len(cpus) for cpus in shared] == [1]
        one.release()
        assert affinities(task) == before
    finally:
        saver.kill()
        saver.wait()


def test_migrations_are_spread_over_the_cpus(task):
    used = set()
    for number in range(64):
        one = OneCpu([task], task, f"web-{number}")
        used |= os.sched_getaffinity(task)
        one.release()
    assert used == os.sched_getaffinity(0)


def test_one_that_was_left_on_a_cpu_gets_all(task):
    OneCpu([task], task, "web-1")
    release_all([task])
    assert all(cpus == os.sched_getaffinity(0) for cpus in affinities(task).values())


def test_a_task_that_has_ended_is_none():
    process = subprocess.Popen(("true",))
    process.wait()
    OneCpu([process.pid], process.pid, "web-1").release()
