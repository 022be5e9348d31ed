"""Guests that run at the destination before their memory is there: it arrives whole, whatever they and the agents do meanwhile."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MEMORY, SELFCHECK, SETTINGS, agent_of, traces, wait_until

from emulab.agent.rpc import RemoteError
from emulab.errors import EmulabError
from emulab.node.guest import GuestSpec
from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

LAZY = ("post-copy", "hybrid")
SLOW = 50_000_000
BIG = {"WORKERS": "2", "PAGES": "7000", "INCOMPRESSIBLE": "1"}  # 28 MB at first

# Run in a node: ends, by its number, the first process of a module.
_KILL = """
import os, pathlib, sys
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
        if sys.argv[1].encode() in path.read_bytes().split(b"\\0"):
            os.kill(int(path.parent.name), 9)
            print(path.parent.name)
            break
    except OSError:
        continue
"""


def kill(testbed, node, module):
    """Returns whether there was such a process."""
    return bool(testbed.project.exec_run(node, (PYTHON, "-c", _KILL, module)).stdout)


def agent_answers(testbed, node):
    try:
        return testbed.call(node, "ping")["configured"]
    except EmulabError:
        return False


@pytest.fixture
def slow_link(moving):
    """The pages need some seconds to cross."""
    moving.call("host1", "link.set", rate_bit_s=SLOW)
    yield
    moving.call("host1", "link.set", rate_bit_s=1_000_000_000)


class Move:
    """A migration in a thread of its own. ``wait_for(name)``: until a phase has begun."""

    def __init__(self, testbed, name, to, **options):
        self.record, self.error, self._begun = None, None, {}
        self._thread = threading.Thread(target=self._run, args=(testbed, name, to, options))
        self._thread.start()

    def _run(self, testbed, name, to, options):
        try:
            self.record = testbed.migrate(name, to, options, on_event=lambda row: self._begun.setdefault(row["name"], row))
        except EmulabError as error:
            self.error = error

    def wait_for(self, phase):
        wait_until(lambda: f"migration.{phase}" in self._begun or self.error)
        assert self.error is None

    def ended(self):
        return not self._thread.is_alive()

    def join(self):
        self._thread.join(120)
        assert not self._thread.is_alive()


@pytest.mark.soak  # ten migrations in a row (tests/faults) do the same with all strategies
def test_memory_and_connection_survive_moves_of_all_kinds_in_a_row(start):
    guest = start()
    with guest.under_requests() as requests:
        for to, strategy in (
            ("host2", "post-copy"),
            ("host3", "hybrid"),
            ("host1", "pre-copy"),
            ("host2", "post-copy"),
            ("host3", "hybrid"),
        ):
            record = guest.move(to, strategy=strategy)
            assert (record["outcome"], record["strategy"]) == ("committed", strategy)
            assert guest.runs_only_here() == to
    assert requests["requests"] > 100


@pytest.mark.parametrize("strategy", LAZY)
def test_the_record_adds_up(moving, start, strategy):
    guest = start()
    events = []
    record = moving.migrate(guest.name, "host3", {"strategy": strategy, "dirty_tracker": "auto"}, number=7, on_event=events.append)
    kinds = [one["kind"] for one in record["rounds"]]
    assert kinds[-2:] == ["final", "post-copy"]
    assert ("pre-dump" in kinds) == (strategy == "hybrid")
    late = record["rounds"][-1]
    assert record["start_s"] < record["freeze_s"] < record["resume_s"] == late["start_s"] < record["end_s"]
    assert record["phases"]["post-copy"] == pytest.approx(late["duration_s"])
    assert record["bytes_of_pages"] == sum(one["bytes"] for one in record["rounds"])
    assert sum(one["bytes_on_wire"] for one in record["rounds"]) <= record["bytes_on_wire"]
    assert late["pages"] > 0
    assert 0 < record["pages_faulted"] <= late["pages"]
    assert 0 < record["fault_p50_s"] <= record["fault_max_s"]
    names = [(event["name"], event["kind"]) for event in events]
    assert names[-3:] == [("migration.post-copy", "begin"), ("migration.post-copy", "end"), ("migration", "end")]
    guest.check()


def test_a_hybrid_leaves_little_to_follow(start):
    """What was not written since the last round is at the destination already."""
    guest = start()
    whole = guest.move("host2", strategy="post-copy")["rounds"][-1]
    rest = guest.move("host3", strategy="hybrid")["rounds"][-1]
    assert rest["pages"] < whole["pages"] / 5
    guest.check()


# -- while memory is missing ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def changing(moving):
    """A guest that changes its address space when it is told to."""
    argv = ("python3", "-c", (SELFCHECK / "changes.py").read_text())
    spec = GuestSpec(name="changes", image="selfcheck", address=f"{SETTINGS.lan_prefix}.120", vcpus=2.0, memory_bytes=MEMORY, argv=argv)
    moving.start_guest("host1", spec, tag="emulab/node:latest")
    wait_until(lambda: order(moving, b"") == [])
    yield
    if any(guest["name"] == "changes" for guest in moving.guests()):
        moving.stop_guest("changes")


def order(testbed, what):
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(100); s.connect('/run/control');"
        f" s.sendall({what!r} or b'-'); print(s.makefile().readline())"
    )
    try:
        return json.loads(testbed.exec_in_guest("changes", ("python3", "-c", program)))
    except EmulabError:
        return None


@pytest.mark.usefixtures("slow_link", "changing")
def test_a_guest_forks_and_changes_its_memory_before_it_is_there(moving):
    move = Move(moving, "changes", "host2", strategy="post-copy")
    move.wait_for("post-copy")
    result = order(moving, b"change")
    assert move.record is None  # it was while memory arrived
    assert result == {"moved": 0, "anew": 0, "forgotten": 0, "striped": 0, "written": 0, "children": [True] * 3, "program": True}
    move.join()
    assert move.record["outcome"] == "committed"
    assert order(moving, b"check") == [0] * 5
    assert traces(moving, "host1", "changes") == {}


@pytest.mark.usefixtures("slow_link", "changing")
def test_a_guest_that_ends_before_its_memory_is_there_keeps_nobody_waiting(moving):
    move = Move(moving, "changes", "host2", strategy="post-copy")
    move.wait_for("post-copy")
    pid = moving.find("changes")["pid"]
    moving.project.exec_run("host2", ("kill", "-9", str(pid)))
    began = time.monotonic()
    move.join()
    assert time.monotonic() - began < 30
    assert traces(moving, "host1", "changes") == {}


@pytest.mark.usefixtures("slow_link", "changing")
def test_a_move_has_ended_once_the_destination_has_let_go_of_the_guest(moving):
    """Its agent is held up after the last page: the guest could not be stopped yet."""
    move = Move(moving, "changes", "host2", strategy="post-copy")
    move.wait_for("post-copy")
    agent = agent_of(moving, "host2")
    assert moving.project.exec_run("host2", ("kill", "-STOP", str(agent))).ok
    try:
        wait_until(lambda: traces(moving, "host1", "changes") == {})
        time.sleep(0.5)
        assert not move.ended()
    finally:
        moving.project.exec_run("host2", ("kill", "-CONT", str(agent)))
    move.join()
    moving.stop_guest("changes")
    assert "changes" not in [guest["name"] for guest in moving.guests()]


@pytest.mark.usefixtures("slow_link")
def test_it_is_listed_once_and_can_neither_be_stopped_nor_moved_before_its_memory_is_there(moving, start):
    start(**BIG)
    move = Move(moving, "check", "host2", strategy="post-copy")
    move.wait_for("post-copy")
    assert [(guest["node"], guest["state"]) for guest in moving.guests()] == [("host2", "running")]
    for attempt in (lambda: moving.stop_guest("check"), lambda: moving.migrate("check", "host3", {})):
        with pytest.raises(RemoteError, match="busy"):
            attempt()
    move.join()
    assert move.record["outcome"] == "committed"


@pytest.mark.usefixtures("slow_link")
@pytest.mark.parametrize("strategy", LAZY)
@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(("host1",), id="source", marks=pytest.mark.soak),
        pytest.param(("host2",), id="destination", marks=pytest.mark.soak),
        pytest.param(("host1", "host2"), id="both"),
    ],
)
def test_agents_are_killed_while_memory_is_missing(moving, start, killed, strategy):
    guest = start(**BIG)
    with guest.under_requests() as requests:
        move = Move(moving, "check", "host2", strategy=strategy)
        move.wait_for("post-copy")
        for node in killed:
            assert kill(moving, node, "emulab.agent.server")
        move.join()
        for node in killed:
            wait_until(lambda node=node: agent_answers(moving, node))
        wait_until(lambda: traces(moving, "host1", "check") == {})
        assert guest.runs_only_here() == "host2"
        wait_until(lambda: "images" not in traces(moving, "host2", "check"))
    assert requests["requests"] > 10
    moving.call("host1", "link.set", rate_bit_s=1_000_000_000)
    assert guest.move("host3", strategy=strategy)["outcome"] == "committed"
    assert guest.runs_only_here() == "host3"


@pytest.mark.usefixtures("slow_link")
def test_the_server_of_its_pages_is_killed(moving, start):
    guest = start(**BIG)
    with guest.under_requests():
        move = Move(moving, "check", "host2", strategy="post-copy")
        move.wait_for("post-copy")
        assert kill(moving, "host1", "emulab.migration.lazy.server")
        move.join()
        assert move.record["outcome"] == "committed"
        assert guest.runs_only_here() == "host2"


@pytest.mark.usefixtures("slow_link")
def test_the_link_is_cut_for_some_seconds(moving, start):
    guest = start(**BIG)
    with guest.under_requests():
        move = Move(moving, "check", "host2", strategy="post-copy")
        move.wait_for("post-copy")
        cut = "ip link set eth0 down; sleep 4; ip link set eth0 up"
        assert moving.project.exec_run("host1", ("sh", "-c", cut)).ok
        move.join()
        assert move.record["outcome"] == "committed"
        assert guest.runs_only_here() == "host2"


@pytest.mark.usefixtures("slow_link")
@pytest.mark.parametrize("lost", ["source", "daemon"])
def test_a_guest_whose_memory_is_lost_is_ended_and_says_why(moving, start, lost):
    start(**BIG)
    move = Move(moving, "check", "host2", strategy="post-copy")
    move.wait_for("post-copy")
    if lost == "source":
        groups = "/sys/fs/cgroup/freezer/guest-check /sys/fs/cgroup/guest-check"
        end_all = f"for g in {groups}; do kill -9 $(cat $g/cgroup.procs); done 2>/dev/null"
        thaw = "echo THAWED >/sys/fs/cgroup/freezer/guest-check/freezer.state || echo 0 >/sys/fs/cgroup/guest-check/cgroup.freeze"
        moving.project.exec_run("host1", ("sh", "-c", f"{end_all}; {thaw}"))
    else:
        assert kill(moving, "host2", "emulab.migration.lazy.daemon")
    wait_until(lambda: moving.find("check")["state"] == "stopped")
    assert "guest check was ended: " in moving.call("host2", "vm.logs", name="check")
    assert traces(moving, "host2", "check").get("processes", []) == []


# -- before the commit ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["post-copy", pytest.param("hybrid", marks=pytest.mark.soak)])
def test_what_goes_wrong_before_the_commit_leaves_it_where_it_was(moving, start, strategy):
    guest = start()
    hog = (PYTHON, "-c", "import time; time.sleep(0.1)")
    assert moving.project.exec_run("host2", hog).ok
    with guest.under_requests():
        for module in ("emulab.migration.lazy.daemon", "emulab.migration.lazy.server"):
            move = Move(moving, "check", "host2", strategy=strategy)
            move.wait_for("layer")
            assert kill(moving, "host2" if module.endswith("daemon") else "host1", module)
            move.join()
            assert "check runs on host1" in move.error.message
            assert guest.runs_only_here() == "host1"
    assert guest.move("host2", strategy=strategy)["outcome"] == "committed"
    guest.check()


@pytest.mark.parametrize("strategy", LAZY)
def test_a_guest_that_cannot_be_saved_stays(start, strategy):
    guest = start(HOLDS="io_uring")
    with guest.under_requests():
        with pytest.raises(RemoteError, match="check runs on host1"):
            guest.move("host2", strategy=strategy)
        assert guest.runs_only_here() == "host1"


def test_a_guest_that_would_not_fit_is_refused(moving, start):
    """Tasks that share pages here would have them each for themselves there."""
    guest = start(memory=96 * 2**20, WORKERS="1", PAGES="100")
    shared = (
        "import os, time; x = bytearray(os.urandom(1) * (40 << 20)); [os.fork() for _ in range(2)];"
        " open('/run/hog', 'w').close(); time.sleep(10000)"
    )
    moving.exec_in_guest("check", ("sh", "-c", 'setsid python3 -c "$0" </dev/null >/dev/null 2>&1 & true', shared))
    wait_until(lambda: moving.project.exec_run("host1", moving.enter_argv("check", ("test", "-e", "/run/hog"))[1]).ok)
    with pytest.raises(RemoteError, match="share no pages"):
        guest.move("host2", strategy="post-copy")
    assert guest.runs_only_here() == "host1"
