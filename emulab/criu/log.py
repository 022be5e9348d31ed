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
    if error := _first_error(text):
        return error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not any(noise in line for noise in _NOISE)]
    return (telling or lines or ["CRIU left no log"])[-1]


def _first_error(text: str) -> str:
    for line in map(str.strip, text.splitlines()):
        if _ERROR.match(line) and not any(noise in line for noise in _NOISE):
            return re.sub(r"^\([\d.]+\)\s*", "", line)
    return ""


def read_deciding_line(path: Path, code: int | None = None) -> str:
    """``code``: what CRIU ended with, as subprocess tells it; one that was killed has not written why, so that only errors count."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        text = ""
    if code is None or code >= 0:
        return deciding_line(text) + (f" (exit code {code})" if code is not None and not text.strip() else "")
    return "; ".join(part for part in (f"it was ended by {signal.Signals(-code).name}", _first_error(text)) if part)
