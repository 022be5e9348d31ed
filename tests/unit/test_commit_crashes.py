"""Both sides of a commit, killed at every step, with every message lost or late: never two guests run, and in the end exactly one does.

The decision (``commit.decide``), the destination's side of it (``Arrival``), the journals and the recovery are the real ones. Played are
CRIU, the network and time: waiting is when what is due happens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from emulab.agent import recovery
from emulab.errors import EmulabError
from emulab.migration import commit, destination, journal
from emulab.migration.channel import PeerError, PeerLostError

KEY = "g-1"
LONG = 150  # waits: longer than the source asks before it says that it is in doubt


class Killed(BaseException):
    """Signal 9 for an agent."""


@dataclass
class ModelGuest:
    """The guest on one node."""

    world: Any
    side: str
    pid: int = 0
    ticks: int = 0
    since_s: float = 0.0
    spec = SimpleNamespace(name="g", vcpus=1.0)

    @property
    def cgroup(self):
        return SimpleNamespace(pids=list, frozen=lambda: self.world.tasks[self.side] == "frozen", set_quota=lambda _: None)

    def alive(self):
        return self.world.tasks[self.side] in ("frozen", "running")


class ModelGuests:
    """What ``Guests`` keeps on one node."""

    def __init__(self, world, side, *, known):
        self.world, self.side, self.known = world, side, known

    def names(self):
        return ["g"] if self.known else []

    def find(self, _):
        return ModelGuest(self.world, self.side) if self.known else None

    def save(self, _):
        self.world.step(self.side)
        self.known = True

    def discard(self, _):
        self.world.step(self.side)
        self.world.become(self.side, "none")
        self.known = False

    discard_name = discard


class World:
    """One migration at its commit. ``tasks`` of each side: none, frozen, gated (restored, behind CRIU's gate) or running.

    ``kill``: {side: number of the step before which it is killed}; ``link``: what becomes of the commit.
    """

    def __init__(self, folder, *, kill, link, gate, wait):
        self.kill, self.link, self.gate, self.wait = dict(kill), link, gate, wait
        self.steps = {"source": 0, "destination": 0}
        self.tasks = {"source": "frozen", "destination": "gated"}
        self.guests = {side: ModelGuests(self, side, known=side == "source") for side in self.tasks}
        self.paths = {side: folder / f"{side}.ndjson" for side in self.tasks}
        self.up = {"source": True, "destination": True}
        self.due, self.now = [], 0
        self.answer = None
        for side, path in self.paths.items():
            journal.record(KEY, "prepared", path, role=side, vm="g")
        self.arrival = destination.Arrival.__new__(destination.Arrival)
        self.arrival.__dict__.update(
            key=KEY, spec=ModelGuest.spec, guest=ModelGuest(self, "destination"), daemon=None, _hold=None, _hold_since=0.0,
            _guests=self.guests["destination"], _restore=Restore(self), _peer=SimpleNamespace(send=self.hear, drain=lambda _: None),
            _prepared=True, _committed=False, _pages_complete_s=1.0,
        )  # fmt: skip

    # -- what can happen ---------------------------------------------------------------------------------------------------------------

    def become(self, side, tasks):
        self.tasks[side] = tasks
        assert list(self.tasks.values()).count("running") <= 1, "two of it run"

    def step(self, side):
        self.steps[side] += 1
        if self.steps[side] == self.kill.get(side):
            del self.kill[side]
            raise Killed(side)

    def pass_time(self, *_):
        self.now += 1
        for at, event in [one for one in self.due if one[0] <= self.now]:
            self.due.remove((at, event))
            event()

    def later(self, event):
        self.due.append((self.now + self.wait, event))

    # -- the destination ---------------------------------------------------------------------------------------------------------------

    def hear(self, kind, **fields):
        self.step("destination")
        self.answer = (kind, fields)

    def receive_commit(self):
        self._at_destination(self.arrival._commit)

    def lose_connection(self):
        if not self.arrival._committed:
            self._at_destination(lambda: self.arrival._undo(PeerLostError("gone")))

    def _at_destination(self, work):
        if not self.up["destination"]:
            return
        try:
            try:
                work()
            except Exception as error:
                self.arrival._undo(error)
        except Killed:
            self.up["destination"] = False
            if self.tasks["destination"] == "gated":
                self.become("destination", "none")  # its hook is not answered: CRIU undoes the restore
            self.later(self.recover_destination)

    def recover_destination(self):
        assert recovery.recover(self.guests["destination"], path=self.paths["destination"]) == []
        self.up["destination"] = True

    # -- the source --------------------------------------------------------------------------------------------------------------------

    def ask(self, kind, **_):
        if kind == "status":
            if not self.up["destination"]:
                raise PeerLostError("nobody there")
            return {"state": journal.last_state(KEY, self.paths["destination"])}
        self.step("source")
        if self.link == "commit lost":
            self.later(self.lose_connection)
            raise PeerLostError("no answer")
        if self.link == "commit late":
            self.later(self.receive_commit)
            raise PeerLostError("no answer")
        self.receive_commit()
        self.step("source")
        if self.link == "answer lost" or self.answer is None:
            raise PeerLostError("no answer")
        if self.answer[0] == "error":
            raise PeerError("it failed")
        return self.answer[1]

    def depart(self):
        peer = SimpleNamespace(ask=self.ask, close=lambda: None)
        leaving = SimpleNamespace(
            report=SimpleNamespace(destination="there", phases={}), timeline=SimpleNamespace(mark=lambda *_, **__: 0.0), key=KEY, peer=peer,
            guest=ModelGuest(self, "source"), control=SimpleNamespace(pass_commit=lambda: None), connect=lambda: peer,
        )  # fmt: skip
        try:
            self._decide(leaving)
        except Killed:
            self.later(self.lose_connection)
            self.pass_time()
            self._settle(recovery.recover(self.guests["source"], path=self.paths["source"]))

    def _decide(self, leaving):
        try:
            commit.decide(leaving)
            journal.record(KEY, "released", role="source", vm="g")
            self.guests["source"].discard("g")
        except commit.InDoubtError:
            journal.record(KEY, "in-doubt", role="source", vm="g")
            self._settle([recovery.Doubt(leaving.guest, journal.entries(self.paths["source"])[KEY])])
        except EmulabError:
            self.become("source", "running")
            journal.record(KEY, "aborted", role="source", vm="g")

    def _settle(self, doubts):
        for doubt in doubts:
            over = SimpleNamespace(is_set=lambda: self.now > 10 * LONG, wait=self.pass_time)
            recovery.settle(self.guests["source"], doubt, lambda *_: self.ask("status")["state"], over=over, path=self.paths["source"])


class Restore:
    """CRIU at its gate."""

    pid, resumed_s, begun = 0, 0.0, True

    def __init__(self, world):
        self.world, self.resumed, self.hooks = world, False, SimpleNamespace(times={})

    def open_gate(self):
        self.world.step("destination")
        if self.world.gate == "CRIU dies at the gate":
            raise EmulabError("CRIU failed after the commit")
        self.world.become("destination", "running")
        self.resumed = True
        self.world.step("destination")
        if self.world.gate == "CRIU dies behind it":
            raise EmulabError("CRIU failed after the commit")

    def refuse(self):
        if self.world.tasks["destination"] == "gated":
            self.world.become("destination", "none")

    def close(self):
        """Nothing is open."""

    def log_text(self):
        return ""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Plays one case from the commit until nothing is due any more."""
    write = journal.record

    def play(number, **case):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder, **case)

        def record(migration, state, path=None, **fields):
            world.step(fields["role"])
            write(migration, state, path or world.paths[fields["role"]], **fields)
            world.step(fields["role"])

        monkeypatch.setattr(journal, "record", record)
        monkeypatch.setattr(journal.os, "fdatasync", lambda _: None)
        monkeypatch.setattr(recovery.guestnet, "let_run", lambda guest: world.become(guest.side, "running"))
        monkeypatch.setattr(recovery, "_wait_for_criu", lambda: None)
        monkeypatch.setattr(recovery, "_remove_images", lambda: None)
        monkeypatch.setattr(recovery.handover, "left_behind", lambda _: [])
        monkeypatch.setattr(commit, "time", SimpleNamespace(sleep=world.pass_time))
        monkeypatch.setattr(commit, "clock", SimpleNamespace(now=lambda: world.now * 0.5))
        world.depart()
        for _ in range(2 * LONG):
            world.pass_time()
        monkeypatch.setattr(journal, "record", write)
        return world

    return play


SOURCE_STEPS, DESTINATION_STEPS = (None, *range(1, 9)), (None, *range(1, 13))
LINKS = ("holds", "commit lost", "commit late", "answer lost")


@pytest.mark.parametrize("wait", [1, LONG])
@pytest.mark.parametrize("gate", ["opens", "CRIU dies at the gate", "CRIU dies behind it"])
def test_one_guest_runs_whoever_is_killed_whenever(play, gate, wait):
    ends = set()
    for number, (link, source, there) in enumerate(itertools.product(LINKS, SOURCE_STEPS, DESTINATION_STEPS)):
        kill = {side: step for side, step in (("source", source), ("destination", there)) if step}
        case = {"kill": kill, "link": link, "gate": gate, "wait": wait}
        world = play(number, **case)
        assert sorted(world.tasks.values()) == ["none", "running"], case
        ends.add(world.tasks["destination"])
    assert ends == ({"none"} if gate == "CRIU dies at the gate" else {"none", "running"})
