"""What a guest consists of, as far as it decides what moving it costs."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from emulab.migration.layer import walk
from emulab.node.guest import Guest

PAGE = 4096
MANY = 2048  # pages of its own: a task whose memory is filled before the freeze


@dataclass(frozen=True)
class Inventory:
    """``own_pages``: private anonymous pages, counted once per task as CRIU dumps them; ``distinct_pages``: the same with pages that tasks
    share copy-on-write counted once (proportional set size), ``large_pages`` those of tasks that have at least ``MANY`` of them;
    ``shared_pages``: of memory shared between tasks, which CRIU saves in the final dump only.
    """

    tasks: int
    mappings: int
    own_pages: int
    distinct_pages: int
    shared_pages: int
    large_pages: int = 0

    @property
    def resident_bytes(self) -> int:
        return (self.own_pages + self.shared_pages) * PAGE

    @property
    def proportional_bytes(self) -> int:
        return (self.distinct_pages + self.shared_pages) * PAGE


def take_inventory(pids: Iterable[int], proc: Path = Path("/proc")) -> Inventory:
    """From ``/proc/PID/smaps_rollup`` and ``maps``: about a millisecond per task. Tasks that end meanwhile are left out."""
    tasks = mappings = own = 0
    distinct = shared = large = 0.0
    for pid in pids:
        try:
            rollup = parse_rollup((proc / str(pid) / "smaps_rollup").read_text())
            maps = (proc / str(pid) / "maps").read_bytes()
        except OSError:
            continue
        tasks += 1
        mappings += maps.count(b"\n")
        own += rollup.get("Anonymous", 0)
        anonymous = rollup.get("Pss_Anon", 0)
        distinct += anonymous
        large += anonymous if anonymous >= MANY * PAGE else 0
        shared += rollup.get("Pss_Shmem", 0)
    return Inventory(tasks, mappings, own // PAGE, int(distinct) // PAGE, int(shared) // PAGE, int(large) // PAGE)


def count_mappings(pids: Iterable[int]) -> int:
    total = 0
    for pid in pids:
        try:
            total += Path(f"/proc/{pid}/maps").read_bytes().count(b"\n")
        except OSError:
            continue
    return total


def parse_rollup(text: str) -> dict[str, int]:
    """Fields of a ``smaps_rollup`` in bytes."""
    fields = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            fields[words[0].rstrip(":")] = int(words[1]) * 1024
    return fields


def moving_bytes(guest: Guest) -> int:
    """Size of the regular files of the writable layer that travel with a guest: none of a shared one."""
    if guest.spec.storage == "shared":
        return 0
    return sum(status.st_size for _, status in walk(guest.rootfs.upper) if stat.S_ISREG(status.st_mode))
