"""What a CRIU log says when something failed."""

from __future__ import annotations

import re
import signal
from pathlib import Path

_NOISE = (
    "rlimit: Can't setup RLIMIT_NOFILE",  # the node lacks CAP_SYS_RESOURCE; harmless
    "tun: Unable to create tun",
    "Dumping FAILED",
    "Restoring FAILED",
    "Pre-dumping FAILED",
    "exited, status=",
    "Unable to send a fin packet",
)
_ERROR = re.compile(r"^(?:\([\d.]+\)\s*)?(?:\s*\d+:\s*)?Error \(")


def deciding_line(text: str) -> str:
    """The first error that is neither noise nor a consequence: CRIU reports the cause first, then its callers."""
    errors = [line.strip() for line in text.splitlines() if _ERROR.match(line.strip()) and not any(noise in line for noise in _NOISE)]
    if errors:
        return re.sub(r"^\([\d.]+\)\s*", "", errors[0])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not any(noise in line for noise in _NOISE)]
    return (telling or lines or ["CRIU left no log"])[-1]


def read_deciding_line(path: Path, code: int | None = None) -> str:
    """``code``: what CRIU ended with, as subprocess tells it; one that was killed has not written why."""
    killed = f"it was ended by {signal.Signals(-code).name}; " if code is not None and code < 0 else ""
    try:
        return killed + deciding_line(path.read_text(errors="replace"))
    except OSError:
        return killed + "CRIU left no log"
