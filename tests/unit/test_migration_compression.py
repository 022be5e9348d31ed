"""Compression is chosen by the time it takes to get pages across, and what is unpacked is what was packed."""

from __future__ import annotations

import os
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulab.errors import EmulabError
from emulab.migration.compression import MORE, NEW_STREAM, RAW, SETTINGS, Chooser, Compressor, Decompressor

PAGE = 4096
TEN_MBIT, GBIT, TEN_GBIT = 1.17e6, 117e6, 1170e6
NOTHING, STREAM, LONG, THOROUGH = SETTINGS
WORDS = [random.Random(n).randbytes(6).hex().encode() for n in range(300)]
USUAL = 0.25  # what a sample of a web server's pages shrinks to


@pytest.mark.parametrize(
    ("rate", "sample", "setting"),
    [
        (TEN_MBIT, USUAL, THOROUGH),
        (10 * TEN_MBIT, USUAL, LONG),
        (GBIT, USUAL, STREAM),
        (TEN_GBIT, USUAL, NOTHING),  # the link is faster than the compressor
        (TEN_MBIT, 0.99, NOTHING),
        (GBIT, 0.99, NOTHING),
        (TEN_MBIT, 0.9, THOROUGH),
        (GBIT, 0.9, STREAM),
    ],
)
def test_the_setting_that_is_fastest_at_the_links_rate(rate, sample, setting):
    assert Chooser().choose(sample, rate) == setting


def test_a_slow_machine_compresses_less():
    chooser = Chooser()
    for _ in range(20):
        chooser.learn(STREAM, USUAL, size=1_000_000, compressed=100_000, seconds=0.01)  # 100 MB/s
    assert chooser.choose(USUAL, GBIT) == NOTHING
    assert chooser.choose(USUAL, TEN_MBIT) == THOROUGH


def test_pages_that_turn_out_hard_go_as_they_are_where_that_is_faster():
    chooser = Chooser()
    for _ in range(20):
        chooser.learn(STREAM, USUAL, size=1_000_000, compressed=990_000, seconds=0.0090)
    assert chooser.choose(USUAL, GBIT) == NOTHING


def test_a_small_gain_is_not_worth_a_new_stream():
    chooser = Chooser()
    assert chooser.choose(USUAL, 10 * TEN_MBIT) == LONG
    assert chooser.choose(USUAL, 6.5 * TEN_MBIT) == LONG
    assert chooser.choose(USUAL, TEN_MBIT / 10) == LONG
    assert chooser.choose(USUAL, GBIT) == STREAM


def text(pages, seed):
    """Pages like a heap's: words and numbers that come again."""
    chance = random.Random(seed)
    return [b" ".join(chance.choices(WORDS, k=PAGE // 8))[:PAGE] for _ in range(pages)]


def test_settings_do_on_pages_what_they_are_chosen_for():
    content = text(600, 1)
    sizes = {}
    for rate in (TEN_MBIT, GBIT, TEN_GBIT):
        kind, packed = Compressor(lambda rate=rate: rate).pack(content)
        sizes[rate] = len(packed)
        assert Decompressor().unpack(kind, packed, len(content) * PAGE) == b"".join(content)
    assert max(sizes[TEN_MBIT], sizes[GBIT]) < sizes[TEN_GBIT] / 2
    assert sizes[TEN_GBIT] == len(content) * PAGE


def test_random_pages_are_left_alone():
    content = [os.urandom(PAGE) for _ in range(100)]
    assert Compressor(lambda: TEN_MBIT).pack(content) == (RAW, b"".join(content))


def test_a_stream_remembers_earlier_chunks_also_over_incompressible_ones():
    compressor, unpack = Compressor(lambda: TEN_MBIT), Decompressor().unpack
    first, noise = text(200, 2), [os.urandom(PAGE) for _ in range(50)]
    packed = [compressor.pack(content) for content in (first, noise, first)]
    assert [kind for kind, _ in packed] == [NEW_STREAM, RAW, MORE]
    assert len(packed[2][1]) < len(packed[0][1]) / 20
    assert [unpack(kind, part, size * PAGE) for (kind, part), size in zip(packed, (200, 50, 200), strict=True)] == [
        b"".join(content) for content in (first, noise, first)
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.sampled_from([TEN_MBIT, GBIT, TEN_GBIT])), min_size=1, max_size=8))
def test_any_sequence_of_chunks_is_unpacked_as_it_was_packed(chunks):
    link = [GBIT]
    compressor, decompressor = Compressor(lambda: link[0]), Decompressor()
    for n, (count, noise, rate) in enumerate(chunks):
        link[0] = rate
        content = [os.urandom(PAGE) for _ in range(count)] if noise else text(count, n)
        kind, packed = compressor.pack(content)
        assert decompressor.unpack(kind, packed, count * PAGE) == b"".join(content)


def test_what_is_not_a_stream_is_refused():
    kind, packed = Compressor(lambda: TEN_MBIT).pack(text(10, 3))
    for bad in (packed[:-1], b"\0" + packed, packed[: len(packed) // 2], b""):
        with pytest.raises(EmulabError):
            Decompressor().unpack(kind, bad, 10 * PAGE)
    with pytest.raises(EmulabError, match="without its content"):
        Decompressor().unpack(kind, packed, 11 * PAGE)
    with pytest.raises(EmulabError, match="continues nothing"):
        Decompressor().unpack(MORE, packed, 10 * PAGE)


def test_a_stream_that_would_need_more_memory_is_refused():
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = stream.compress(b"".join(text(10, 4))) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with pytest.raises(EmulabError, match="cannot be unpacked"):
        Decompressor().unpack(NEW_STREAM, packed, 10 * PAGE)


def test_the_test_pages_are_neither_trivial_nor_random():
    assert 0.1 < len(zlib.compress(b"".join(text(100, 5)), 1)) / (100 * PAGE) < 0.6
