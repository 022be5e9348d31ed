"""The sampler on recorded kernel files, both cgroup layouts, with guests that come and go."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from emulab import clock
from emulab.node.sampler import COLUMNS, GuestTarget, Sampler
from emulab.node.sampler_read import open_cgroup, parse_interfaces

sys.path.insert(0, str(Path(__file__).parents[1]))
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

# Recorded on kernel 6.18; the guest's port vm-web has sent what the guest received.
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    2776      28    0    0    0     0          0         0     2776      28    0    0    0     0       0          0
  eth0: 151732586  113044    0    0    0     0          0         0 151183352  108311    0    0    0     0       0          0
vm-web:1111      10    0    0    0     0          0         0     2222      20    0    0    0     0       0          0
"""
V1_MEMORY_STAT = """\
cache 4096000
rss 8192000
inactive_file 1
active_file 2048000
hierarchical_memory_limit 9223372036854771712
total_cache 4096000
total_inactive_file 3000000
total_active_file 2048000
"""
V2_MEMORY_STAT = """\
anon 8192000
file 4096000
kernel 1048576
inactive_anon 4096
inactive_file 3000000
active_file 2048000
"""
V2_CPU_STAT = """\
usage_usec 1234567
user_usec 1000000
system_usec 234567
nr_periods 0
"""


def make_v1(root: Path, group: str, *, cpu_ns: int = 1_234_567_000, memory: int = 10_000_000) -> None:
    for controller, files in {
        "cpuacct": {"cpuacct.usage": f"{cpu_ns}\n"},
        "memory": {"memory.usage_in_bytes": f"{memory}\n", "memory.stat": V1_MEMORY_STAT},
    }.items():
        folder = root / controller / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)


def make_v2(root: Path, group: str, *, memory: int = 10_000_000) -> None:
    folder = root / group
    folder.mkdir(parents=True, exist_ok=True)
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    for name, text in {"cpu.stat": V2_CPU_STAT, "memory.current": f"{memory}\n", "memory.stat": V2_MEMORY_STAT}.items():
        (folder / name).write_text(text)


@pytest.fixture
def interfaces(tmp_path: Path) -> Path:
    path = tmp_path / "net_dev"
    path.write_text(NET_DEV)
    return path


@pytest.mark.parametrize("make", [make_v1, make_v2])
def test_both_layouts_give_cpu_seconds_and_the_working_set(tmp_path: Path, make: Callable[[Path, str], None]) -> None:
    make(tmp_path, "web")
    reader = open_cgroup("web", tmp_path)
    assert reader.cpu_s() == pytest.approx(1.234567)
    assert reader.memory_bytes() == 7_000_000
    reader.close()


def test_version_1_with_joined_controllers(tmp_path: Path) -> None:
    make_v1(tmp_path, "web")
    (tmp_path / "cpuacct").rename(tmp_path / "cpu,cpuacct")
    assert open_cgroup("web", tmp_path).cpu_s() == pytest.approx(1.234567)


def test_a_version_2_root_without_memory_file_reads_as_zero(tmp_path: Path) -> None:
    make_v2(tmp_path, "")
    (tmp_path / "memory.current").unlink()
    assert open_cgroup("", tmp_path).memory_bytes() == 0


def open_below(folder: Path) -> list[str]:
    """Files that this process has open there."""
    return [item.path for item in psutil.Process().open_files() if Path(item.path).is_relative_to(folder)]


def test_readers_follow_the_kernel_and_leave_no_file_open(tmp_path: Path) -> None:
    make_v1(tmp_path, "web")
    reader = open_cgroup("web", tmp_path)
    (tmp_path / "cpuacct/web/cpuacct.usage").write_text("5000000000\n")
    assert reader.cpu_s() == 5.0
    reader.close()
    (tmp_path / "memory/web/memory.stat").unlink()
    with pytest.raises(FileNotFoundError):
        open_cgroup("web", tmp_path)
    assert open_below(tmp_path) == []


def test_interface_counters() -> None:
    assert parse_interfaces(NET_DEV.encode()) == {"lo": (2776, 2776), "eth0": (151732586, 151183352), "vm-web": (1111, 2222)}


