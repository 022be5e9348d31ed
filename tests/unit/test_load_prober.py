import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from emulab.load import records
from emulab.load.prober import Prober

sys.path.insert(0, str(Path(__file__).parents[1]))
from load_site import serve


def probe(port, folder, *, seconds, interval_s=0.01, path="/probe.txt", timeout_s=60.0):
    prober = Prober("127.0.0.1", port, path, interval_s=interval_s, duration_s=seconds, out=folder / "probes.csv", timeout_s=timeout_s)
    prober.run()
    return prober, records.read_probes(folder)


def longest_gap_s(table):
    return table.done_s.dropna().sort_values().diff().max()


class Raw:
    """A server that answers ``count`` probes on each connection and then does what it is told."""

    def __init__(self, then, *, count=20):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connections = 0
        self.requests = 0
        threading.Thread(target=self._serve, args=(then, count), daemon=True).start()

    def _serve(self, then, count):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError):
                self._answer(connection, then, count)

    def _answer(self, connection, then, count):
        pending = b""
        while count:
            pending += connection.recv(4096)
            while b"\r\n\r\n" in pending and count:
                pending = pending.split(b"\r\n\r\n", 1)[1]
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
                self.requests += 1
                count -= 1
        then(connection)


def reset(connection):
    time.sleep(0.03)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
def site():
    with serve() as running:
        yield running


def test_probes_keep_their_timetable_on_one_connection(site, tmp_path):
    prober, table = probe(site.port, tmp_path, seconds=0.5)
    assert len(table) == prober.sent == 50
    assert table.done_s.notna().all()
    assert table.error.isna().all()
    assert table.intended_s.diff().dropna().tolist() == pytest.approx([0.01] * 49, abs=2e-6)
    assert (table.sent_s >= table.intended_s).all()
    assert (table.done_s > table.sent_s).all()
    assert site.connections == 1


def test_a_pause_of_the_server_is_seen_as_a_gap_while_probes_go_on(site, tmp_path):
    threading.Timer(0.3, site.pause, (0.5,)).start()
    prober, table = probe(site.port, tmp_path, seconds=1.3)
    assert len(table) == 130
    assert prober.lost == 0
    assert 0.4 < longest_gap_s(table) < 1.0
    assert prober.longest_gap_s == pytest.approx(longest_gap_s(table), abs=1e-5)
    # Sent on time all the same: the prober does not wait for answers.
    waited = table.done_s - table.sent_s
    assert waited.max() > 0.3
    assert (table.sent_s - table.intended_s)[waited > 0.1].median() < 0.1
    assert site.connections == 1


def test_probes_on_a_connection_that_breaks_are_lost_and_a_new_one_is_opened(tmp_path):
    server = Raw(reset)
    prober, table = probe(server.port, tmp_path, seconds=1.0)
    server.listener.close()
    assert server.connections > 1
    assert prober.lost == table.done_s.isna().sum() > 0
    assert set(table.error.dropna()) <= {"ECONNRESET", "EPIPE", "closed by the server", "not connected", "unanswered"}
    assert table.done_s.notna().sum() == server.requests
    assert table.n.tolist() == list(range(100))


def test_without_a_server_every_probe_is_lost(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        prober, table = probe(unused.getsockname()[1], tmp_path, seconds=0.3)
    assert prober.lost == len(table) == 30
    assert set(table.error) == {"ECONNREFUSED", "not connected"}


def test_a_silent_connection_is_given_up(tmp_path):
    server = Raw(lambda _: time.sleep(0.8), count=5)
    prober, table = probe(server.port, tmp_path, seconds=0.6, timeout_s=0.2)
    server.listener.close()
    assert "timeout" in set(table.error)
    assert prober.lost == table.done_s.isna().sum()


def test_an_answer_with_an_error_is_an_answer(site, tmp_path):
    _, table = probe(site.port, tmp_path, seconds=0.1, path="/nothing")
    assert set(table.error) == {"status 404"}
    assert table.done_s.notna().all()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_on_a_signal_with_everything_written(site, tmp_path, number):
    out = tmp_path / "probes.csv"
    argv = [sys.executable, "-m", "emulab.load.prober", "--target", f"127.0.0.1:{site.port}", "--interval", "0.01", "--out", str(out)]
    child = subprocess.Popen(argv)
    try:
        deadline = time.monotonic() + 10
        while len(site.requests) < 30 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(number)
        assert child.wait(5) == 0
    finally:
        child.kill()
    table = records.read_probes(tmp_path)
    summary = json.loads((tmp_path / "probes.json").read_text())
    assert len(table) == summary["sent"] == len(site.requests) >= 30
    assert summary["lost"] == 0


def test_ends_by_itself_after_its_duration(site, tmp_path):
    out = tmp_path / "probes.csv"
    argv = [sys.executable, "-m", "emulab.load.prober", "--target", f"127.0.0.1:{site.port}", "--duration", "0.2", "--out", str(out)]
    assert subprocess.run(argv, timeout=10, check=False).returncode == 0
    assert len(records.read_probes(tmp_path)) == 20


def test_a_bad_target_is_told(tmp_path, capfd):
    argv = [sys.executable, "-m", "emulab.load.prober", "--target", "127.0.0.1:x", "--out", str(tmp_path / "probes.csv")]
    assert subprocess.run(argv, timeout=10, check=False).returncode == 1
    assert "prober:" in capfd.readouterr().err
