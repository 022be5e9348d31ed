"""The load generator end to end, against a small real server on this machine's loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pandas as pd
import psutil
import pytest

from emulab.load import records

sys.path.insert(0, str(Path(__file__).parents[1]))
from load_site import serve

pytestmark = [pytest.mark.node, pytest.mark.timeout(120)]


@pytest.fixture
def site():
    with serve() as running:
        yield running


class Generator:
    """``python -m emulab.load.run`` as a child of the test."""

    def __init__(self, folder, site, *extra, **changes):
        self.out = folder / "out"
        path = folder / "load.json"
        document = {
            "target": {"host": "127.0.0.1", "port": site.port}, "users": 20, "ramp_up_s": 2, "steady_s": 4, "ramp_down_s": 1, "mean_s": 1,
            "cap_s": 5, "drivers": 2, "seed": 3, "tags": 50, "events": 100, "registered_users": 2000, "stop_limit_s": 3,
        }  # fmt: skip
        path.write_text(json.dumps({**document, **changes}))
        self.config = {**document, **changes}
        argv = (sys.executable, "-m", "emulab.load.run", "--config", str(path), "--out", str(self.out), *extra)
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.events = []

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def until(self, name, kind="begin"):
        """Read events up to one."""
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if (self.events[-1]["name"], self.events[-1].get("kind")) == (name, kind):
                return self.events[-1]
        raise AssertionError(f"no {name} {kind}; {self.process.stderr.read()}")

    def end(self):
        """Read everything up to the end. Returns the exit code and errors."""
        self.events += [json.loads(line) for line in self.process.stdout]
        errors = self.process.stderr.read()
        return self.process.wait(10), errors

    def totals(self):
        return json.loads((self.out / "load.json").read_text())


@pytest.fixture
def generate(tmp_path, site):
    made = []

    def start(*extra, **changes):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Generator(folder, site, *extra, **changes))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=5)
    return not alive


def test_a_run_from_begin_to_end(site, generate):
    run = generate()
    run.until("load.ramp_up")
    children = run.children()
    assert len(children) == 3  # two drivers and the prober
    code, errors = run.end()
    assert (code, errors) == (0, "")
    assert gone(children)

    assert (run.events[0]["name"], run.events[0]["pid"]) == ("load.process", run.process.pid)
    phases = [(event["name"], event["kind"], event["mono_s"]) for event in run.events[1:] if event["name"] != "load.progress"]
    begin = phases[0][2]
    assert [(name, kind, round(instant - begin, 6)) for name, kind, instant in phases] == [
        ("load.ramp_up", "begin", 0), ("load.ramp_up", "end", 2), ("load.steady", "begin", 2), ("load.steady", "end", 6),
        ("load.ramp_down", "begin", 6), ("load.ramp_down", "end", 7),
    ]  # fmt: skip
    progress = [event for event in run.events if event["name"] == "load.progress"]
    assert len(progress) >= 6
    assert progress[-1]["users"] == 20
    assert {"ops", "errors", "ops_per_s", "p90_s", "mono_s", "wall"} <= set(progress[-1])

    operations, requests, probes = (read(run.out) for read in (records.read_operations, records.read_requests, records.read_probes))
    assert (operations.outcome == "ok").all()
    assert sorted(operations.user.unique()) == list(range(20))
    assert (operations.user % 2 == operations.worker).all()
    first = operations.groupby("user").first()
    assert (first.operation == "HomePage").all()
    assert (first.intended_s - begin).tolist() == pytest.approx([2 * user / 20 for user in range(20)], abs=1e-5)
    assert (operations.start_s >= operations.intended_s - 1e-6).all()
    assert operations.intended_s.max() < begin + 7
    # The next operation is due one cycle after the last one's start.
    for _, mine in operations.sort_values("seq").groupby("user"):
        assert mine.seq.tolist() == list(range(len(mine)))
        due = (mine.start_s + mine.cycle_s).tolist()[:-1]
        assert mine.intended_s.tolist()[1:] == pytest.approx(due, abs=5e-6)

    # Every request belongs to one operation, lies within it, and the server has seen all of them.
    assert len(requests) == operations.requests.sum()
    joined = requests.merge(operations, left_on=["user", "op_seq"], right_on=["user", "seq"], suffixes=("", "_op"))
    assert len(joined) == len(requests)
    assert (joined.start_s >= joined.start_s_op - 1e-6).all()
    assert (joined.end_s <= joined.end_s_op + 1e-6).all()
    assert requests.groupby(["user", "op_seq"]).bytes.sum().sum() == operations.bytes.sum()
    assert len(requests) + len(probes) == len(site.requests)
    connections = requests.groupby("user").connection.nunique().sum()
    assert (~requests.reused).sum() == connections == site.connections - 1
    assert probes.done_s.notna().all()

    totals = run.totals()
    assert totals["status"] == "complete"
    assert totals["steady"]["begin_s"] == pytest.approx(begin + 2)
    steady = operations[operations.start_s.between(begin + 2, begin + 6, inclusive="left")]
    assert sum(one["ok"] for one in totals["operations"].values()) == len(steady)
    assert totals["totals"]["ok"] == len(operations)
    assert totals["probe"]["sent"] == len(probes)
    assert 0 < totals["driver_cpu_max"] < 1
    assert totals["offered_ops_per_s"] == pytest.approx(20 / 0.994, rel=0.01)
    assert {check["name"] for check in totals["checks"]} >= {"images referenced by a home page"}


def test_one_seed_offers_the_same_operations_with_any_number_of_drivers(generate):
    sequences = []
    for drivers in (1, 3):
        run = generate(drivers=drivers, ramp_up_s=1, steady_s=2, ramp_down_s=0, probe={"interval_s": 0})
        assert run.end() == (0, "")
        assert len(list(run.out.glob("operations-*.csv"))) == drivers
        table = records.read_operations(run.out).sort_values(["user", "seq"])
        sequences.append({user: list(zip(mine.operation, mine.cycle_s, strict=True)) for user, mine in table.groupby("user")})
    one, other = sequences
    assert sorted(one) == sorted(other) == list(range(20))
    for user in range(20):
        both = min(len(one[user]), len(other[user]))
        assert both >= 1
        assert abs(len(one[user]) - len(other[user])) <= 1
        assert one[user][:both] == other[user][:both]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "end of input"])
def test_stops_cleanly_when_told(generate, how):
    run = generate(steady_s=60)
    run.until("load.progress", "event")
    children = run.children()
    told = time.monotonic()
    if how == "end of input":
        run.process.stdin.close()
        run.process.stdin = None
    else:
        run.process.send_signal(getattr(signal, how))
    code, errors = run.end()
    assert time.monotonic() - told < 5
    assert (code, errors) == (0, "")
    assert gone(children)
    assert run.totals()["status"] == "stopped"
    assert records.read_operations(run.out).outcome.isin(["ok", "unfinished"]).all()


def test_stops_cleanly_while_it_still_starts(generate):
    run = generate()
    deadline = time.monotonic() + 20
    while not run.children() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = run.children()
    assert children
    run.process.terminate()
    assert run.end()[0] == 0
    assert gone(children)


def test_no_child_survives_its_kill(generate):
    run = generate(steady_s=60)
    run.until("load.progress", "event")
    run.until("load.progress", "event")
    children = run.children()
    assert len(children) == 3
    run.process.kill()
    assert gone(children)
    # What was flushed before is still readable.
    assert len(records.read_operations(run.out)) > 0


def test_a_driver_that_dies_fails_the_run(generate):
    run = generate(steady_s=60)
    run.until("load.progress", "event")
    children = run.children()
    driver = next(child for child in children if "locust" in " ".join(child.cmdline()))
    driver.kill()
    code, errors = run.end()
    assert code == 1
    assert "ended by itself" in errors
    assert gone(children)


def test_operations_that_hang_at_the_end_are_recorded_as_unfinished(site, generate):
    run = generate(ramp_up_s=1, steady_s=2, ramp_down_s=1, stop_limit_s=1, probe={"interval_s": 0})
    run.until("load.steady")
    time.sleep(0.5)
    site.answering.clear()
    code, errors = run.end()
    assert (code, errors) == (0, "")
    operations = records.read_operations(run.out)
    unfinished = operations[operations.outcome == "unfinished"]
    assert len(unfinished) > 0
    assert unfinished.end_s.isna().all()
    assert run.totals()["totals"]["unfinished"] == len(unfinished)
    # A user whose operation hangs starts no other.
    assert unfinished.user.is_unique


def test_errors_are_recorded_and_the_users_go_on(site, generate):
    run = generate(ramp_up_s=1, steady_s=4, ramp_down_s=0, request_timeout_s=0.3)
    run.until("load.steady")
    site.pause(1.0)
    code, _ = run.end()
    assert code == 0
    operations = records.read_operations(run.out)
    failed = operations[operations.outcome == "error"]
    assert set(failed.error) == {"timeout"}
    later = operations[(operations.outcome == "ok") & (operations.start_s > failed.end_s.max())]
    assert len(later) > 0
    assert run.totals()["totals"]["error"] == len(failed)
    probes = records.read_probes(run.out)
    assert probes.done_s.sort_values().diff().max() > 0.8


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(url, data=None):
    body = urllib.parse.urlencode(data).encode() if data is not None else None
    with urllib.request.urlopen(url, body, timeout=10) as answer:
        return answer.read().decode()


def stats_when(page, true):
    """Poll the page's statistics until they are as wanted."""
    deadline = time.monotonic() + 20
    while not true(stats := json.loads(ask(page + "/stats/requests"))):
        assert time.monotonic() < deadline, stats
        time.sleep(0.2)
    return stats


