"""Giving a migration up holds until its commit; throttling a guest; counting what it writes."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
import time

import pytest

from emulab.criu.dirty import PAGE, count_soft_dirty, scan_written
from emulab.criu.tracker import has_soft_dirty
from emulab.errors import UsageError
from emulab.migration.control import AbortRequestedError, Control
from emulab.migration.throttle import STEPS, Throttle


def test_a_request_is_noticed_at_the_next_look_and_cuts_what_blocks():
    control, cut = Control(), []
    control.on_abort(lambda: cut.append(True))
    control.check()
    control.request_abort("on request")
    assert cut == [True]
    with pytest.raises(AbortRequestedError, match="aborted: on request"):
        control.check()


def test_a_connection_made_after_the_request_is_not_used():
    control = Control()
    control.request_abort("on request")
    with pytest.raises(AbortRequestedError):
        control.on_abort(lambda: None)


def test_a_pause_ends_with_the_request():
    control = Control()
    threading.Timer(0.05, control.request_abort, ("on request",)).start()
    started = time.monotonic()
    with pytest.raises(AbortRequestedError):
        control.pause(30)
    assert time.monotonic() - started < 10


def test_past_the_commit_it_is_refused_and_nothing_is_undone():
    control = Control()
    control.pass_commit()
    with pytest.raises(UsageError, match="past its commit"):
        control.request_abort("on request")
    control.check()
    assert not control.abort_requested


def test_of_a_request_and_a_commit_exactly_one_wins():
    for _ in range(200):
        control, won, together = Control(), [], threading.Barrier(2)

        def attempt(act, name, won=won, together=together):
            together.wait()
            try:
                act()
                won.append(name)
            except (UsageError, AbortRequestedError):
                return

        threads = [
            threading.Thread(target=attempt, args=(control.pass_commit, "commit")),
            threading.Thread(target=attempt, args=(lambda control=control: control.request_abort("now"), "abort")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


def test_a_caller_that_goes_away_ends_it():
    control, gone = Control(), threading.Event()
    control.watch(gone.is_set)
    time.sleep(0.15)
    control.check()
    gone.set()
    with pytest.raises(AbortRequestedError, match="gone"):
        control.pause(30)


class Quotas:
    """A cgroup that writes down its quotas."""

    name = "guest-of-a-test"

    def __init__(self):
        self.set = []

    def set_quota(self, vcpus):
        self.set.append(vcpus)


def test_throttling_takes_steps_off_what_the_guest_used():
    used = iter((10.0, 11.0, *[11.0] * 20))
    group = Quotas()
    throttle = Throttle(group, 2.0, lambda: next(used))
    assert throttle.vcpus == 2.0
    throttle.apply()
    while throttle.tighter():
        continue
    assert group.set[0] == 2.0
    assert len(group.set) == 1 + len(STEPS)
    assert group.set[1] == pytest.approx(2.0 * 0.8)  # it used all it may: a second of CPU in far less than a second
    assert group.set == sorted(group.set, reverse=True)
    assert throttle.share == 0.99
    assert not throttle.tighter()


def test_a_guest_that_hardly_runs_keeps_the_least_there_is():
    throttle = Throttle(Quotas(), 1.0, lambda: 0.0)
    assert throttle.tighter()
    assert throttle.vcpus == 0.01


def entry(*, present=0, swapped=0, shared=0, dirty=0):
    return struct.pack("<Q", present << 63 | swapped << 62 | shared << 61 | dirty << 55 | 12345)


def test_soft_dirty_pages_are_those_present_or_swapped_and_the_task_s_own():
    entries = [
        entry(present=1, dirty=1), entry(swapped=1, dirty=1), entry(present=1), entry(dirty=1), entry(present=1, shared=1, dirty=1),
    ]  # fmt: skip
    assert count_soft_dirty(b"".join(entries)) == 2
    assert count_soft_dirty(b"") == 0


def test_own_pages_of_a_process_are_found_where_they_are():
    memory = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = ctypes.c_char.from_buffer(memory)
    first = ctypes.addressof(view)

    def found():
        """Numbers of the pages of that memory; what else this process has comes and goes."""
        ranges = own_pages()
        return [page for page in range(64) if any(start <= first + page * PAGE < end for start, end in ranges)]

    assert found() == []
    for page in (*range(10, 20), 40):
        memory[page * PAGE] = 1
    assert found() == [*range(10, 20), 40]
    del view
    memory.close()


def own_pages():
    try:
        return scan_written(os.getpid())
    except OSError:
        if has_soft_dirty():
            pytest.skip("this kernel is too old for PAGEMAP_SCAN, and does not need it")
        raise
