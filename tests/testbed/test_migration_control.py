"""A migration in somebody's hands: planned, bounded, throttled, watched, given up, several at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SELFCHECK, SETTINGS, traces, wait_until

from emulab.agent.rpc import RemoteError
from emulab.errors import UsageError

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

LONG = 60.0  # a phase is held for as long as it takes to be given up


class Moving:
    """A migration in a thread, held at the beginning of a phase."""

    def __init__(self, guest, to, phase, **options):
        self.rows, self.outcome, self.error = [], None, None
        self._held = threading.Event()
        name = f"migration.{phase}"

        def see(row):
            self.rows.append(row)
            if row["name"] == name and row["kind"] != "end":
                self._held.set()

        def move():
            try:
                self.outcome = guest.testbed.migrate(guest.name, to, {"hold_at": {phase: LONG}, **options}, on_event=see)
            except RemoteError as error:
                self.error = error

        self._thread = threading.Thread(target=move)
        self._thread.start()
        assert self._held.wait(120), "the phase was never reached"

    def end(self):
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self


# -- giving up -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "strategy"), [("layer", "pre-copy"), ("round", "hybrid"), ("dump", "pre-copy"), ("restore", "post-copy")]
)
def test_until_the_commit_it_can_be_given_up_and_the_guest_goes_on_where_it_was(moving, start, phase, strategy):
    guest = start(WORKERS="1", PAGES="500")
    with guest.under_requests():
        migration = Moving(guest, "host2", phase, strategy=strategy)
        asked = time.monotonic()
        assert moving.abort_migration("check") == "host1"
        error = migration.end().error
        assert time.monotonic() - asked < LONG / 2
        assert error.kind == "AbortedError"
        assert error.exit_code == 5
        assert error.message.endswith("aborted, check runs on host1: aborted: on request")
        assert error.details["report"]["reason"] == "aborted: on request"
        wait_until(lambda: gone_from(moving, "host2"))
        assert guest.runs_only_here() == "host1"


def gone_from(testbed, node):
    return traces(testbed, node, "check") == {}


def test_past_the_commit_it_is_refused_and_the_guest_arrives(moving, start):
    guest = start(WORKERS="1", PAGES="500")
    migration = Moving(guest, "host2", "commit", hold_at={"commit": 3.0})
    with pytest.raises(UsageError, match="cannot be aborted any more: it is past its commit"):
        moving.abort_migration("check")
    assert migration.end().outcome["outcome"] == "committed"
    assert guest.runs_only_here() == "host2"


def test_a_guest_that_stays_cannot_be_kept_from_leaving(moving, start):
    start(WORKERS="1", PAGES="100")
    with pytest.raises(UsageError, match="check is not being moved"):
        moving.abort_migration("check")
    with pytest.raises(RemoteError, match="not being moved away"):
        moving.call("host1", "vm.migrate.abort", name="check")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_the_command_is_ended_in_the_middle(moving, start, ending):
    """Ctrl-C or worse: before the commit the migration is given up with it."""
    guest = start(WORKERS="1", PAGES="500")
    with slow_links(moving, "host1", "host2", rate_bit_s=2_000_000):
        command = Command("migrate", "check", "--to", "host2")
        wait_until(lambda: moving.find("check")["migration"])
        command.send_signal(ending)
        out, err = command.communicate(timeout=60)
        wait_until(lambda: moving.find("check")["migration"] is None)
    if ending == signal.SIGINT:
        assert command.returncode == 130
        assert "given up: check runs on host1" in out + err
    wait_until(lambda: gone_from(moving, "host2"))
    assert guest.runs_only_here() == "host1"


class Command(subprocess.Popen):
    """The command line as a user would start it, for the tests' own testbed."""

    def __init__(self, *argv):
        env = {**os.environ, "EMULAB_PROJECT": SETTINGS.project, "EMULAB_SUBNET": SETTINGS.subnet}
        code = "from emulab.cli import main; main()"
        super().__init__([sys.executable, "-c", code, *argv], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# -- knowing beforehand --------------------------------------------------------------------------------------------------------------------


def test_a_plan_changes_nothing_and_is_near_what_then_happens(moving, start):
    guest = start()
    plan = moving.plan_migration("check", {})
    assert guest.runs_only_here() == "host1"
    record = guest.move("host2")
    assert plan["inventory"]["tasks"] == record["tasks"]
    assert plan["resident_bytes"] / 2 < record["rounds"][0]["bytes"] < plan["resident_bytes"] * 2
    assert plan["dirty_pages_per_s"] > 100
    assert record["bytes_on_wire"] / 5 < plan["bytes_on_wire"] < record["bytes_on_wire"] * 5
    assert sum(plan["blackout"].values()) == pytest.approx(plan["blackout_s"], abs=0.001)
    assert set(record["predicted"]) == set(plan["blackout"])
    assert record["predicted_blackout_s"] > 0


def test_a_blackout_longer_than_allowed_is_refused_with_the_number_and_nothing_happens(moving, start):
    guest = start(WORKERS="1", PAGES="500")
    before = (moving.find("check")["pid"], guest.report()["log"])
    events = []
    with pytest.raises(RemoteError, match=r"predicted blackout of \d+ ms is longer than the 1 ms allowed") as caught:
        moving.migrate("check", "host2", {"max_blackout_s": 0.001}, on_event=events.append)
    assert caught.value.exit_code == 5
    assert "check runs on host1" in caught.value.message
    assert {"migration.layer", "migration.round", "migration.freeze"}.isdisjoint(event["name"] for event in events)
    assert moving.find("check")["pid"] == before[0]
    assert guest.runs_only_here() == "host1"
    assert guest.move("host2", max_blackout_s=30.0)["outcome"] == "committed"


# -- guests that write fast ----------------------------------------------------------------------------------------------------------------


def test_a_guest_that_writes_too_fast_is_throttled_until_it_converges_and_has_its_cpu_back(moving, start):
    guest = start(program=(SELFCHECK / "writer.py").read_text(), MEGABYTES="8")
    options = {"freeze_budget_s": 0.001}
    with slow_links(moving, "host1", "host2", rate_bit_s=80_000_000):
        diverged = guest.move("host2", **options)
        assert diverged["throttle"] == []
        assert "not converging" in diverged["stop_reason"]
        record = guest.move("host1", auto_converge=True, **options)
    shares = [step["share"] for step in record["throttle"]]
    assert shares[:2] == [0.2, 0.3]
    assert shares == sorted(shares)
    throttled = [one["throttle"] for one in record["rounds"] if one["kind"] == "pre-dump"]
    assert throttled == sorted(throttled)
    assert (throttled[0], throttled[-1]) == (0.0, shares[-1])
    assert record["rounds"][-1]["pages"] < diverged["rounds"][-1]["pages"] * 0.9
    assert quota(moving, "host1") == "100000"


def test_a_throttled_guest_that_is_given_up_has_its_cpu_back_too(moving, start):
    start(program=(SELFCHECK / "writer.py").read_text(), MEGABYTES="8")
    rows, error = [], []
    with slow_links(moving, "host1", "host2", rate_bit_s=80_000_000):

        def move():
            with pytest.raises(RemoteError, match="on request") as caught:
                moving.migrate("check", "host2", {"freeze_budget_s": 0.001, "auto_converge": True}, on_event=rows.append)
            error.append(caught.value)

        thread = threading.Thread(target=move)
        thread.start()
        wait_until(lambda: any(row["name"] == "migration.throttle" for row in rows))
        moving.abort_migration("check")
        thread.join(60)
    assert error[0].details["report"]["throttle"]
    assert quota(moving, "host1") == "100000"


@contextmanager
def slow_links(testbed, *nodes, rate_bit_s):
    for node in nodes:
        testbed.call(node, "link.set", rate_bit_s=rate_bit_s)
    try:
        yield
    finally:
        for node in nodes:
            testbed.call(node, "link.set", rate_bit_s=1_000_000_000)


def quota(testbed, node):
    """Microseconds of CPU time in 100 ms that the guest may use."""
    command = "cat /sys/fs/cgroup/cpu/guest-check/cpu.cfs_quota_us /sys/fs/cgroup/guest-check/cpu.max 2>/dev/null"
    return testbed.project.exec_run(node, ("sh", "-c", command)).stdout.split()[0]


# -- several, and how far they are ---------------------------------------------------------------------------------------------------------


def test_two_guests_by_one_command_at_once(moving, start):
    one, two = start("one", "host1", WORKERS="1", PAGES="500"), start("two", "host1", WORKERS="1", PAGES="500")
    command = Command("migrate", "one", "two", "--to", "host2", "--to", "host3", "--json")
    out, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    records = json.loads(out[out.index("[\n") :])
    assert [(record["vm"], record["id"], record["destination"]) for record in records] == [("one", 1, "host2"), ("two", 2, "host3")]
    assert (one.runs_only_here(), two.runs_only_here()) == ("host2", "host3")


def test_one_after_the_other_with_a_budget_of_the_link(moving, start):
    one, two = start("one", "host1", WORKERS="1", PAGES="500"), start("two", "host1", WORKERS="1", PAGES="500")
    command = Command("migrate", "one", "two", "--to", "host2", "--in-sequence", "--link-budget", "8mbit", "--json")
    out, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    first, second = json.loads(out[out.index("[\n") :])
    assert first["end_s"] <= second["start_s"]
    for record in (first, second):
        layer_and_memory = record["rounds"][0]
        assert layer_and_memory["bytes_on_wire"] / layer_and_memory["duration_s"] < 1.2e6
    assert (one.runs_only_here(), two.runs_only_here()) == ("host2", "host2")


def test_how_far_it_is_is_told_on_the_way(moving, start):
    guest = start(WORKERS="1", PAGES="12000")
    rows, listed = [], []

    def see(row):
        rows.append(row)
        if row["name"] == "migration.progress" and not listed:
            listed.append(moving.find("check")["migration"])

    with slow_links(moving, "host1", "host2", rate_bit_s=20_000_000):
        moving.migrate("check", "host2", {}, on_event=see)
    progress = [row for row in rows if row["name"] == "migration.progress"]
    assert len(progress) >= 2
    sent = [row["bytes_sent"] for row in progress]
    assert sent == sorted(sent)
    assert all(row["bytes_left"] >= 0 and row["eta_s"] >= 0 for row in progress)
    assert {row["phase"] for row in progress} <= {"layer", "round"}
    assert listed[0]["bytes_sent"] <= sent[-1]
    assert guest.runs_only_here() == "host2"