def test_the_web_page_starts_and_stops_users(site, generate):
    port = free_port()
    run = generate("--ui", "--port", str(port))
    run.until("load.ui")
    children = run.children()
    assert len(children) == 2
    page = f"http://127.0.0.1:{port}"
    front = ask(page + "/")
    assert f"127.0.0.1:{site.port}" in front
    for number, users in ((1, 6), (2, 4)):
        stats_when(page, lambda stats: [one["state"] for one in stats["workers"]] == ["ready", "ready"])
        choice = {"user_count": users, "spawn_rate": 10, "host": f"http://127.0.0.1:{site.port}"}
        assert json.loads(ask(page + "/swarm", choice))["success"]
        stats_when(
            page,
            lambda stats, users=users: (
                stats["user_count"] == users
                and {"HomePage", "TagSearch"} <= {row["name"] for row in stats["stats"] if row["method"] == "OP"}
            ),
        )
        ask(page + "/stop", {})
        stats_when(page, lambda stats: stats["user_count"] == 0)
        table = records.read_operations(run.out / f"run-{number}")
        assert set(table.user) == set(range(users))
        assert not table.duplicated(["user", "seq"]).any()
    run.process.terminate()
    code, errors = run.end()
    assert code == 0
    assert "Traceback" not in errors
    assert gone(children)


