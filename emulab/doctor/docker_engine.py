"""The container engine and its plugins: found, started or installed. An engine that answers is never touched."""

from __future__ import annotations

import os
import re
import shutil
import threading
from pathlib import Path

from emulab import clock
from emulab.command import Argv, Runner
from emulab.doctor import packages
from emulab.doctor.model import Finding, Say, bad, good
from emulab.engine.client import connect, endpoint, socket_path
from emulab.errors import DoctorError, EngineError

LOG = Path("/var/log/emulab-dockerd.log")
_START_S = 60.0
_OLDEST_ENGINE = (20, 10)


def version_numbers(text: str) -> tuple[int, ...]:
    """(2, 26, 1) of ``Docker Compose version v2.26.1-4``; () if there is none."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in match.groups() if part) if match else ()


def check_engine() -> Finding:
    client = connect(timeout_s=20)
    version = str(client.version().get("Version", ""))
    if version_numbers(version)[:2] < _OLDEST_ENGINE:
        return bad(f"engine {version}", "Docker Engine 20.10 or newer")
    if not shutil.which("docker"):
        return bad(f"engine {version}, but no docker command", "install the docker command")
    return good(f"engine {version} at {endpoint()}")


def is_custom(host: str) -> bool:
    """Whether the user has chosen an engine other than the distribution's."""
    path = socket_path(host)
    return path is None or path.resolve() not in {Path("/run/docker.sock"), Path("/var/run/docker.sock").resolve()}


def start_argv(*, systemd: bool) -> Argv:
    """Start the installed engine: as a service, or, without systemd, detached from this terminal."""
    if systemd:
        return ("systemctl", "enable", "--now", "docker.service")
    return ("sh", "-c", f"setsid dockerd >>{LOG} 2>&1 </dev/null &")


def has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def fix_engine(runner: Runner, say: Say) -> None:
    """Install what is missing, start what is stopped, wait for the answer. Raises DoctorError."""
    host = endpoint()
    if is_custom(host):
        raise DoctorError(
            f"no engine answers at {host}, which was chosen by DOCKER_HOST or the Docker context", hint="start it, or unset DOCKER_HOST"
        )
    if not shutil.which("dockerd"):
        packages.install(("docker.io",), runner, say)
    if not shutil.which("docker"):
        packages.install(("docker-cli",), runner, say)
    if not _answers():
        argv = start_argv(systemd=has_systemd())
        say("starting the engine" + ("" if has_systemd() else f" (its log: {LOG})"))
        runner.run(argv, timeout_s=120)
    deadline = clock.now() + _START_S
    while not _answers():
        if clock.now() > deadline:
            raise DoctorError(
                f"the engine does not answer after {_START_S:.0f} s: {_log_line(runner)}",
                hint=f"see {LOG if not has_systemd() else 'journalctl -u docker'}",
            )
        threading.Event().wait(0.3)


def _answers() -> bool:
    try:
        connect(timeout_s=5)
    except EngineError:
        return False
    return True


def _log_line(runner: Runner) -> str:
    argv = ("journalctl", "-u", "docker", "-n", "20", "-o", "cat", "--no-pager") if has_systemd() else ("tail", "-n", "20", str(LOG))
    lines = [line for line in runner.try_run(argv).stdout.splitlines() if line.strip()]
    told = [line for line in lines if re.search("level=(error|fatal)|failed", line)]
    return (told or lines or ["no log"])[-1]


def check_plugin(name: str, oldest: tuple[int, ...], runner: Runner) -> Finding:
    """``docker compose`` or ``docker buildx``."""
    outcome = runner.try_run(("docker", name, "version"), timeout_s=20)
    version = version_numbers(outcome.stdout)
    shown = ".".join(map(str, version))
    if not outcome.ok or not version:
        return bad(f"docker {name} is not installed", f"install Docker's {name} plugin")
    if version < oldest:
        return bad(f"docker {name} {shown}", f"docker {name} {'.'.join(map(str, oldest))} or newer")
    return good(f"docker {name} {shown}")


def plugin_package(name: str, distribution: tuple[str, str]) -> tuple[str, str | None]:
    """(package, release to borrow it from) of a plugin on a distribution.

    Debian 12 has neither plugin; Debian 13's need nothing newer than Debian 12's C library.
    """
    system, version = distribution
    if system == "ubuntu":
        return {"compose": "docker-compose-v2", "buildx": "docker-buildx"}[name], None
    return {"compose": "docker-compose", "buildx": "docker-buildx"}[name], "trixie" if (system, version) == ("debian", "12") else None


def fix_plugin(name: str, runner: Runner, say: Say) -> None:
    package, release = plugin_package(name, packages.distribution())
    if release is None:
        packages.install((package,), runner, say)
        return
    if not packages.can_install():
        raise DoctorError(f"cannot install {package} here", hint="run as root")
    with packages.borrowed_release(release, runner, say):
        packages.install((package,), runner, say, release=release)


def check_root() -> Finding:
    return good("yes") if os.geteuid() == 0 else bad("this is not root", "sudo make ...")
