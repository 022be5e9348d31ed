"""The stream of a command in a node, against an engine that answers in one piece, in many, or in two."""

from __future__ import annotations

import json
import socket
import struct
import threading
from pathlib import Path

import docker
import pytest

from emulab.engine.channel import ExecStream

HEAD = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


def frame(kind: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", kind, len(data)) + data


class Engine:
    """Answers the three requests that an ExecStream makes; what follows the head of the second is sent as ``pieces`` say."""

    def __init__(self, path: Path, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            while line := reader.readline():
                size = 0
                while (header := reader.readline().strip().lower()) != b"":
                    if header.startswith(b"content-length:"):
                        size = int(header.split(b":")[1])
                reader.read(size)
                if b"/start" in line:
                    for piece in self._pieces:
                        connection.sendall(piece)
                    return
                told = {"ExitCode": 0, "Running": False, "Pid": 0} if b"/json" in line else {"Id": "1"}
                answer = json.dumps(told).encode()
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
                )

    def close(self) -> None:
        self._listener.close()


OUTPUT = frame(1, b"one ") + frame(2, b"oh") + frame(1, b"two" * 5000)


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + OUTPUT],  # a client that was slow to look finds all of it at once
        [HEAD, OUTPUT],
        [HEAD + OUTPUT[:3], OUTPUT[3:]],
        [bytes((byte,)) for byte in HEAD + OUTPUT],
    ],
    ids=["at once", "head first", "a part with the head", "byte by byte"],
)
def test_no_output_is_lost_however_it_arrives(tmp_path: Path, pieces: list[bytes]):
    engine = Engine(tmp_path / "engine.sock", pieces)
    client = docker.DockerClient(base_url=f"unix://{tmp_path}/engine.sock", version="1.41")
    try:
        with ExecStream(client, "node", ("true",)) as stream:
            assert stream.read_all() == b"one " + b"two" * 5000
            assert stream.stderr == "oh"
            assert stream.wait() == 0
    finally:
        client.close()
        engine.close()
