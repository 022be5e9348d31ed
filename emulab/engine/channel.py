"""Byte streams and commands in a node, over ``docker exec``: nothing listens on the user's network."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import struct
import tarfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

from docker.errors import DockerException

from emulab import clock
from emulab.command import Command, CommandError, Outcome
from emulab.errors import EngineError

if TYPE_CHECKING:
    from docker import DockerClient

_FRAME = struct.Struct(">BxxxI")  # stream number (1 stdout, 2 stderr), three unused bytes, length: Engine API, "attach"
_STDERR = 2
_KEEP_STDERR = 16384


class ExecStream:
    """A running command in a container: write to its stdin, read its stdout; the end of its stderr is kept for error messages.

    One thread may write while another reads.
    """

    def __init__(self, client: DockerClient, container: str, argv: Sequence[str]) -> None:
        self.argv = tuple(argv)
        self._api = cast("Any", client.api)
        try:
            self._id: str = self._api.exec_create(container, list(argv), stdin=True)["Id"]
            self._raw = self._api.exec_start(self._id, socket=True)
        except DockerException as error:
            reason = getattr(error, "explanation", None) or error
            raise EngineError(
                f"cannot run a command in {container[:12]}: {reason}", hint="is the node still running? emulab status"
            ) from error
        self._socket: socket.socket = getattr(self._raw, "_sock", self._raw)
        self._early = _came_with_the_head(self._raw, self._socket)
        self._socket.settimeout(None)
        self._buffer = bytearray()
        self._frame_left = 0
        self._frame_kind = 0
        self._ended = False
        self._stderr = bytearray()

    def write(self, data: bytes) -> None:
        """Send all of it. Raises EngineError if the command is gone."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise EngineError(f"`{shlex.join(self.argv)}` in a node ended early: {self.stderr or error}") from error

    def close_stdin(self) -> None:
        """The command sees the end of its standard input; reading goes on."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def read(self, size: int = 65536) -> bytes:
        """Up to ``size`` bytes of stdout as soon as there are any; b"" at the end."""
        while not self._buffer and not self._ended:
            self._receive()
        part = bytes(self._buffer[:size])
        del self._buffer[:size]
        return part

    def read_all(self) -> bytes:
        parts = bytearray()
        while part := self.read(1 << 20):
            parts += part
        return bytes(parts)

    @property
    def stderr(self) -> str:
        """The last of what the command wrote to stderr and was received so far."""
        return self._stderr.decode(errors="replace").strip()

    def is_quiet(self) -> bool:
        """Whether the command goes on and nothing of it waits to be read."""
        if self._ended or self._buffer or self._early or self._frame_left:
            return False
        try:
            return not select.select((self._socket,), (), (), 0)[0]
        except (OSError, ValueError):
            return False

    def exit_code(self) -> int | None:
        """Exit code, or None while it runs."""
        code = self._api.exec_inspect(self._id)["ExitCode"]
        return None if code is None else int(code)

    def wait(self) -> int:
        """Read to the end and return the exit code; the engine knows it a moment after the stream has ended."""
        while self.read(1 << 20):
            pass
        deadline = clock.now() + 5
        while (code := self.exit_code()) is None and clock.now() < deadline:
            threading.Event().wait(0.01)
        return -1 if code is None else code

    def kill(self) -> None:
        """End the command: the engine cannot, but it tells its process number on this machine."""
        with suppress(DockerException, OSError):
            details = self._api.exec_inspect(self._id)
            if details["Running"] and details["Pid"]:
                os.kill(int(details["Pid"]), signal.SIGKILL)

    def close(self) -> None:
        self._ended = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        # The answer that carries the socket goes first: it would flush what is closed otherwise, and complain at its end (Python 3.13).
        for part in (getattr(self._raw, "_response", None), self._raw, self._socket):
            if part is not None:
                with suppress(OSError, ValueError):
                    part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> None:
        """Take one piece off the wire: a frame's head, or some of its content."""
        if not self._frame_left:
            head = bytearray()
            while len(head) < _FRAME.size:
                piece = self._receive_bytes(_FRAME.size - len(head))
                if not piece:
                    return
                head += piece
            self._frame_kind, self._frame_left = _FRAME.unpack(bytes(head))
            return
        piece = self._receive_bytes(min(self._frame_left, 1 << 18))
        self._frame_left -= len(piece)
        if self._frame_kind == _STDERR:
            self._stderr += piece
            del self._stderr[:-_KEEP_STDERR]
        else:
            self._buffer += piece

    def _receive_bytes(self, size: int) -> bytes:
        if self._early:
            piece, self._early = self._early[:size], self._early[size:]
            return piece
        try:
            piece = self._socket.recv(size)
        except OSError:
            piece = b""
        if not piece:
            self._ended = True
            self._frame_left = 0
        return piece


