import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulab.errors import UsageError
from emulab.load.model import Delay, Mix, Model, Plan, first_start_s, offered_operations, stream
from workloads.olio.driver.mix import MIX

# Long-run shares of Olio's matrix in per cent, calculated by hand from it (see the paper's notes), to 0.01.
SHARES = {
    "HomePage": 26.15,
    "Login": 10.22,
    "TagSearch": 33.45,
    "EventDetail": 24.68,
    "PersonDetail": 2.61,
    "AddPerson": 0.84,
    "AddEvent": 2.05,
}

OLIO = Model(MIX, Delay(5, 25), {"AddPerson": Delay(5, 25, 2), "AddEvent": Delay(5, 25, 3)})


def plan(*, users=100, ramp_up_s=30.0, seed=1, model=OLIO):
    return Plan(model, users=users, ramp_up_s=ramp_up_s, seed=seed)


def test_rows_of_olio_are_per_cents():
    assert [sum(row) for row in MIX.rows] == [100] * 7


def test_long_run_shares_of_olio():
    assert {name: 100 * share for name, share in MIX.stationary().items()} == pytest.approx(SHARES, abs=0.01)


def test_shares_of_a_long_walk_are_the_stationary_ones():
    walk = plan(users=1)
    count = 40_000
    steps = [walk.next(0).operation for _ in range(count)]
    for name, share in MIX.stationary().items():
        assert steps.count(name) / count == pytest.approx(share, abs=0.01)


def test_a_chain_that_alternates_has_shares():
    assert Mix(("a", "b"), ((0, 1), (1, 0))).stationary() == pytest.approx({"a": 0.5, "b": 0.5})


@given(st.lists(st.floats(0, 100), min_size=3, max_size=3).filter(lambda row: sum(row) > 1e-6), st.floats(0, 1, exclude_max=True))
def test_impossible_operations_do_not_follow(row, uniform):
    mix = Mix(("a", "b", "c"), (tuple(row), (1, 1, 1), (1, 1, 1)))
    assert row[mix.follow(0, uniform)] > 0


