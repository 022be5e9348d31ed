"""Readers behind the sampler: cgroup counters (version 1 and 2) and interface counters.

Files stay open and are read again from their start: at ten samples a second, opening them would be most of the work.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, Self

CGROUP_ROOT = Path("/sys/fs/cgroup")
INTERFACES = Path("/proc/net/dev")


class CgroupReader(Protocol):
    """Counters of one cgroup and all below it. Every method raises OSError once the group is gone."""

    def cpu_s(self) -> float:
        """CPU seconds used since the group was made."""

    def memory_bytes(self) -> int:
        """Working set: memory in use without the page cache that could be dropped at once."""

    def close(self) -> None: ...


class ReopenedFile:
    """A file of the kernel, held open; ``read`` gives its present content."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        parts, offset = [], 0
        while part := os.pread(self._fd, 1 << 16, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Files:
    """Opens several files or none."""

    def __init__(self, *paths: Path) -> None:
        self._files: list[ReopenedFile] = []
        try:
            for path in paths:
                self._files.append(ReopenedFile(path))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files:
            file.close()


class CgroupV1(_Files):
    """One folder per controller: ``cpuacct/<group>``, ``memory/<group>``."""

    def __init__(self, group: str, root: Path = CGROUP_ROOT) -> None:
        cpu = root / "cpuacct" if (root / "cpuacct").is_dir() else root / "cpu,cpuacct"
        memory = root / "memory" / group
        super().__init__(cpu / group / "cpuacct.usage", memory / "memory.usage_in_bytes", memory / "memory.stat")

    def cpu_s(self) -> float:
        return int(self._files[0].read()) / 1e9

    def memory_bytes(self) -> int:
        return max(0, int(self._files[1].read()) - _value(self._files[2].read(), b"total_inactive_file"))


class CgroupV2(_Files):
    """One folder. The machine's root group has no memory file: its memory reads as 0."""

    def __init__(self, group: str, root: Path = CGROUP_ROOT) -> None:
        folder = root / group
        current = folder / "memory.current"
        memory = (current, folder / "memory.stat") if current.exists() else ()
        super().__init__(folder / "cpu.stat", *memory)

    def cpu_s(self) -> float:
        return _value(self._files[0].read(), b"usage_usec") / 1e6

    def memory_bytes(self) -> int:
        if len(self._files) == 1:
            return 0
        return max(0, int(self._files[1].read()) - _value(self._files[2].read(), b"inactive_file"))


def open_cgroup(group: str = "", root: Path = CGROUP_ROOT) -> CgroupReader:
    """Reader for a group named relative to the root as this process sees it; "" is the container's own group.

    Raises OSError if there is no such group.
    """
    return CgroupV2(group, root) if (root / "cgroup.controllers").exists() else CgroupV1(group, root)


def cpu_used_s(group: str) -> float:
    """CPU time that a group has used so far, in seconds; 0 if there is no such group."""
    try:
        reader = open_cgroup(group)
    except OSError:
        return 0.0
    try:
        return reader.cpu_s()
    finally:
        reader.close()


def _value(text: bytes, key: bytes) -> int:
    """One number of a "key value" file; 0 where the key is absent."""
    start = text.find(b"\n" + key + b" ")
    if start < 0 and not text.startswith(key + b" "):
        return 0
    return int(text[start + 1 :].split(None, 2)[1])


def parse_interfaces(text: bytes) -> dict[str, tuple[int, int]]:
    """Read /proc/net/dev as {name: (rx_bytes, tx_bytes)}.

    Headers are counted once per GSO segment, preamble and CRC never: bulk traffic reads a few percent below the wire.
    """
    found = {}
    for line in text.splitlines()[2:]:
        name, _, counters = line.partition(b":")
        fields = counters.split()
        found[name.strip().decode()] = (int(fields[0]), int(fields[8]))
    return found
