"""The run folder while it is written: nothing half written is ever found in it."""

from __future__ import annotations

import json
import re
import threading

import pytest

from emulab.errors import UsageError
from emulab.experiment.folder import RunFolder, previous_source


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder("one-migration", tmp_path / "runs")
    yield folder
    folder.close()


def timeline(folder):
    return [json.loads(line) for line in (folder.path / "timeline.ndjson").read_text().splitlines()]


def test_its_place_tells_scenario_time_and_run(folder, tmp_path):
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{4}", folder.id)
    assert folder.path == tmp_path / "runs" / "one-migration" / folder.id
    assert folder.logs.is_dir()


def test_latest_names_the_newest_run(folder, tmp_path):
    runs = tmp_path / "runs"
    assert (runs / "latest").resolve() == folder.path.resolve()
    newer = RunFolder("quick", runs)
    newer.close()
    assert (runs / "latest").resolve() == newer.path.resolve()
    assert not (runs / "latest").readlink().is_absolute()  # the folder may be moved


def test_events_carry_both_clocks_and_their_fields(folder):
    instant = folder.event("experiment.step", "begin", step="up")
    (row,) = timeline(folder)
    assert (row["name"], row["kind"], row["source"], row["step"]) == ("experiment.step", "begin", "cli", "up")
    assert row["mono_s"] == instant
    assert row["wall"]


def test_rows_of_others_are_kept_as_they_are_and_can_be_read_at_once(folder):
    row = {"mono_s": 1.5, "wall": "w", "source": "host1", "name": "migration.freeze", "kind": "begin", "id": 1}
    folder.row(row)
    assert timeline(folder) == [row]


def test_rows_of_several_threads_do_not_mix(folder):
    def write(number):
        for n in range(200):
            folder.row({"thread": number, "n": n, "text": "x" * 500})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = timeline(folder)
    assert len(rows) == 800
    assert [row["n"] for row in rows if row["thread"] == 2] == list(range(200))


def test_a_row_after_the_end_is_dropped_and_no_error(folder):
    folder.close()
    folder.row({"late": True})
    assert timeline(folder) == []


def test_a_document_that_cannot_be_written_leaves_the_one_before(folder):
    folder.write_json("manifest.json", {"ok": 1})
    with pytest.raises(TypeError):
        folder.write_json("manifest.json", {"bad": object()})
    assert json.loads((folder.path / "manifest.json").read_text()) == {"ok": 1}


def test_no_partial_documents_stay(folder):
    folder.write_json("migrations.json", [])
    assert {path.name for path in folder.path.iterdir()} == {"logs", "timeline.ndjson", "migrations.json"}


def test_logs_go_below_logs(folder):
    assert folder.write_log("migration-1-dump.log", "text") == folder.path / "logs" / "migration-1-dump.log"


def test_a_place_that_cannot_be_written_is_a_plain_error(tmp_path):
    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(UsageError, match="cannot write the run folder"):
        RunFolder("quick", tmp_path / "runs")


def test_the_source_of_the_previous_run_is_read_from_its_records(folder, tmp_path):
    folder.write_json("migrations.json", [{"source": "host1"}, {"source": "host4"}])
    assert previous_source(tmp_path / "runs") == "host1"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", "[{}]", "[1]", "{"])
def test_without_such_records_it_is_unknown(folder, tmp_path, content):
    if content is not None:
        (folder.path / "migrations.json").write_text(content)
    assert previous_source(tmp_path / "runs") is None


def test_without_any_run_it_is_unknown(tmp_path):
    assert previous_source(tmp_path) is None
