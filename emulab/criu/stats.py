"""CRIU's statistics image (``stats-dump``): a protobuf message behind three 32-bit words (two magics and a length).

Field numbers are those of criu/images/stats.proto. ``frozen_time`` starts when freezing has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_DUMP_FIELDS = {
    1: "freezing_us", 2: "frozen_us", 3: "memdump_us", 4: "memwrite_us", 5: "pages_scanned", 6: "pages_skipped_parent", 7: "pages_written",
}  # fmt: skip


@dataclass(frozen=True)
class DumpStats:
    """Times in microseconds, counts in pages of 4096 bytes."""

    freezing_us: int = 0
    frozen_us: int = 0
    memdump_us: int = 0
    memwrite_us: int = 0
    pages_scanned: int = 0
    pages_skipped_parent: int = 0
    pages_written: int = 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> dict[int, int | bytes]:
    """Varint and length-delimited fields of one message: all that these images use."""
    at = 0
    fields: dict[int, int | bytes] = {}
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            fields[key >> 3], at = _varint(data, at)
        elif key & 7 == 2:
            size, at = _varint(data, at)
            fields[key >> 3] = data[at : at + size]
            at += size
        else:
            break
    return fields


def parse_dump_stats(data: bytes) -> DumpStats:
    message = _fields(data[12:])
    dump = message.get(1, b"")
    values = _fields(dump) if isinstance(dump, bytes) else {}
    return DumpStats(**{name: int(value) for number, name in _DUMP_FIELDS.items() if isinstance(value := values.get(number), int)})


def read_dump_stats(images: Path) -> DumpStats:
    """Statistics of the dump in a folder; zeros if CRIU wrote none."""
    try:
        return parse_dump_stats((images / "stats-dump").read_bytes())
    except (OSError, IndexError):
        return DumpStats()
