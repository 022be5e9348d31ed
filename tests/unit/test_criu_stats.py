"""CRIU's statistics, from bytes made by hand after criu/images/stats.proto."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulab.criu.stats import DumpStats, parse_dump_stats, read_dump_stats

MAGIC = struct.pack("<II", 0x55105940, 0x57093306)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def image(values: dict[int, int], *, more: bytes = b"") -> bytes:
    dump = b"".join(varint(number << 3) + varint(value) for number, value in values.items()) + more
    message = varint(1 << 3 | 2) + varint(len(dump)) + dump
    return MAGIC + struct.pack("<I", len(message)) + message


def test_times_and_pages_of_a_dump():
    stats = parse_dump_stats(image({1: 1200, 2: 230_000, 3: 90_000, 4: 40_000, 5: 222_172, 6: 100, 7: 64_308}))
    assert stats == DumpStats(1200, 230_000, 90_000, 40_000, 222_172, 100, 64_308)


@given(st.dictionaries(st.integers(1, 7), st.integers(0, 2**32 - 1)))
def test_what_is_not_there_is_zero(values):
    stats = parse_dump_stats(image(values))
    names = ("freezing_us", "frozen_us", "memdump_us", "memwrite_us", "pages_scanned", "pages_skipped_parent", "pages_written")
    assert [getattr(stats, name) for name in names] == [values.get(number, 0) for number in range(1, 8)]


def test_fields_of_newer_versions_are_passed_over():
    assert parse_dump_stats(image({2: 5, 8: 9, 31: 1}, more=varint(12 << 3 | 2) + b"\x03abc")).frozen_us == 5


def test_statistics_of_a_restore_are_not_mistaken_for_a_dumps():
    message = varint(2 << 3 | 2) + b"\x02" + varint(1 << 3) + b"\x07"
    assert parse_dump_stats(MAGIC + struct.pack("<I", len(message)) + message) == DumpStats()


@pytest.mark.parametrize("content", [b"", MAGIC, image({1: 1200, 2: 230_000})[:-1]])
def test_an_unfinished_file_gives_no_error(tmp_path, content):
    (tmp_path / "stats-dump").write_bytes(content)
    assert read_dump_stats(tmp_path).pages_written == 0


def test_no_file_gives_zeros(tmp_path):
    assert read_dump_stats(tmp_path) == DumpStats()
