"""Files that a guest may be writing to through a mapping.

Such a store changes a file's content at once, but its times only at the first store after the kernel last wrote the page back: the times
do not tell that the file has changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_DELETED = " (deleted)"


def shared_writable(maps: str) -> set[str]:
    """Paths of the files in the text of a ``/proc/PID/maps`` that are mapped shared and writable."""
    paths = set()
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1][1] == "w" and fields[1][3] == "s" and fields[5].startswith("/") and fields[4] != "0":
            paths.add(fields[5].removesuffix(_DELETED))
    return paths


def mapped_files(pids: Iterable[int]) -> frozenset[str]:
    """Names, relative to the guest's root, of the files that these tasks have mapped shared and writable."""
    names: set[str] = set()
    for pid in pids:
        try:
            names |= shared_writable(Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape"))
        except OSError:
            continue  # it has ended
    return frozenset(name.lstrip("/") for name in names)
