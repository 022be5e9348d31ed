"""An event of the kernel that is held so that CRIU's breakpoints need not wait."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from emulab.criu.breakpoints import Breakpoints


def test_an_event_is_held_until_it_is_closed():
    before = len(open_events())
    with closing(Breakpoints()) as breakpoints:
        if not breakpoints.held:
            pytest.skip("no right to perf events here")
        assert len(open_events()) == before + 1
    assert len(open_events()) == before
    assert not breakpoints.held
    breakpoints.close()


def open_events():
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            found += [path] if "perf_event" in str(path.readlink()) else []
        except FileNotFoundError:
            continue
    return found
