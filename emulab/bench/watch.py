"""Looks at a guest of this node from outside, every other millisecond: can any of its tasks run, and how much left through the uplink.

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
from collections.abc import Iterator
from pathlib import Path

from emulab import clock
from emulab.node import cgroup, link

STEP_S = 0.002
# A look at many tasks takes half a millisecond itself. It must not take the CPU away from what it looks at: a twentieth at most.
_PAUSE_PER_LOOK = 19.0
# CRIU restores inside the guest's cgroup: its own processes there are not the guest's.
_NOT_OF_THE_GUEST = (b"(criu)", b"(hook)", b"(runc", b"(sh)")
# A transmit counter can only be kept beyond the life of its interface by looking at it often.
_PORT_EVERY = 20


class Look:
    """The state of one guest. Keeps a witness, a task that could run when last seen, so that a look costs two small reads."""

    def __init__(self, guest: str, root: Path = cgroup.ROOT, proc: Path = Path("/proc")) -> None:
        group = f"guest-{guest}"
        self._v2 = cgroup.is_v2(root)
        main = root / group if self._v2 else root / "freezer" / group
        self._tasks = main / "cgroup.procs"
        self._state = main / ("cgroup.events" if self._v2 else "freezer.state")
        self._proc = proc
        self._witness = ""
        self._stat: dict[str, int] = {}  # descriptors: to open the file of each task would be most of the work

    def state(self) -> str:
        try:
            frozen = self._frozen()
            if frozen:
                return "stopped" if self._tasks.read_bytes() else "absent"
            if self._witness and self._can_run(self._witness):
                return "runs"
            found = self._tasks.read_text().split()
        except OSError:
            return "absent"
        seen = False
        for pid in reversed(found):
            can = self._can_run(pid)
            if can:
                self._witness = pid
                return "runs"
            seen = seen or can is not None
        self._witness = ""
        return "stopped" if seen else "absent"

    def _frozen(self) -> bool:
        text = self._state.read_bytes()
        return b"frozen 1" in text if self._v2 else text.startswith(b"FROZEN")

    def _can_run(self, pid: str) -> bool | None:
        """None: no task of the guest (gone, a zombie, or one of CRIU's own)."""
        try:
            if pid not in self._stat:
                self._stat[pid] = os.open(self._proc / pid / "stat", os.O_RDONLY | os.O_CLOEXEC)
            name, _, rest = os.pread(self._stat[pid], 1024, 0).rpartition(b") ")
        except OSError:  # it has ended; another of this number would be a new file
            if pid in self._stat:
                os.close(self._stat.pop(pid))
            return None
        state = rest[:1]
        if state in b"ZX" or any(other in name + b")" for other in _NOT_OF_THE_GUEST):
            return None
        return state not in b"tT"


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
        pause = max(step_s, _PAUSE_PER_LOOK * (clock.now() - instant))
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
