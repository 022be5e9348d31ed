"""Strategies are lists of steps: what comes before what is their whole difference."""

from __future__ import annotations

import pytest

from emulab.errors import UsageError
from emulab.migration.model import Options, Timeline
from emulab.migration.strategies import STRATEGIES


class Diary:
    """Stands in for a departure: writes down which steps it was asked for."""

    def __init__(self):
        self.steps = []

    def __getattr__(self, step):
        return lambda: self.steps.append(step)


def steps(name):
    diary = Diary()
    STRATEGIES[name].run(diary)
    return diary.steps


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_asks_first_whether_the_guest_can_move_and_releases_it_last(name):
    order = steps(name)
    assert order[:2] == ["check", "reach_destination"]
    assert order[-1] == "release"
    assert order.index("freeze") < order.index("restore_there") < order.index("commit") < order.index("release")
    assert len(set(order)) == len(order)


def test_stop_and_copy_copies_everything_inside_the_freeze():
    order = steps("stop-and-copy")
    assert order.index("freeze") < order.index("copy_layer")
    assert "rounds" not in order


def test_pre_copy_copies_layer_and_memory_before_the_freeze():
    order = steps("pre-copy")
    assert order.index("copy_layer") < order.index("rounds") < order.index("freeze")


def test_options_name_a_strategy_that_exists():
    assert {Options.from_dict({"strategy": name}).strategy for name in STRATEGIES} == set(STRATEGIES)
    with pytest.raises(UsageError, match="unknown strategy 'teleport'"):
        Options.from_dict({"strategy": "teleport"})


def test_a_held_phase_stands_still_after_its_beginning_and_only_there():
    rows, at = [], []
    timeline = Timeline(lambda row: rows.append(row["name"]), "host1", 1, {"dump": 0.05})
    for kind in ("begin", "end"):
        before = timeline.mark("migration.dump", kind)
        at.append(timeline.mark("migration.other") - before)
    assert at[0] >= 0.05
    assert at[1] < 0.05
    assert rows == ["migration.dump", "migration.other"] * 2
