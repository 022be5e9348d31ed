"""The migrations of a run: side by side where their times overlap, of one guest one after the other, recorded in order."""

from __future__ import annotations

import json
import threading

import pytest

from emulab.agent.rpc import RemoteError
from emulab.cli.moving import describe, live_line, pair_up
from emulab.errors import UsageError
from emulab.experiment.folder import RunFolder
from emulab.experiment.moves import Moves
from emulab.scenario import parse_scenario, plan, resolve


class Nodes:
    """A testbed whose migrations end when the test says so."""

    def __init__(self, *, fail=()):
        self.started, self.asked, self.aborted, self._fail = [], [], [], fail
        self.release = {"web": threading.Semaphore(0), "db": threading.Semaphore(0)}
        self._begun = threading.Semaphore(0)

    def find(self, name):
        return {"name": name, "node": "host1"}

    def migrate(self, name, to, options, *, number, on_event):
        self.started.append(number)
        self.asked.append(options)
        self._begun.release()
        on_event({"name": "migration", "id": number})
        assert self.release[name].acquire(timeout=20)
        if number in self._fail:
            raise RemoteError(
                "host1", {"kind": "AbortedError", "message": "no", "details": {"report": {"id": number}, "logs": {"a.log": "why"}}}
            )
        return {"id": number, "total_s": 1.0, "blackout_s": 0.1}

    def abort_migration(self, name, reason):
        assert reason
        self.aborted.append(name)
        self.release[name].release()

    def wait_for(self, count):
        for _ in range(count):
            assert self._begun.acquire(timeout=20)


@pytest.fixture
def planned():
    text = "migrations: [{vm: web, at: 10s, to: host3}, {vm: db, at: 10s, to: host4}, {vm: web, at: 11s, to: host5, max_blackout: 1s}]"
    return plan(resolve(parse_scenario(text)))


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder("test", tmp_path)
    yield folder
    folder.close()


def begin(planned, folder, nodes):
    moves = Moves(nodes, folder, lambda _: None)
    for migration in planned:
        moves.begin(migration)
    return moves


def test_two_guests_move_at_once_and_one_guest_waits_for_itself(planned, folder):
    nodes = Nodes()
    moves = begin(planned, folder, nodes)
    nodes.wait_for(2)
    assert sorted(nodes.started) == [1, 2]  # the third is web's second
    nodes.release["web"].release()
    nodes.wait_for(1)
    nodes.release["web"].release()
    nodes.release["db"].release()
    moves.wait()
    assert [row["id"] for row in moves.rows()] == [1, 2, 3]
    assert json.loads((folder.path / "migrations.json").read_text()) == moves.rows()
    assert [asked["max_blackout_s"] for asked in nodes.asked] == [None, None, 1.0]
    assert moves.failure is None


def test_one_that_fails_is_recorded_and_the_others_go_on(planned, folder):
    nodes = Nodes(fail=(1,))
    moves = begin(planned, folder, nodes)
    for name in ("web", "web", "db"):
        nodes.release[name].release()
    moves.wait()
    assert [row["id"] for row in moves.rows()] == [1, 2, 3]
    assert "no" in moves.failure.message
    assert (folder.logs / "migration-1-a.log").read_text() == "why"


def test_those_under_way_are_aborted_and_recorded_and_none_begins_any_more(planned, folder):
    nodes = Nodes(fail=(1, 2))
    moves = begin(planned, folder, nodes)
    nodes.wait_for(2)
    assert moves.give_up() == []
    assert sorted(nodes.aborted) == ["db", "web"]
    assert [row["id"] for row in json.loads((folder.path / "migrations.json").read_text())] == [1, 2]
    assert sorted(nodes.started) == [1, 2]  # not web's second


def test_one_that_does_not_end_is_not_waited_for(planned, folder):
    nodes = Nodes()
    nodes.abort_migration = lambda name, reason: None
    moves = begin(planned[:1], folder, nodes)
    nodes.wait_for(1)
    assert moves.give_up(patience_s=0.1) == ["web"]
    assert moves.rows() == []
    nodes.release["web"].release()
    moves.wait()


def test_a_scenario_s_options_reach_the_agent_whole():
    text = "migrations: [{vm: web, to: host3, strategy: stop-and-copy, auto_converge: true, deadline: 5s, link_budget: 300mbit}]"
    (migration,) = plan(resolve(parse_scenario(text)))
    assert migration.options == {
        "strategy": "stop-and-copy", "dirty_tracker": "auto", "freeze_budget_s": 0.3, "max_rounds": 8, "max_blackout_s": None,
        "auto_converge": True, "deadline_s": 5.0, "link_budget_bit_s": 300_000_000,
    }  # fmt: skip


# -- by hand -------------------------------------------------------------------------------------------------------------------------------


def test_one_destination_is_for_all_and_several_are_for_each():
    assert [(move.name, move.to, move.number) for move in pair_up(["web", "db"], ["host3"])] == [("web", "host3", 1), ("db", "host3", 2)]
    assert [move.to for move in pair_up(["web", "db"], ["host3", "host4"])] == ["host3", "host4"]
    for names, to in ((["web", "db"], ["host3", "host4", "host5"]), (["web", "web"], ["host3"])):
        with pytest.raises(UsageError):
            pair_up(names, to)


def test_progress_is_one_line():
    row = {
        "phase": "round", "round": 2, "bytes_sent": 12_300_000, "bytes_left": 4_000_000, "dirty_bytes_per_s": 5_000_000,
        "expected_blackout_s": 0.31, "eta_s": 2.4,
    }  # fmt: skip
    assert live_line(row) == "round 2, 12.3 MB sent, 4.0 MB left, guest writes 5.0 MB/s, blackout about 310 ms, 2 s left"
    first = {**row, "phase": "layer", "round": 0, "dirty_bytes_per_s": 0, "expected_blackout_s": 0.0}
    assert live_line(first) == "layer, 12.3 MB sent, 4.0 MB left, 2 s left"


def test_throttling_is_told():
    row = {"name": "migration.throttle", "kind": "event", "share": 0.3, "vcpus": 0.7, "reason": "not converging"}
    assert describe(row) == "throttled to 0.7 vCPUs (30% withheld): not converging"
