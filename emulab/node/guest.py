"""Guests of this node: checkpointable containers that play virtual machines.

A guest is started by runc and from then on managed through its cgroup, its first process and its namespaces, in the same way whether
it was started here or arrived by migration.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.command import Runner
from emulab.errors import EmulabError, UsageError
from emulab.node import link
from emulab.node.bundle import bundle_config
from emulab.node.cgroup import GuestCgroup, guest_cgroup
from emulab.node.rootfs import GUESTS, SHARED, STORAGES, Rootfs, image_rootfs

CONSOLE = "var/log/guest.log"  # inside the guest, so that it moves with it


class GuestError(EmulabError):
    pass


@dataclass(frozen=True)
class GuestSpec:
    """What a guest is, wherever it runs. ``image`` names a folder below the node's images; sizes in bytes.

    ``storage``: where its writable layer lies: ``local`` to the host, so that it moves with the guest, or ``shared`` by all hosts.
    """

    name: str
    image: str
    address: str
    vcpus: float
    memory_bytes: int
    prefix: int = 24
    argv: tuple[str, ...] = ("/sbin/guest-init",)
    env: Mapping[str, str] = field(default_factory=dict)
    storage: str = "local"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GuestSpec:
        """Raises UsageError for a name or an image that would lead out of their folders."""
        values = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        values["argv"] = tuple(values.get("argv", cls.argv))
        spec = cls(**values)
        check_name(spec.name)
        if spec.image in {"", ".", ".."} or "/" in spec.image:
            raise UsageError(f"{spec.image!r} is not a guest image")
        if spec.storage not in STORAGES:
            raise UsageError(f"unknown storage {spec.storage!r}", hint=f"one of {', '.join(STORAGES)}")
        return spec

    @property
    def port(self) -> str:
        return link.port_name(self.name)

    @property
    def mac(self) -> str:
        return link.guest_mac(self.address)


@dataclass(frozen=True)
class Guest:
    """A guest on this node. ``pid``: its first process, in the node's pid namespace; ``ticks``: that process's start time."""

    spec: GuestSpec
    pid: int
    ticks: int
    since_s: float
    arrived_from: str = ""

    @property
    def folder(self) -> Path:
        return GUESTS / self.spec.name

    @property
    def rootfs(self) -> Rootfs:
        return Rootfs(self.folder, image_rootfs(self.spec.image), SHARED / self.spec.name if self.spec.storage == "shared" else None)

    @property
    def cgroup(self) -> GuestCgroup:
        return guest_cgroup(self.spec.name)

    def alive(self) -> bool:
        return self.pid > 0 and start_ticks(self.pid) == self.ticks and not is_zombie(self.pid)


def _stat_fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks; 0 if there is none. Tells a reused pid from the one we knew."""
    fields = _stat_fields(pid)
    return int(fields[19]) if len(fields) > 19 else 0


def is_zombie(pid: int) -> bool:
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] in "ZX"


