"""Who gets a CPU first: while guests run, they do, before what is only copied for them; inside a freeze there is nothing more urgent."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from emulab import clock

PATIENCE_S = 3.0
_LOOKS, _EVERY_S = 5, 0.02
_QUEUED = 3.0  # tasks that want to run for each virtual CPU: more is a guest that has no time to give
_BEHIND, _NORMAL, _FIRST = 19, 0, -20


def behind_guests(*, yes: bool = True) -> None:
    """Let this thread wait for guests, or no longer."""
    _be(threading.get_native_id(), _BEHIND if yes else _NORMAL)


def go_first(pid: int) -> None:
    """Let a process that others wait for go before all of them."""
    _be(pid, _FIRST)


def _be(task: int, nice: int) -> None:
    with contextlib.suppress(OSError):  # to come back, or to go first, takes CAP_SYS_NICE
        os.setpriority(os.PRIO_PROCESS, task, nice)


def patience(pids: Sequence[int], vcpus: float) -> float:
    """Seconds to wait for a guest: none for one whose tasks queue up for its CPUs already. Looks for a tenth of a second.

    Such a guest would starve what copies, and make each round longer in which it writes anew: waiting without an end, 128 saturated web
    workers took 22 instead of 10 s to move.
    """
    found = 0
    for look in range(_LOOKS):
        if look:
            time.sleep(_EVERY_S)
        found += sum(map(_wants_to_run, pids))
    return PATIENCE_S if found <= _QUEUED * vcpus * _LOOKS else 0.0


def _wants_to_run(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].startswith(b"R")
    except OSError:
        return False


class GiveWay:
    """Called now and then by each thread that copies for a guest that runs: it waits for the guest, for ``patience_s`` in all."""

    def __init__(self, patience_s: float) -> None:
        self._until = clock.now() + patience_s
        self._of_thread = threading.local()

    def __call__(self) -> None:
        waits = clock.now() < self._until
        if getattr(self._of_thread, "waits", None) != waits:  # a new thread has the priority of the one that started it
            self._of_thread.waits = waits
            behind_guests(yes=waits)

    def end(self) -> None:
        """Let this thread wait no longer."""
        self._of_thread.waits = False
        behind_guests(yes=False)
