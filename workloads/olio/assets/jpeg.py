"""A picture with texture as a baseline JPEG (ITU T.81) of an exact size, made without an image library.

Pixels are never computed: the picture is drawn as quantised DCT coefficients. A block's mean comes from a smooth landscape, its
texture from a palette of pre-encoded blocks, so that half a megabyte takes about a second and costs a decoder what a photograph does.
"""

from __future__ import annotations

import math
import random
import struct

# Annex K, tables K.3-K.6: (numbers of codes of length 1..16, symbols).
DC_LUMA = (bytes.fromhex("00010501010101010100000000000000"), bytes(range(12)))
DC_CHROMA = (bytes.fromhex("00030101010101010101010000000000"), bytes(range(12)))
AC_LUMA = (
    bytes.fromhex("0002010303020403050504040000017d"),
    bytes.fromhex(
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a3435363738393a43444546474849"
        "4a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5"
        "c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
    ),
)
AC_CHROMA = (
    bytes.fromhex("00020102040403040705040400010277"),
    bytes.fromhex(
        "0001020311040521310612415107617113223281081442"
        "91a1b1c109233352f0156272d10a162434e125f11718191a262728292a35363738393a434445464748494a535455565758595a636465666768696a7374757677"
        "78797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8"
        "e9eaf2f3f4f5f6f7f8f9fa"
    ),
)
QUANTISER = bytes([6] + [5 + i // 5 for i in range(1, 64)])  # zigzag order; a good quality, flatter than Annex K
PALETTE = 192
CHROMA_SHARE = 0.18  # of the bits of a luma block
HEADER_BYTES = 700  # an upper bound of what is not entropy-coded
FILL = 0.96  # aim below the size; a comment makes it exact

Codes = dict[int, str]


def codes(table: tuple[bytes, bytes]) -> Codes:
    """Symbol -> bits of its Huffman code."""
    lengths, symbols = table
    result: Codes = {}
    code = position = 0
    for length, count in enumerate(lengths, start=1):
        for symbol in symbols[position : position + count]:
            result[symbol] = format(code, f"0{length}b")
            code += 1
        position += count
        code <<= 1
    return result


def amplitude(value: int) -> tuple[int, str]:
    """Category and extra bits of a coefficient (T.81 F.1.2.1)."""
    if value == 0:
        return 0, ""
    category = abs(value).bit_length()
    return category, format(value if value > 0 else value + (1 << category) - 1, f"0{category}b")


def dc_bits(difference: int, table: Codes) -> str:
    category, extra = amplitude(difference)
    return table[category] + extra


def texture(rng: random.Random, bits: float, table: Codes) -> str:
    """The 63 AC coefficients of one block in about so many bits: small values, most at low frequencies."""
    out: list[str] = []
    used = position = 0
    while used < bits and position < 60:
        run = min(int(rng.expovariate(2.2)), 15)
        reach = 1 + 5 * math.exp(-position / 9)
        category, extra = amplitude(rng.choice((-1, 1)) * max(1, round(abs(rng.gauss(0, reach)))))
        code = table[run << 4 | category] + extra
        out.append(code)
        used += len(code)
        position += run + 1
    return "".join(out) + table[0x00]


def landscape(rng: random.Random, reach: float) -> list[tuple[float, float, float, float]]:
    """A few waves: (across, down, phase, height) with periods of the order of the picture."""
    return [(rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 6.3), rng.uniform(0.2, 1) * reach) for _ in range(5)]


def height_at(waves: list[tuple[float, float, float, float]], x: float, y: float) -> int:
    return round(sum(tall * math.sin(across * x + down * y + phase) for across, down, phase, tall in waves))


def scan(width: int, height: int, bits_per_luma_block: float, rng: random.Random) -> bytes:
    """The entropy-coded data of a picture with 2 x 2 subsampled chroma."""
    dc_luma, dc_chroma, ac_luma, ac_chroma = codes(DC_LUMA), codes(DC_CHROMA), codes(AC_LUMA), codes(AC_CHROMA)
    luma_palette = [texture(rng, bits_per_luma_block * rng.uniform(0.7, 1.3), ac_luma) for _ in range(PALETTE)]
    chroma_palette = [texture(rng, bits_per_luma_block * CHROMA_SHARE, ac_chroma) for _ in range(PALETTE)]
    hills = [landscape(rng, reach) for reach in (28.0, 12.0, 12.0)]
    across, down = -(-width // 16), -(-height // 16)
    last = [0, 0, 0]
    out: list[str] = []
    for row in range(down):
        for column in range(across):
            for step_y, step_x in ((0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5)):
                level = height_at(hills[0], (column + step_x) / across, (row + step_y) / down)
                out += (dc_bits(level - last[0], dc_luma), luma_palette[int(rng.random() * PALETTE)])
                last[0] = level
            for plane in (1, 2):
                level = height_at(hills[plane], column / across, row / down)
                out += (dc_bits(level - last[plane], dc_chroma), chroma_palette[int(rng.random() * PALETTE)])
                last[plane] = level
    bits = "".join(out)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def jpeg(width: int, height: int, size: int, seed: int) -> bytes:
    """A colour JPEG of ``width`` x ``height`` pixels and exactly ``size`` bytes. The same arguments give the same bytes.

    Raises:
        ValueError: the size is too small for such a picture (it needs roughly two bits per pixel).

    """
    rng = random.Random(f"jpeg:{width}x{height}:{size}:{seed}")
    blocks = 4 * -(-width // 16) * -(-height // 16)
    bits = (size - HEADER_BYTES) * FILL * 8 / blocks / (1 + CHROMA_SHARE / 2) - 8
    for _ in range(6):
        data = scan(width, height, bits, rng)
        head = b"".join(
            (
                b"\xff\xd8",
                segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"),
                segment(0xDB, b"\0" + QUANTISER),
                segment(0xC0, struct.pack(">BHHB", 8, height, width, 3) + bytes((1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0))),
                *(segment(0xC4, bytes((kind,)) + table[0] + table[1]) for kind, table in HUFFMAN),
            )
        )
        tail = segment(0xDA, bytes((3, 1, 0x00, 2, 0x11, 3, 0x11, 0, 63, 0))) + data + b"\xff\xd9"
        room = size - len(head) - len(tail)
        if room == 0 or room >= 4:
            return head + comments(room) + tail
        bits *= 0.94
    raise ValueError(f"{size} bytes are too few for a picture of {width} x {height}")


HUFFMAN = ((0x00, DC_LUMA), (0x10, AC_LUMA), (0x01, DC_CHROMA), (0x11, AC_CHROMA))


def comments(room: int) -> bytes:
    """Comment segments of ``room`` bytes in all."""
    out = b""
    while room:
        take = room if room <= 65_537 else min(65_537, room - 4)
        out += segment(0xFE, b"." * (take - 4))
        room -= take
    return out
