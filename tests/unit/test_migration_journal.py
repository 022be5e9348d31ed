"""The journal stays small, and what it still has to say is kept."""

from __future__ import annotations

from emulab.migration import journal


def test_a_large_journal_keeps_the_newest_of_each_of_the_last_migrations(tmp_path):
    path = tmp_path / "journal.ndjson"
    for number in range(40):
        journal.record(f"m{number}", "prepared", path, role="source", vm=f"g{number}")
        journal.record(f"m{number}", "commit", path, to="host2")
    before = journal.entries(path)
    journal.compact(path, beyond=1 << 20)
    assert len(path.read_text().splitlines()) == 80
    journal.compact(path, beyond=100, keep=10)
    assert journal.entries(path) == {key: before[key] for key in [f"m{number}" for number in range(30, 40)]}
    assert len(path.read_text().splitlines()) == 10
    assert before["m39"]["vm"] == "g39"  # of an older line
    assert list(tmp_path.iterdir()) == [path]
    journal.record("m39", "released", path)
    assert journal.last_state("m39", path) == "released"


def test_no_journal_is_none(tmp_path):
    journal.compact(tmp_path / "journal.ndjson", beyond=0)
    assert list(tmp_path.iterdir()) == []