@pytest.mark.parametrize("make", [make_v1, make_v2])
def test_a_sample_of_a_node_and_its_guest(tmp_path: Path, interfaces: Path, make: Callable[[Path, str], None]) -> None:
    make(tmp_path, "")
    make(tmp_path, "emulab/web")
    sampler = Sampler(
        "host1", lambda: [GuestTarget("web", "emulab/web", "vm-web")], interval_s=0.01, cgroup_root=tmp_path, interfaces=interfaces
    )
    start = clock.now()
    sampler.start()
    sampler.start()
    wait_until(lambda: len(sampler._buffer) >= 6, timeout_s=10.0)
    sampler.stop()
    sampler.stop()
    rows = sampler.drain()
    node, guest = rows[0], rows[1]
    assert node[1:] == ("host1", "node", "host1", pytest.approx(1.234567), 7_000_000, 151732586, 151183352)
    assert guest[1:] == ("host1", "guest", "web", pytest.approx(1.234567), 7_000_000, 2222, 1111)
    assert [row.t_s for row in rows] == sorted(row.t_s for row in rows)
    assert start <= rows[0].t_s <= rows[-1].t_s <= clock.now()
    assert sampler.drain() == []


def test_guests_come_and_go_without_a_gap_in_the_nodes_record(tmp_path: Path, interfaces: Path) -> None:
    make_v2(tmp_path, "")
    make_v2(tmp_path, "web")
    guests: list[GuestTarget] = []
    sampler = Sampler("host1", lambda: list(guests), interval_s=0.005, cgroup_root=tmp_path, interfaces=interfaces)
    sampler.start()

    def rows_after(change: list[GuestTarget]) -> list[str]:
        guests[:] = change
        for _ in range(2):  # a sample that had begun before is in the first of these
            sampler.drain()
            wait_until(lambda: len(sampler._buffer) >= 4, timeout_s=10.0)
        sampler.drain()
        wait_until(lambda: len(sampler._buffer) >= 4, timeout_s=10.0)
        return [row.name for row in sampler.drain()]

    assert set(rows_after([])) == {"host1"}
    assert set(rows_after([GuestTarget("web", "web", "vm-web")])) == {"host1", "web"}
    assert set(rows_after([GuestTarget("ghost", "ghost", "vm-ghost")])) == {"host1"}
    assert set(rows_after([])) == {"host1"}
    sampler.stop()
    assert open_below(tmp_path) == []


def test_the_machine_and_single_processes_where_asked(tmp_path: Path, interfaces: Path) -> None:
    make_v2(tmp_path, "")
    sampler = Sampler(
        "head", processes=lambda: {"self": os.getpid(), "gone": 2**22 + 1}, machine=True, cgroup_root=tmp_path, interfaces=interfaces
    )
    sampler.start()
    wait_until(lambda: len(sampler._buffer) >= 3, timeout_s=10.0)
    sampler.stop()
    by_kind = {row.kind: row for row in sampler.drain()}
    assert set(by_kind) == {"node", "process", "machine"}
    assert (by_kind["machine"].node, by_kind["machine"].name) == ("machine", "machine")
    assert by_kind["machine"].cpu_s > 0
    assert 0 < by_kind["machine"].memory_bytes < psutil.virtual_memory().total
    assert by_kind["process"].name == "self"
    assert by_kind["process"].memory_bytes > 1_000_000


def test_csv_has_the_contract_s_columns(tmp_path: Path, interfaces: Path) -> None:
    make_v2(tmp_path, "")
    sampler = Sampler("host1", interval_s=0.01, cgroup_root=tmp_path, interfaces=interfaces)
    sampler.start()
    wait_until(lambda: len(sampler._buffer) >= 2, timeout_s=10.0)
    sampler.stop()
    count = sampler.write_csv(tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count >= 2
    assert tuple(rows[0]) == COLUMNS == ("t_s", "node", "kind", "name", "cpu_s", "memory_bytes", "rx_bytes", "tx_bytes")
    assert float(rows[0]["cpu_s"]) == pytest.approx(1.234567)
    assert int(rows[0]["rx_bytes"]) == 151732586


def test_a_failing_sample_does_not_end_the_record(tmp_path: Path, interfaces: Path) -> None:
    make_v2(tmp_path, "")
    calls = 0

    def guests() -> list[GuestTarget]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("the list of guests is being changed")
        return []

    sampler = Sampler("host1", guests, interval_s=0.005, cgroup_root=tmp_path, interfaces=interfaces)
    sampler.start()
    wait_until(lambda: calls >= 4, timeout_s=10.0)
    sampler.stop()
    assert len(sampler.drain()) == calls - 1


def test_a_node_without_counters_is_told_at_start(tmp_path: Path, interfaces: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Sampler("host1", cgroup_root=tmp_path / "nothing", interfaces=interfaces).start()
    with pytest.raises(ValueError, match="interval"):
        Sampler("host1", interval_s=0)
