"""What a run was made with: versions, machine, code, command. Written first, completed at the end."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

import emulab
from emulab import clock
from emulab.experiment.folder import FORMAT_VERSION
from emulab.testbed import Testbed

_SYSCTLS = (
    "fs.pipe-max-size", "fs.pipe-user-pages-soft", "vm.unprivileged_userfaultfd", "net.ipv4.tcp_congestion_control",
    "net.bridge.bridge-nf-call-iptables",
)  # fmt: skip


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and whether the checkout differs from it; empty outside of a checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(("git", "-C", str(folder), *words), capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(git("status", "--porcelain")) if commit else None}


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def sysctls() -> dict[str, str]:
    values = {}
    for name in _SYSCTLS:
        path = Path("/proc/sys") / name.replace(".", "/")
        if path.exists():
            values[name] = path.read_text().strip()
    return values


def host_facts() -> dict[str, Any]:
    """The machine under the nodes. Memory in bytes."""
    return {
        "cpu_model": cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "sysctl": sysctls(),
        "load_average": os.getloadavg()[0],
    }


def start_manifest(run_id: str, repeat: str) -> dict[str, Any]:
    """What is known before the testbed is up. ``repeat``: the shell command that repeats this run."""
    return {
        "format_version": FORMAT_VERSION,
        "id": run_id,
        "status": "failed",  # until the end has been reached
        "started_at": clock.wall(),
        "git": git_state(Path(emulab.__file__).parent.parent),
        "argv": sys.argv,
        "command": repeat,
        "versions": {"emulab": emulab.__version__, "python": platform.python_version(), "kernel": platform.release()},
        "host": host_facts(),
        "clock": {"mono_s": clock.now(), "wall": clock.wall()},
    }


def testbed_facts(testbed: Testbed, links: dict[str, Any], images: dict[str, str]) -> dict[str, Any]:
    """Versions that only the testbed knows, the shaped links, the guest images by digest."""
    node = testbed.facts()
    engine = testbed.project.client.version()
    return {
        "versions": {
            "engine": str(engine.get("Version", "?")),
            "criu": node["criu"],
            "runc": node["runc"],
            "node_python": node["python"],
            "images": images,
        },
        "soft_dirty": node["soft_dirty"],
        "links": links,
    }


_MAKE = ("users", "steady", "seed")


def repeat_command(scenario: str, overrides: dict[str, str | None]) -> str:
    """The shell command that repeats a run: ``make`` where it has a variable for all that was changed."""
    given = {key: value for key, value in overrides.items() if value is not None}
    if set(given) <= set(_MAKE):
        variables = {"SCENARIO": scenario, **{key.upper(): value for key, value in given.items()}}
        return " ".join(("make experiment", *(f"{key}={shlex.quote(value)}" for key, value in variables.items())))
    options = [("--scenario", scenario)]
    options += [(f"--{key}", value) if key in _MAKE else ("--set", f"{key}={value}") for key, value in given.items()]
    return shlex.join((".venv/bin/emulab", "experiment", *(word for option in options for word in option)))
