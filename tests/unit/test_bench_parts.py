"""Node-side parts of the bench on real sockets, files and processes; no root."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from emulab.bench import stock, wire
from emulab.bench.clients import paths
from emulab.bench.watch import Look

sys.path.insert(0, str(Path(__file__).parents[1]))
from waiting import wait_until


@pytest.fixture(params=["v1", "v2"])
def guest(tmp_path, request):
    """A real process in what looks like a guest's cgroup."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    two = request.param == "v2"
    group = tmp_path / "guest-g" if two else tmp_path / "freezer" / "guest-g"
    group.mkdir(parents=True)
    if two:
        (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (group / "cgroup.procs").write_text(f"{process.pid}\n")

    def freeze(frozen):
        if two:
            (group / "cgroup.events").write_text(f"populated 1\nfrozen {int(frozen)}\n")
        else:
            (group / "freezer.state").write_text("FROZEN\n" if frozen else "THAWED\n")

    freeze(frozen=False)
    yield process, freeze, Look("g", root=tmp_path)
    process.kill()
    process.wait()


def test_a_guest_is_stopped_when_its_cgroup_is_frozen_or_all_its_tasks_are_held(guest):
    process, freeze, look = guest
    wait_until(lambda: look.state() == "runs", timeout_s=5.0)
    freeze(frozen=True)
    assert look.state() == "stopped"
    freeze(frozen=False)
    assert look.state() == "runs"
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: look.state() == "stopped", timeout_s=5.0)
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: look.state() == "runs", timeout_s=5.0)


def test_one_task_of_many_that_runs_again_is_noticed(guest, tmp_path):
    process, _, look = guest
    others = [subprocess.Popen(("sleep", "60")) for _ in range(6)]
    try:
        with next(tmp_path.rglob("cgroup.procs")).open("a") as tasks:
            tasks.writelines(f"{other.pid}\n" for other in others)
        for one in (process, *others):
            os.kill(one.pid, signal.SIGSTOP)
        wait_until(lambda: look.state() == "stopped", timeout_s=5.0)
        for one in (others[3], process):
            os.kill(one.pid, signal.SIGCONT)
            wait_until(lambda: look.state() == "runs", timeout_s=5.0)
            os.kill(one.pid, signal.SIGSTOP)
            wait_until(lambda: look.state() == "stopped", timeout_s=5.0)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert look.state() == "stopped"  # the first is there still
    process.kill()
    process.wait()
    assert look.state() == "absent"


def test_a_guest_without_tasks_is_absent(guest, tmp_path):
    process, _, look = guest
    process.kill()
    process.wait()
    assert look.state() == "absent"
    assert Look("nobody", root=tmp_path).state() == "absent"


@pytest.fixture
def files_port(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(wire, "FILES_PORT", listener.getsockname()[1])
        yield listener


@pytest.mark.parametrize("codec", ["plain", "zstd"])
def test_images_are_copied_while_they_grow(tmp_path, files_port, codec):
    if codec == "zstd" and subprocess.run(["which", "zstd"], capture_output=True, check=False).returncode:
        pytest.skip("no zstd program here")
    out, into = tmp_path / "out", tmp_path / "in"
    out.mkdir()
    into.mkdir()
    receiving = threading.Thread(target=wire.receive_files, args=(files_port, into, codec))
    receiving.start()
    pages = out / "pages-1.img"
    pages.write_bytes(os.urandom(300_000))
    copier = wire.Copier("127.0.0.1", out, codec)
    copier.poll()
    with pages.open("ab") as file:
        file.write(os.urandom(2_000_000))
    (out / "core-1.img").write_bytes(b"core")
    (out / "empty.img").write_bytes(b"")
    (out / "dump.log").write_bytes(b"not wanted")
    copier.finish()
    receiving.join(10)
    assert {path.name: path.read_bytes() for path in into.iterdir()} == {
        "pages-1.img": pages.read_bytes(),
        "core-1.img": b"core",
        "empty.img": b"",
    }


def test_the_writable_layer_travels_whole_and_then_what_changed_since(tmp_path, files_port):
    out, into = tmp_path / "out", tmp_path / "in"
    (out / "var").mkdir(parents=True)
    into.mkdir()
    (out / "var" / "old").write_text("old")
    os.utime(out / "var" / "old", (1, 1))

    def transfer(newer=""):
        receiving = threading.Thread(target=wire.receive_tree, args=(files_port, into))
        receiving.start()
        wire.send_tree("127.0.0.1", out, newer)
        receiving.join(10)

    transfer()
    assert (into / "var" / "old").read_text() == "old"
    (out / "var" / "new").write_text("new")
    transfer(f"@{time.time() - 1:.3f}")
    assert (into / "var" / "new").read_text() == "new"


def test_orders_are_answered_and_failures_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = wire.Line(socket.create_connection(server.getsockname()))
        theirs, _ = server.accept()
    theirs.sendall(b'{"done": 1}\n{"error": "no room"}\n')
    assert line.ask(do="this") == {"done": 1}
    with pytest.raises(wire.BaselineError, match="could not do 'that': no room"):
        line.ask(do="that")
    theirs.close()
    assert line.receive() is None
    line.close()


def test_the_baselines_switch_every_speed_up_of_the_shim_off():
    assert stock.environment()["PATH"]
    assert "LD_PRELOAD" not in stock.environment(hook_socket="/run/hooks.sock")
    assert stock.environment(stand_in=True)["EMULAB_SHIM_STOCK"] == "1"


def test_the_same_pages_are_asked_for_in_every_run():
    assert paths(100, 50, 20) == paths(100, 50, 20)
    assert all(path.startswith("/") for path in paths(100, 50, 20))


class _Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Set-Cookie", "PHPSESSID=abc; path=/")
        self.end_headers()
        self.wfile.write(b"5\r\nhello\r\n0\r\n\r\n")
        self.server.cookies.append(self.headers.get("Cookie"))

    def log_message(self, *args):
        pass


def test_clients_keep_their_connection_and_their_session(monkeypatch):
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    site.cookies = []
    threading.Thread(target=site.serve_forever, daemon=True).start()
    program = (
        "import asyncio, sys; from emulab.bench import clients;"
        "real = asyncio.open_connection;"
        f"asyncio.open_connection = lambda host, port, **more: real(host, {site.server_port}, **more);"
        "sys.exit(clients.main(['closed', '127.0.0.1', '--clients', '2']))"
    )
    client = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdout.readline() == b"started\n"
    wait_until(lambda: len(site.cookies) > 20, timeout_s=5.0)
    client.stdin.close()
    result = json.loads(client.stdout.readline())
    client.wait(5)
    client.stdout.close()
    site.shutdown()
    site.server_close()
    assert result["errors"] == {}
    assert result["done"] == len(result["rows"]) > 10
    assert site.cookies.count(None) == 2