def test_the_host_chosen_in_the_web_page_gets_the_load(site, generate):
    port = free_port()
    run = generate("--ui", "--port", str(port), drivers=1)
    run.until("load.ui")
    page = f"http://127.0.0.1:{port}"
    with serve() as other:
        choice = {"user_count": 3, "spawn_rate": 10, "host": f"http://127.0.0.1:{other.port}"}
        assert json.loads(ask(page + "/swarm", choice))["success"]
        stats_when(page, lambda stats: any(row["name"] == "HomePage" for row in stats["stats"]))
        assert other.requests
        assert not site.requests
        run.process.terminate()
        assert run.end()[0] == 0


def test_a_port_in_use_is_told(generate):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = generate("--ui", "--port", str(taken.getsockname()[1]))
        code, errors = run.end()
    assert code == 1
    assert "cannot serve the web page" in errors


def test_a_bad_configuration_is_told(generate):
    run = generate(users=0)
    code, errors = run.end()
    assert code == 2
    assert "users must be at least 1" in errors


def test_plain_locust_runs_the_same_file(site, tmp_path):
    locustfile = Path(__file__).parents[2] / "workloads" / "olio" / "locustfile.py"
    argv = [sys.executable, "-m", "locust", "-f", str(locustfile), "--headless", "--users", "5", "--spawn-rate", "5", "--run-time", "3s"]
    options = ["--host", f"http://127.0.0.1:{site.port}", "--csv", str(tmp_path / "stats"), "--loglevel", "WARNING"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EMULAB_")}
    done = subprocess.run([*argv, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    stats = pd.read_csv(tmp_path / "stats_stats.csv").set_index("Name")
    assert stats.loc["HomePage", "Type"] == "OP"
    assert stats.loc["HomePage", "Request Count"] >= 5
    assert stats.loc["HomePage", "Failure Count"] == 0
