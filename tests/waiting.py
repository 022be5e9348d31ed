"""Waiting for something that another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(check: Callable[[], object], timeout_s: float = 20.0, every_s: float = 0.005) -> None:
    """Fails if ``check`` is not true within ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(every_s)
