"""How fast large payloads leave, how they are counted, and how two agents part."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from emulab import clock
from emulab.migration.channel import Meter, Pacer, Peer, PeerLostError, _waited_for_cpu, on_wire


@pytest.fixture
def slept(monkeypatch):
    """A clock that only sleeping moves; returns the list of sleeps."""
    now, sleeps = [1000.0], []

    def sleep(seconds):
        sleeps.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(clock, "now", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    sleep.now = now
    sleep.all = sleeps
    return sleep


def test_a_limited_link_carries_its_rate_and_no_more(slept):
    pacer = Pacer(1_000_000)
    for _ in range(100):
        pacer.take(65536)
    assert sum(slept.all) == pytest.approx(99 * 0.065536)  # the first is the burst


def test_what_was_not_used_is_not_saved_up(slept):
    pacer = Pacer(1_000_000)
    pacer.take(65536)
    slept.now[0] += 60
    before = sum(slept.all)
    for _ in range(10):
        pacer.take(65536)
    assert sum(slept.all) - before == pytest.approx(9 * 0.065536)


def test_it_never_waits_long_at_once(slept):
    pacer = Pacer(1_000_000)
    for _ in range(50):
        pacer.take(65536)
    assert max(slept.all) <= 0.066


def test_a_rate_is_known_once_enough_was_sent():
    meter = Meter()
    meter.add(10_000_000, 0.1)
    assert meter.rate is None
    meter.add(10_000_000, 0.15)
    assert meter.rate == pytest.approx(80e6)
    meter.add(10_000_000, 0.5)
    assert meter.rate == pytest.approx(50e6)


@pytest.mark.parametrize(("size", "records"), [(0, 0), (1, 1), (16384, 1), (16385, 2), (65536, 4)])
def test_records_are_counted_as_they_cross(size, records):
    assert on_wire(size) == size + 29 * records


def test_time_that_a_thread_waits_for_a_cpu_is_told_apart_from_time_that_it_sleeps():
    slept = []
    for _ in range(5):
        before = _waited_for_cpu()
        time.sleep(0.05)
        slept.append(_waited_for_cpu() - before)
    assert min(slept) < 0.025
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    spin = [subprocess.Popen((sys.executable, "-c", "while True: pass")) for _ in range(3)]
    try:
        time.sleep(0.2)
        before, end = _waited_for_cpu(), time.monotonic() + 0.5
        while time.monotonic() < end:
            pass
        assert _waited_for_cpu() - before > 0.2
    finally:
        os.sched_setaffinity(0, mine)
        for process in spin:
            process.kill()
            process.wait()


def test_who_parts_is_seen_to_and_waits_until_the_other_has_done_too():
    here, there = socket.socketpair()
    parting, staying, order = Peer(here), Peer(there), []

    def stay():
        with pytest.raises(PeerLostError):
            staying.receive(timeout_s=10)
        staying.send("late")  # nobody reads it, and it is in nobody's way
        order.append("done")
        staying.close()

    thread = threading.Thread(target=stay)
    thread.start()
    parting.part(timeout_s=10)
    order.append("parted")
    thread.join()
    parting.close()
    assert order == ["done", "parted"]


def test_who_parts_waits_no_longer_than_told():
    here, there = socket.socketpair()
    with here, there:
        Peer(here).part(timeout_s=0.05)
