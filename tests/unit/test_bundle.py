"""What runc is told about a guest."""

from __future__ import annotations

import json

from emulab.node.bundle import bundle_config


def config(**changes):
    given = {
        "hostname": "web",
        "rootfs": "/g/web/root",
        "argv": ("/sbin/init", "-x"),
        "env": {"OLIO_WORKERS": "52"},
        "cgroup": "guest-web",
        **changes,
    }
    return bundle_config(**given)


def test_the_document_is_plain_json():
    assert json.loads(json.dumps(config())) == config()


def test_the_guest_runs_its_command_on_its_own_root_without_a_terminal():
    process = config()["process"]
    assert process["args"] == ["/sbin/init", "-x"]
    assert process["terminal"] is False
    assert config()["root"] == {"path": "/g/web/root", "readonly": False}


def test_it_has_every_namespace_of_its_own_and_a_user_namespace_that_maps_ids_onto_themselves():
    linux = config()["linux"]
    assert {namespace["type"] for namespace in linux["namespaces"]} == {"pid", "network", "ipc", "uts", "mount", "user"}
    assert not any("path" in namespace for namespace in linux["namespaces"])
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 0, "size": 65536}]


def test_it_lives_in_the_cgroup_that_the_node_manages():
    assert config(cgroup="guest-db")["linux"]["cgroupsPath"] == "/guest-db"


def test_its_environment_has_a_path_and_what_the_scenario_adds():
    env = config()["process"]["env"]
    assert "OLIO_WORKERS=52" in env
    assert any(entry.startswith("PATH=/") for entry in env)


def test_what_the_scenario_sets_wins_over_the_defaults():
    env = config(env={"LANG": "de_DE.UTF-8"})["process"]["env"]
    assert [entry for entry in env if entry.startswith("LANG=")] == ["LANG=de_DE.UTF-8"]


def test_it_gets_no_capability_over_the_machine():
    granted = set().union(*config()["process"]["capabilities"].values())
    assert granted.isdisjoint(
        {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_DAC_READ_SEARCH", "CAP_SYS_RAWIO"}
    )


def test_open_files_are_limited_to_what_the_node_may_give():
    assert config(open_files=1024)["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]


def test_no_mount_comes_from_a_file_of_the_node():
    assert {mount["type"] for mount in config()["mounts"]} == {"proc", "tmpfs", "devpts"}
