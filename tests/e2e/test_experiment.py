"""The main job as a user runs it: `emulab experiment` in a process of its own, under another project name than the user's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pandas as pd
import pytest

sys.path[:0] = [str(Path(__file__).parent)]
from browser import browser, console, drawn, open_report

from emulab.engine import Settings, connect
from emulab.engine.project import Project
from emulab.errors import CalibrationError
from emulab.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SETTINGS = Settings(project="emulab-e2e", subnet="198.18.130.0/24", ui_port=0)
ENV = {**os.environ, "EMULAB_PROJECT": SETTINGS.project, "EMULAB_SUBNET": SETTINGS.subnet, "EMULAB_UI_PORT": "0", "COLUMNS": "120"}
EMULAB = (sys.executable, "-m", "emulab.cli")


def emulab(*words, cwd, timeout=800):
    return subprocess.run((*EMULAB, *words), cwd=cwd, env=ENV, capture_output=True, text=True, timeout=timeout, check=False)


def traces():
    """Containers, networks and guests' volumes of the project; the cache of guest images may stay."""
    client = connect()
    label = {"label": f"com.docker.compose.project={SETTINGS.project}"}
    volumes = [volume.name for volume in client.volumes.list(filters=label) if not volume.name.endswith("_images")]
    return [
        *(container.name for container in client.containers.list(all=True, filters=label)),
        *(network.name for network in client.networks.list(filters=label)),
        *volumes,
    ]


def mounts_and_cgroups():
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if "emulab" in line]
    groups = [str(path) for path in Path("/sys/fs/cgroup").rglob("guest-*") if path.is_dir()]
    return mounts + groups


@pytest.fixture(scope="module")
def rate():
    """1 Gbit/s where this machine can carry it; an emulated one may be too slow, and is then asked for a tenth."""
    testbed = Testbed(SETTINGS)
    testbed.up()
    try:
        testbed.calibrate(1_000_000_000)
    except CalibrationError as error:
        print(f"this machine does not carry gigabit links: {error.message}")
        return "100mbit"
    finally:
        testbed.down()
    return "1gbit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rate):
    """A run folder made by a quick experiment; CI keeps it."""
    base = tmp_path_factory.mktemp("experiment")
    runs = Path(__file__).parents[2] / "runs" / "ci" if os.environ.get("CI") else base / "runs"
    words = (
        "--scenario",
        "quick",
        "--seed",
        "7",
        "--runs",
        str(runs),
        "--set",
        f"rate={rate}",
        "--set",
        f"topology.subnet={SETTINGS.subnet}",
    )
    done = emulab("experiment", *words, cwd=base)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report:" in done.stdout
    yield (runs / "latest").resolve()
    Project(SETTINGS).gc(image_tags=False)


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_every_file_of_the_contract_is_there(folder):
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "manifest.json", "scenario.resolved.yaml", "calibration.json", "timeline.ndjson", "operations.parquet", "requests.parquet",
        "probes.parquet", "samples.parquet", "rounds.parquet", "summary.json", "report.html", "figures", "logs",
    }  # fmt: skip


def test_the_summary_keeps_its_schema(summary):
    import emulab.analysis

    schema = json.loads((Path(emulab.analysis.__file__).parent / "summary.schema.json").read_text())
    jsonschema.validate(summary, schema)


def test_no_user_notices_more_than_a_pause(summary):
    migration = summary["migrations"][0]
    assert summary["status"] == "complete"
    assert summary["load"]["errors"] == 0
    assert summary["load"]["http_failed"] == 0
    assert (migration["outcome"], migration["requests_failed"]) == ("committed", 0)
    assert migration["connections"]["lost"] == migration["connections"]["resets"] == 0
    assert migration["tcp_established"] > 0
    assert summary["probe"]["lost"] == 0


def test_the_clients_stall_is_the_blackout_and_little_more(summary):
    migration = summary["migrations"][0]
    assert migration["client_stall_s"] < migration["blackout_s"] + 0.5


def test_the_guest_is_sampled_on_both_hosts(folder, summary):
    samples = pd.read_parquet(folder / "samples.parquet")
    web = samples[(samples["kind"] == "guest") & (samples["name"] == "web")]
    migration = summary["migrations"][0]
    assert set(web["node"]) == {migration["source"], migration["destination"]}
    seconds = samples["t_s"].max() - samples["t_s"].min()
    assert (samples["node"] == "head").sum() / seconds >= 5


