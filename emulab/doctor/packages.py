"""The distribution's packages, by apt."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from emulab.command import Argv, CommandError, Outcome, Runner
from emulab.doctor.model import Say
from emulab.engine import mirror
from emulab.errors import DoctorError

APT = Path("/etc/apt")
# apt reads names of letters, digits, - and _ only; the name says whose it is to one who finds it after a power cut.
_SOURCE = "emulab-doctor.sources"
_PIN = "emulab-doctor"
_ENV = ("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
_OPTIONS = ("-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3")


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """``ID``, ``VERSION_CODENAME`` and so on of the distribution; empty if unknown."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines) if value}


def distribution() -> tuple[str, str]:
    """For example ("debian", "13"), ("ubuntu", "24.04")."""
    release = os_release()
    return release.get("ID", platform.system().lower()), release.get("VERSION_ID", "")


def update_argv() -> Argv:
    return (*_ENV, "apt-get", *_OPTIONS, "update")


def install_argv(packages: Sequence[str], *, release: str | None = None) -> Argv:
    target = ("-t", release) if release else ()
    return (*_ENV, "apt-get", *_OPTIONS, "install", "--no-install-recommends", "--no-upgrade", *target, *packages)


def can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages: Sequence[str], runner: Runner, say: Say, *, release: str | None = None) -> None:
    """Install packages of the distribution. Raises DoctorError."""
    if not can_install():
        raise DoctorError(
            f"cannot install {', '.join(packages)} here", hint="install them with the distribution's package manager, as root"
        )
    say(f"installing {', '.join(packages)}")
    updated = runner.try_run(update_argv(), timeout_s=600)
    done = runner.try_run(install_argv(packages, release=release), timeout_s=1800)
    if not done.ok:
        # A stranger's broken repository fails the update without harm; it matters only if the installation fails too.
        raise _apt_error(done if updated.ok else updated, packages)


def _apt_error(outcome: Outcome, packages: Sequence[str]) -> DoctorError:
    lines = [line for line in (outcome.stderr + "\n" + outcome.stdout).splitlines() if line.startswith("E:")]
    text = lines[0].removeprefix("E: ") if lines else CommandError(outcome).message
    return DoctorError(f"cannot install {', '.join(packages)}: {text}", hint=f"apt-get install {' '.join(packages)}")


def source_entry(uri: str, suite: str) -> str:
    return f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"


def pin_entry(suite: str) -> str:
    """Nothing comes from that release unless it is asked for by name."""
    return f"Package: *\nPin: release n={suite}\nPin-Priority: -1\n"


@contextmanager
def borrowed_release(suite: str, runner: Runner, say: Say, apt: Path = APT) -> Iterator[None]:
    """Another Debian release among apt's sources for the duration of the block, from the machine's own mirror."""
    uri = mirror.debian_mirror(mirror.read_sources(apt))
    if uri is None:
        raise DoctorError(f"apt has no Debian mirror to take {suite}'s packages from", hint="add one to /etc/apt/sources.list")
    source, pin = apt / "sources.list.d" / _SOURCE, apt / "preferences.d" / _PIN
    say(f"adding Debian {suite} to apt's sources for a moment ({source})")
    try:
        pin.parent.mkdir(exist_ok=True)
        pin.write_text(pin_entry(suite))
        source.write_text(source_entry(uri, suite))
        yield
    finally:
        remove_borrowed(apt)
        runner.try_run(update_argv(), timeout_s=600)
        say(f"Debian {suite} is out of apt's sources again")


def borrowed_files(apt: Path = APT) -> list[Path]:
    """What a killed repair left in apt's configuration."""
    return [path for path in (apt / "sources.list.d" / _SOURCE, apt / "preferences.d" / _PIN) if path.exists()]


def remove_borrowed(apt: Path = APT) -> None:
    for path in borrowed_files(apt):
        path.unlink(missing_ok=True)
