"""The sampler on the real kernel: a cgroup that works, an interface that carries traffic."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from emulab.node.sampler import GuestTarget, Sampler
from emulab.node.sampler_read import CGROUP_ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def folders(group: str) -> list[Path]:
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        return [CGROUP_ROOT / group]
    return [CGROUP_ROOT / "cpuacct" / group, CGROUP_ROOT / "memory" / group]


@pytest.fixture
def group() -> Iterator[str]:
    name = f"emulab-test-{uuid.uuid4().hex[:8]}"
    for folder in folders(name):
        folder.mkdir()
    try:
        yield name
    finally:
        for folder in folders(name):
            folder.rmdir()


def test_work_in_a_real_cgroup_shows_in_its_rows(group: str) -> None:
    code = (
        "import sys,time; data=bytearray(64<<20); sys.stdin.read(1); t=time.process_time()\nwhile time.process_time()<t+0.3: pass\ndel data"
    )
    worker = subprocess.Popen((sys.executable, "-c", code), stdin=subprocess.PIPE)
    sampler = Sampler("host1", lambda: [GuestTarget("busy", group, "vm-none")], uplink="lo", interval_s=0.05)
    try:
        for folder in folders(group):
            (folder / "cgroup.procs").write_text(str(worker.pid))
        sampler.start()
        time.sleep(0.1)
        worker.communicate(b"x", timeout=60)
        time.sleep(0.15)
    finally:
        worker.kill()
        worker.wait()
        sampler.stop()
    rows = sampler.drain()
    guest = [row for row in rows if row.kind == "guest"]
    node = [row for row in rows if row.kind == "node"]
    assert guest[-1].cpu_s - guest[0].cpu_s >= 0.25
    # The node's group holds the guest's; the root group of a machine may count by ticks, hence the margin.
    assert node[-1].cpu_s - node[0].cpu_s >= 0.2
    for column in ("cpu_s", "rx_bytes", "tx_bytes"):
        values = [getattr(row, column) for row in node]
        assert values == sorted(values)


def test_memory_of_a_real_cgroup_is_its_working_set(group: str) -> None:
    code = "import sys; data=bytearray(b'x')*(64<<20); print('full',flush=True); sys.stdin.read(1)"
    argv = ("sh", "-c", 'read go; exec "$0" -c "$1"', sys.executable, code)
    worker = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    sampler = Sampler("host1", lambda: [GuestTarget("big", group, "vm-none")], interval_s=0.02)
    try:
        for folder in folders(group):
            (folder / "cgroup.procs").write_text(str(worker.pid))
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == b"full\n"
        sampler.start()
        time.sleep(0.2)
    finally:
        sampler.stop()
        worker.communicate(b"x", timeout=60)
    guest = [row for row in sampler.drain() if row.kind == "guest"]
    assert 64 << 20 <= guest[-1].memory_bytes < 128 << 20
