"""The source of a baseline migration: ``python -m emulab.bench.source METHOD GUEST ADDRESS SETTING`` on the guest's node.

``stop-and-copy``  ``runc checkpoint``, its images streamed while they are written, ``runc restore``. SETTING: "plain" or "zstd".
``pre-dump``       ``criu pre-dump`` rounds to ``criu page-server`` with P.Haul's stop rule, ``criu dump``, ``criu restore``. SETTING:
                   "quota" (the guest's vCPU limit stays in force), "no-quota" (it is lifted while CRIU works), "ptrace" (lifted,
                   and CRIU stops the tasks by ptrace, not by the freezer cgroup) or "read" (lifted, and pre-dump reads pages while
                   the tasks run).

Prints "ready", waits for a line, moves the guest, prints one JSON object: the instants and what was counted, or {"error": reason}.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.bench import stock, wire
from emulab.command import Runner
from emulab.criu import tracker
from emulab.criu.hooks import HookServer
from emulab.criu.log import read_deciding_line
from emulab.criu.stats import read_dump_stats
from emulab.migration import guestnet
from emulab.node.guest import Guest, Guests

IMAGES = Path("/run/emulab/bench")
# P.Haul, phaul/iters.py: at most 8 rounds; done with 64 pages or fewer; given up when a round wrote over 10 % more than the one before.
MAX_ROUNDS, FEW_PAGES, GROWTH = 8, 64, 0.10


def stop_reason(pages: list[int]) -> str:
    """P.Haul's rule after a round; empty: another round. ``pages`` written per round so far."""
    if pages[-1] <= FEW_PAGES:
        return f"{pages[-1]} pages are few"
    if len(pages) > 1 and pages[-1] > pages[-2] * (1 + GROWTH):
        return f"growing: {pages[-2]} pages, then {pages[-1]}"
    if len(pages) >= MAX_ROUNDS:
        return f"{MAX_ROUNDS} rounds"
    return ""


class Source:
    """One guest that leaves by stock means."""

    def __init__(self, name: str, address: str, setting: str) -> None:
        self.runner = Runner()
        self._guests = Guests(self.runner)
        self.guest: Guest = self._guests.running(name)
        self.address = address
        self.setting = setting
        self.report: dict[str, Any] = {"rounds": [], "phases": {}}
        shutil.rmtree(IMAGES, ignore_errors=True)
        IMAGES.mkdir(parents=True)
        self.hooks = HookServer(IMAGES / "hooks.sock")
        self.hooks.on("network-lock", self._lock)
        self._line: wire.Line | None = None
        self.neighbours: list[tuple[str, str]] = []
        self._layer_date = ""

    @property
    def line(self) -> wire.Line:
        assert self._line is not None
        return self._line

    def connect(self, *, runc: bool) -> None:
        self._line = wire.Line(socket.create_connection((self.address, wire.PORT), timeout=180))
        spec = asdict(self.guest.spec)
        self.line.ask(do="arrive", spec=spec, runc=runc)

    def _lock(self, pid: int) -> bool:
        """CRIU has stopped every task: the same order of steps as in our own freeze."""
        del pid
        self.line.ask(do="hold", neighbours=self.neighbours)
        guestnet.block(self.guest.spec.port)
        time.sleep(0.001)
        return True

    def before_freeze(self) -> None:
        self.report["tasks"] = len(self.guest.cgroup.pids())
        self.neighbours = guestnet.neighbours(self.guest.pid, self.runner)
        self.report["freeze_order_s"] = clock.now()

    def send_layer(self) -> None:
        """The whole writable layer, then (inside the freeze) what changed since, as one does with rsync."""
        started, date = clock.now(), f"@{time.time() - 1:.3f}"
        self.line.ask(do="layer")
        wire.send_tree(self.address, self.guest.rootfs.upper, self._layer_date)
        self.line.ask(do="copied")
        self.report["phases"]["layer again" if self._layer_date else "layer"] = clock.now() - started
        self._layer_date = date

    def copier(self, folder: str, codec: str) -> wire.Copier:
        self.line.ask(do="files", folder=folder, codec=codec)
        return wire.Copier(self.address, IMAGES / folder, codec)

    def finish_files(self, copier: wire.Copier) -> None:
        copier.finish()
        self.line.ask(do="copied")

    def restore(self, folder: str, **more: Any) -> None:
        started = clock.now()
        answer = self.line.ask(do="restore", folder=folder, quota=self.setting == "quota", **more)
        self.report["phases"]["restore"] = clock.now() - started
        self.report["resume_s"] = answer["stages"].get("post-resume", answer["end_s"])
        self.report["stages"] = answer["stages"]

    def clean(self) -> None:
        """What is left of the guest here: CRIU has ended its tasks."""
        self.hooks.close()
        self._guests.discard(self.guest)
        shutil.rmtree(IMAGES, ignore_errors=True)

    def close(self) -> None:
        if self._line:
            self._line.close()


