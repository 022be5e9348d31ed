"""The base image of all others: Debian 13, pulled where a registry answers, else made from the distribution's packages."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from emulab import clock
from emulab.command import Argv, CommandError, Runner
from emulab.engine import mirror
from emulab.engine.client import context_name
from emulab.engine.recipe import BASE
from emulab.engine.settings import CHECKOUT, INPUTS_LABEL, ROLE_LABEL
from emulab.engine.streaming import Say, elapsed, quiet, run_lines
from emulab.errors import EngineError

if TYPE_CHECKING:
    from docker import DockerClient

UPSTREAM = "debian:trixie-slim"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BASE_INPUTS = "1"  # raise it when the way the base image is made changes
_REGISTRY_ANSWERS_S = 8.0


def pull_argv() -> Argv:
    return ("docker", "pull", UPSTREAM)


def label_argv(builder: str) -> Argv:
    """Our own tag on the pulled image, with our labels."""
    folder = str(CHECKOUT / "compose/images/base")
    labels = ("--label", f"{ROLE_LABEL}=image", "--label", f"{INPUTS_LABEL}={BASE_INPUTS}")
    return (
        "docker",
        "buildx",
        "build",
        "--builder",
        builder,
        "--load",
        "--provenance",
        "false",
        "--build-arg",
        f"UPSTREAM={UPSTREAM}",
        *labels,
        "--tag",
        BASE,
        folder,
    )


def bootstrap_argv(archive: Path, mirror_uri: str | None) -> Argv:
    """mmdebstrap: a Debian 13 with apt and certificates, as a tar archive."""
    source = () if mirror_uri is None else (mirror.deb_line(mirror_uri, "trixie", KEYRING),)
    # On a host that is not Debian its own apt knows no Debian keys.
    keyring = ("--keyring", KEYRING) if mirror_uri is None else ()
    return (
        "mmdebstrap",
        "--variant=apt",
        "--include=ca-certificates",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        *keyring,
        "trixie",
        str(archive),
        *source,
    )


def import_argv(archive: Path) -> Argv:
    changes = ("--change", f"LABEL {ROLE_LABEL}=image", "--change", f"LABEL {INPUTS_LABEL}={BASE_INPUTS}", "--change", 'CMD ["/bin/bash"]')
    return ("docker", "import", *changes, str(archive), BASE)


def ensure_base(client: DockerClient, say: Say = quiet, runner: Runner | None = None) -> bool:
    """Make the base image unless it is there. True if it had to be made. Raises EngineError."""
    if client.images.list(BASE):
        return False
    start = clock.now()
    say(f"base image: asking the image registry for {UPSTREAM}")
    pulled = run_lines(pull_argv(), first_line_s=_REGISTRY_ANSWERS_S, timeout_s=600)
    if pulled.ok:
        labelled = run_lines(label_argv(context_name()))
        if not labelled.ok:
            raise EngineError(f"cannot tag {UPSTREAM} as {BASE}: {labelled.tail[-1] if labelled.tail else 'no output'}")
        say(f"base image: pulled ({elapsed(start)})")
        return True
    say("base image: no registry answers; making it from the distribution's packages")
    _bootstrap(say, runner or Runner())
    say(f"base image: made ({elapsed(start)})")
    return True


def _bootstrap(say: Say, runner: Runner) -> None:
    missing = [
        package
        for package, file in (("mmdebstrap", shutil.which("mmdebstrap")), ("debian-archive-keyring", Path(KEYRING).is_file()))
        if not file
    ]
    if missing:
        if not shutil.which("apt-get"):
            raise EngineError(
                "no image registry answers, and mmdebstrap is not installed", hint=f"install mmdebstrap, or load an image as {BASE}"
            )
        say(f"base image: installing {' and '.join(missing)} on this machine")
        apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y")
        runner.run((*apt, "update"), timeout_s=600)
        runner.run((*apt, "install", "--no-install-recommends", *missing), timeout_s=600)
    with tempfile.TemporaryDirectory(prefix="emulab-base-") as folder:
        archive = Path(folder) / "base.tar"
        done = run_lines(
            bootstrap_argv(archive, mirror.debian_mirror(mirror.read_sources())),
            lambda line: say(f"base image: {line.removeprefix('I: ')}"),
        )
        if not done.ok:
            raise EngineError(
                f"mmdebstrap failed: {done.tail[-1] if done.tail else 'no output'}",
                hint="can this machine install packages? apt-get update",
            )
        try:
            runner.run(import_argv(archive), timeout_s=600)
        except CommandError as error:
            raise EngineError(f"cannot import the base image: {error}") from error
