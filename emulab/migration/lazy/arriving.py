"""What has to arrive: from the images of a restore, for each task, the pages that are not in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emulab.migration.lazy.missing import Missing, Segment
from emulab.migration.lazy.pagemap import PAGE, parse_mappings, parse_pagemap, split, tasks_in


@dataclass(frozen=True)
class Memory:
    """Missing pages of a guest by task."""

    tasks: dict[int, list[Segment]]
    images: list[int]  # addresses of ours at which image files are mapped

    @property
    def pages(self) -> int:
        return sum(segment.size for segments in self.tasks.values() for segment in segments) // PAGE

    def missing_of(self, pid: int) -> Missing:
        return Missing(self.tasks.get(pid, ()))

    def is_here(self, segment: Segment) -> bool:
        """Its content is in an image on this node."""
        return segment.image >= 0

    def address_of(self, segment: Segment) -> int:
        return self.images[segment.image] + segment.offset


def plan(folder: Path) -> Memory:
    """Raises EmulabError or ValueError for images that cannot be read."""
    tasks = {}
    for pid in tasks_in(folder):
        lazy = parse_pagemap((folder / f"pagemap-{pid}.img").read_bytes()).lazy()
        if lazy:
            mappings = parse_mappings((folder / f"mm-{pid}.img").read_bytes())
            tasks[pid] = [Segment(start, end, start) for run in lazy for start, end in split(run, mappings)]
    return Memory(tasks, [])
