"""Files and folders that a guest watches by inotify.

The kernel knows a watched file by its inode, and an overlay cannot open a file by handle: CRIU has to search the tree for it. We search
while the guest runs and tell CRIU the paths, so that it need not inside the freeze.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

Inode = tuple[int, int]  # (device, inode number)


def parse_watches(fdinfo: str) -> set[Inode]:
    """What an inotify descriptor watches, from the text of its ``/proc/PID/fdinfo/N``."""
    found = set()
    for line in fdinfo.splitlines():
        if line.startswith("inotify "):
            fields = dict(word.split(":", 1) for word in line.split()[1:])
            device = int(fields["sdev"], 16)  # the kernel's own form: 20 bits for the minor number
            found.add((os.makedev(device >> 20, device & 0xFFFFF), int(fields["ino"], 16)))
    return found


def open_files(pid: int) -> list[tuple[str, str]]:
    """(descriptor, what it leads to) of a process; without what is closed meanwhile."""
    found = []
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - three times as fast, for hundreds of tasks
    except OSError:
        return []
    for number in numbers:
        with contextlib.suppress(OSError):
            found.append((number, os.readlink(f"/proc/{pid}/fd/{number}")))
    return found


def watched_inodes(pids: Iterable[int]) -> set[Inode]:
    found: set[Inode] = set()
    for pid in pids:
        for number, name in open_files(pid):
            if name == "anon_inode:inotify":
                with contextlib.suppress(OSError):
                    found |= parse_watches(Path(f"/proc/{pid}/fdinfo/{number}").read_text())
    return found


def watched_paths(first: int, pids: Iterable[int]) -> tuple[list[str], int]:
    """(paths as the guest sees them, number of watched files that have none any more)."""
    wanted = watched_inodes(pids)
    if not wanted:
        return [], 0
    found = dict(find_paths(f"/proc/{first}/root", wanted))
    # CRIU walks into each folder on its list before it tries the next entry: files first, then the deepest folders.
    paths = sorted(found.items(), key=lambda item: (item[1], -item[0].count("/"), item[0]))
    return [path for path, _ in paths], len(wanted) - len(set(found))


def find_paths(root: str, wanted: Collection[Inode]) -> Iterator[tuple[str, bool]]:
    """(path, whether it is a folder) of each wanted inode; stops when all are found."""
    left = set(wanted)
    devices = {device for device, _ in wanted}
    level = [""]
    while level and left:
        pending = []
        for path, status in _below(root, level):  # breadth first: what is watched is rarely deep
            is_folder = stat.S_ISDIR(status.st_mode)
            if (status.st_dev, status.st_ino) in left:
                left.discard((status.st_dev, status.st_ino))
                yield path, is_folder
            if is_folder and path != "/" and (status.st_dev in devices or path == "/dev"):
                pending.append(path)
        level = pending


def _below(root: str, folders: Iterable[str]) -> Iterator[tuple[str, os.stat_result]]:
    for folder in folders:
        if not folder:
            yield "/", Path(f"{root}/").stat()
        try:
            entries = list(os.scandir(f"{root}{folder}/"))
        except OSError:
            continue
        for entry in entries:
            with contextlib.suppress(OSError):
                yield f"{folder}/{entry.name}", entry.stat(follow_symlinks=False)
