"""The agent of one node: the process that does everything on it, at the request of the command line or of another agent.

It listens on a unix socket inside the node, reached only through the engine's exec, and for other agents on the node's LAN address.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from emulab.agent.connect import SOCKET
from emulab.agent.rpc import Message, decode, encode, error_to_message
from emulab.agent.service import Service

log = logging.getLogger("emulab.agent")


class Call:
    """One request being served: emits events to its caller and knows whether the caller is still there."""

    def __init__(self, connection: socket.socket, number: int, lock: threading.Lock) -> None:
        self._connection = connection
        self._number = number
        self._lock = lock

    def emit(self, event: Message) -> None:
        """Send an event; a caller that has gone away is no error here: whoever serves the request asks ``gone``."""
        with contextlib.suppress(OSError), self._lock:
            self._connection.sendall(encode({"id": self._number, "event": event}))

    def gone(self) -> bool:
        """True once the caller has closed its end."""
        ready, _, _ = select.select([self._connection], [], [], 0)
        if not ready:
            return False
        try:
            return self._connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True


class _Stream:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self, size: int, /) -> bytes:
        return self._connection.recv(size)

    def write(self, data: bytes, /) -> None:
        self._connection.sendall(data)

    def close(self) -> None:
        self._connection.close()


def _serve(connection: socket.socket, service: Service) -> None:
    stream, lock = _Stream(connection), threading.Lock()
    with connection:
        while True:
            try:
                request = decode(stream)
            except Exception:
                log.exception("a channel was closed")
                return
            if request is None:
                return
            number = int(request.get("id", 0))
            try:
                answer: dict[str, Any] = {"id": number, "result": service.handle(request, Call(connection, number, lock))}
            except Exception as error:
                if not hasattr(error, "hint"):
                    log.exception("request %s", request.get("method"))
                answer = {"id": number, "error": error_to_message(error)}
            try:
                with lock:
                    connection.sendall(encode(answer))
            except OSError:
                return


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    service = Service(os.environ.get("EMULAB_NODE", socket.gethostname()))
    service.prepare()
    Path(SOCKET).unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(SOCKET)
    Path(SOCKET).chmod(0o600)
    server.listen(64)
    log.info("agent of %s is ready", service.node)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_serve, args=(connection, service), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