def test_weights_are_normalised():
    mix = Mix(("a", "b", "c"), ((5, 5, 10), (1, 1, 1), (1, 1, 1)))
    assert [mix.follow(0, uniform) for uniform in (0, 0.24, 0.26, 0.49, 0.51, 0.999)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("rows", [((1, 0),), ((1, -1), (1, 1)), ((0, 0), (1, 1)), ()])
def test_a_mix_that_makes_no_sense_is_refused(rows):
    with pytest.raises(UsageError):
        Mix(("a", "b"), rows)


def test_every_user_begins_with_the_home_page():
    assert {plan().next(user).operation for user in range(100)} == {"HomePage"}


def test_only_transitions_of_the_matrix_happen():
    walk = plan(users=5)
    index = MIX.operations.index
    for user in range(5):
        names = [walk.next(user).operation for _ in range(2000)]
        assert all(MIX.rows[index(one)][index(other)] > 0 for one, other in itertools.pairwise(names))


def test_mean_of_the_capped_delay():
    assert Delay(5, 25).expected_s == pytest.approx(4.966, abs=0.0005)
    samples = 100_000
    for delay in (Delay(5, 25), Delay(5, 25, 2), Delay(5, 25, 3), Delay(1, 1.5)):
        average = sum(delay.draw((i + 0.5) / samples) for i in range(samples)) / samples
        assert average == pytest.approx(delay.expected_s, rel=1e-4)


@given(st.floats(0, 1, exclude_max=True))
def test_delays_stay_between_minimum_and_cap(uniform):
    assert 0 <= Delay(5, 25).draw(uniform) <= 25
    assert 3 <= Delay(5, 25, 3).draw(uniform) <= 25


def test_the_curve_is_shifted_by_the_minimum_and_not_clipped_at_it():
    # Clipping would put a share of 1 - exp(-3/5) = 45 % of all delays onto the minimum itself.
    delays = [Delay(5, 25, 3).draw((i + 0.5) / 1000) for i in range(1000)]
    assert sum(delay < 3.01 for delay in delays) < 10


def test_share_of_capped_delays():
    delays = [Delay(5, 25).draw((i + 0.5) / 100_000) for i in range(100_000)]
    assert sum(delay == 25 for delay in delays) / 100_000 == pytest.approx(math.exp(-5), rel=0.01)


@pytest.mark.parametrize("values", [(0, 25, 0), (5, 4, 0), (5, 25, 5), (5, 25, -1)])
def test_a_delay_that_makes_no_sense_is_refused(values):
    with pytest.raises(UsageError):
        Delay(*values)


def test_cycle_time_counts_from_the_actual_start_and_think_time_from_the_end():
    assert Model(MIX, Delay(5, 25), pacing="cycle").next_start_s(start_s=100, end_s=103, delay_s=5) == 105
    assert Model(MIX, Delay(5, 25), pacing="think").next_start_s(start_s=100, end_s=103, delay_s=5) == 108


def test_lateness_is_not_carried_on():
    # Due at 105, but the server answered at 112 only: starts at once, and the one after counts from 112.
    model = Model(MIX, Delay(5, 25))
    due = model.next_start_s(start_s=100, end_s=112, delay_s=5)
    actual = max(due, 112)
    assert actual == 112
    assert model.next_start_s(start_s=actual, end_s=112.5, delay_s=5) == 117


def test_the_delay_after_an_operation_follows_its_own_rule():
    walk = plan(users=20)
    steps = [walk.next(user) for user in range(20) for _ in range(3000)]
    minimum = {name: min(step.delay_s for step in steps if step.operation == name) for name in ("AddPerson", "AddEvent", "HomePage")}
    assert 2 <= minimum["AddPerson"] < 2.1
    assert 3 <= minimum["AddEvent"] < 3.1
    assert minimum["HomePage"] < 0.1


def test_users_start_evenly_over_the_ramp_up():
    assert [first_start_s(user, 4, 30) for user in range(4)] == [0, 7.5, 15, 22.5]


def test_one_seed_gives_every_user_the_same_steps_whatever_the_order_of_asking():
    one, other = plan(), plan()
    straight = {user: [one.next(user) for _ in range(30)] for user in range(100)}
    mixed = {user: [] for user in range(100)}
    for _ in range(30):
        for user in reversed(range(100)):
            mixed[user].append(other.next(user))
    assert straight == mixed


def test_another_seed_gives_other_steps():
    one, other = plan(seed=1), plan(seed=2)
    assert [one.next(0) for _ in range(30)] != [other.next(0) for _ in range(30)]


def test_streams_are_the_same_in_another_process_and_independent_of_each_other():
    code = "from emulab.load.model import stream; print(stream(1, 'data', 7, 3).random())"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"})
    assert float(elsewhere.stdout) == stream(1, "data", 7, 3).random()
    assert len({stream(*key).random() for key in ((1, "data", 7, 3), (1, "data", 73), (1, "operations", 7), (2, "data", 7, 3))}) == 4


def test_users_beyond_the_plan_have_operations_of_their_own():
    walk = plan(users=2)
    sequences = [tuple(walk.next(user).operation for _ in range(40)) for user in (0, 2, 4)]
    assert len(set(sequences)) == 3
    assert all(sequence[0] == "HomePage" for sequence in sequences)


@pytest.mark.parametrize("seed", range(20))
def test_offered_rate_of_a_run_is_within_two_per_cent_for_any_seed(seed):
    starts = offered_operations(plan(seed=seed), ramp_up_s=30, begin_s=30, end_s=150)
    assert len(starts) / 120 == pytest.approx(100 / 4.966, rel=0.02)


def test_delays_of_the_plan_keep_the_exponential_distribution():
    # Kolmogorov-Smirnov against the model's own distribution; independent draws would stay below the bound in 99.9 % of all cases.
    model = Model(Mix(("only",), ((1,),)), Delay(5, 25))
    walk = plan(model=model, users=50)
    for users in ([3], range(50)):
        delays = sorted(walk.next(user).delay_s for user in users for _ in range(4000 // len(users)))
        n = len(delays)
        worst = max(abs((i + 0.5) / n - (1 - math.exp(-delay / 5))) for i, delay in enumerate(delays) if delay < 25)
        assert worst < 1.95 / math.sqrt(n)


def test_successive_delays_of_a_user_are_not_correlated():
    walk = plan(model=Model(Mix(("only",), ((1,),)), Delay(5, 25)), users=50)
    delays = [walk.next(7).delay_s for _ in range(10_000)]
    mean = sum(delays) / len(delays)
    variance = sum((delay - mean) ** 2 for delay in delays)
    covariance = sum((one - mean) * (other - mean) for one, other in itertools.pairwise(delays))
    assert abs(covariance / variance) < 0.05


def test_starts_of_all_users_together_look_random_from_second_to_second():
    # Stratified delays steady the count over minutes; within seconds users must still come at random: variance of counts near their mean.
    starts = offered_operations(plan(users=600, ramp_up_s=30), ramp_up_s=30, begin_s=60, end_s=360)
    counts = [0] * 3000
    for start in starts:
        counts[int((start - 60) * 10)] += 1
    mean = sum(counts) / len(counts)
    variance = sum((count - mean) ** 2 for count in counts) / len(counts)
    assert 0.8 < variance / mean < 1.2
