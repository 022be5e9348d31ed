"""A one-page PDF of an exact size."""

from __future__ import annotations

import random


def pdf(size: int, seed: int) -> bytes:
    """A valid PDF 1.4 file with one page of text and an unused stream that fills it up to exactly ``size`` bytes.

    Raises:
        ValueError: the size is below what a page takes (about 900 bytes).

    """
    rng = random.Random(f"pdf:{size}:{seed}")
    text = b"BT /F1 18 Tf 72 720 Td (Event literature) Tj ET"
    filler = 0
    for _ in range(4):  # the filler's length is written in the file too: a few rounds until both agree
        file = assemble(text, rng.randbytes(filler))
        if len(file) == size:
            return file
        filler += size - len(file)
        if filler < 0:
            break
    raise ValueError(f"no PDF of {size} bytes")


def assemble(text: bytes, filler: bytes) -> bytes:
    bodies = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(text), text),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(filler), filler),
    )
    out = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    offsets = []
    for number, body in enumerate(bodies, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return out + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%010d\n%%%%EOF\n" % (len(bodies) + 1, start)
