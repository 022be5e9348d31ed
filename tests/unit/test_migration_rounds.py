"""When pre-copying ends, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emulab.migration.predict import Prediction
from emulab.migration.rounds import THROTTLED_ROUNDS, Round, StopRule, is_hot

RULE = StopRule(budget_s=0.3, max_rounds=8)


def one(pages, dirty, n=1, throttle=0.0):
    """A round that sent so many pages while the guest wrote so many."""
    return Round(n, "pre-dump", 0.0, 1.0, 0.1, pages, pages * 4096, pages * 2000, 0, 0.0, 0.0, dirty_pages=dirty, throttle=throttle)


def blackout(total_s, transfer_s=None):
    transfer = 0.5 * total_s if transfer_s is None else transfer_s
    return Prediction(freeze_s=0.0, dump_s=(total_s - transfer) / 2, transfer_s=transfer, restore_s=(total_s - transfer) / 2, resume_s=0.0)


def test_within_the_budget_it_stops_even_after_the_first_round():
    decision = RULE.decide([one(10_000, 900)], blackout(0.29))
    assert decision.stop
    assert "within the budget of 0.3 s" in decision.reason


def test_above_the_budget_it_goes_on_as_long_as_rounds_shrink():
    decision = RULE.decide([one(80_000, 40_000)], blackout(2.0))
    assert (decision.stop, decision.reason) == (False, "converging")


def test_a_guest_that_writes_as_fast_as_rounds_are_sent_ends_it():
    decision = RULE.decide([one(80_000, 78_000)], blackout(3.0))
    assert (decision.stop, decision.diverging) == (True, True)
    assert decision.reason == "not converging: 80000 pages sent, 78000 written meanwhile"


def test_after_a_round_that_waited_for_the_guest_a_quicker_one_is_tried_unless_it_would_change_nothing():
    wide, narrow = one(80_000, 78_000), one(78_000, 77_000)
    assert not RULE.decide([wide], blackout(3.0), waited=True).stop
    assert not RULE.decide([wide, narrow], blackout(3.0), waited=True).stop
    quicker = replace(narrow, duration_s=0.5)
    assert RULE.decide([wide, quicker], blackout(3.0), waited=True).diverging
    assert RULE.decide([wide] * 8, blackout(3.0), waited=True).diverging


def test_the_cap_ends_it():
    rounds = [one(2**20 >> n, 2**19 >> n, n) for n in range(3)]
    decision = replace(RULE, max_rounds=3).decide(rounds, blackout(9.0))
    assert (decision.stop, decision.diverging) == (True, True)
    assert "cap of 3" in decision.reason


def test_rounds_of_a_throttled_guest_do_not_count_but_have_a_cap_too():
    rule = replace(RULE, max_rounds=2)
    rounds = [one(80_000, 60_000), *(one(60_000, 50_000, n, throttle=0.2) for n in range(2, 5))]
    assert not rule.decide(rounds, blackout(9.0)).stop
    assert rule.decide(rounds[:1] + rounds[1:2] * (THROTTLED_ROUNDS + 1), blackout(9.0)).stop


def test_when_dirty_pages_hardly_matter_another_round_cannot_help():
    decision = RULE.decide([one(80_000, 300)], blackout(0.9, transfer_s=0.01))
    assert (decision.stop, decision.diverging) == (True, False)
    assert "another round cannot shorten it" in decision.reason


def test_the_budget_is_asked_before_anything_else():
    assert "budget" in RULE.decide([one(100, 100)] * 8, blackout(0.2, transfer_s=0.0)).reason


@pytest.mark.parametrize("rounds", [1, 2])
def test_rounds_asked_for_are_made_whatever_the_prediction(rounds):
    decision = replace(RULE, min_rounds=3).decide([one(100, 100)] * rounds, blackout(0.01))
    assert not decision.stop


@pytest.mark.parametrize(
    ("lasted", "dirty", "hot"),
    [
        ((9.0, 3.0), (11_000, 10_900), True),
        ((9.0, 3.0), (11_000, 4_000), False),
        ((3.0, 3.0), (11_000, 10_900), False),
        ((3.0,), (9,), False),
    ],
)
def test_a_guest_that_writes_the_same_pages_again_and_again_leaves_as_many_after_a_shorter_round(lasted, dirty, hot):
    rounds = [replace(one(80_000, pages), duration_s=seconds) for seconds, pages in zip(lasted, dirty, strict=True)]
    assert is_hot(rounds) is hot
