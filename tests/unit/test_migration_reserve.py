"""Memory held before a freeze: as much as was asked for, no more than there is, and none afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emulab.migration import reserve
from emulab.migration.reserve import Reserve, available

sys.path.insert(0, str(Path(__file__).parents[1]))
from waiting import wait_until

MIB = 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_holds_what_was_asked_for_and_touches_it():
    """In a process of its own: what other tests have left in this one may go meanwhile."""
    subprocess.run((sys.executable, __file__), env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True)


def hold_and_give_back():
    held, before = Reserve(lambda: None), resident()
    held.want(20 * MIB)
    wait_until(lambda: held.size == 20 * MIB)
    assert resident() - before > 19 * MIB
    held.want(31 * MIB + 1)
    wait_until(lambda: held.size == 31 * MIB + 512 * 1024)
    held.want(2 * MIB)
    assert held.size == 31 * MIB + 512 * 1024
    held.give_back(keep=9 * MIB + 1)
    assert held.size == 9 * MIB
    held.give_back()
    assert held.size == 0
    assert resident() - before < 4 * MIB


def test_takes_no_more_after_it_gave_back():
    held = Reserve(lambda: None)
    held.want(4096 * MIB)
    wait_until(lambda: held.size >= 4 * MIB)
    held.give_back()
    held.want(64 * MIB)
    wait_until(lambda: held._thread is None or not held._thread.is_alive())
    assert held.size == 0


def test_nothing_wanted_starts_nothing():
    held = Reserve(lambda: None)
    held.want(0)
    held.give_back()
    assert held.size == 0


def test_leaves_as_much_as_it_takes(monkeypatch: pytest.MonkeyPatch):
    held = Reserve(lambda: None)
    monkeypatch.setattr(reserve, "available", lambda: 60 * MIB - held.size)
    held.want(512 * MIB)
    wait_until(lambda: held._thread is not None and not held._thread.is_alive())
    assert 26 * MIB <= held.size <= 30 * MIB
    held.give_back()


def test_a_kernel_that_does_not_know_how_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reserve, "_POPULATE_WRITE", 0x7FFF)
    held = Reserve(lambda: None)
    held.want(8 * MIB)
    wait_until(lambda: held._thread is not None and not held._thread.is_alive())
    assert held.size == 0


LIMITED = [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]


@pytest.mark.parametrize("files", LIMITED, ids=["v2", "v1"])
@pytest.mark.parametrize(("limit", "expected"), [("max", 800), ("1048576000", 700), ("9223372036854771712", 800)])
def test_available_is_the_less_of_machine_and_limit(tmp_path: Path, files: tuple[str, str], limit: str, expected: int):
    (tmp_path / "memory").mkdir()
    (tmp_path / files[0]).write_text(f"{limit}\n")
    (tmp_path / files[1]).write_text(f"{300 * MIB}\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 9999999 kB\nMemAvailable: {800 * 1024} kB\n")
    assert available(tmp_path, meminfo) == expected * MIB


if __name__ == "__main__":
    hold_and_give_back()
