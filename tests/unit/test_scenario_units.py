"""Quantities with units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulab.scenario.units import (
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "bit_s"),
    [
        ("1gbit", 10**9),
        ("1 Gbit", 10**9),
        ("100mbit", 10**8),
        ("2.5gbit/s", 2_500_000_000),
        (" 64 kbit ", 64_000),
        ("8bit", 8),
    ],
)
def test_rates(text: str, bit_s: int) -> None:
    assert parse_rate(text) == bit_s


@pytest.mark.parametrize(
    ("text", "seconds"), [("300ms", 0.3), ("10 ms", 0.01), ("30s", 30.0), ("5min", 300.0), ("1.5h", 5400.0), ("20us", 2e-5), ("0s", 0.0)]
)
def test_durations_are_exact(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2**31), ("2GB", 2 * 10**9), ("512MiB", 2**29), ("1.5gib", 3 * 2**29), ("7B", 7)])
def test_sizes_keep_binary_and_decimal_apart(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("bare", [1000, 1000.0, "1000", "0.5", 0])
def test_a_bare_number_is_refused_with_the_unit_it_lacks(bare: object) -> None:
    with pytest.raises(ValueError, match=r"needs a unit, as in 1gbit \(bit, kbit, mbit, gbit\)"):
        parse_rate(bare)


@pytest.mark.parametrize("text", ["2G", "1 lightyear", "1gbit"])
def test_an_unknown_unit_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown unit .*: use one of B, KB, KiB"):
        parse_size(text)


@pytest.mark.parametrize("nonsense", ["", "fast", "1 2s", "s", None, True, [1], "--1s", "nan s", "infs", "1e99s"])
def test_nonsense_is_refused(nonsense: object) -> None:
    with pytest.raises(ValueError, match=r"must be|unit|too large"):
        parse_duration(nonsense)


@pytest.mark.parametrize(
    ("formatted", "text"),
    [
        (format_rate(10**9), "1gbit"),
        (format_rate(984_395_318), "984395318bit"),
        (format_duration(0.3), "300ms"),
        (format_duration(300.0), "5min"),
        (format_duration(90.0), "90s"),
        (format_duration(0.0), "0s"),
        (format_size(2**31), "2GiB"),
        (format_size(0), "0B"),
    ],
)
def test_formatting_takes_the_largest_whole_unit(formatted: str, text: str) -> None:
    assert formatted == text


@given(st.floats(min_value=0, max_value=1e9, allow_subnormal=False))
def test_a_formatted_duration_reads_back_exactly(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(min_value=0, max_value=10**15))
def test_formatted_rates_and_sizes_read_back_exactly(number: int) -> None:
    assert parse_rate(format_rate(number)) == number
    assert parse_size(format_size(number)) == number
