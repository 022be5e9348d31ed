"""Guests that move while they work: what arrives is what left, and what goes wrong leaves one guest, running, and nothing else."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from conftest import MEMORY, SETTINGS, settled, traces, wait_until
from killing import Kill

from emulab.agent.rpc import RemoteError
from emulab.errors import UsageError

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

WRITE_PROTECT = {"strategy": "pre-copy", "dirty_tracker": "write-protect"}
STOP_AND_COPY = {"strategy": "stop-and-copy"}


@pytest.fixture
def trackers(moving):
    """Dirty trackers that this kernel has."""
    return ("write-protect", "soft-dirty") if moving.facts()["soft_dirty"] else ("write-protect",)


def aborted(guest, to, **options):
    """Move it, expect that to fail; returns the error."""
    with pytest.raises(RemoteError) as caught:
        guest.move(to, **options)
    assert caught.value.kind == "AbortedError"
    return caught.value


# -- what arrives is what left -------------------------------------------------------------------------------------------------------------


def test_memory_connection_and_all_it_has_open_survive_several_moves(start, trackers):
    guest = start()
    writes = 0
    ways = [{"dirty_tracker": tracker} for tracker in trackers] + [STOP_AND_COPY, {"dirty_tracker": "auto", "max_rounds": 2}]
    with guest.under_requests() as requests:
        for to, options in zip(("host2", "host3", "host1", "host2"), ways, strict=False):
            record = guest.move(to, **options)
            assert record["outcome"] == "committed"
            assert record["tcp_established"] >= 1
            assert guest.runs_only_here() == to
            report = guest.check()
            assert sum(worker["writes"] for worker in report["workers"]) > writes  # it goes on working
            writes = sum(worker["writes"] for worker in report["workers"])
    assert requests["requests"] > 100


def test_every_tracker_sends_only_what_was_written_since(start, trackers):
    """The same guest by each way: rounds after the first are small, the final one too, and the memory is right."""
    guest = start()
    for to, tracker in zip(("host4", "host5"), trackers, strict=False):
        record = guest.move(to, dirty_tracker=tracker, min_rounds=3)
        rounds = record["rounds"]
        assert record["dirty_tracker"] == tracker
        assert [one["kind"] for one in rounds] == ["pre-dump"] * (len(rounds) - 1) + ["final"]
        assert len(rounds) >= 4
        assert rounds[1]["pages"] < rounds[0]["pages"] / 2
        guest.check()


def test_the_record_adds_up(start):
    guest = start()
    events = []
    record = guest.testbed.migrate(guest.name, "host3", {}, number=7, on_event=events.append)
    assert (record["id"], record["vm"], record["source"], record["destination"]) == (7, "check", "host1", "host3")
    assert record["start_s"] < record["freeze_s"] < record["resume_s"] <= record["end_s"]
    assert record["blackout_s"] == pytest.approx(record["resume_s"] - record["freeze_s"])
    assert record["bytes_of_pages"] == sum(one["bytes"] for one in record["rounds"])
    assert sum(one["bytes_on_wire"] for one in record["rounds"]) <= record["bytes_on_wire"]
    assert record["tasks"] >= 4
    assert record["stop_reason"]
    names = [(event["name"], event["kind"]) for event in events]
    assert names[0] == ("migration", "begin")
    assert names[-1] == ("migration", "end")
    assert {event["id"] for event in events} == {7}
    for phase in ("round", "freeze", "dump", "transfer", "restore"):
        assert names.count((f"migration.{phase}", "begin")) == names.count((f"migration.{phase}", "end")) >= 1


def test_a_moved_guest_is_managed_like_any_other(moving, start):
    guest = start()
    guest.move("host4")
    assert moving.exec_in_guest("check", ("hostname",)) == "check\n"
    assert moving.exec_in_guest("check", ("cat", "/proc/1/comm")) == "python3\n"
    assert "the guest is ready" in moving.call("host4", "vm.logs", name="check", lines=100_000)
    (found,) = moving.guests()
    assert (found["node"], found["arrived_from"], found["state"]) == ("host4", "host1", "running")
    assert found["tasks"] >= 4
    assert moving.stop_guest("check") == "host4"
    assert moving.guests() == []
    assert traces(moving, "host4", "check") == {}


def test_files_it_writes_are_on_its_disk_after_the_move(moving, start):
    guest = start()
    moving.exec_in_guest("check", ("sh", "-c", "echo before >/var/tmp/a; rm /etc/debian_version; ln -s a /var/tmp/link"))
    guest.move("host2")
    assert moving.exec_in_guest("check", ("sh", "-c", "cat /var/tmp/link; ls /etc/debian_version 2>&1 | grep -c cannot")) == "before\n1\n"
    moving.exec_in_guest("check", ("sh", "-c", "echo after >>/var/tmp/a"))
    guest.move("host3")
    assert moving.exec_in_guest("check", ("cat", "/var/tmp/a")) == "before\nafter\n"


def test_its_limits_hold_after_the_move(moving, start):
    guest = start(vcpus=0.5)
    guest.move("host2")
    limits = "cat /sys/fs/cgroup/memory/guest-check/memory.limit_in_bytes /sys/fs/cgroup/guest-check/memory.max 2>/dev/null"
    assert moving.project.exec_run("host2", ("sh", "-c", limits)).stdout.split() == [str(MEMORY)]
    before = throttled(moving, "host2")
    moving.exec_in_guest("check", ("python3", "-c", "import time\nwhile time.process_time() < 0.5: pass"))
    assert throttled(moving, "host2") > before
    too_much = ("python3", "-c", f"bytearray(b'x') * {MEMORY * 2}")
    assert not moving.project.exec_run("host2", moving.enter_argv("check", too_much)[1]).ok
    guest.check()


def throttled(testbed, node):
    """How often the guest had used up its CPU time."""
    command = "cat /sys/fs/cgroup/cpu/guest-check/cpu.stat /sys/fs/cgroup/guest-check/cpu.stat 2>/dev/null"
    words = testbed.project.exec_run(node, ("sh", "-c", command)).stdout.split()
    return int(words[words.index("nr_throttled") + 1])


# -- what goes wrong -----------------------------------------------------------------------------------------------------------------------


def test_a_guest_that_cannot_be_saved_is_refused_by_name_before_anything_is_staged(moving, start):
    guest = start(HOLDS="io_uring")
    events = []
    with guest.under_requests():
        with pytest.raises(RemoteError) as caught:
            moving.migrate(guest.name, "host2", {}, on_event=events.append)
        error = caught.value
        assert "check runs on host1" in error.message
        assert "(python3) holds io_uring" in error.message
        assert error.details["report"]["outcome"] == "aborted"
        assert [event["name"] for event in events] == ["migration", "migration.abort", "migration"]  # no freeze, no layer, no round
        assert traces(moving, "host2", "check") == {}
        assert guest.runs_only_here() == "host1"


@pytest.mark.parametrize("strategy", ["pre-copy", "stop-and-copy"])
def test_criu_dies_at_the_final_dump(moving, start, strategy):
    guest = start()
    with guest.under_requests():
        with Kill(moving, "host1", ("criu", "dump")) as kill:
            error = aborted(guest, "host2", strategy=strategy)
            assert kill.happened()
        assert "check runs on host1" in error.message
        assert settled(guest) == "host1"
    assert guest.move("host2")["outcome"] == "committed"
    guest.check()


def test_criu_dies_while_it_tries_out_the_kernel(moving, start):
    """It does so on children that sleep until it ends them; on a busy machine they may come and go unseen."""
    guest = start(WORKERS="1", PAGES="100")
    died = 0
    for _ in range(20):
        with Kill(moving, "host1", ("criu", "dump"), forked=True):
            try:
                guest.move("host2", strategy="stop-and-copy")
            except RemoteError:
                died += 1
        if settled(guest) == "host2":
            guest.move("host1")
        if died == 3:
            break
    assert died


def test_criu_dies_at_the_restore(moving, start):
    guest = start(WORKERS="16")  # long enough to be met at it
    with guest.under_requests():
        with Kill(moving, "host2", ("criu", "restore"), delay_s=0.02) as kill:
            error = aborted(guest, "host2")
            assert kill.happened()
        assert "check runs on host1" in error.message
        assert "could not restore" in error.message
        assert settled(guest) == "host1"


def test_a_guest_too_large_for_its_limit_at_the_destination(moving, start):
    """It may only be that large here because somebody raised its limit: the destination keeps to what was ordered."""
    guest = start(memory=48 * 2**20, WORKERS="1", PAGES="600")
    raise_limit = (
        "for f in /sys/fs/cgroup/memory/guest-check/memory.limit_in_bytes /sys/fs/cgroup/guest-check/memory.max;"
        " do [ -e $f ] && echo 900M >$f; done; true"
    )
    assert moving.project.exec_run("host1", ("sh", "-c", raise_limit)).ok
    hog = "import os, time; x = bytearray(os.urandom(1) * (150 << 20)); open('/run/hog', 'w').close(); time.sleep(10000)"
    moving.exec_in_guest("check", ("sh", "-c", 'setsid python3 -c "$0" </dev/null >/dev/null 2>&1 & true', hog))
    wait_until(lambda: moving.project.exec_run("host1", moving.enter_argv("check", ("test", "-e", "/run/hog"))[1]).ok)
    error = aborted(guest, "host2")
    assert "check runs on host1" in error.message
    assert "cannot move" not in error.message
    assert guest.runs_only_here() == "host1"


def test_a_guest_of_that_name_is_there_already(moving, start):
    guest = start()
    fields = moving.find("check")
    idle = "import signal; signal.signal(15, lambda *_: exit()); signal.pause()"
    other = {**fields, "address": f"{SETTINGS.lan_prefix}.150", "argv": ["python3", "-c", idle], "image": fields["image"]}
    moving.call("host2", "vm.start", spec=other)
    try:
        with pytest.raises(RemoteError, match="on this node already") as caught:
            moving.call("host1", "vm.migrate", name="check", to="host2", options={})
        assert "check runs on host1" in caught.value.message
        assert len([found for found in moving.guests() if found["state"] == "running"]) == 2
        guest.testbed.call("host1", "vm.logs", name="check")
    finally:
        moving.call("host2", "vm.stop", name="check")
    assert guest.runs_only_here() == "host1"


def test_a_destination_that_cannot_be_is_refused_and_nothing_happens(moving, start):
    guest = start(WORKERS="1", PAGES="100")
    for to in ("host1", "host9", "head", ""):
        with pytest.raises(UsageError):
            guest.move(to)
        with pytest.raises(RemoteError) as caught:  # the agent does not rely on who asks
            moving.call("host1", "vm.migrate", name="check", to=to, options={})
        assert (caught.value.kind, bool(caught.value.hint)) == ("UsageError", True)
    assert guest.runs_only_here() == "host1"


def test_a_way_that_does_not_exist_is_refused(start):
    guest = start(WORKERS="1", PAGES="100")
    for options in ({"strategy": "teleport"}, {"dirty_tracker": "guess"}):
        with pytest.raises(RemoteError, match="unknown"):
            guest.move("host2", **options)
    assert guest.runs_only_here() == "host1"


def test_a_guest_moves_once_at_a_time(moving, start):
    guest = start()
    outcomes = []

    begun = threading.Event()
    thread = threading.Thread(
        target=lambda: outcomes.append(
            moving.migrate("check", "host2", {}, on_event=lambda row: begun.set() if row["name"] == "migration.layer" else None)["outcome"]
        )
    )
    thread.start()
    assert begun.wait(60)
    for call in (
        lambda: moving.call("host1", "vm.migrate", name="check", to="host3", options={}),
        lambda: moving.call("host1", "vm.stop", name="check"),
    ):
        with pytest.raises(RemoteError, match="busy with another operation"):
            call()
    thread.join(60)
    assert outcomes == ["committed"]
    assert guest.runs_only_here() == "host2"


def test_two_guests_move_past_each_other(moving, start):
    one, two = start("one", "host1"), start("two", "host2")
    records = []
    threads = [threading.Thread(target=lambda g=g, to=to: records.append(g.move(to))) for g, to in ((one, "host2"), (two, "host1"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [record["outcome"] for record in records] == ["committed"] * 2
    assert (one.runs_only_here(), two.runs_only_here()) == ("host2", "host1")
