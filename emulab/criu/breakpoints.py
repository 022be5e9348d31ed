"""Hardware breakpoints without a wait.

CRIU ends its parasite in the first task, and finds each restored task at its last system call, by a breakpoint. That is a perf event of
the kernel, and the first one on the machine patches the scheduler and waits for a grace period: 5 to 20 ms inside the freeze. While some
event exists, further ones come at once.
"""

from __future__ import annotations

import ctypes
import os
import struct

_PERF_EVENT_OPEN_SYSCALL = 298  # x86-64
_SOFTWARE, _DUMMY = 1, 9  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY
_SIZE = 64  # PERF_ATTR_SIZE_VER0
_DISABLED, _EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
_CLOEXEC = 1 << 3
_LIBC = ctypes.CDLL(None, use_errno=True)


class Breakpoints:
    """Holds an event of this thread that never counts anything, until ``close``. Without one, CRIU waits as it does."""

    def __init__(self) -> None:
        flags = _DISABLED | _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR
        event = struct.pack("=IIQQQQQ", _SOFTWARE, _SIZE, _DUMMY, 0, 0, 0, flags).ljust(_SIZE, b"\0")
        self._descriptor: int = _LIBC.syscall(_PERF_EVENT_OPEN_SYSCALL, event, 0, -1, -1, ctypes.c_ulong(_CLOEXEC))

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def close(self) -> None:
        """Safe to repeat."""
        if self.held:
            os.close(self._descriptor)
            self._descriptor = -1
