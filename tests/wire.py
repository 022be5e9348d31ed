"""A connection between two agents without a network: what one side sends, the other receives, in order."""

from __future__ import annotations

import json
from array import array
from collections import deque
from pathlib import Path
from typing import Any

from emulab.migration.channel import Incoming
from emulab.migration.pages import DISTINCT, NUMBERS, PAGE, ZERO_REF


class Wire:
    """The sending methods of ``emulab.migration.channel.Peer``; ``deliver`` hands the messages to a receiver."""

    def __init__(self) -> None:
        self.messages: deque[Incoming] = deque()
        self.sent: list[Incoming] = []
        self.bytes_out = 0

    def send(self, kind: str, payload: bytes | bytearray | memoryview = b"", **fields: Any) -> None:
        header = json.dumps(fields)
        message = Incoming(kind, json.loads(header), bytes(payload))
        self.messages.append(message)
        self.sent.append(message)
        self.bytes_out += len(header) + len(payload)

    def deliver(self, receiver: Any, most: int | None = None) -> bool:
        """Hand over what was sent, all or the first ``most`` messages; returns what the receiver said to the last of them."""
        ended = False
        for _ in range(len(self.messages) if most is None else most):
            ended = receiver.handle(self.messages.popleft())
        return ended


def arrived(folder: Path, distinct: Path) -> dict[str, bytes]:
    """Name and content of every image in a folder at the destination, as CRIU is shown them (criu/native/pages.c)."""
    pages = distinct.read_bytes() if distinct.exists() else b""
    found = {}
    for path in folder.iterdir():
        if path.suffix == NUMBERS:
            continue
        content = path.read_bytes()
        numbers = path.with_name(path.name + NUMBERS)
        if numbers.exists():
            told = array("I", numbers.read_bytes())
            assert all(number == ZERO_REF or (number + 1) * PAGE <= len(pages) for number in told)
            parts = (bytes(PAGE) if number == ZERO_REF else pages[number * PAGE : (number + 1) * PAGE] for number in told)
            content = b"".join(parts) + content
        found[path.name] = content
    return found


def fill(folder: Path, **files: bytes) -> None:
    """Images by name, with _ for -."""
    for name, content in files.items():
        (folder / f"{name.replace('_', '-')}.img").write_bytes(content)


def content(folder: Path) -> dict[str, bytes]:
    """Name and content of every file of a folder at the source."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def content_there(folder: Path) -> dict[str, bytes]:
    """The same at the destination."""
    return arrived(folder, folder.parent / DISTINCT)
