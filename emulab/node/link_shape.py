"""Rate shaping with HTB: what to ask of ``tc`` for a line rate, and reading it back.

``tc`` counts a frame as 14 bytes of header plus payload. The wire also carries preamble, CRC and the gap between frames: 24 bytes more,
so 1 Gbit/s of line is 984.4 Mbit/s of counted frames (1514/1538). HTB is therefore asked for that *frame-equivalent* rate, which gives TCP
the 941 Mbit/s it has on a real gigabit line (1448/1538). HTB's own ``overhead`` does not help: it is added once per GSO segment, not once
per frame. Small frames still go slightly fast.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emulab.command import Argv

FRAME_BYTES = 1514  # a full frame as the kernel counts it
WIRE_BYTES = 1538  # the same frame on the wire: + preamble 8, CRC 4, gap 12
GSO_BYTES = 65536  # largest segment that the stack hands down at once

# Own handles: what carries them was made by us, whatever the device is called.
ROOT_HANDLE = "e31:"
CLASS_ID = "e31:1"
QUEUE_HANDLE = "e32:"
QUEUE_FRAMES = 1000  # Linux's own default queue of a network card


def frame_equivalent(rate_bit_s: int) -> int:
    """Rate to ask of ``tc`` (bit/s of counted frames) so that the line carries ``rate_bit_s`` (bit/s on the wire)."""
    if rate_bit_s <= 0:
        raise ValueError(f"a link's rate must be above 0 bit/s, got {rate_bit_s}")
    return max(8, round(rate_bit_s * FRAME_BYTES / WIRE_BYTES))


def burst_bytes(rate_bit_s: int) -> int:
    """Bucket of HTB in bytes: 1 ms of the line, and never less than one GSO segment with its header."""
    return max(ceil(rate_bit_s / 8 / 1000), GSO_BYTES + FRAME_BYTES)


def rate_commands(device: str, rate_bit_s: int) -> list[Argv]:
    """Set (or change, under traffic) the rate of a device that already carries our root qdisc.

    The queue counts bytes, not packets: a GSO segment is one packet of up to 43 frames, and 1000 of those would be half a second of queue.
    """
    rate, burst = f"{frame_equivalent(rate_bit_s)}bit", str(burst_bytes(rate_bit_s))
    return [
        (
            *("tc", "class", "replace", "dev", device, "parent", ROOT_HANDLE, "classid", CLASS_ID, "htb"),
            *("rate", rate, "ceil", rate, "burst", burst, "cburst", burst, "quantum", str(GSO_BYTES)),
        ),
        (
            *("tc", "qdisc", "replace", "dev", device, "parent", CLASS_ID, "handle", QUEUE_HANDLE),
            *("bfifo", "limit", str(QUEUE_FRAMES * FRAME_BYTES)),
        ),
    ]


def root_command(device: str) -> Argv:
    """Put our HTB at the root of a device. Replaces any other kind; refused by the kernel if ours is there already."""
    return ("tc", "qdisc", "replace", "dev", device, "root", "handle", ROOT_HANDLE, "htb", "default", "1")


def unshape_command(device: str) -> Argv:
    return ("tc", "qdisc", "del", "dev", device, "root")


def qdiscs_command(device: str) -> Argv:
    return ("tc", "-j", "-s", "qdisc", "show", "dev", device)


def classes_command(device: str) -> Argv:
    return ("tc", "-j", "-s", "-d", "class", "show", "dev", device)


@dataclass(frozen=True)
class Shaping:
    """What a device's HTB class is set to, and what it has done. Rates in bit/s of counted frames, the rest in bytes or packets."""

    rate_bit_s: int
    ceil_bit_s: int
    burst_bytes: int
    cburst_bytes: int
    quantum_bytes: int
    queue_bytes: int
    sent_bytes: int
    dropped: int
    backlog_bytes: int

    @property
    def line_rate_bit_s(self) -> int:
        """The line rate this stands for: what the scenario asks for (rounded by ``tc`` to whole bytes per second)."""
        return round(self.rate_bit_s * WIRE_BYTES / FRAME_BYTES)


def is_shaped(qdiscs_json: str) -> bool:
    """True if the root qdisc in the answer to ``qdiscs_command`` is ours."""
    return any(q["kind"] == "htb" and q["handle"] == ROOT_HANDLE for q in _list(qdiscs_json))


def parse_shaping(qdiscs_json: str, classes: str) -> Shaping | None:
    """Read the answers to ``qdiscs_command`` and ``classes_command``; None where nothing of ours is set.

    iproute2 before 6.2 answers the second in plain text despite ``-j``; both forms are read.
    """
    if not is_shaped(qdiscs_json):
        return None
    queue = next((q for q in _list(qdiscs_json) if q["handle"] == QUEUE_HANDLE), None)
    found = _class_from_json(classes) if classes.lstrip().startswith("[") else _class_from_text(classes)
    if found is None:
        return None
    return Shaping(
        **found,
        queue_bytes=int(queue["options"]["limit"]) if queue else 0,
        sent_bytes=int(queue["bytes"]) if queue else 0,
        dropped=int(queue["drops"]) if queue else 0,
        backlog_bytes=int(queue["backlog"]) if queue else 0,
    )


def _list(text: str) -> list[dict[str, Any]]:
    # An absent qdisc is printed as `{}` by some versions.
    return [item for item in json.loads(text or "[]") if item.get("kind")]


def _class_from_json(text: str) -> dict[str, int] | None:
    for item in json.loads(text):
        if item.get("handle") == CLASS_ID:
            return {
                "rate_bit_s": int(item["rate"]) * 8,
                "ceil_bit_s": int(item["ceil"]) * 8,
                "burst_bytes": int(item["burst"]),
                "cburst_bytes": int(item["cburst"]),
                "quantum_bytes": int(item["quantum"]),
            }
    return None


def _class_from_text(text: str) -> dict[str, int] | None:
    line = next((line for line in text.splitlines() if line.startswith(f"class htb {CLASS_ID} ")), None)
    if line is None:
        return None

    def number(key: str) -> int:
        match = re.search(rf"\b{key} (\d+)([KMG]?)(bit|b)?", line)
        if match is None:
            raise ValueError(f"no {key} in the answer of tc: {line}")
        base = 1000 if match[3] == "bit" else 1024
        return int(match[1]) * int(base ** ("", "K", "M", "G").index(match[2]))

    return {
        "rate_bit_s": number("rate"),
        "ceil_bit_s": number("ceil"),
        "burst_bytes": number("burst"),
        "cburst_bytes": number("cburst"),
        "quantum_bytes": number("quantum"),
    }
