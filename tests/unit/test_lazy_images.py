"""CRIU's pagemap and mm images as post-copy reads them: entries as CRIU 4.2 writes them, and everything that is not one refused."""

from __future__ import annotations

import struct

import pytest

from emulab.migration.lazy.arriving import plan
from emulab.migration.lazy.missing import Segment
from emulab.migration.lazy.pagemap import LAZY, PARENT, PRESENT, Run, parse_mappings, parse_pagemap, split

PAGE = 4096


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(*fields):
    body = b""
    for number, value in fields:
        body += varint(number << 3 | 2) + varint(len(value)) + value if isinstance(value, bytes) else varint(number << 3) + varint(value)
    return body


def image(*messages):
    return struct.pack("<II", 0x54564319, 0x56084025) + b"".join(struct.pack("<I", len(one)) + one for one in messages)


def entry(address, pages, flags):
    return message((1, address), (2, pages), (4, flags), (5, pages))


def mm(*mappings):
    return image(
        message(
            (1, 0x400000), (2, 0x401000), *((14, message((1, start), (2, end), (6, 0x22), (7, 0x201))) for start, end in mappings), (15, 1)
        )
    )


HIGH = 0x7F12_3456_7000


def test_entries_and_what_was_left_out():
    runs = parse_pagemap(
        image(message((1, 7)), entry(0x1000, 2, PRESENT), entry(0x8000, 4, LAZY), entry(0x20000, 1, PARENT), entry(HIGH, 3, PRESENT | LAZY))
    )
    assert runs == [
        Run(0x1000, 0x3000, PRESENT), Run(0x8000, 0xC000, LAZY), Run(0x20000, 0x21000, PARENT), Run(HIGH, HIGH + 3 * PAGE, PRESENT | LAZY),
    ]  # fmt: skip
    assert [run for run in runs if run.left_out] == [Run(0x8000, 0xC000, LAZY)]


def test_entries_of_older_images_say_it_without_flags():
    runs = parse_pagemap(image(message((1, 1)), message((1, 0x1000), (2, 2)), message((1, 0x5000), (2, 1), (3, 1))))
    assert [run.flags for run in runs] == [PRESENT, PARENT]


def test_an_image_that_is_cut_off_is_refused():
    whole = image(message((1, 7)), entry(0x1000, 2, PRESENT))
    for end in (len(whole) - 1, len(whole) - 9, 13):
        with pytest.raises((ValueError, IndexError)):
            parse_pagemap(whole[:end])


def test_a_run_over_several_mappings_is_filled_mapping_by_mapping():
    mappings = parse_mappings(mm((0x1000, 0x3000), (0x3000, 0x4000), (0x8000, 0xA000)))
    assert mappings == [(0x1000, 0x3000), (0x3000, 0x4000), (0x8000, 0xA000)]
    assert list(split(Run(0x2000, 0x4000, LAZY), mappings)) == [(0x2000, 0x3000), (0x3000, 0x4000)]
    assert list(split(Run(0x9000, 0xA000, LAZY), mappings)) == [(0x9000, 0xA000)]


def test_what_has_to_arrive_is_what_the_images_left_out(tmp_path):
    (tmp_path / "pagemap-1.img").write_bytes(image(message((1, 1)), entry(0x1000, 1, PRESENT), entry(0x2000, 3, LAZY)))
    (tmp_path / "pagemap-17.img").write_bytes(image(message((1, 2)), entry(0x1000, 1, PRESENT | LAZY)))
    (tmp_path / "pagemap-shmem-4.img").write_bytes(b"not a task's")
    (tmp_path / "mm-1.img").write_bytes(mm((0x1000, 0x4000), (0x4000, 0x5000)))
    assert plan(tmp_path) == {1: [Segment(0x2000, 0x4000, 0x2000), Segment(0x4000, 0x5000, 0x4000)]}