def _came_with_the_head(raw: Any, sock: socket.socket) -> bytes:
    """Output that arrived together with the head of the engine's answer is in the buffer of the reader of heads, and nowhere else."""
    try:
        reader = raw._response.raw._fp.fp  # noqa: SLF001 - docker-py hands over the socket below this buffer
    except AttributeError:  # not over HTTP on a socket of the system
        return b""
    sock.setblocking(False)  # an empty buffer must not wait for more
    return bytes(reader.peek())


def run(client: DockerClient, container: str, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 60.0) -> Outcome:
    """Run a command in a container to its end. Never raises for a failed command: code 124 = timed out (and killed)."""
    command = Command(tuple(argv), timeout_s=timeout_s, stdin=stdin)
    start = clock.now()
    late = threading.Event()
    with ExecStream(client, container, argv) as stream:

        def stop() -> None:
            late.set()
            stream.kill()
            stream.close()

        timer = threading.Timer(timeout_s, stop)
        timer.daemon = True
        timer.start()
        feeder = threading.Thread(target=_feed, args=(stream, stdin or b""), daemon=True)
        feeder.start()
        try:
            out = stream.read_all()
            code = 124 if late.is_set() else stream.wait()
        finally:
            timer.cancel()
        errors = stream.stderr + (f"\ntimed out after {timeout_s} s" if late.is_set() else "")
    return Outcome(command, code, out.decode(errors="replace"), errors, start, clock.now())


def _feed(stream: ExecStream, data: bytes) -> None:
    with suppress(EngineError):
        if data:
            stream.write(data)
    stream.close_stdin()


def put_bytes(client: DockerClient, container: str, path: str, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file in a container, whole or not at all (the engine's own copy does not see tmpfs mounts). Raises CommandError."""
    part = f"{path}.part"
    script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$3" "$1" && mv "$1" "$2"'
    outcome = run(client, container, ("sh", "-c", script, "put", part, path, f"{mode:o}"), stdin=data, timeout_s=600)
    if not outcome.ok:
        raise CommandError(outcome)


def copy_from(client: DockerClient, container: str, path: str, destination: Path) -> list[Path]:
    """Copy a file or a folder out of a container, into the folder ``destination``. Returns the files written.

    Only plain files and folders are taken, and nothing is written outside ``destination``: the content of a node is not trusted.
    """
    source = PurePosixPath(path)
    argv = ("tar", "-C", str(source.parent), "-cf", "-", "--", source.name)
    written: list[Path] = []
    with ExecStream(client, container, argv) as stream:
        reader = cast("BinaryIO", _Reader(stream))
        try:
            with tarfile.open(fileobj=reader, mode="r|") as archive:
                for member in archive:
                    target = (destination / member.name).resolve()
                    if not target.is_relative_to(destination.resolve()):
                        raise EngineError(f"the copy of {path} names a file outside the folder: {member.name}")
                    if member.isdir():
                        target.mkdir(parents=True, exist_ok=True)
                    elif member.isfile() and (content := archive.extractfile(member)):
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with target.open("wb") as out:
                            while block := content.read(1 << 20):
                                out.write(block)
                        written.append(target)
        except tarfile.TarError as error:
            raise EngineError(f"cannot copy {path} from a node: {_first_line(stream.stderr) or error}") from error
        if stream.wait() not in {0, 1}:  # 1: a file changed while it was read, as logs do
            raise EngineError(f"cannot copy {path} from a node: {_first_line(stream.stderr)}")
    return written


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


class _Reader:
    """A stream as tarfile wants it."""

    def __init__(self, stream: ExecStream) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size and (part := self._stream.read(size - len(parts))):
            parts += part
        return bytes(parts)
