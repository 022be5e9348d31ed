"""Everything that can go wrong at every phase of every strategy: one guest runs, itself, its client goes on or is told, nothing is left.

A few of the cases run always, all of them in ``make soak``.
"""

from __future__ import annotations

import pytest
from accidents import PHASES, accidents
from matrix import run_case

from emulab.migration.strategies import STRATEGIES

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(180)]

# (fault, phase): cases that differ in what has to be done about them. They run with the strategy that is the default.
_SHORT = {
    ("source agent killed", "transfer"),
    ("source agent killed", "commit"),
    ("source agent killed", "resume"),
    ("destination agent killed", "layer"),
    ("destination agent killed", "restore"),
    ("dirty tracker killed", "round"),
    ("CRIU killed on the source", "restore"),
    ("CRIU killed at work on the destination", "restore"),
    ("CRIU killed on the destination", "commit"),
    ("command line killed", "transfer"),
    ("source cut off for 3 s", "round"),
    ("destination cut off for 3 s", "restore"),
    ("source cut off beyond the deadline", "commit"),
    ("1 % of frames lost", "layer"),
    ("10 Mbit/s", "dump"),
    ("no room for images", "round"),
    ("memory limit too small", "dump"),
    ("a byte changed on the wire", "transfer"),
    ("a byte changed on the wire", "commit"),
    ("stale secret", "commit"),
}


def cases(strategies, wanted):
    return [
        pytest.param(strategy, phase, accident, id=f"{strategy}, {phase}: {accident.name}")
        for strategy in strategies
        for accident in accidents()
        for phase in PHASES
        if phase in accident.phases and (phase != "round" or STRATEGIES[strategy].has_rounds) and wanted(strategy, accident.name, phase)
    ]


def is_short(strategy, name, phase):
    return strategy == "pre-copy" and (name, phase) in _SHORT


@pytest.mark.parametrize(("strategy", "phase", "accident"), cases(["pre-copy"], is_short))
def test_one_guest_is_left_and_it_is_itself(guest, table, strategy, phase, accident):
    table.add(run_case(guest, strategy, phase, accident))


@pytest.mark.soak
@pytest.mark.parametrize(("strategy", "phase", "accident"), cases(STRATEGIES, lambda *case: not is_short(*case)))
def test_so_it_is_in_every_other_case(guest, table, strategy, phase, accident):
    table.add(run_case(guest, strategy, phase, accident))
