"""The fault matrix and the soak use the testbed and the guests of the migration tests; outcomes are collected into one table."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "testbed"), str(TESTS), str(Path(__file__).parent)]

from conftest import SelfCheckingGuest, moving, pytest_collection_modifyitems, start, start_guest
from matrix import Table

__all__ = ["moving", "pytest_collection_modifyitems", "start"]

_TABLE = Table()


@pytest.fixture(scope="session")
def table():
    """Takes a row per case; written to ``runs/faults/latest`` at the end."""
    yield _TABLE
    folder = TESTS.parent / "runs" / "faults"
    started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    _TABLE.write(folder / started)
    latest = folder / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(started)


def pytest_terminal_summary(terminalreporter):
    if _TABLE.rows:
        terminalreporter.write_line(_TABLE.summary())


@pytest.fixture
def guest(moving, request):
    """A self-checking guest somewhere: the one that the last case found to be as it must be, or a new one."""
    found = SelfCheckingGuest(moving, "check", f"{moving.settings.lan_prefix}.100")
    if not _fine:
        moving.stop_all_guests()
        found = start_guest(moving, "check", "host1")
    _fine.clear()
    yield found
    if not request.node.stash.get(_FAILED, False):
        _fine.add("check")


_fine: set[str] = set()
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(scope="module", autouse=True)
def _no_guest_is_left(moving):
    yield
    moving.stop_all_guests()
    _fine.clear()
