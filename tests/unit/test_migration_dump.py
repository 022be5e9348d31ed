"""A final dump that cannot even begin says so, and leaves nothing behind."""

from __future__ import annotations

import pytest

from emulab.criu.commands import CriuCall
from emulab.errors import EmulabError
from emulab.migration.dump import FinalDump


def dump_by(tmp_path, *argv):
    return FinalDump(CriuCall(argv, {}), tmp_path, tmp_path / "hook")


def test_a_criu_that_ends_before_it_is_let_go(tmp_path):
    dump = dump_by(tmp_path, "false")
    dump.begin()
    with pytest.raises(EmulabError, match=r"CRIU dump failed: CRIU left no log \(exit code 1\)"):
        dump.wait_until_dumped(10.0, meanwhile=lambda: None, check=lambda: None)
    dump.settle()
    dump.refuse()
    dump.close()
    assert not (tmp_path / "hook").exists()


def test_a_criu_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        dump_by(tmp_path, "/nowhere/criu")
    assert not (tmp_path / "hook").exists()
