"""Image folders that build on each other, made ready for a restore."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from emulab.criu.pagemap import write_head

_NOTHING = "nothing"  # folder of earlier images, where there were none
_NO_PAGES = 0  # number of an empty pages file: CRIU and our rounds count from 1


def link_parents(base: Path, chain: Sequence[str]) -> None:
    """Let each folder of images name the one before it as its parent. ``chain``: folders in ``base``, the oldest first.

    Every task has a page map in the last but one, if need be one without pages: what has no earlier images at all CRIU reads in another
    way, which does not know numbered pages (native/pages.c) and makes all mappings in one place and moves them (native/premap.c).
    """
    folders = list(chain) if len(chain) > 1 else [_NOTHING, *chain]
    (base / folders[0]).mkdir(exist_ok=True)
    for parent, child in pairwise(folders):
        (base / child / "parent").symlink_to(f"../{parent}")
    earlier, last = base / folders[-2], base / folders[-1]
    for image in last.glob("pagemap-[0-9]*.img"):
        if not (earlier / image.name).exists():
            (earlier / image.name).write_bytes(write_head(_NO_PAGES))
            (earlier / f"pages-{_NO_PAGES}.img").touch()
