"""Looks at a guest of this node from outside, every four milliseconds: can any of its tasks run, and how much left through the uplink.

``python -m emulab.bench.watch GUEST`` prints "watching", looks until its standard input ends, then prints one JSON object:
``{"changes": [[instant, "absent" | "runs" | "stopped"], …], "tx_start", "tx_end", "guest_tx_start", "guest_tx_end", "longest_gap_s"}``.
Instants are monotonic seconds. *Stopped*: there are tasks, and every one is frozen by its cgroup or held by ptrace. The same program serves
all methods, on both nodes, so that blackout and bytes mean the same for each of them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from emulab import clock
from emulab.node import cgroup, link

STEP_S = 0.004
# A look at many tasks takes a millisecond. It must not take the CPU away from what it looks at.
_PAUSE_PER_LOOK = 19.0
_LONGEST_PAUSE_S = 0.012
# CRIU restores inside the guest's cgroup: its own processes there are not the guest's.
_NOT_OF_THE_GUEST = (b"(criu)", b"(hook)", b"(runc", b"(sh)")
# A transmit counter can only be kept beyond the life of its interface by looking at it often.
_PORT_EVERY = 20
# Of tasks that stand still so many are looked at each time, and all of them every so many looks.
_SOME = 2
_ALL_EVERY = 50


class Look:
    """The state of one guest.

    A look at every task would take a millisecond where there are many. While some can run, one that could when last seen is the witness;
    while none can, a few are looked at in turn: tasks are stopped and let go together, so that one of them shows it soon.
    """

    def __init__(self, guest: str, root: Path = cgroup.ROOT, proc: Path = Path("/proc")) -> None:
        group = f"guest-{guest}"
        self._v2 = cgroup.is_v2(root)
        main = root / group if self._v2 else root / "freezer" / group
        self._tasks = main / "cgroup.procs"
        self._state = main / ("cgroup.events" if self._v2 else "freezer.state")
        self._proc = proc
        self._witness = ""
        self._standing: deque[str] = deque()  # of the tasks at the last look at them all, those that were as ``_seen`` says
        self._seen = "absent"
        self._looks_left = 0  # before the next look at them all
        self._open: dict[Path, int] = {}  # descriptors: to open the file of each task would be most of the work

    def state(self) -> str:
        """``absent``, ``runs`` or ``stopped``."""
        try:
            frozen = self._frozen()
            if self._witness and self._task(self._witness, frozen) == "runs":
                return "runs"
            if not (self._standing and self._still_stand(frozen)):
                self._look_at_all(frozen)
        except OSError:
            self._witness, self._standing, self._seen = "", deque(), "absent"
        return self._seen

    def _look_at_all(self, frozen: bool) -> None:
        found: dict[str, deque[str]] = {"absent": deque(), "stopped": deque()}
        for pid in reversed(self._tasks.read_text().split()):
            seen = self._task(pid, frozen)
            if seen == "runs":
                self._witness, self._standing, self._seen = pid, deque(), seen
                return
            found[seen].append(pid)
        self._seen = "stopped" if found["stopped"] else "absent"
        self._witness, self._standing, self._looks_left = "", found[self._seen], _ALL_EVERY

    def _still_stand(self, frozen: bool) -> bool:
        """False: something has changed, or it is time to look at them all."""
        self._looks_left -= 1
        some = list(islice(self._standing, _SOME))
        self._standing.rotate(-len(some))
        return self._looks_left >= 0 and all(self._task(pid, frozen) == self._seen for pid in some)

    def _frozen(self) -> bool:
        text = self._read(self._state, 128)
        return b"frozen 1" in text if self._v2 else text.startswith(b"FROZEN")

    def _task(self, pid: str, frozen: bool) -> str:
        """``absent``: no task of the guest (gone, a zombie, or one of CRIU's own)."""
        try:
            name, _, rest = self._read(self._proc / pid / "stat", 1024).rpartition(b") ")
        except OSError:
            return "absent"
        state = rest[:1]
        if state in b"ZX" or any(other in name + b")" for other in _NOT_OF_THE_GUEST):
            return "absent"
        return "stopped" if frozen or state in b"tT" else "runs"

    def _read(self, path: Path, size: int) -> bytes:
        """What is in a file of the kernel's now. One whose subject has gone is closed: another of its name would be a new file."""
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(self._open[path], size, 0)
        except OSError:
            os.close(self._open.pop(path))
            raise


def read_counter(interface: str, counter: str = "tx_bytes") -> int:
    """A counter of an interface in bytes; 0 if there is no such interface."""
    try:
        return int(Path(f"/sys/class/net/{interface}/statistics/{counter}").read_text())
    except OSError:
        return 0


def _uplink() -> str:
    """The LAN side of this node: on the hosts it is eth0."""
    return link.UPLINK


def beats(step_s: float) -> Iterator[float]:
    """Instants until standard input ends: one per step, fewer where what is done at each takes long."""
    while True:
        instant = clock.now()
        yield instant
        pause = max(step_s, min(_LONGEST_PAUSE_S, _PAUSE_PER_LOOK * (clock.now() - instant)))
        if select.select([0], [], [], pause)[0] and not os.read(0, 4096):
            return


def watch(guest: str) -> dict[str, object]:
    look, port = Look(guest), link.port_name(guest)
    result: dict[str, object] = {"tx_start": read_counter(_uplink()), "guest_tx_start": read_counter(port, "rx_bytes")}
    changes: list[tuple[float, str]] = []
    last, before, longest, guest_tx = "", clock.now(), 0.0, 0
    for n, instant in enumerate(beats(STEP_S)):
        longest, before = max(longest, instant - before), instant
        state = look.state()
        if state != last:
            changes.append((instant, state))
            last = state
        if n % _PORT_EVERY == 0:
            guest_tx = read_counter(port, "rx_bytes") or guest_tx
    return {
        **result,
        "changes": changes,
        "tx_end": read_counter(_uplink()),
        "guest_tx_end": read_counter(port, "rx_bytes") or guest_tx,
        "longest_gap_s": longest,
    }


def main(argv: list[str]) -> int:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    gc.disable()
    print("watching", flush=True)
    print(json.dumps(watch(argv[0])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
