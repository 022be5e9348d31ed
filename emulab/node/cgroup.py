"""A guest's cgroup on version 1 (one folder per controller) and version 2 (one folder).

The node's own processes live in a leaf of their own on version 2, so that controllers can be handed to guests.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path
from typing import Protocol

from emulab import clock
from emulab.errors import EmulabError

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
_V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "freezer", "pids")


class CgroupError(EmulabError):
    pass


def is_v2(root: Path = ROOT) -> bool:
    return (root / "cgroup.controllers").exists()


class GuestCgroup(Protocol):
    """What migration and guest management need of a cgroup."""

    name: str

    def create(self) -> None: ...
    def limit(self, vcpus: float, memory_bytes: int) -> None: ...
    def lift_quota(self) -> None: ...
    def set_quota(self, vcpus: float) -> None: ...
    def freeze(self, timeout_s: float = 5.0) -> float: ...
    def thaw(self) -> None: ...
    def frozen(self) -> bool: ...
    def pids(self) -> list[int]: ...
    def join_command(self) -> str: ...
    def freezer_path(self) -> str: ...
    def kill(self, timeout_s: float = 10.0) -> None: ...
    def remove(self) -> None: ...


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        raise CgroupError(f"cannot write {value!r} to {path}: {error.strerror}") from error


def _wait(check: object, timeout_s: float, step_s: float = 0.001) -> bool:
    assert callable(check)
    end = clock.now() + timeout_s
    while not check():
        if clock.now() > end:
            return False
        time.sleep(step_s)
    return True


class _Base:
    def __init__(self, name: str, root: Path = ROOT) -> None:
        self.name = name
        self.root = root

    def folders(self) -> list[Path]:
        raise NotImplementedError

    def _main(self) -> Path:
        raise NotImplementedError

    def create(self) -> None:
        for folder in self.folders():
            folder.mkdir(parents=True, exist_ok=True)

    def pids(self) -> list[int]:
        """Process ids (thread group leaders) in the group; zombies are not listed."""
        try:
            return [int(line) for line in (self._main() / "cgroup.procs").read_text().split()]
        except FileNotFoundError:
            return []

    def join_command(self) -> str:
        """Shell words that move the shell itself into the group."""
        return "; ".join(f"echo $$ > {folder}/cgroup.procs" for folder in self.folders())

    def remove(self) -> None:
        """Remove the folders. They must be empty of tasks; the kernel needs a moment after the last one has gone."""
        for folder in self.folders():
            for _ in range(500):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise CgroupError(f"cannot remove {folder}: {error.strerror}") from error
                    time.sleep(0.01)
                else:
                    break

    def thaw(self) -> None:
        raise NotImplementedError

    def _signal_all(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self, timeout_s: float = 10.0) -> None:
        """End every task and wait until none is left."""

        def gone() -> bool:
            self._signal_all()
            return not self.pids()

        self._signal_all()
        with contextlib.suppress(CgroupError):
            self.thaw()
        if not _wait(gone, timeout_s, 0.005):
            raise CgroupError(f"tasks of {self.name} do not end: {self.pids()[:8]}")


class CgroupV1(_Base):
    def folders(self) -> list[Path]:
        """Controllers may be mounted together (cpu,cpuacct): each real folder once."""
        seen: dict[Path, Path] = {}
        for controller in _V1_CONTROLLERS:
            mount = self.root / controller
            if mount.exists():
                seen.setdefault(mount.resolve(), mount / self.name)
        return list(seen.values())

    def _main(self) -> Path:
        return self.root / "freezer" / self.name

    def freezer_path(self) -> str:
        return str(self._main())

    def limit(self, vcpus: float, memory_bytes: int) -> None:
        _write(self.root / "memory" / self.name / "memory.limit_in_bytes", str(memory_bytes))
        self.set_quota(vcpus)

    def set_quota(self, vcpus: float) -> None:
        folder = self.root / "cpu" / self.name
        _write(folder / "cpu.cfs_period_us", str(PERIOD_US))
        _write(folder / "cpu.cfs_quota_us", str(int(vcpus * PERIOD_US)))

    def lift_quota(self) -> None:
        _write(self.root / "cpu" / self.name / "cpu.cfs_quota_us", "-1")

    def freeze(self, timeout_s: float = 5.0) -> float:
        """Stop every task; returns the monotonic instant at which the kernel reported all of them stopped."""
        state = self._main() / "freezer.state"
        _write(state, "FROZEN")

        def done() -> bool:
            # Version 1 makes progress only when asked again.
            if state.read_text().strip() == "FROZEN":
                return True
            _write(state, "FROZEN")
            return False

        if not _wait(done, timeout_s):
            self.thaw()
            raise CgroupError(f"{self.name} did not freeze within {timeout_s} s")
        return clock.now()

    def thaw(self) -> None:
        _write(self._main() / "freezer.state", "THAWED")

    def frozen(self) -> bool:
        return (self._main() / "freezer.state").read_text().strip() != "THAWED"


class CgroupV2(_Base):
    def folders(self) -> list[Path]:
        return [self.root / self.name]

    def _main(self) -> Path:
        return self.root / self.name

    def freezer_path(self) -> str:
        return str(self._main())

    def limit(self, vcpus: float, memory_bytes: int) -> None:
        _write(self._main() / "memory.max", str(memory_bytes))
        self.set_quota(vcpus)

    def set_quota(self, vcpus: float) -> None:
        _write(self._main() / "cpu.max", f"{int(vcpus * PERIOD_US)} {PERIOD_US}")

    def lift_quota(self) -> None:
        _write(self._main() / "cpu.max", f"max {PERIOD_US}")

    def freeze(self, timeout_s: float = 5.0) -> float:
        """Stop every task; returns the monotonic instant at which the kernel reported all of them stopped."""
        _write(self._main() / "cgroup.freeze", "1")
        if not _wait(self._is_frozen, timeout_s):
            self.thaw()
            raise CgroupError(f"{self.name} did not freeze within {timeout_s} s")
        return clock.now()

    def _is_frozen(self) -> bool:
        return "frozen 1" in (self._main() / "cgroup.events").read_text()

    def thaw(self) -> None:
        _write(self._main() / "cgroup.freeze", "0")

    def frozen(self) -> bool:
        return (self._main() / "cgroup.freeze").read_text().strip() == "1"

    def _signal_all(self) -> None:
        try:
            (self._main() / "cgroup.kill").write_text("1")
        except OSError:
            super()._signal_all()


def guest_cgroup(guest: str, root: Path = ROOT) -> GuestCgroup:
    """The cgroup of a guest on this node, whichever version the machine has."""
    name = f"guest-{guest}"
    return CgroupV2(name, root) if is_v2(root) else CgroupV1(name, root)


def prepare_node(root: Path = ROOT) -> None:
    """Version 2 only: move every process of the node into a leaf and hand controllers to its siblings."""
    if not is_v2(root):
        return
    leaf = root / "agent"
    leaf.mkdir(exist_ok=True)
    for _ in range(20):  # processes may be born while we move them
        pids = (root / "cgroup.procs").read_text().split()
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(OSError):
                (leaf / "cgroup.procs").write_text(pid)
    offered = (root / "cgroup.controllers").read_text().split()
    wanted = [name for name in ("cpu", "memory", "pids") if name in offered]
    _write(root / "cgroup.subtree_control", " ".join(f"+{name}" for name in wanted))
