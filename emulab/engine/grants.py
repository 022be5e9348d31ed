"""What this machine's engine can give to a container: it cannot hand out a capability or a limit that it lacks itself."""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

CAP_SYS_RESOURCE = 24  # linux/capability.h
WANTED_FILES = 1_048_576


@dataclass(frozen=True)
class Grants:
    """``sys_resource``: the engine has CAP_SYS_RESOURCE. ``open_files``: highest RLIMIT_NOFILE of a container."""

    sys_resource: bool
    open_files: int


def engine_pid(path: Path) -> int | None:
    """Process that listens on the engine's socket (pid 1 where systemd opened it), or None if it cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
            peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
    pid: int = struct.unpack("3i", peer)[0]
    return pid or None


def parse_grants(status: str, limits: str, *, nr_open: int = WANTED_FILES) -> Grants:
    """From the text of ``/proc/PID/status`` and ``/proc/PID/limits``."""
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)", status, re.MULTILINE)
    has = bool(bounding and int(bounding[1], 16) >> CAP_SYS_RESOURCE & 1)
    files = re.search(r"^Max open files\s+\S+\s+(\S+)", limits, re.MULTILINE)
    hard = int(files[1]) if files and files[1].isdecimal() else WANTED_FILES
    return Grants(has, min(WANTED_FILES, nr_open if has else hard))


def grants(path: Path | None) -> Grants:
    """What the engine behind the socket can give; where its process cannot be seen, what this process has."""
    pid = engine_pid(path) if path else None
    for process in (str(pid) if pid else None, "self"):
        if process:
            folder = Path("/proc") / process
            try:
                return parse_grants(
                    (folder / "status").read_text(), (folder / "limits").read_text(), nr_open=int(Path("/proc/sys/fs/nr_open").read_text())
                )
            except OSError:
                continue
    return Grants(sys_resource=False, open_files=1024)