class Guests:
    """The guests of this node, kept on disk so that a restarted agent finds them again."""

    def __init__(self, runner: Runner, folder: Path = GUESTS) -> None:
        self._runner = runner
        self._folder = folder

    # -- what is here --------------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(path.parent.name for path in self._folder.glob("*/guest.json"))

    def find(self, name: str) -> Guest | None:
        try:
            data = json.loads((self._folder / name / "guest.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return Guest(
            GuestSpec.from_dict(data["spec"]),
            int(data["pid"]),
            int(data["ticks"]),
            float(data["since_s"]),
            str(data.get("arrived_from", "")),
        )

    def get(self, name: str) -> Guest:
        guest = self.find(name)
        if guest is None:
            known = ", ".join(self.names()) or "none"
            raise UsageError(f"no guest {name} on this node", hint=f"guests here: {known}")
        return guest

    def running(self, name: str) -> Guest:
        guest = self.get(name)
        if not guest.alive():
            raise GuestError(f"guest {name} is not running", hint=f"see its last words: emulab vm logs {name}")
        return guest

    def describe(self, guest: Guest) -> dict[str, Any]:
        pids = guest.cgroup.pids()
        state = "stopped"
        if guest.alive():
            state = "frozen" if guest.cgroup.frozen() else "running"
        return {
            **asdict(guest.spec),
            "mac": guest.spec.mac,
            "pid": guest.pid,
            "state": state,
            "tasks": len(pids),
            "since_s": guest.since_s,
            "arrived_from": guest.arrived_from,
        }

    def save(self, guest: Guest) -> None:
        guest.folder.mkdir(parents=True, exist_ok=True)
        data = {
            "spec": asdict(guest.spec), "pid": guest.pid, "ticks": guest.ticks,
            "since_s": guest.since_s, "arrived_from": guest.arrived_from,
        }  # fmt: skip
        partial = guest.folder / "guest.json.new"
        partial.write_text(json.dumps(data))
        partial.replace(guest.folder / "guest.json")

    def forget(self, name: str) -> None:
        """A guest that is somewhere else now is not listed here any more, whatever it still has here."""
        (self._folder / name / "guest.json").unlink(missing_ok=True)

    def has_tasks(self, name: str) -> bool:
        return bool(guest_cgroup(name).pids())

    # -- life ----------------------------------------------------------------------------------------------------------------------

    def start(self, spec: GuestSpec) -> Guest:
        """Start a guest here. A stopped one of this name is replaced, its writable layer too."""
        check_name(spec.name)
        old = self.find(spec.name)
        if old is not None and old.alive():
            raise UsageError(f"guest {spec.name} runs here already", hint=f"emulab vm stop {spec.name}")
        if old is not None:
            self.discard(old)
        guest = Guest(spec, 0, 0, clock.now())
        if spec.storage == "shared":
            others = users_of_shared_layer(spec.name)
            if others:
                raise UsageError(f"the shared layer of {spec.name} is in use on {', '.join(others)}", hint=f"emulab vm stop {spec.name}")
            _remove_shared_layer(spec.name)
        try:
            return self._create(guest)
        except BaseException:
            self.discard(guest)
            if spec.storage == "shared":
                _remove_shared_layer(spec.name)
            raise

    def _create(self, guest: Guest) -> Guest:
        spec = guest.spec
        guest.rootfs.mount()
        bundle = guest.folder / "bundle"
        bundle.mkdir(exist_ok=True)
        config = bundle_config(
            hostname=spec.name,
            rootfs=str(guest.rootfs.merged),
            argv=spec.argv,
            env=spec.env,
            cgroup=guest.cgroup.name,
            open_files=min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        )
        (bundle / "config.json").write_text(json.dumps(config))
        pidfile = guest.folder / "pid"
        self._runner.try_run(("runc", "delete", "--force", spec.name))
        # runc's own standard streams become the guest's: /dev/null exists on every node, so CRIU finds it again anywhere.
        log = guest.folder / "runc.log"
        created = self._runner.try_run(
            ("sh", "-c", 'exec "$@" </dev/null >/dev/null 2>&1', "sh", "runc", "--log", str(log), "create", "--no-new-keyring",
             "--bundle", str(bundle), "--pid-file", str(pidfile), spec.name)
        )  # fmt: skip
        if not created.ok:
            raise GuestError(f"cannot start guest {spec.name}: {_last_line(log)}")
        pid = int(pidfile.read_text())
        guest = replace(guest, pid=pid, ticks=start_ticks(pid), since_s=clock.now())
        guest.cgroup.limit(spec.vcpus, spec.memory_bytes)
        link.plug(spec.port, f"/proc/{pid}/ns/net", self._runner, address=spec.address, prefix=spec.prefix)
        link.port_attach(spec.port, self._runner)
        self._runner.run(("runc", "start", spec.name))
        self.save(guest)
        return guest

    def stop(self, name: str, timeout_s: float = 10.0) -> None:
        """Ask the guest's first process to end, wait, then end what is left; its writable layer goes too."""
        guest = self.get(name)
        if guest.alive():
            with contextlib.suppress(EmulabError):
                guest.cgroup.thaw()
            with contextlib.suppress(ProcessLookupError):
                os.kill(guest.pid, signal.SIGTERM)
            end = clock.now() + timeout_s
            while guest.cgroup.pids() and clock.now() < end:
                time.sleep(0.02)
        self.discard(guest)
        if guest.spec.storage == "shared" and not users_of_shared_layer(name):
            _remove_shared_layer(name)

    def discard(self, guest: Guest) -> None:
        """Remove everything a guest has on this node: tasks, port, runc's state, cgroup, mounts and files. Safe to repeat.

        A shared layer stays: the guest may run elsewhere, on it.
        """
        self.discard_name(guest.spec.name)

    def discard_name(self, name: str) -> None:
        """The same for a guest of which perhaps only parts are here."""
        group = guest_cgroup(name)
        if group.pids():
            group.kill()
        link.unplug(link.port_name(name), self._runner)
        self._runner.try_run(("runc", "delete", "--force", name))
        group.remove()
        folder = self._folder / name
        Rootfs(folder, folder).unmount(self._runner)
        shutil.rmtree(folder, ignore_errors=True)
        Rootfs(folder, folder, SHARED / name).remove_work()

    def logs(self, name: str, lines: int = 100) -> str:
        """The end of what the guest's first process and its services wrote."""
        guest = self.get(name)
        parts = []
        for path in (guest.rootfs.upper / CONSOLE, guest.folder / "runc.log"):
            with contextlib.suppress(OSError):
                parts.append(path.read_text(errors="replace"))
        text = "".join(parts).splitlines()
        return "\n".join(text[-lines:])


def users_of_shared_layer(name: str) -> list[str]:
    """Nodes that have a shared layer mounted, or are about to."""
    return sorted(path.name.removeprefix("work-") for path in (SHARED / name).glob("work-*"))


def _remove_shared_layer(name: str) -> None:
    shutil.rmtree(SHARED / name, ignore_errors=True)


def _last_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip().splitlines()[-1]
    except (OSError, IndexError):
        return "runc gave no reason"


def check_name(name: str) -> None:
    """Guest names become file, cgroup and interface names. Raises UsageError."""
    if not (name and len(name) <= 32 and name.isascii() and name[0].isalpha() and all(c.isalnum() or c == "-" for c in name)):
        raise UsageError(f"{name!r} is not a guest name", hint="letters, digits and dashes, at most 32, starting with a letter")