def test_the_timeline_tells_the_migration_in_order(folder):
    rows = [json.loads(line) for line in (folder / "timeline.ndjson").read_text().splitlines()]
    names = [(row["name"], row["kind"]) for row in sorted(rows, key=lambda row: row["mono_s"])]
    wanted = [
        ("load.steady", "begin"), ("migration", "begin"), ("migration.round", "begin"), ("migration.freeze", "begin"),
        ("migration.dump", "begin"), ("migration.restore", "begin"), ("migration.commit", "event"), ("migration.resume", "event"),
        ("migration", "end"), ("load.steady", "end"),
    ]  # fmt: skip
    places = [names.index(name) for name in wanted]
    assert places == sorted(places)


def test_the_report_opens_in_a_browser_with_all_figures(folder):
    with browser() as chrome:
        open_report(chrome, folder / "report.html")
        marks = drawn(chrome)
        assert marks
        assert all(marks.values()), marks
        rows = chrome.execute_script("return document.querySelectorAll('#sla-table tbody tr').length")
        assert rows == 7
        assert console(chrome) == []


def test_nothing_of_ours_is_left_after_a_run(folder):
    assert traces() == []
    assert mounts_and_cgroups() == []


@pytest.mark.soak  # a second experiment; tests/node/test_load_run.py always shows the same of the load alone
def test_one_seed_offers_the_same_operations_in_the_same_order(folder, tmp_path, rate):
    again = emulab(
        "experiment", "--scenario", "quick", "--seed", "7", "--steady", "10", "--set", "migrations.1.at=3",
        "--set", f"rate={rate}", "--set", f"topology.subnet={SETTINGS.subnet}", cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr

    def offered(path):
        table = pd.read_parquet(path / "operations.parquet").sort_values(["user", "seq"])
        return {user: list(rows["operation"]) for user, rows in table.groupby("user")}

    longer, shorter = offered(folder), offered(tmp_path / "runs" / "latest")
    assert set(longer) == set(shorter) == set(range(10))
    for user, operations in shorter.items():
        common = min(len(operations), len(longer[user]))
        assert common >= 1
        assert operations[:common] == longer[user][:common]


def test_killed_in_the_middle_and_taken_down_nothing_is_left(tmp_path, rate):
    words = ("experiment", "--scenario", "quick", "--set", f"rate={rate}", "--set", f"topology.subnet={SETTINGS.subnet}")
    running = subprocess.Popen((*EMULAB, *words), cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if "users for" in line:
                break
        time.sleep(3)
        second = emulab("experiment", "--scenario", "quick", cwd=tmp_path)
        assert second.returncode == 2
        assert "under way" in second.stderr
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stdout.close()
    assert traces() != []
    done = emulab("down", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert traces() == []
    assert mounts_and_cgroups() == []


def interrupted(tmp_path, rate, line_of):
    """A run that gets Ctrl-C half a second after it has said something; returns what it said."""
    words = ("experiment", "--scenario", "quick", "--set", f"rate={rate}")
    running = subprocess.Popen((*EMULAB, *words), cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout is not None
    for line in running.stdout:
        if line_of in line:
            break
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    said = running.stdout.read()
    assert running.wait(60) == 130
    running.stdout.close()
    assert "interrupted: what was recorded so far is kept in runs/quick/" in said
    assert said.endswith("\ninterrupted\n")
    assert traces() == []
    assert json.loads((tmp_path / "runs" / "latest" / "manifest.json").read_text())["status"] == "aborted"
    return said


def test_ctrl_c_takes_everything_down(tmp_path, rate):
    interrupted(tmp_path, rate, "placing the guests")


def test_ctrl_c_in_a_migration_keeps_what_was_recorded(tmp_path, rate):
    said = interrupted(tmp_path, rate, "moving web from")
    assert "not kept" not in said
    folder = tmp_path / "runs" / "latest"
    (move,) = json.loads((folder / "migrations.json").read_text())
    assert move["outcome"] in ("aborted", "committed")
    assert json.loads((folder / "load.json").read_text())["status"] == "stopped"
    operations, probes, samples = (pd.read_parquet(folder / f"{name}.parquet") for name in ("operations", "probes", "samples"))
    assert set(operations["outcome"]) <= {"ok", "unfinished"}
    assert operations["start_s"].max() > move["start_s"]
    assert probes["done_s"].max() > move["start_s"]
    assert samples["t_s"].max() > move["end_s"]
    report = emulab("report", "runs/latest", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    page = (folder / "report.html").read_text()
    assert "The run was stopped" in page
    assert f"Live migration of web from {move['source']} to {move['destination']}" in page
