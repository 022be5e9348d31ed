"""CRIU's action script and the agent that answers it: the real C program on a real socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

import emulab.criu
from emulab.criu.hooks import HookServer

HOOK_SOURCE = Path(emulab.criu.__file__).parent / "native" / "hook.c"


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    """Runs the compiled hook for a stage; returns its exit code."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("hook") / "hook"
    subprocess.run((compiler, "-Wall", "-Werror", "-o", str(program), str(HOOK_SOURCE)), check=True)

    def run(path, stage="post-dump", pid="42"):
        env = {"EMULAB_HOOK_SOCKET": str(path), "CRTOOLS_SCRIPT_ACTION": stage, "CRTOOLS_INIT_PID": pid}
        return subprocess.run((str(program),), env={key: value for key, value in env.items() if value}, timeout=20, check=False).returncode

    return run


@pytest.fixture
def server(tmp_path):
    with HookServer(tmp_path / "hook.sock") as server:
        yield server


def ask(server, text):
    """What the server answers to these bytes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(server.path))
        client.sendall(text)
        return client.recv(10)


def test_yes_lets_criu_go_on(hook, server):
    server.on("post-dump", lambda pid: True)
    assert hook(server.path) == 0


def test_no_stops_criu(hook, server):
    server.on("post-dump", lambda pid: False)
    assert hook(server.path) == 1


def test_nobody_listening_stops_criu(hook, tmp_path):
    assert hook(tmp_path / "nobody.sock") == 1
    assert hook("") == 1


def test_an_agent_that_dies_without_an_answer_stops_criu(hook, tmp_path):
    path = tmp_path / "dying.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def die():
            connection, _ = listener.accept()
            connection.recv(256)
            connection.close()

        thread = threading.Thread(target=die)
        thread.start()
        assert hook(path) == 1
        thread.join()


def test_the_stage_gets_the_pid_of_the_guests_first_process(hook, server):
    seen = []
    server.on("setup-namespaces", lambda pid: seen.append(pid) is None)
    assert hook(server.path, "setup-namespaces", "4711") == 0
    assert seen == [4711]


def test_without_a_pid_it_is_zero(hook, server):
    seen = []
    server.on("pre-dump", lambda pid: seen.append(pid) is None)
    assert hook(server.path, "pre-dump", "") == 0
    assert seen == [0]


def test_stages_that_nobody_asked_for_are_let_through(hook, server):
    assert hook(server.path, "network-unlock") == 0


def test_the_hook_waits_for_the_verdict(hook, server):
    decided, asked = threading.Event(), threading.Event()
    server.on("post-dump", lambda pid: asked.set() is None and decided.wait(20))
    codes = []
    caller = threading.Thread(target=lambda: codes.append(hook(server.path)))
    caller.start()
    assert asked.wait(10)
    assert codes == []
    decided.set()
    caller.join()
    assert codes == [0]


def test_a_verdict_that_fails_is_a_refusal(server):
    server.on("post-restore", lambda pid: 1 // 0)
    assert ask(server, b"post-restore 1\n") == b"1"


@pytest.mark.parametrize("garbage", [b"\n", b"post-dump\n", b"post-dump one\n", b"\xff\xfe 1\n"])
def test_garbage_gets_no_answer_and_does_no_harm(server, garbage):
    assert ask(server, garbage) == b""
    assert ask(server, b"post-dump 1\n") == b"0"


def test_the_first_time_of_each_stage_is_kept(server):
    ask(server, b"post-dump 1\n")
    first = dict(server.times)
    ask(server, b"post-dump 1\n")
    ask(server, b"pre-resume 1\n")
    assert server.times["post-dump"] == first["post-dump"]
    assert server.times["pre-resume"] > first["post-dump"]


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_server(tmp_path):
    path = tmp_path / "hook.sock"
    with HookServer(path):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_a_socket_left_by_a_dead_agent_is_replaced(tmp_path, hook):
    path = tmp_path / "hook.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with HookServer(path):
        assert hook(path) == 0
