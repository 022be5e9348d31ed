"""Small GIF and PNG pictures of an exact size: the page's corners, shades and stars."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable

Colour = tuple[int, int, int, int]  # red, green, blue, opacity
Painter = Callable[[float, float], Colour]  # of a place in the unit square

PALETTE_BITS = 4
CLEAR: Colour = (255, 255, 255, 0)


def pixels(width: int, height: int, paint: Painter) -> list[list[Colour]]:
    return [[paint((x + 0.5) / width, (y + 0.5) / height) for x in range(width)] for y in range(height)]


def png(width: int, height: int, size: int, paint: Painter) -> bytes:
    """A PNG of exactly ``size`` bytes; a text chunk fills it up."""
    rows = b"".join(b"\0" + bytes(value for colour in row for value in colour) for row in pixels(width, height, paint))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    tail = chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    room = size - len(head) - len(tail)
    if room == 0:
        return head + tail
    if room < 12 + 8:
        raise ValueError(f"{size} bytes are too few for this PNG ({len(head) + len(tail)})")
    return head + chunk(b"tEXt", b"Comment\0" + b"." * (room - 20)) + tail


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def gif(width: int, height: int, size: int, paint: Painter) -> bytes:
    """A GIF of exactly ``size`` bytes with up to 15 colours and a transparent one; a comment fills it up.

    Pixels are written as plain codes with a clear code often enough to keep their width: no LZW dictionary is needed.
    """
    colours: list[Colour] = [CLEAR]
    indices = [nearest(CLEAR if colour[3] < 128 else colour, colours) for row in pixels(width, height, paint) for colour in row]
    table = b"".join(bytes(colour[:3]) for colour in colours).ljust(3 << PALETTE_BITS, b"\0")
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80 | (PALETTE_BITS - 1) << 4 | (PALETTE_BITS - 1), 0, 0) + table
    head += b"\x21\xf9\x04\x01\0\0\0\0"  # colour 0 is transparent
    tail = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + bytes((PALETTE_BITS,)) + blocks(plain_codes(indices)) + b"\x3b"
    room = size - len(head) - len(tail)
    if room == 0:
        return head + tail
    if room < 5:
        raise ValueError(f"{size} bytes are too few for this GIF ({len(head) + len(tail)})")
    return head + b"\x21\xfe" + padding_blocks(room - 2) + tail


def nearest(colour: Colour, colours: list[Colour]) -> int:
    if colour in colours:
        return colours.index(colour)
    if len(colours) < 1 << PALETTE_BITS:
        colours.append(colour)
        return len(colours) - 1
    return min(range(1, len(colours)), key=lambda i: sum((a - b) ** 2 for a, b in zip(colours[i], colour, strict=True)))


def plain_codes(indices: list[int]) -> bytes:
    clear, end, width = 1 << PALETTE_BITS, (1 << PALETTE_BITS) + 1, PALETTE_BITS + 1
    accumulator = used = 0
    for position, index in enumerate(indices):
        for code in (clear, index) if position % 12 == 0 else (index,):
            accumulator |= code << used
            used += width
    accumulator |= end << used
    used += width
    return accumulator.to_bytes(-(-used // 8), "little")


def blocks(data: bytes) -> bytes:
    return b"".join(bytes((len(part),)) + part for part in (data[i : i + 255] for i in range(0, len(data), 255))) + b"\0"


def padding_blocks(room: int) -> bytes:
    """Sub-blocks and their end in exactly ``room`` bytes (at least 3)."""
    room -= 1
    out = b""
    while room:
        take = room if room <= 256 else min(256, room - 2)
        out += bytes((take - 1,)) + b"." * (take - 1)
        room -= take
    return out + b"\0"


def shade(top: Colour, bottom: Colour, steps: int = 12) -> Painter:
    """From top to bottom in so many steps."""

    def paint(_x: float, y: float) -> Colour:
        t = math.floor(y * steps) / max(1, steps - 1)
        red, green, blue, opacity = (round(a + (b - a) * t) for a, b in zip(top, bottom, strict=True))
        return red, green, blue, opacity

    return paint


def corner(colour: Colour, centre_x: float, centre_y: float) -> Painter:
    """A quarter of a disc around one corner of the square."""
    return lambda x, y: colour if math.hypot(x - centre_x, y - centre_y) <= 1 else CLEAR


def star(colour: Colour) -> Painter:
    def paint(x: float, y: float) -> Colour:
        dx, dy = x - 0.5, y - 0.53
        angle = math.atan2(dx, -dy) % (2 * math.pi / 5)
        angle = min(angle, 2 * math.pi / 5 - angle)
        edge = 0.5 * math.sin(0.314) / math.sin(math.pi - 0.314 - angle) * 1.0
        return colour if math.hypot(dx, dy) <= max(edge, 0.2) else CLEAR

    return paint


def ring(colour: Colour) -> Painter:
    """The sign of a feed: a dot and two arcs."""

    def paint(x: float, y: float) -> Colour:
        distance = math.hypot(x - 0.15, y - 0.85)
        return colour if distance < 0.13 or 0.3 < distance < 0.45 or 0.6 < distance < 0.75 else CLEAR

    return paint
