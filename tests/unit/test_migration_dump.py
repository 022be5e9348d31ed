"""A final dump that cannot even begin leaves nothing behind."""

from __future__ import annotations

import pytest

from emulab.criu.commands import CriuCall
from emulab.criu.standby import Standby
from emulab.errors import EmulabError
from emulab.migration.dump import FinalDump


def test_a_criu_that_ends_before_it_is_let_go(tmp_path, monkeypatch):
    go = Standby.go

    def late(standby):
        standby.process.wait()
        return go(standby)

    monkeypatch.setattr(Standby, "go", late)
    with pytest.raises(EmulabError, match=r"CRIU ended before it was to begin \(code 0\)"):
        FinalDump(CriuCall(("true",), {}), tmp_path, tmp_path / "hook")
    assert not (tmp_path / "hook").exists()
