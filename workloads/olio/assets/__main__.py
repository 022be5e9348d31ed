"""``python -m workloads.olio.assets DIRECTORY``: write ``public/`` (static files) and ``seed/`` (pictures that seeded names share)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from workloads.olio.assets import event_jpeg, event_pdf, jpeg, person_jpeg
from workloads.olio.assets.statics import SIZES, static_file

MODIFIED_AT = 1_251_763_200  # 2009-09-01 00:00 UTC
FULL_PICTURES = 4
THUMBNAILS = 16
DOCUMENTS = 2
# profile: (width, height, bytes of a person's and of an event's thumbnail)
THUMBNAIL_SHAPES = {"olio-0.1": (133, 99, 5_832, 5_833), "olio-0.2": (120, 120, 5_758, 5_895)}


def files() -> dict[str, bytes]:
    """Everything, by path."""
    result = {f"public/{name}": static_file(name) for name in SIZES}
    result["public/probe.txt"] = b"ok\n"
    for n in range(FULL_PICTURES):
        result[f"seed/persons/{n}.jpg"] = person_jpeg(n)
        result[f"seed/events/{n}.jpg"] = event_jpeg(n)
    for n in range(DOCUMENTS):
        result[f"seed/eventLits/{n}.pdf"] = event_pdf(n)
    for profile, (width, height, person_bytes, event_bytes) in THUMBNAIL_SHAPES.items():
        for n in range(THUMBNAILS):
            result[f"seed/{profile}/personThumbs/{n}.jpg"] = jpeg(width, height, person_bytes, 2000 + n)
            result[f"seed/{profile}/eventThumbs/{n}.jpg"] = jpeg(width, height, event_bytes, 3000 + n)
    return result


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m workloads.olio.assets DIRECTORY", file=sys.stderr)
        return 2
    root = Path(sys.argv[1])
    for name, content in files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (MODIFIED_AT, MODIFIED_AT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
