"""Who gets a CPU first: while guests run, they do, before what is only copied for them; inside a freeze there is nothing more urgent."""

from __future__ import annotations

import contextlib
import os
import threading

_BEHIND, _NORMAL = 19, 0


def behind_guests(*, yes: bool = True) -> None:
    """Let this thread wait for guests, or no longer. What it costs in time is little: it takes what they leave."""
    with contextlib.suppress(OSError):  # to come back takes CAP_SYS_NICE
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BEHIND if yes else _NORMAL)
