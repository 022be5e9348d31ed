"""What a run was made with."""

from __future__ import annotations

import json
import os
import shlex
import subprocess

import psutil
import pytest

import emulab
from emulab.experiment.manifest import git_state, host_facts, repeat_command, start_manifest


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        return subprocess.run(("git", "-C", str(tmp_path), *identity, *words), check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_a_clean_checkout_is_its_commit(checkout):
    folder, commit = checkout
    assert git_state(folder) == {"commit": commit, "dirty": False}


def test_a_changed_checkout_says_so(checkout):
    folder, commit = checkout
    (folder / "file").write_text("2")
    assert git_state(folder) == {"commit": commit, "dirty": True}


def test_outside_of_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_the_manifest_begins_as_failed_and_is_plain_json():
    manifest = start_manifest("20260101T000000Z-abcd", "make experiment SCENARIO=quick")
    assert manifest == json.loads(json.dumps(manifest))
    assert (manifest["format_version"], manifest["id"], manifest["status"]) == (1, "20260101T000000Z-abcd", "failed")
    assert manifest["versions"]["emulab"] == emulab.__version__
    assert manifest["command"] == "make experiment SCENARIO=quick"


def test_one_instant_is_told_on_both_clocks():
    instants = start_manifest("x", "y")["clock"]
    assert isinstance(instants["mono_s"], float)
    assert instants["wall"]


def test_the_machine_is_described():
    facts = host_facts()
    assert facts["cores"] == os.cpu_count()
    assert facts["memory_bytes"] == psutil.virtual_memory().total
    assert facts["cgroup"] in {"v1", "v2"}
    assert facts["cpu_model"]
    assert facts["kernel"] == os.uname().release


def words(command):
    return shlex.split(command)


def test_the_command_repeats_scenario_and_what_was_changed():
    assert words(repeat_command("quick", {"users": "50", "steady": None, "seed": "7"})) == [
        "make",
        "experiment",
        "SCENARIO=quick",
        "USERS=50",
        "SEED=7",
    ]


def test_words_with_blanks_survive_the_shell():
    assert words(repeat_command("my scenarios/one.yaml", {}))[-1] == "SCENARIO=my scenarios/one.yaml"


def test_keys_that_make_has_no_variable_for_are_repeated_as_they_were_given():
    command = repeat_command("quick", {"users": "50", "seed": None, "migrations.1.to": "host3"})
    assert words(command)[1:] == ["experiment", "--scenario", "quick", "--users", "50", "--set", "migrations.1.to=host3"]
