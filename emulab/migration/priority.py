"""Who gets a CPU first: while guests run, they do, before what is only copied for them; inside a freeze there is nothing more urgent."""

from __future__ import annotations

import contextlib
import os
import threading

from emulab import clock

PATIENCE_S = 3.0
_BEHIND, _NORMAL = 19, 0


def behind_guests(*, yes: bool = True) -> None:
    """Let this thread wait for guests, or no longer."""
    with contextlib.suppress(OSError):  # to come back takes CAP_SYS_NICE
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BEHIND if yes else _NORMAL)


class GiveWay:
    """Called now and then by each thread that copies for a guest that runs: it waits for the guest, for ``patience_s`` in all.

    A guest that takes all CPU time it may have would starve what copies, and make each round longer in which it writes anew: waiting
    without an end, 128 saturated web workers took 22 instead of 10 s to move.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._until = clock.now() + patience_s
        self._of_thread = threading.local()

    def __call__(self) -> None:
        waits = clock.now() < self._until
        if getattr(self._of_thread, "waits", False) != waits:
            self._of_thread.waits = waits
            behind_guests(yes=waits)

    def end(self) -> None:
        """Let this thread wait no longer."""
        self._of_thread.waits = False
        behind_guests(yes=False)
