"""The agent channel: length-prefixed JSON messages over any byte stream (a unix socket, or stdio bridged by the engine).

Requests carry ``id``, ``method`` and ``params``; each is answered by any number of ``event`` messages and one ``result`` or ``error``.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from emulab.errors import AgentError, EmulabError, MigrationError, UsageError

MAX_MESSAGE = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")

Message = dict[str, Any]


class ByteStream(Protocol):
    """What a channel needs of its carrier. ``read`` returns b"" at the end of the stream."""

    def read(self, size: int, /) -> bytes: ...

    def write(self, data: bytes, /) -> None: ...

    def close(self) -> None: ...


def encode(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_MESSAGE:
        raise AgentError(f"a message of {len(body)} bytes is too large for the agent channel")
    return _LENGTH.pack(len(body)) + body


def _read_exactly(stream: ByteStream, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = stream.read(size - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def decode(stream: ByteStream) -> Message | None:
    """Next message, or None at the end of the stream. Raises AgentError for anything that is not one of ours."""
    head = _read_exactly(stream, _LENGTH.size)
    if head is None:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > MAX_MESSAGE:
        raise AgentError(f"the agent channel is out of step (a message of {size} bytes)", hint="see the node's log: emulab logs")
    body = _read_exactly(stream, size)
    if body is None:
        return None
    try:
        message = json.loads(body)
    except ValueError as error:
        raise AgentError(f"the agent channel is out of step: {error}") from error
    if not isinstance(message, dict):
        raise AgentError("the agent channel is out of step: not an object")
    return message


def error_to_message(error: BaseException) -> Message:
    if isinstance(error, EmulabError):
        return {"kind": type(error).__name__, "message": error.message, "hint": error.hint, "details": getattr(error, "details", None)}
    return {"kind": type(error).__name__, "message": f"{type(error).__name__}: {error}", "hint": "", "details": None}


class RemoteError(AgentError):
    """An error raised by an agent. ``kind`` is its class there, ``details`` what that class carried."""

    def __init__(self, node: str, error: Message) -> None:
        super().__init__(f"{node}: {error.get('message', '')}", hint=str(error.get("hint") or ""), kind=str(error.get("kind", "")))
        self.node = node
        self.details: Any = error.get("details")
        self.exit_code = {"UsageError": UsageError.exit_code, "AbortedError": MigrationError.exit_code}.get(self.kind, self.exit_code)


class Client:
    """Calls methods of one agent. One call at a time; open several clients for calls in parallel."""

    def __init__(self, node: str, stream: ByteStream) -> None:
        self.node = node
        self._stream = stream
        self._next = 0
        self._lock = threading.Lock()

    def stream_call(self, method: str, **params: Any) -> Iterator[Message]:
        """Yield the events of a call as they come; the last item is ``{"result": ...}``. Raises RemoteError."""
        with self._lock:
            self._next += 1
            self._stream.write(encode({"id": self._next, "method": method, "params": params}))
            while True:
                message = decode(self._stream)
                if message is None:
                    raise AgentError(
                        f"{self.node}: the agent's channel closed during {method}", hint="is the node still running? emulab status"
                    )
                if "error" in message:
                    raise RemoteError(self.node, message["error"])
                if "event" in message:
                    yield message["event"]
                    continue
                yield {"result": message.get("result")}
                return

    def call(self, method: str, *, on_event: Callable[[Message], None] | None = None, **params: Any) -> Any:
        """Call and return the result; events go to ``on_event``."""
        for message in self.stream_call(method, **params):
            if "result" in message and len(message) == 1:
                return message["result"]
            if on_event:
                on_event(message)
        raise AgentError(f"{self.node}: no answer to {method}")

    def close(self) -> None:
        self._stream.close()
