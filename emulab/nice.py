"""Nice values of threads and processes, set where that is allowed: to come back, or to go first, takes CAP_SYS_NICE."""

from __future__ import annotations

import contextlib
import os

BEHIND, NORMAL, FIRST = 19, 0, -20


def renice(task: int, value: int) -> None:
    """``task``: number of a thread, or of a process, whose later threads and children begin with the same value."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, task, value)
