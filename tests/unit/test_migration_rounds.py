"""When pre-copying ends, and why."""

from __future__ import annotations

import pytest

from emulab.migration.rounds import Round, StopRule

GIGABIT_BYTES_S = 117_000_000


def one(pages, predicted_s, n=1):
    return Round(n, "pre-dump", 0.0, 1.0, 0.1, pages, pages * 4096, pages * 2000, 0, predicted_s, 0.0)


def decide(*rounds, rule=None, transfer_s=1.0):
    return (rule or StopRule(budget_s=0.3, max_rounds=8)).decide(rounds, transfer_s=transfer_s)


def test_within_the_budget_it_stops_even_after_the_first_round():
    decision = decide(one(10_000, 0.29))
    assert decision.stop
    assert "within the budget of 0.3 s" in decision.reason


def test_one_round_above_the_budget_is_never_enough():
    assert not decide(one(80_000, 2.0)).stop


def test_rounds_that_shrink_go_on():
    decision = decide(one(80_000, 3.0), one(40_000, 1.8), transfer_s=1.4)
    assert (decision.stop, decision.reason) == (False, "converging")


def test_rounds_that_do_not_shrink_end_it():
    decision = decide(one(80_000, 3.0), one(72_000, 2.8), transfer_s=2.5)
    assert decision.stop
    assert decision.reason == "not converging: 80000 pages, then 72000"


def test_the_cap_ends_it():
    rounds = [one(2**20 >> n, 40.0 / 2**n) for n in range(3)]
    decision = decide(*rounds, rule=StopRule(0.3, 3), transfer_s=9.0)
    assert decision.stop
    assert "cap of 3" in decision.reason


def test_a_cap_of_one_is_one_round():
    assert decide(one(80_000, 9.0), rule=StopRule(0.3, 1)).stop


def test_when_dirty_pages_hardly_matter_another_round_cannot_help():
    decision = decide(one(80_000, 3.0), one(300, 0.9), transfer_s=0.01)
    assert decision.stop
    assert "another round cannot shorten it" in decision.reason


def test_the_budget_is_asked_before_anything_else():
    assert "budget" in decide(one(100, 0.2), one(100, 0.2), rule=StopRule(0.3, 2), transfer_s=0.0).reason


@pytest.mark.parametrize("more", [{"tasks": 60}, {"frozen_s": 0.3}, {"pages": 90_000}, {"link_bytes_per_s": GIGABIT_BYTES_S / 10}])
def test_more_tasks_longer_freezes_more_pages_or_a_slower_link_predict_a_longer_blackout(more):
    base = {"frozen_s": 0.1, "tasks": 50, "pages": 10_000, "link_bytes_per_s": GIGABIT_BYTES_S}
    assert StopRule().predict(**{**base, **more})[0] > StopRule().predict(**base)[0]


def test_the_transfer_is_the_pages_at_the_links_rate_and_part_of_the_whole():
    whole, transfer = StopRule().predict(frozen_s=0.0, tasks=0, pages=25_000, link_bytes_per_s=102_400_000)
    assert transfer == pytest.approx(1.0)
    assert whole > transfer
