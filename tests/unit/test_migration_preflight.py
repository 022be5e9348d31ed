"""What cannot move is named before anything happens; what CRIU can save is not refused."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys

import pytest

from emulab.command import Runner
from emulab.migration.preflight import unmovable, unmovable_mappings
from emulab.migration.watched import find_paths, open_files, parse_watches

MAPS = b"""\
55d0c8a00000-55d0c8a01000 r--p 00000000 00:2c 123 /usr/bin/python3.13
7f0000000000-7f0000001000 rw-s 00000000 00:0f 9 anon_inode:[io_uring]
7f0000002000-7f0000003000 rw-s 00000000 00:06 9 /dev/dri/card0
7f0000004000-7f0000005000 rw-s 00000000 00:01 9 /dev/zero (deleted)
7f0000006000-7f0000007000 rw-s 00000000 00:34 9 /dev/shm/pool
7f0000008000-7f0000009000 rw-s 00000000 00:10 9 /[aio] (deleted)
7f000000a000-7f000000b000 rw-s 00000000 00:01 9 /SYSV00000000 (deleted)
7f000000c000-7f000000d000 rw-s 00000000 00:11 9 /secretmem (deleted)
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
"""

HOLDING = """
import os, sys, time, socket, ctypes
libc = ctypes.CDLL(None)
{code}
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def reasons():
    """Runs a program and tells what is in its way, with its process number cut off."""
    started = []

    def reasons(code):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDING.format(code=code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, check=False).stdout.split()
        return [reason.split(") ", 1)[1] for reason in unmovable(process.pid, [process.pid, *map(int, children)], Runner())]

    yield reasons
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_an_ordinary_process_can_move(reasons):
    assert (
        reasons("""
m = os.memfd_create("m"); r, w = os.pipe(); e = os.eventfd(0); a, b = socket.socketpair(); u = socket.socket(type=socket.SOCK_DGRAM)
listening = socket.create_server(("127.0.0.1", 0)); null = open("/dev/null"); libc.inotify_init1(0); pid = os.pidfd_open(os.getpid())
""")
        == []
    )


def test_a_memfd_of_huge_pages_is_named(reasons):
    (reason,) = reasons("import os; m = os.memfd_create('m', os.MFD_HUGETLB)")
    assert "holds a memfd of huge pages (descriptor " in reason


def test_a_pipe_in_packet_mode_is_named_once_though_a_child_has_it_too(reasons):
    found = reasons("r, w = os.pipe2(os.O_DIRECT)\nif os.fork() == 0:\n    time.sleep(100)")
    assert {reason.split(" (")[0] for reason in found} == {"holds a pipe in packet mode"}


def test_a_process_that_lives_on_in_threads_is_named(reasons):
    code = """
import threading
def last():
    time.sleep(0.2)
    print("ready", flush=True)
    time.sleep(100)
threading.Thread(target=last).start()
libc.syscall(60, 0)
"""
    assert reasons(code) == ["goes on in threads though its main thread has ended"]


def test_a_traced_process_is_named(reasons):
    code = "child = os.fork()\nif child == 0:\n    time.sleep(100)\nlibc.ptrace(0x4206, child, 0, 0)"
    (reason,) = reasons(code)
    assert reason.startswith("is traced by process ")


def test_a_socket_of_a_family_that_criu_does_not_know_is_named(reasons):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError:
        pytest.skip("this kernel has no MPTCP")
    assert reasons("s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)") == ["holds an MPTCP socket"]


def test_a_task_that_is_no_descendant_of_the_first_is_named():
    ours, other = os.getpid(), os.getppid()
    assert any(f"process {other} " in reason and "entered from outside" in reason for reason in unmovable(ours, [ours, other], Runner()))


def test_mappings_of_devices_and_rings_are_named_and_no_others():
    assert unmovable_mappings(MAPS) == ["has secret memory mapped", "has the device /dev/dri/card0 mapped", "has io_uring mapped"]


def test_watched_files_are_found_by_their_inodes(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    libc = ctypes.CDLL(None)
    queue = libc.inotify_init1(0)
    try:
        for path in ("a/b", "a/b/file", "a"):
            libc.inotify_add_watch(queue, os.fsencode(tmp_path / path), 0x100)
        assert (str(queue), "anon_inode:inotify") in open_files(os.getpid())
        with open(f"/proc/self/fdinfo/{queue}") as file:
            wanted = parse_watches(file.read())
    finally:
        os.close(queue)
    assert len(wanted) == 3
    (tmp_path / "a" / "other").touch()
    assert dict(find_paths(str(tmp_path), wanted)) == {"/a": True, "/a/b": True, "/a/b/file": False}
    (tmp_path / "a" / "b" / "file").unlink()
    assert dict(find_paths(str(tmp_path), wanted)) == {"/a": True, "/a/b": True}
