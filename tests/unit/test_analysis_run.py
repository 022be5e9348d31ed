"""Loading run folders, and the summary made of them."""

import json
import math
import sys
from pathlib import Path

import jsonschema
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import runfolder
from runfolder import Move, Spec

from emulab.analysis import RunError, analyse, load_run, summarise, write_summary
from emulab.analysis.blackout import steps
from emulab.analysis.schema import SCHEMA_PATH, schema, schema_text
from emulab.errors import UsageError

SMALL = Spec(users=30, steady_s=60, moves=(Move(at_s=25, rounds=3),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return runfolder.write(tmp_path_factory.mktemp("run"), SMALL)


@pytest.fixture(scope="module")
def summary(folder):
    return summarise(load_run(folder))


@pytest.fixture
def copy(tmp_path):
    return runfolder.write(tmp_path / "run", Spec(users=5, steady_s=20, moves=()))


# -- loading


def test_a_folder_that_is_not_one():
    with pytest.raises(RunError, match="not a run folder") as caught:
        load_run("/no/such/run")
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["manifest.json", "scenario.resolved.yaml"])
def test_without_these_nothing_can_be_said(copy, name):
    (copy / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        load_run(copy)


def test_a_complete_run_must_be_complete(copy):
    (copy / "probes.parquet").unlink()
    (copy / "calibration.json").unlink()
    with pytest.raises(RunError, match=r"lacks probes.parquet, calibration.json"):
        load_run(copy)


def test_a_failed_run_may_lack_what_it_never_wrote(tmp_path):
    folder = runfolder.write(tmp_path, Spec(users=5, steady_s=20, status="failed", error="host3 vanished"))
    for name in ("operations.parquet", "requests.parquet", "probes.parquet", "samples.parquet", "timeline.ndjson", "migrations.json"):
        (folder / name).unlink()
    summary = summarise(load_run(folder))
    jsonschema.validate(summary, schema())
    assert summary["status"] == "failed"
    assert summary["error"] == "host3 vanished"
    assert "operations.parquet" in summary["missing"]
    assert summary["load"]["operations"] == 0
    assert not summary["sla"]["pass90"]
    assert "nothing was measured" in summary["story"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("manifest.json", "{", "not valid JSON"),
        ("manifest.json", "[]", "not a JSON object"),
        ("manifest.json", '{"format_version": 2}', "format_version 2"),
        ("calibration.json", "nope", "not valid JSON"),
        ("migrations.json", "{}", "not a list"),
        ("migrations.json", '[{"vm": "web"}]', "lacks source, destination"),
        ("scenario.resolved.yaml", "a: [", "not valid YAML"),
        ("scenario.resolved.yaml", "text", "not a scenario"),
        ("operations.parquet", "PAR1 but no", "not a readable Parquet file"),
        ("timeline.ndjson", '{"mono_s": 1}\n{"mono', "line 2"),
    ],
)
def test_a_corrupt_file_is_named(copy, name, text, message):
    (copy / name).write_text(text)
    with pytest.raises(RunError, match=message) as caught:
        load_run(copy)
    assert name in caught.value.message


def test_a_missing_column_is_named(copy):
    pd.read_parquet(copy / "operations.parquet").drop(columns="end_s").to_parquet(copy / "operations.parquet")
    with pytest.raises(RunError, match="lacks the columns end_s"):
        load_run(copy)


def test_the_last_line_of_an_interrupted_run_may_be_cut_off(tmp_path):
    folder = runfolder.write(tmp_path, Spec(users=5, steady_s=20, moves=(), status="aborted"))
    with (folder / "timeline.ndjson").open("a") as file:
        file.write('{"mono_s": 50')
    assert load_run(folder).spans("load.steady")[0].start_s == runfolder.BOOT_S + 10


def test_steady_state_is_in_the_timeline_too(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    stated = manifest.pop("steady")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    steady = load_run(copy).steady
    assert (steady.start_s, steady.end_s) == (stated["start_s"], stated["end_s"])


# -- summary


def test_the_published_schema_is_current():
    assert SCHEMA_PATH.read_text() == schema_text(), "renew it: python -m emulab.analysis.schema"


SPECS = {
    "one": SMALL,
    "none": Spec(users=10, steady_s=30, moves=()),
    "two": Spec(users=20, steady_s=80, moves=(Move(at_s=15, rounds=2), Move(at_s=45, source="host3", destination="host4", rounds=2))),
    "aborted migration": Spec(users=10, steady_s=40, moves=(Move(at_s=15, rounds=2, aborted=True, reason="no"),)),
    "empty operation": Spec(users=10, steady_s=30, moves=(), without=("AddPerson", "AddEvent")),
    "no probes": Spec(users=10, steady_s=30, probes=False, moves=(Move(at_s=10, rounds=1),)),
    "aborted run": Spec(users=10, steady_s=30, moves=(), status="aborted", error="interrupted"),
    "status unsaid": Spec(users=10, steady_s=30, moves=(), status=None),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_summary_fits_its_schema_and_is_strict_json(tmp_path, spec):
    summary = write_summary(runfolder.write(tmp_path, spec))
    jsonschema.validate(summary, schema(), jsonschema.Draft202012Validator)
    written = (tmp_path / "summary.json").read_text()
    assert json.loads(written, parse_constant=pytest.fail) == summary


def test_keys_of_the_contract(summary):
    contract = {
        "format_version",
        "status",
        "scenario",
        "seed",
        "started_at",
        "load",
        "operations",
        "migrations",
        "probe",
        "calibration",
        "paper",
    }
    assert contract <= set(summary)
    assert {
        "users",
        "steady_s",
        "operations",
        "ops_per_s",
        "offered_ops_per_s",
        "errors",
        "unfinished",
        "http_requests",
        "driver_cpu_max",
    } <= set(summary["load"])
    assert {"count", "errors", "mean_s", "p50_s", "p90_s", "p99_s", "max_s", "limit_s", "sla90", "sla99"} <= set(
        summary["operations"]["HomePage"]
    )
    assert set(summary["operations"]["HomePage"]["sla90"]) == {"pass", "worst_s", "worst_window_start_s", "samples"}
    migration = {
        "vm",
        "source",
        "destination",
        "strategy",
        "dirty_tracker",
        "outcome",
        "reason",
        "start_s",
        "total_s",
        "blackout_s",
        "client_stall_s",
    }
    migration |= {"network_hold_s", "rounds", "bytes_on_wire", "bytes_of_pages", "tasks", "tcp_established", "requests_failed"}
    assert migration <= set(summary["migrations"][0])
    assert {"n", "pages", "bytes", "duration_s", "frozen_s"} <= set(summary["migrations"][0]["rounds"][0])
    assert {"interval_s", "sent", "lost", "longest_gap_s"} <= set(summary["probe"])
    assert {"up_bit_s", "down_bit_s", "rtt_s"} <= set(summary["calibration"]["host1"])
    assert {"paper", "here", "ratio"} <= set(summary["paper"]["downtime_s"])


def test_the_numbers_agree_with_the_rows(folder, summary):
    table = pd.read_parquet(folder / "operations.parquet")
    begin, end = runfolder.BOOT_S + 10, runfolder.BOOT_S + 70
    counted = table[(table["start_s"] >= begin) & (table["end_s"] < end) & (table["outcome"] == "ok")]
    home = sorted((counted["end_s"] - counted["start_s"])[counted["operation"] == "HomePage"])
    assert summary["load"]["operations"] == len(counted)
    assert summary["load"]["ops_per_s"] == pytest.approx(len(counted) / 60)
    assert summary["operations"]["HomePage"]["count"] == len(home)
    assert summary["operations"]["HomePage"]["p90_s"] == pytest.approx(home[math.ceil(0.9 * len(home)) - 1])
    assert summary["operations"]["HomePage"]["max_s"] == pytest.approx(home[-1])
    assert summary["operations"]["HomePage"]["faban_p90_s"] >= summary["operations"]["HomePage"]["p90_s"] - 0.02


def test_a_short_steady_state_is_one_window(summary):
    assert summary["sla"]["whole_steady"]
    assert summary["sla"]["window_s"] == 60
    assert summary["operations"]["Login"]["sla99"]["samples"] == summary["operations"]["Login"]["count"]


def test_the_stop_is_seen_by_probes_and_users(summary):
    (migration,) = summary["migrations"]
    assert migration["blackout_s"] == pytest.approx(0.86)
    assert migration["client_stall_s"] == pytest.approx(0.86, abs=0.03)
    assert 0 < migration["recovery_s"] < 5
    assert migration["freeze_at_s"] < migration["resume_at_s"]
    assert migration["start_s"] == pytest.approx(25)
    assert migration["slowdown"] > 1.2
    phases = summary["operations"]["TagSearch"]["phases"]
    assert max(row["phases"]["during"]["p99_s"] or 0 for row in summary["operations"].values()) > 0.5
    assert sum(phase["count"] for phase in phases.values()) == summary["operations"]["TagSearch"]["count"]


def test_resets_are_counted_with_the_migration_they_happened_in(tmp_path):
    folder = runfolder.write(tmp_path, Spec(users=30, steady_s=60, moves=(Move(at_s=25, rounds=2),), failing_users=tuple(range(30))))
    summary = summarise(load_run(folder))
    (migration,) = summary["migrations"]
    assert migration["requests_failed"] > 0
    assert migration["connections"]["lost"] == migration["connections"]["resets"] == migration["requests_failed"]
    assert migration["operations_failed"] == migration["requests_failed"] == summary["load"]["errors"]
    assert "not counted in these" in summary["story"]


def test_an_operation_that_nobody_did_does_not_pass(tmp_path):
    summary = summarise(load_run(runfolder.write(tmp_path, SPECS["empty operation"])))
    assert summary["operations"]["AddEvent"]["sla90"] == {"pass": False, "worst_s": None, "worst_window_start_s": None, "samples": 0}
    assert summary["sla"]["broken90"] == ["AddPerson", "AddEvent"]
    assert "AddPerson and AddEvent were never measured" in summary["story"]


def test_the_blackout_is_the_sum_of_its_steps(summary):
    (migration,) = summary["migrations"]
    assert [step["name"] for step in migration["blackout"]] == ["freeze", "dump", "transfer", "restore", "resume"]
    assert sum(step["duration_s"] for step in migration["blackout"]) == pytest.approx(migration["blackout_s"])


def test_time_that_no_step_covers_is_shown(folder):
    run = load_run(folder)
    migration = run.migrations[0]
    run.timeline[:] = [row for row in run.timeline if row["name"] not in ("migration.transfer", "migration.commit")]
    names = [step.name for step in steps(run, migration)]
    assert names == ["freeze", "dump", "other", "restore", "other"]
    run.timeline[:] = [row for row in run.timeline if not row["name"].startswith("migration.")]
    laid_out = steps(run, migration)  # from the durations alone
    assert [step.name for step in laid_out][:5] == ["freeze", "dump", "transfer", "restore", "resume"]
    assert sum(step.length_s for step in laid_out) == pytest.approx(migration.blackout_s)


def test_the_paper_stands_beside_a_committed_migration_only(summary, tmp_path):
    assert summary["paper"]["downtime_s"]["paper"] == 3.0
    assert summary["paper"]["downtime_s"]["ratio"] == pytest.approx(0.86 / 3)
    assert summary["paper"]["users"]["ratio"] == pytest.approx(30 / 600)
    assert all("second hand" in row["source"] for row in summary["paper"].values())
    assert summarise(load_run(runfolder.write(tmp_path, SPECS["aborted migration"])))["paper"] == {}


def test_a_rule_that_only_lacks_samples_is_not_called_broken(tmp_path):
    few = summarise(load_run(runfolder.write(tmp_path, Spec(users=30, steady_s=60, moves=(Move(at_s=25),), without=("AddPerson",)))))
    assert few["sla"]["broken90"] == ["AddPerson"]
    assert few["paper"]["sla90"]["here"] == "not shown"
    slow = summarise(load_run(runfolder.write(tmp_path / "slow", Spec(users=30, steady_s=60, moves=(Move(at_s=25, blackout_s=20.0),)))))
    assert slow["paper"]["sla90"]["here"] == "breaks"


def test_an_aborted_migration_has_no_blackout(tmp_path):
    run = load_run(runfolder.write(tmp_path, SPECS["aborted migration"]))
    (migration,) = summarise(run)["migrations"]
    assert migration["outcome"] == "aborted"
    assert migration["blackout_s"] is None
    assert migration["blackout"] == []
    assert analyse(run).affected[0].interval.end_s == run.migrations[0].end_s
