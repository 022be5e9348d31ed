"""The decision of a migration outlives the process that made it."""

from __future__ import annotations

import json
import subprocess
import sys

from emulab.migration.journal import compact, entries, last_state, record


def test_the_newest_state_of_a_migration_counts(tmp_path):
    path = tmp_path / "journal.ndjson"
    for state in ("prepared", "commit", "running"):
        record("web-1", state, path)
    record("db-1", "aborted", path)
    assert (last_state("web-1", path), last_state("db-1", path)) == ("running", "aborted")


def test_what_was_never_written_is_unknown(tmp_path):
    path = tmp_path / "journal.ndjson"
    assert last_state("web-1", path) == "unknown"
    record("web-10", "commit", path)
    assert last_state("web-1", path) == "unknown"


def test_a_line_cut_off_by_a_crash_is_passed_over(tmp_path):
    path = tmp_path / "journal.ndjson"
    record("web-1", "commit", path)
    with path.open("a") as file:
        file.write('{"migration": "web-1", "sta')
    assert last_state("web-1", path) == "commit"


def test_a_record_after_a_cut_off_line_is_found(tmp_path):
    path = tmp_path / "journal.ndjson"
    path.write_text('{"migration": "web-1", "sta')
    record("web-1", "aborted", path)
    assert last_state("web-1", path) == "aborted"


def test_it_survives_the_end_of_its_writer(tmp_path):
    path = tmp_path / "journal.ndjson"
    code = (
        "import os, pathlib, sys; from emulab.migration.journal import record; "
        "record('web-1', 'commit', pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run((sys.executable, "-c", code, str(path)), check=False).returncode == -9
    assert last_state("web-1", path) == "commit"


def test_rows_carry_time_and_reason_and_are_for_the_owner_alone(tmp_path):
    path = tmp_path / "below" / "journal.ndjson"
    record("web-1", "aborted", path, vm="web", reason="no room")
    row = json.loads(path.read_text())
    assert (row["vm"], row["reason"]) == ("web", "no room")
    assert row["wall"]
    assert path.stat().st_mode & 0o077 == 0


def test_the_newest_migration_comes_last_and_keeps_what_its_older_lines_said(tmp_path):
    path = tmp_path / "journal.ndjson"
    record("web-1", "prepared", path, role="source", vm="web", to="host2")
    record("web-2", "prepared", path, role="destination", vm="web")
    record("web-1", "commit", path)
    found = entries(path)
    assert list(found) == ["web-2", "web-1"]
    assert (found["web-1"]["state"], found["web-1"]["role"], found["web-1"]["to"]) == ("commit", "source", "host2")


def test_lines_of_another_kind_are_passed_over(tmp_path):
    path = tmp_path / "journal.ndjson"
    path.write_text('[]\n3\n{"state": "commit"}\n\n')
    assert entries(path) == {}


def test_a_large_journal_keeps_the_newest_of_each_of_the_last_migrations(tmp_path):
    path = tmp_path / "journal.ndjson"
    for number in range(40):
        record(f"m{number}", "prepared", path, role="source", vm=f"g{number}")
        record(f"m{number}", "commit", path, to="host2")
    before = entries(path)
    compact(path, beyond=1 << 20)
    assert len(path.read_text().splitlines()) == 80
    compact(path, beyond=100, keep=10)
    assert entries(path) == {key: before[key] for key in [f"m{number}" for number in range(30, 40)]}
    assert len(path.read_text().splitlines()) == 10
    assert path.stat().st_mode & 0o077 == 0
    assert before["m39"]["vm"] == "g39"  # of an older line
    assert list(tmp_path.iterdir()) == [path]
    record("m39", "released", path)
    assert last_state("m39", path) == "released"


def test_no_journal_is_none(tmp_path):
    compact(tmp_path / "journal.ndjson", beyond=0)
    assert list(tmp_path.iterdir()) == []
