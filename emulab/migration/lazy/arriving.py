"""What has to arrive: for each task, the pages that are not in the images of its restore.

After rounds only what was written since the last one is missing: CRIU marks the rest as in the parent images and restores it from there.
"""

from __future__ import annotations

from pathlib import Path

from emulab.migration.lazy.missing import Segment
from emulab.migration.lazy.pagemap import parse_mappings, parse_pagemap, split, tasks_in


def plan(folder: Path) -> dict[int, list[Segment]]:
    """Missing pages by task (its number inside the guest). Raises OSError, ValueError or IndexError for images that cannot be read."""
    tasks = {}
    for pid in tasks_in(folder):
        lazy = [run for run in parse_pagemap((folder / f"pagemap-{pid}.img").read_bytes()) if run.left_out]
        if lazy:
            mappings = parse_mappings((folder / f"mm-{pid}.img").read_bytes())
            tasks[pid] = [Segment(start, end, start) for run in lazy for start, end in split(run, mappings)]
    return tasks
