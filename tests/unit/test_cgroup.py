"""Cgroups of both versions, on folders that look like them: which file gets which value."""

from __future__ import annotations

import subprocess
import threading

import pytest

from emulab.node.cgroup import CgroupError, CgroupV1, CgroupV2, guest_cgroup, prepare_node


@pytest.fixture
def v1(tmp_path):
    (tmp_path / "cpu,cpuacct").mkdir()
    for link in ("cpu", "cpuacct"):
        (tmp_path / link).symlink_to("cpu,cpuacct")
    for controller in ("memory", "freezer"):
        (tmp_path / controller).mkdir()
    return tmp_path


@pytest.fixture
def v2(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.procs").write_text("")
    return tmp_path


def read(path):
    return path.read_text().strip()


def test_the_machine_decides_the_version(v1, tmp_path_factory):
    assert isinstance(guest_cgroup("web", v1), CgroupV1)
    other = tmp_path_factory.mktemp("v2")
    (other / "cgroup.controllers").write_text("cpu\n")
    assert isinstance(guest_cgroup("web", other), CgroupV2)


def test_v1_has_one_folder_per_controller_and_joint_controllers_once(v1):
    group = guest_cgroup("web", v1)
    group.create()
    assert sorted(str(path.relative_to(v1)) for path in v1.glob("*/guest-web") if not path.parent.is_symlink()) == [
        "cpu,cpuacct/guest-web",
        "freezer/guest-web",
        "memory/guest-web",
    ]
    assert group.join_command().count("cgroup.procs") == 3


def test_v2_has_one_folder(v2):
    group = guest_cgroup("web", v2)
    group.create()
    assert (v2 / "guest-web").is_dir()
    assert group.join_command() == f"echo $$ > {v2}/guest-web/cgroup.procs"


def test_v1_limits(v1):
    group = guest_cgroup("web", v1)
    group.create()
    group.limit(1.5, 2 * 2**30)
    assert read(v1 / "memory/guest-web/memory.limit_in_bytes") == "2147483648"
    assert (read(v1 / "cpu/guest-web/cpu.cfs_quota_us"), read(v1 / "cpu/guest-web/cpu.cfs_period_us")) == ("150000", "100000")


def test_v2_limits(v2):
    group = guest_cgroup("web", v2)
    group.create()
    group.limit(1.5, 2 * 2**30)
    assert read(v2 / "guest-web/memory.max") == "2147483648"
    assert read(v2 / "guest-web/cpu.max") == "150000 100000"


def test_v1_lifts_the_quota_and_sets_it_again(v1):
    group = guest_cgroup("web", v1)
    group.create()
    group.lift_quota()
    assert read(v1 / "cpu/guest-web/cpu.cfs_quota_us") == "-1"
    group.set_quota(2)
    assert read(v1 / "cpu/guest-web/cpu.cfs_quota_us") == "200000"


def test_v2_lifts_the_quota_and_sets_it_again(v2):
    group = guest_cgroup("web", v2)
    group.create()
    group.lift_quota()
    assert read(v2 / "guest-web/cpu.max") == "max 100000"
    group.set_quota(2)
    assert read(v2 / "guest-web/cpu.max") == "200000 100000"


def test_v1_freezes_and_thaws(v1):
    group = guest_cgroup("web", v1)
    group.create()
    group.freeze()
    assert read(v1 / "freezer/guest-web/freezer.state") == "FROZEN"
    assert group.frozen()
    group.thaw()
    assert not group.frozen()


def test_v2_is_frozen_only_when_the_kernel_says_so(v2):
    group = guest_cgroup("web", v2)
    group.create()
    events = v2 / "guest-web/cgroup.events"
    events.write_text("populated 1\nfrozen 0\n")
    timer = threading.Timer(0.05, lambda: events.write_text("populated 1\nfrozen 1\n"))
    timer.start()
    group.freeze()
    assert "frozen 1" in events.read_text()
    assert group.frozen()


def test_v2_thaws_again_what_does_not_freeze(v2):
    group = guest_cgroup("web", v2)
    group.create()
    (v2 / "guest-web/cgroup.events").write_text("populated 1\nfrozen 0\n")
    with pytest.raises(CgroupError, match="did not freeze"):
        group.freeze(timeout_s=0.02)
    assert read(v2 / "guest-web/cgroup.freeze") == "0"


def test_tasks_are_read_from_the_group(v1):
    group = guest_cgroup("web", v1)
    assert group.pids() == []
    group.create()
    (v1 / "freezer/guest-web/cgroup.procs").write_text("12\n345\n")
    assert group.pids() == [12, 345]


def test_the_join_command_moves_the_shell_itself(v2):
    group = guest_cgroup("web", v2)
    group.create()
    done = subprocess.run(("sh", "-c", f"{group.join_command()}; echo $$"), capture_output=True, text=True, check=True)
    assert read(v2 / "guest-web/cgroup.procs") == done.stdout.strip()


def test_removing_takes_every_folder_and_may_be_repeated(v1):
    group = guest_cgroup("web", v1)
    group.create()
    group.remove()
    group.remove()
    assert not list(v1.glob("*/guest-web"))


def test_a_folder_that_cannot_be_removed_is_named(v1):
    group = guest_cgroup("web", v1)
    group.create()
    (v1 / "memory/guest-web/file").write_text("")
    with pytest.raises(CgroupError, match="memory/guest-web"):
        group.remove()


def test_killing_ends_the_tasks(v1):
    group = guest_cgroup("web", v1)
    group.create()
    child = subprocess.Popen(("sleep", "60"))
    procs = v1 / "freezer/guest-web/cgroup.procs"
    procs.write_text(f"{child.pid}\n")
    ended = threading.Thread(target=lambda: (child.wait(), procs.write_text("")))
    ended.start()
    group.kill(timeout_s=5)
    ended.join()
    assert child.returncode == -9


def test_tasks_that_do_not_end_are_an_error(v2):
    group = guest_cgroup("web", v2)
    group.create()
    (v2 / "guest-web/cgroup.procs").write_text("4194304\n")  # above any pid
    with pytest.raises(CgroupError, match="do not end"):
        group.kill(timeout_s=0.02)


def test_a_missing_control_file_is_named(v2):
    with pytest.raises(CgroupError, match=r"guest-web/cpu\.max"):
        guest_cgroup("web", v2).set_quota(1)


def test_on_v2_the_node_hands_out_controllers_from_a_leaf_of_its_own(v2):
    prepare_node(v2)
    assert (v2 / "agent").is_dir()
    assert read(v2 / "cgroup.subtree_control") == "+cpu +memory +pids"


def test_on_v2_only_controllers_that_exist_are_handed_out(v2):
    (v2 / "cgroup.controllers").write_text("cpu io\n")
    prepare_node(v2)
    assert read(v2 / "cgroup.subtree_control") == "+cpu"


def test_on_v1_the_node_needs_nothing(v1):
    before = sorted(v1.iterdir())
    prepare_node(v1)
    assert sorted(v1.iterdir()) == before
