"""Percentiles and windows, against hand-computed values and naive references."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulab.analysis.interval import Interval
from emulab.analysis.percentiles import faban_percentile, percentile, percentiles, rank
from emulab.analysis.windows import rolling, worst_window

# Multiples of 1/8 are exact in floating point: the reference and the code see the same windows.
eighths = st.integers(0, 80).map(lambda n: n / 8)


def naive_percentile(values, percent):
    """The smallest value that at least percent % of the values do not exceed."""
    ordered = sorted(values)
    for value in ordered:
        if sum(other <= value for other in ordered) * 100 >= percent * len(ordered):
            return value
    return math.nan


def test_nearest_rank_of_ten_values():
    values = np.arange(1.0, 11.0)
    assert percentiles(values, 50, 90, 91, 99, 100) == (5.0, 9.0, 10.0, 10.0, 10.0)


def test_a_percentile_of_one_value_is_that_value():
    assert percentile(np.array([0.7]), 1) == 0.7
    assert percentile(np.array([0.7]), 99) == 0.7


def test_nothing_has_no_percentile():
    assert math.isnan(percentile(np.array([]), 90))
    assert all(math.isnan(value) for value in percentiles(np.array([]), 50, 99))


def test_rank_does_not_suffer_from_floating_point():
    assert rank(100, 7) == 7  # 0.07 * 100 is 7.000000000000001
    assert rank(1000, 99) == 990


@given(st.lists(eighths, min_size=1, max_size=60), st.integers(1, 100))
def test_percentile_is_the_naive_one(values, percent):
    assert percentile(np.array(values), percent) == naive_percentile(values, percent)
    assert percentiles(np.array(values), percent) == (naive_percentile(values, percent),)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([0.001] * 10, 90, 0.02),  # first bucket, upper edge
        ([0.020] * 10, 90, 0.04),  # a value on an edge belongs to the bucket above
        ([0.01] * 89 + [1.005] * 11, 90, 1.02),
        ([7.0] * 10, 90, 7.2),  # coarse buckets of 200 ms from 6 s on
        ([60.0] * 10, 99, 19.8),  # longer ones fall into the last bucket
    ],
)
def test_faban_reports_upper_edges_of_buckets(values, percent, expected):
    assert faban_percentile(np.array(values), percent) == pytest.approx(expected)


def naive_worst(starts, values, percent, window, interval):
    """Every window that begins at, just after or between the places where content changes."""
    last = interval.end_s - window
    if last <= interval.start_s:
        return naive_percentile(values, percent), len(values)
    changes = {interval.start_s, last}
    changes |= {t for start in starts for t in (start, start - window) if interval.start_s <= t <= last}
    changes |= {t + 1 / 64 for t in changes if t + 1 / 64 <= last} | {t - 1 / 64 for t in changes if t - 1 / 64 >= interval.start_s}
    found = []
    for t in changes:
        inside = [value for start, value in zip(starts, values, strict=True) if t <= start < t + window]
        if inside:
            found.append((naive_percentile(inside, percent), len(inside)))
    worst = max(value for value, _ in found)
    return worst, {n for value, n in found if value == worst}


@settings(max_examples=300)
@given(
    st.lists(st.tuples(eighths, eighths), min_size=1, max_size=25), st.sampled_from([50, 90, 99]), st.integers(1, 96).map(lambda n: n / 8)
)
def test_worst_window_is_the_naive_one(rows, percent, window):
    interval = Interval(0.0, 10.125)
    starts, values = zip(*rows, strict=True)
    found = worst_window(np.array(starts), np.array(values), percent, window, interval)
    expected, sizes = naive_worst(starts, values, percent, window, interval)
    assert found.value_s == expected
    assert found.samples in (sizes if isinstance(sizes, set) else {sizes})
    assert interval.start_s <= found.start_s <= max(interval.start_s, interval.end_s - window)


def test_the_worst_window_is_not_on_a_grid():
    """Ten fast operations a second, and five slow ones around t = 60: a window on a 60 s grid holds three of them, a sliding one five."""
    starts = np.concatenate([np.arange(0, 120, 1.0), [58.5, 59.5, 59.9, 60.5, 60.9]])
    values = np.concatenate([np.full(120, 0.1), np.full(5, 3.0)])
    assert worst_window(starts, values, 93, 60.0, Interval(0.0, 120.0)).value_s == 3.0
    for begin in (0.0, 60.0):
        inside = values[(starts >= begin) & (starts < begin + 60)]
        assert percentile(inside, 93) == 0.1


def test_a_window_longer_than_steady_state_is_all_of_it():
    found = worst_window(np.array([1.0, 2.0]), np.array([0.5, 0.6]), 99, 300.0, Interval(0.0, 120.0))
    assert (found.value_s, found.start_s, found.samples) == (0.6, 0.0, 2)


def test_no_operations_no_window():
    found = worst_window(np.array([]), np.array([]), 99, 300.0, Interval(0.0, 1200.0))
    assert math.isnan(found.value_s)
    assert found.samples == 0


def test_twenty_minutes_of_600_users():
    rng = np.random.default_rng(1)
    starts, values = np.sort(rng.uniform(0, 1200, 150_000)), rng.exponential(0.2, 150_000)
    values[(starts > 700) & (starts < 703)] += 5
    found = worst_window(starts, values, 99, 300.0, Interval(0.0, 1200.0))
    assert 400 < found.start_s <= 700
    inside = values[(starts >= found.start_s) & (starts < found.start_s + 300)]
    assert found.value_s == percentile(inside, 99)
    assert found.samples == len(inside)


def test_rolling_percentiles_leave_gaps_where_nothing_is():
    (median,) = rolling(np.array([0.0, 1.0, 10.0]), np.array([1.0, 3.0, 7.0]), np.array([0.5, 5.0, 10.0]), 2.0, 50)
    assert median[0] == 1.0
    assert math.isnan(median[1])
    assert median[2] == 7.0
