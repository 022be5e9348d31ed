"""Whatever finds the pages that were written: the memory that runs on at the destination is the memory that was frozen at the source."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import IMAGE_TAG, MEMORY, SELFCHECK, SETTINGS, SLOWNESS, wait_until

from emulab.node.guest import GuestSpec
from emulab.testbed.testbed import PYTHON

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

# Run on a node: a digest of the private memory of each task of the guest, by the task's number inside the guest and addresses. What
# the kernel maps (vvar, vdso) may differ between machines.
_DIGESTS = r"""
import hashlib, json, pathlib, re, sys
found = {}
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if "/guest-still" not in (path / "cgroup").read_text():
            continue
        inside = re.search(r"NSpid:.*\s(\d+)", (path / "status").read_text())[1]
        memory = open(path / "mem", "rb", buffering=0)
        runs = []  # neighbours as one: how mappings are split is no part of what is in them
        for line in (path / "maps").read_text().splitlines():
            area, rights, _, _, _, *name = line.split(maxsplit=5)
            if rights[0] != "r" or rights[3] != "p" or name and name[0].startswith("[v"):
                continue
            start, end = (int(number, 16) for number in area.split("-"))
            if runs and runs[-1][1] == start:
                runs[-1][1] = end
            else:
                runs.append([start, end])
        for start, end in runs:
            digest, at = hashlib.blake2b(digest_size=16), start
            while at < end:
                memory.seek(at)
                digest.update(memory.read(min(1 << 20, end - at)))
                at += 1 << 20
            found[f"{inside} {start:x}-{end:x}"] = digest.hexdigest()
    except (FileNotFoundError, ProcessLookupError):
        continue
print(json.dumps(found))
"""
_WRITE = "for p in /proc/[0-9]*; do grep -q /guest-still $p/cgroup 2>/dev/null && kill -USR1 ${p#/proc/}; done; true"


@pytest.fixture
def still(moving):
    """A guest that stands still; the kernel must not write to it either, as it does for restartable sequences."""
    argv = ("python3", "-c", (SELFCHECK / "still.py").read_text())
    env = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0", "PYTHONHASHSEED": "0"}
    spec = GuestSpec("still", "selfcheck", f"{SETTINGS.lan_prefix}.110", 1.0, MEMORY, argv=argv, env=env)
    moving.start_guest("host1", spec, tag=IMAGE_TAG)
    wait_until(lambda: moving.project.exec_run("host1", moving.enter_argv("still", ("test", "-e", "/run/still"))[1]).ok)
    yield "still"
    moving.stop_guest("still")


def ways(facts):
    """Every way to find written pages that this kernel has, and the one that needs none."""
    yield {"dirty_tracker": "write-protect"}
    if facts["soft_dirty"]:
        yield {"dirty_tracker": "soft-dirty"}
    yield {"strategy": "stop-and-copy"}


def digests(testbed, node):
    return json.loads(testbed.project.exec_run(node, (PYTHON, "-c", _DIGESTS)).stdout)


def test_memory_is_the_same_byte_by_byte_with_every_tracker(moving, still):
    source = "host1"
    for way, to in zip(ways(moving.facts()), ("host2", "host3", "host4"), strict=False):
        frozen = {}

        def watch(row, source=source, frozen=frozen):
            if (row["name"], row["kind"]) == ("migration.round", "begin") and row["n"] > 1:
                moving.project.exec_run(source, ("sh", "-c", _WRITE))
            if (row["name"], row["kind"]) == ("migration.freeze", "begin"):
                frozen.update(digests(moving, source))

        before = digests(moving, source)
        held = {"round": 0.7 * SLOWNESS, "freeze": 2.0 * SLOWNESS}
        options = {"freeze_budget_s": 0.001, "max_rounds": 3, "deadline_s": 30.0 * SLOWNESS, "hold_at": held, **way}
        record = moving.migrate(still, to, options, on_event=watch)
        assert record["outcome"] == "committed"
        assert digests(moving, to) == frozen
        assert len(frozen) > 10
        assert (frozen != before) == (len(record["rounds"]) > 2)  # it had been written to between the rounds
        source = to
