"""Makes the project's virtual environment: the one program here that runs before anything is installed (standard library only).

    python3 emulab/doctor/bootstrap.py [--dev]

A stamp in the environment holds the digest of what it was made from: a second run does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
STAMP = ".emulab-stamp"
OLDEST = (3, 11)
CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")


def say(text: str) -> None:
    """One line to the user, at once."""
    sys.stderr.write(f"bootstrap: {text}\n")
    sys.stderr.flush()


def digest(pyproject: bytes, version: tuple[int, int], place: str, *, dev: bool) -> str:
    """Of everything that decides the environment's content."""
    seen = hashlib.sha256(pyproject)
    seen.update(f"{version} {place} {'dev' if dev else 'run'}".encode())
    return seen.hexdigest()


def is_current(venv: Path, wanted: str, wanted_dev: str) -> bool:
    """Whether the environment is what is wanted; the one for development has everything in it."""
    try:
        stamp = (venv / STAMP).read_text().strip()
    except OSError:
        return False
    return stamp in {wanted, wanted_dev} and (venv / "bin/emulab").exists() and (venv / "bin/python").exists()


def trust(environ: Mapping[str, str], bundles: tuple[str, ...] = CA_BUNDLES) -> dict[str, str]:
    """Environment for pip, which brings its own certificates: let it trust what the machine trusts, unless told otherwise."""
    if environ.get("PIP_CERT") or environ.get("REQUESTS_CA_BUNDLE"):
        return {}
    for bundle in bundles:
        if Path(bundle).is_file():
            return {"PIP_CERT": bundle}
    return {}


def needs_venv_package() -> bool:
    """Debian's and Ubuntu's python3 comes without the means to make environments."""
    return importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None


def install_venv_package() -> None:
    """Install python3-venv by apt. Exits with a remedy where that cannot be."""
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    apt = shutil.which("apt-get")
    if os.geteuid() != 0 or apt is None:
        sys.exit(f"bootstrap: this Python cannot make virtual environments.\nhint: apt-get install {package} (as root)")
    say(f"installing the package {package} on this machine")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run([apt, "-q", "update"], env, must=False)
    run([apt, "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "install", "--no-install-recommends", package], env)


def run(argv: list[str], env: dict[str, str], *, must: bool = True) -> None:
    """Run quietly; on failure show what it said, and exit."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, env=env)
    if must and done.returncode != 0:
        sys.stderr.write(done.stdout)
        sys.exit(f"bootstrap: `{' '.join(argv)}` failed with code {done.returncode}")


def bootstrap(venv: Path, *, dev: bool) -> bool:
    """Make or complete the environment. True if there was something to do."""
    pyproject = (CHECKOUT / "pyproject.toml").read_bytes()
    version = sys.version_info[:2]
    wanted, wanted_dev = (digest(pyproject, version, str(CHECKOUT), dev=which) for which in (dev, True))
    if is_current(venv, wanted, wanted_dev):
        return False
    if needs_venv_package():
        install_venv_package()
    env = {**os.environ, **trust(os.environ), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    (venv / STAMP).unlink(missing_ok=True)
    if not (venv / "bin/python").exists() or not (venv / "bin/pip").exists():
        say(f"making {venv}")
        run([sys.executable, "-m", "venv", "--clear", str(venv)], env)
    say("installing Python packages into it (once; a minute or two)")
    run([str(venv / "bin/python"), "-m", "pip", "install", "-q", "-e", f"{CHECKOUT}{'[dev]' if dev else ''}"], env)
    (venv / STAMP).write_text(wanted + "\n")
    return True


def main(argv: list[str] | None = None) -> int:
    """Exit code."""
    if sys.version_info[:2] < OLDEST:
        old, need = sys.version.split()[0], ".".join(map(str, OLDEST))
        sys.exit(f"bootstrap: Python {old} is too old: emulab needs {need} or newer\nhint: make PYTHON=python3.12 ...")
    parser = argparse.ArgumentParser(description="Make the project's virtual environment.")
    parser.add_argument("--dev", action="store_true", help="with what the tests and checks need")
    parser.add_argument("--venv", type=Path, default=CHECKOUT / ".venv", help="where (default: .venv in the checkout)")
    options = parser.parse_args(argv)
    try:
        if bootstrap(options.venv, dev=options.dev):
            say("done")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
