"""A connection between two agents without a network: what one side sends, the other receives, in order."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from emulab.migration.channel import Incoming


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

    def deliver(self, receiver: Any) -> bool:
        """Hand over everything that was sent; returns what the receiver said to the last message."""
        ended = False
        while self.messages:
            ended = receiver.handle(self.messages.popleft())
        return ended
