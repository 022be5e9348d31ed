"""What the bench compares with: stock tools must move the same guest, serve there, and leave nothing behind on either side."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SETTINGS, traces, wait_until

from emulab.bench import bed
from emulab.bench.movers import Ours, Stock
from emulab.engine.recipe import NODE
from emulab.node.guest import GuestSpec
from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

ADDRESS = f"{SETTINGS.lan_prefix}.140"
MIB = 2**20
ASK = (PYTHON, "-c", f"import urllib.request as u; u.urlopen('http://{ADDRESS}/', timeout=5).read()")


@pytest.fixture
def guest(moving):
    spec = GuestSpec(
        name="known", image="bench", address=ADDRESS, vcpus=1.0, memory_bytes=256 * MIB,
        argv=("python3", "-c", bed._PROGRAM.read_text()), env={"MEMORY_MB": "24", "TASKS": "3", "DIRTY_MB_S": "1"},
    )  # fmt: skip
    moving.start_guest("host1", spec, tag=NODE)
    wait_until(lambda: serves(moving))
    yield spec.name
    for found in moving.guests():
        if found["name"] == spec.name:
            moving.stop_guest(spec.name)


def serves(testbed):
    return testbed.project.exec_run("head", ASK).ok


@pytest.mark.parametrize(
    "mover",
    [
        Ours(),
        Stock("pre-dump", "quota"),
        pytest.param(Stock("pre-dump", "ptrace"), marks=pytest.mark.soak),
        pytest.param(Stock("pre-dump", "read"), marks=pytest.mark.soak),
        Stock("stop-and-copy", "plain"),
        pytest.param(Stock("stop-and-copy", "zstd"), marks=pytest.mark.soak),
    ],
    ids=lambda mover: f"{mover.key} {getattr(mover, 'setting', '')}".strip(),
)
def test_every_method_moves_a_running_guest_and_can_be_removed_without_a_trace(moving, guest, mover):
    move = mover.move(moving, guest, "host3")
    assert serves(moving)
    assert move.tasks == 3
    assert move.start_s < move.freeze_s < move.resume_s < move.end_s
    assert move.wire_bytes > 24 * MIB  # its memory cannot be compressed
    assert traces(moving, "host1", guest) == {}
    mover.leave(moving, guest)
    assert traces(moving, "host3", guest) == {}
