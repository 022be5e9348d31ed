"""A connection in repair mode, as a killed CRIU leaves it, works again."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest

from emulab.migration.repair import end_repair

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

TCP_REPAIR = 19
# Holds one end of a connection, which it inherits, and writes to it when it is told to; says what came of it.
HOLDER = """
import socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
for line in sys.stdin:
    try:
        connection.sendall(line.encode())
        print("sent", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


def test_what_the_owner_writes_arrives_again():
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname(), timeout=10)
    held, _ = server.accept()
    process = subprocess.Popen(
        (sys.executable, "-c", HOLDER, str(held.fileno())),
        pass_fds=(held.fileno(),),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def write(text):
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    try:
        assert write("before") == "sent"
        held.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        assert write("lost") == str(errno.EINVAL)
        assert end_repair([process.pid, process.pid]) == 1
        assert end_repair([process.pid]) == 0
        assert write("after") == "sent"
        with client.makefile("rb") as stream:
            assert [stream.readline(), stream.readline()] == [b"before\n", b"after\n"]
    finally:
        process.kill()
        process.wait()
        for one in (server, client, held):
            one.close()


def test_a_task_that_has_ended_is_none():
    process = subprocess.Popen(("true",))
    process.wait()
    assert end_repair([process.pid]) == 0