def stop_and_copy(source: Source) -> None:
    """Suspend with runc, copy the images as they are written, resume with runc."""
    source.connect(runc=True)
    source.send_layer()
    images = IMAGES / "final"
    images.mkdir()
    stock.write_runc_conf()
    config = json.loads((source.guest.folder / "bundle" / "config.json").read_text())
    source.before_freeze()
    copier = source.copier("final", source.setting)
    started = clock.now()
    argv = stock.runc_checkpoint(source.guest.spec.name, images, images / "runc.log")
    process = subprocess.Popen(
        argv,
        env=stock.environment(hook_socket=str(source.hooks.path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        copier.poll()
        time.sleep(0.002)
    if process.returncode != 0:
        raise wire.BaselineError(f"runc checkpoint: {read_deciding_line(images / 'dump.log')} {_text(images / 'runc.log')}")
    dumped = clock.now()
    source.report["phases"]["dump"] = dumped - started
    source.finish_files(copier)
    source.report["phases"]["transfer"] = clock.now() - dumped
    source.send_layer()
    source.restore("final", config=config)
    source.clean()


def pre_dump(source: Source) -> None:
    """Rounds to the page server, then the rest inside the freeze."""
    source.connect(runc=False)
    source.send_layer()
    soft_dirty = tracker.has_soft_dirty()
    dirty = tracker.choose("auto")
    try:
        parent, counts, n = "", list[int](), 0
        while True:
            n += 1
            counts.append(_dump(source, "pre-dump", str(n), parent, dirty, stand_in=not soft_dirty))
            parent = str(n)
            if reason := stop_reason(counts):
                break
        source.report["stop_reason"] = reason
        source.before_freeze()
        _dump(source, "dump", "final", parent, dirty, stand_in=not soft_dirty)
    finally:
        dirty.close()
    source.send_layer()
    source.restore("final")
    source.clean()


def _dump(source: Source, action: str, folder: str, parent: str, dirty: tracker.DirtyTracker, *, stand_in: bool) -> int:
    """One pre-dump or the final dump; returns the pages written."""
    guest, started = source.guest, clock.now()
    images = IMAGES / folder
    images.mkdir()
    source.line.ask(do="page-server", folder=folder, parent=parent)
    if source.setting != "quota":
        guest.cgroup.lift_quota()
    dirty.arm(guest.cgroup.pids())
    argv = stock.dump(
        action,
        pid=guest.pid,
        images=images,
        parent=parent,
        rootfs=str(guest.rootfs.merged),
        freezer="" if source.setting == "ptrace" else guest.cgroup.freezer_path(),
        address=source.address,
        port=wire.PAGES_PORT,
        read=source.setting == "read",
    )
    final = action == "dump"
    env = stock.environment(stand_in=stand_in, final=final, hook_socket=str(source.hooks.path) if final else "")
    code = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=180, check=False
    ).returncode
    if source.setting != "quota" and not final:
        guest.cgroup.set_quota(guest.spec.vcpus)
    if code != 0:
        raise wire.BaselineError(f"criu {action}: {read_deciding_line(images / f'{action}.log')}")
    source.line.ask(do="page-server-end")
    dumped = clock.now()
    stats = read_dump_stats(images)
    if final:
        source.finish_files(source.copier(folder, "plain"))
        source.report["phases"] |= {"dump": dumped - started, "transfer": clock.now() - dumped}
    source.report["rounds"].append(
        {
            "n": len(source.report["rounds"]) + 1,
            "kind": "final" if final else "pre-dump",
            "start_s": started,
            "duration_s": clock.now() - started,
            "frozen_s": (stats.freezing_us + stats.frozen_us) / 1e6,
            "pages": stats.pages_written,
        }
    )
    return stats.pages_written


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()[-400:]
    except OSError:
        return ""


METHODS = {"stop-and-copy": stop_and_copy, "pre-dump": pre_dump}


def main(argv: list[str]) -> int:
    method, name, address, setting = argv
    source = Source(name, address, setting)
    print("ready", flush=True)
    sys.stdin.readline()
    source.report["start_s"] = clock.now()
    try:
        METHODS[method](source)
    except Exception as error:
        source.report["error"] = f"{type(error).__name__}: {error}"
    source.report["end_s"] = clock.now()
    source.close()
    print(json.dumps(source.report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
