"""Between the two halves of a baseline: orders as lines of JSON, files as a plain stream: nothing it could wait for.

Image files grow while CRIU writes them; ``Copier.poll`` sends what is there. Pages are only appended to, so they go while they grow;
everything else goes at the end.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from emulab.errors import EmulabError

PORT = 7990
PAGES_PORT = 7991
FILES_PORT = 7992
_CHUNK = 1 << 20


class BaselineError(EmulabError):
    pass


class Line:
    """A conversation of JSON lines over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._file = connection.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None once the other side has gone."""
        try:
            line = self._file.readline()
        except ConnectionError:
            return None
        return dict(json.loads(line)) if line else None

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send an order and wait for its answer. Raises BaselineError if the other side could not do it."""
        self.send(message)
        answer = self.receive()
        if answer is None:
            raise BaselineError(f"the receiver ended during {message['do']!r}")
        if "error" in answer:
            raise BaselineError(f"the receiver could not do {message['do']!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Copier:
    """Sends a folder's files over a connection of its own, optionally through ``zstd -1``."""

    def __init__(self, address: str, folder: Path, codec: str) -> None:
        self._folder = folder
        self._socket = socket.create_connection((address, FILES_PORT))
        self._zstd: subprocess.Popen[bytes] | None = None
        self._out: IO[bytes] = cast("IO[bytes]", self._socket.makefile("wb", buffering=0))
        if codec == "zstd":
            self._zstd = subprocess.Popen(["zstd", "-1", "-q", "-c"], stdin=subprocess.PIPE, stdout=self._socket.fileno())
            assert self._zstd.stdin is not None
            self._out = self._zstd.stdin
        self._sent: dict[str, int] = {}

    def poll(self) -> None:
        """Send what has been appended to files of pages."""
        for path in sorted(self._folder.glob("pages-*.img")):
            self._send(path)

    def finish(self) -> None:
        """Send the rest and close."""
        for path in sorted(self._folder.iterdir()):
            if path.is_file() and not path.is_symlink() and path.suffix != ".log":
                self._send(path)
        self._out.close()
        if self._zstd and self._zstd.wait() != 0:
            raise BaselineError("zstd failed")
        self._socket.shutdown(socket.SHUT_WR)
        self._socket.recv(1)  # the receiver closes once all is written
        self._socket.close()

    def _send(self, path: Path) -> None:
        at = self._sent.get(path.name, 0)
        size = path.stat().st_size
        if size <= at and path.name in self._sent:
            return
        head = json.dumps({"name": path.name, "at": at, "size": size - at}).encode() + b"\n"
        write_all(self._out, head)
        with path.open("rb") as file:
            if self._zstd:
                file.seek(at)
                while at < size:
                    data = file.read(min(_CHUNK, size - at))
                    write_all(self._out, data)
                    at += len(data)
            while at < size:
                at += os.sendfile(self._socket.fileno(), file.fileno(), at, size - at)
        self._sent[path.name] = size


def write_all(out: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[out.write(view) :]


def receive_files(listener: socket.socket, folder: Path, codec: str) -> None:
    """Take one ``Copier``'s files."""
    connection, _ = listener.accept()
    with connection:
        source: IO[bytes] = cast("IO[bytes]", connection.makefile("rb", buffering=_CHUNK))
        zstd: subprocess.Popen[bytes] | None = None
        if codec == "zstd":
            zstd = subprocess.Popen(["zstd", "-d", "-q", "-c"], stdin=connection.fileno(), stdout=subprocess.PIPE, bufsize=_CHUNK)
            assert zstd.stdout is not None
            source = zstd.stdout
        while head := source.readline():
            fields = json.loads(head)
            _write(source, folder / Path(fields["name"]).name, int(fields["at"]), int(fields["size"]))
        if zstd and zstd.wait() != 0:
            raise BaselineError("zstd -d failed")


def _write(source: IO[bytes], path: Path, at: int, size: int) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(at)
        while size:
            data = source.read(min(_CHUNK, size))
            if not data:
                raise BaselineError(f"the copy of {path.name} broke off")
            file.write(data)
            size -= len(data)


def send_tree(address: str, folder: Path, newer_than: str = "") -> None:
    """A folder as a tar stream, with device nodes and attributes: the writable layer. ``newer_than``: a date; only what changed since."""
    since = (f"--newer={newer_than}",) if newer_than else ()
    with socket.create_connection((address, FILES_PORT)) as connection:
        run(("tar", "-C", str(folder), "--xattrs", "--xattrs-include=*", *since, "-cf", "-", "."), stdout=connection.fileno())
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


def receive_tree(listener: socket.socket, folder: Path) -> None:
    connection, _ = listener.accept()
    with connection:
        run(("tar", "-C", str(folder), "--xattrs", "--xattrs-include=*", "-xf", "-"), stdin=connection.fileno())


def run(argv: Sequence[str], *, stdin: int | None = None, stdout: int | None = None) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=stdout, stderr=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):  # tar's 1: a file changed while it was read
        raise BaselineError(f"`{' '.join(argv[:2])} …` failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
