"""Large tasks' memory is filled at the destination before the freeze: each has what it had, as it had it, and it can be done without."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import HOSTS, TRACKER, wait_until

from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

LARGE = {"WORKERS": "2", "PAGES": "9000", "INCOMPRESSIBLE": "1"}
MIB = 2**20

# Anonymous private mappings of the guest's tasks: {task: [[start, end, permissions, pages of it]]}, those of a mebibyte or more.
MAPPINGS = f"""
import json, pathlib, re
found = {{}}
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if "/guest-check" not in (path / "cgroup").read_text():
            continue
        inner = re.search("NSpid:.*?([0-9]+)\\n", (path / "status").read_text()).group(1)
        lines = (path / "maps").read_text().splitlines()
    except OSError:
        continue
    for line in lines:
        fields = line.split()
        start, end = (int(part, 16) for part in fields[0].split("-"))
        if fields[1][3] == "p" and len(fields) == 5 and end - start >= {MIB}:
            found.setdefault(inner, []).append([start, end, fields[1]])
print(json.dumps(found))
"""


def mappings(guest):
    found = json.loads(guest.testbed.project.exec_run(guest.node, (PYTHON, "-c", MAPPINGS)).stdout)
    assert len(found) >= 2
    return found


def signal_criu(testbed, node, number):
    """Returns how many there were."""
    code = f"""
import os, pathlib
victims = [int(path.parent.name) for path in pathlib.Path("/proc").glob("[0-9]*/comm") if path.read_text() == "criu\\n"]
for pid in victims:
    os.kill(pid, {number})
print(len(victims))
"""
    return int(testbed.project.exec_run(node, (PYTHON, "-c", code)).stdout)


def test_a_large_guest_is_what_it_was_on_every_host(start):
    guest = start(**LARGE)
    with guest.under_requests():
        for to in (*HOSTS[1:4], HOSTS[0]):
            before = mappings(guest)
            record = guest.move(to)
            assert record["outcome"] == "committed"
            assert record["pages_filled"] > 9000  # half of 2 x 9000 at least
            assert mappings(guest) == before
            assert guest.runs_only_here() == to


def test_what_it_writes_meanwhile_is_not_lost(start):
    guest = start(**LARGE, WRITES_PER_S="3000")
    record = guest.move("host2", min_rounds=4)
    assert len(record["rounds"]) >= 5
    assert record["pages_filled"] > 9000
    guest.check()


def test_a_guest_that_fills_its_memory_needs_no_more_of_it_to_move(start):
    guest = start(WORKERS="2", PAGES="9000", WRITES_PER_S="20000", memory=150 * MIB)
    record = guest.move("host2", hold_at={"stop_rule": 4.0}, deadline_s=60)
    assert record["outcome"] == "committed"
    assert record["pages_filled"] > 9000
    assert record["rounds"][-1]["pages"] > 9000  # written again since
    assert guest.runs_only_here() == "host2"


def test_a_small_guest_and_post_copy_do_without(start):
    guest = start()
    assert guest.move("host2")["pages_filled"] == 0
    large = start("large", **LARGE)
    assert large.move("host3", strategy="hybrid")["pages_filled"] == 0
    large.check()


@pytest.mark.parametrize(("number", "phase"), [(signal.SIGKILL, "stop_rule"), (signal.SIGSTOP, "round")])
def test_the_guest_moves_also_if_the_waiting_criu_is_killed_or_answers_no_more(start, number, phase):
    guest = start(**LARGE)
    done = []

    def see(event):
        if event.get("name") == f"migration.{phase}" and not done:
            wait_until(lambda: signal_criu(guest.testbed, "host2", int(number)) > 0 or guest.node == "host2")
            done.append(True)

    options = {"dirty_tracker": TRACKER, "hold_at": {phase: 2.0}}
    record = guest.testbed.migrate(guest.name, "host2", options, on_event=see)
    assert done
    assert (record["outcome"], record["pages_filled"]) == ("committed", 0)
    assert guest.runs_only_here() == "host2"
