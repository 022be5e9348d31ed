"""What need not cross the wire: pages that a host kept of a guest that comes back, and what has not changed in a page that was sent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import HOSTS, SLOWNESS, TRACKER, wait_until

from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

STORE = "/var/lib/emulab/guests/.store"


def kept(testbed, node):
    """Sizes of the stores of a node by guest."""
    code = f"import json, pathlib; print(json.dumps({{p.name: p.stat().st_size for p in pathlib.Path({STORE!r}).glob('*')}}))"

    return json.loads(testbed.project.exec_run(node, (PYTHON, "-c", code)).stdout)


def test_a_second_visit_costs_a_fraction_of_the_first(start):
    guest = start(PAGES="6000")
    first = guest.move("host2")
    assert first["pages_from_store"] == 0
    wait_until(lambda: "check" in kept(guest.testbed, "host1"))
    new, again = (guest.testbed.plan_migration("check", {}, to) for to in ("host3", "host1"))
    assert new["kept"] == 0.0
    assert again["kept"] > 0.5
    assert again["bytes_on_wire"] < 0.5 * new["bytes_on_wire"]
    second = guest.move("host1")
    assert guest.runs_only_here() == "host1"
    assert second["pages_from_store"] > first["pages_distinct"] / 2
    assert second["bytes_from_store"] == second["pages_from_store"] * 4096
    assert second["bytes_on_wire"] <= 0.3 * first["bytes_on_wire"]
    wait_until(lambda: "check" in kept(guest.testbed, "host2"))
    cold = guest.move("host2", page_store=False)
    assert cold["pages_from_store"] == 0
    assert cold["bytes_on_wire"] > 2 * second["bytes_on_wire"]
    guest.check()


def spoil(testbed, node, every):
    """Change some bytes of the store, one place in so many."""
    code = f"""
import os, pathlib
path = pathlib.Path({STORE!r}) / "check"
with path.open("r+b") as file:
    for at in range(0, path.stat().st_size, {every}):
        file.seek(at)
        file.write(os.urandom(64))
"""
    assert testbed.project.exec_run(node, (PYTHON, "-c", code)).ok


def test_a_spoiled_store_is_not_used_and_harms_nothing(start):
    guest = start()
    guest.move("host2")
    wait_until(lambda: "check" in kept(guest.testbed, "host1"))
    spoil(guest.testbed, "host1", 512 * 1024)
    record = guest.move("host1")
    assert record["pages_from_store"] == 0
    assert guest.runs_only_here() == "host1"


def test_what_follows_a_guest_need_not_cross_the_wire_either(start):
    guest = start(PAGES="6000")
    first = guest.move("host2")
    wait_until(lambda: "check" in kept(guest.testbed, "host1"))
    size = kept(guest.testbed, "host1")
    second = guest.move("host1", strategy="post-copy")
    assert second["pages_from_store"] > first["pages_distinct"] / 2
    assert second["bytes_on_wire"] <= 0.3 * first["bytes_on_wire"]
    assert guest.runs_only_here() == "host1"
    guest.check()
    cold = guest.move("host3", strategy="post-copy")
    assert cold["pages_from_store"] == 0
    assert cold["bytes_on_wire"] > 2 * second["bytes_on_wire"]
    assert kept(guest.testbed, "host1") == size  # post-copy has next to nothing to keep, and leaves alone what was


def test_pages_that_are_spoiled_after_they_were_offered_are_sent_instead(start):
    guest = start(PAGES="6000")
    guest.move("host2")
    wait_until(lambda: "check" in kept(guest.testbed, "host1"))

    def see(event):
        if event["name"] == "migration.commit":  # what is in images has arrived by then
            spoil(guest.testbed, "host1", 4096)

    options = {"strategy": "post-copy", "dirty_tracker": TRACKER, "hold_at": {"commit": 2.0 * SLOWNESS}, "deadline_s": 60 * SLOWNESS}
    record = guest.testbed.migrate("check", "host1", options, on_event=see)
    assert record["outcome"] == "committed"
    assert 0 < record["pages_from_store"] < 3000  # as many as were on their way when the first of them was refused
    assert guest.runs_only_here() == "host1"
    guest.check()


def test_stopping_a_guest_forgets_it_everywhere(start):
    guest = start()
    guest.move("host2")
    guest.move("host3")
    for node in ("host1", "host2"):
        wait_until(lambda node=node: "check" in kept(guest.testbed, node))
    guest.testbed.stop_guest("check")
    assert [kept(guest.testbed, node) for node in HOSTS] == [{}] * len(HOSTS)


def test_of_a_page_that_was_rewritten_in_part_only_the_difference_crosses(start):
    guest = start(SPARSE="1", WRITES_PER_S="3000", PAGES="6000")
    record = guest.move("host2", freeze_budget_s=0.001)
    assert record["pages_changed"] > 256
    assert guest.runs_only_here() == "host2"
