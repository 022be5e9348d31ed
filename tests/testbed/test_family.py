"""Tasks that were forked from one another: what each has mapped is there after a restore, and what they share they still share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import IMAGE_TAG, MEMORY, SELFCHECK, SETTINGS, wait_until

from emulab.errors import EmulabError
from emulab.node.guest import GuestSpec

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

TASKS = 1 + 3 + 9 + 27


@pytest.fixture
def family(moving):
    """A guest of ``selfcheck/family.py``: returns how to ask it; it is gone at the end of the test."""
    program = (SELFCHECK / "family.py").read_text()
    spec = GuestSpec("family", "selfcheck", f"{SETTINGS.lan_prefix}.162", 1.0, 2 * MEMORY, argv=("python3", "-c", program))
    moving.start_guest("host1", spec, tag=IMAGE_TAG)

    def ask():
        return json.loads(moving.exec_in_guest("family", ("python3", "-c", (SELFCHECK / "ask.py").read_text())))

    def ready():
        try:
            return bool(ask())
        except EmulabError:
            return False

    wait_until(ready)
    yield ask
    moving.stop_guest("family")


def test_every_task_has_what_it_had_by_every_strategy(moving, family):
    before = family()
    assert (before["tasks"], before["broken"]) == (TASKS, [])
    for to, strategy in (
        ("host2", "pre-copy"),
        ("host3", "stop-and-copy"),
        ("host1", "pre-copy"),
        ("host2", "hybrid"),
        ("host3", "post-copy"),
    ):
        assert moving.migrate("family", to, {"strategy": strategy, "deadline_s": 60})["outcome"] == "committed"
        after = family()
        assert (after["tasks"], after["broken"]) == (TASKS, []), f"after {strategy}"
        if strategy in ("pre-copy", "stop-and-copy"):  # post-copy cannot keep pages shared
            assert after["private_kb"] < before["private_kb"] + 0.1 * 4 * TASKS * 24


def test_a_guest_has_tcp_tables_of_its_own_here_and_there(moving, family):
    def entries():
        return int(moving.exec_in_guest("family", ("cat", "/proc/sys/net/ipv4/tcp_ehash_entries")))

    if not Path("/proc/sys/net/ipv4/tcp_child_ehash_entries").exists():
        pytest.skip("this kernel has one table for all")
    assert entries() == 16384
    moving.migrate("family", "host2", {})
    assert entries() == 16384
