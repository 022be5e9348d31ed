"""One clock for all records: CLOCK_MONOTONIC of the machine, which every container on it shares.

Records hold monotonic seconds; ``manifest.json`` holds one pair (monotonic, wall) so that a reader can convert.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> float:
    """Seconds on the machine's monotonic clock."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def wall() -> str:
    """UTC wall clock with milliseconds, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
