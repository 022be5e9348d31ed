"""Builds an image with BuildKit. The build trusts what this machine trusts, and keeps nothing of it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import ExitStack
from pathlib import Path

from emulab import clock
from emulab.command import Argv
from emulab.engine.client import context_name
from emulab.engine.recipe import Recipe
from emulab.engine.settings import INPUTS_LABEL, ROLE_LABEL
from emulab.engine.streaming import Say, elapsed, quiet, run_lines
from emulab.errors import EngineError

CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_STEP = re.compile(r"#\d+ \[(?P<stage>[^\]]*?)\s*(?P<n>\d+/\d+)\] (?P<what>.*)")
# BuildKit repeats the failing command and the Dockerfile's lines below the program's own words.
_NOISE = re.compile(r"^(-+$|>|\s*\d+ \| |\s*\d+ >>>|Dockerfile:|ERROR: failed to solve|#\d+ (DONE|CANCELED|CACHED|ERROR))")


def ca_bundle(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The certificates this machine trusts: what the user set, else the distribution's file."""
    for name in (environ.get("SSL_CERT_FILE"), *CA_BUNDLES):
        if name and Path(name).is_file():
            return Path(name)
    return None


def pip_settings(environ: Mapping[str, str] = os.environ, files: tuple[Path, ...] | None = None) -> str:
    """The machine's package index as the text of a pip.conf; empty if it uses the public one.

    Only addresses that a build can reach too (http, https) are taken.
    """
    config = ConfigParser(interpolation=None)
    try:
        config.read(_pip_files(environ) if files is None else files)
    except (ConfigParserError, UnicodeDecodeError, OSError):
        config = ConfigParser(interpolation=None)
    lines = []
    for key in ("index-url", "extra-index-url"):
        value = environ.get("PIP_" + key.upper().replace("-", "_"))
        for section in ("install", "global"):
            value = value or config.get(section, key, fallback="")
        urls = [url for url in (value or "").split() if url.startswith(("http://", "https://"))]
        if urls:
            lines.append(f"{key} = " + "\n    ".join(urls))
    return "[global]\n" + "\n".join(lines) + "\n" if lines else ""


def _pip_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    home = Path(environ.get("HOME") or "/root")
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    extra = (Path(environ["PIP_CONFIG_FILE"]),) if environ.get("PIP_CONFIG_FILE") else ()
    return (Path("/etc/pip.conf"), home / ".pip/pip.conf", user / "pip/pip.conf", *extra)


def build_argv(recipe: Recipe, inputs: str, *, builder: str, secrets: Mapping[str, Path], proxies: Mapping[str, str]) -> Argv:
    """``docker buildx build`` with the context on standard input."""
    argv = [
        "docker",
        "buildx",
        "build",
        "--builder",
        builder,
        "--load",
        "--progress",
        "plain",
        "--provenance",
        "false",
        "--network",
        "host",
    ]
    argv += ["--tag", recipe.tag, "--file", recipe.dockerfile, "--build-arg", f"BASE={recipe.after}"]
    argv += ["--label", f"{ROLE_LABEL}=image", "--label", f"{INPUTS_LABEL}={inputs}"]
    for name, path in secrets.items():
        argv += ["--secret", f"id={name},src={path}"]
    for name, value in proxies.items():
        argv += ["--build-arg", f"{name}={value}"]
    return (*argv, "-")


def step_of(line: str) -> str | None:
    """A build's output line as progress: ``web 3/7: RUN apt-get …``, or None for the others."""
    match = _STEP.match(line)
    if not match or not match["what"].startswith("RUN "):  # the others take no time
        return None
    words = re.sub(r"--mount=\S+|\bif \[ .*?; fi;|\s+", " ", match["what"].removeprefix("RUN ")).split()
    return f"{match['n']} {' '.join(words)[:60]}"


def deciding_line(lines: tuple[str, ...]) -> str:
    """The line of a failed build's output that says most: the last word of the program that failed."""
    told = [re.sub(r"^(#\d+ )?(\d+\.\d+ )?", "", line).strip() for line in lines if not _NOISE.match(line)]
    told = [line for line in told if line]
    errors = [line for line in told if re.search(r"\berror\b|^E: |not found|[Nn]o such|denied|[Cc]ould not", line)]
    return (errors or told or ["no output"])[-1]


def build(recipe: Recipe, context: bytes, inputs: str, say: Say = quiet) -> None:
    """Build and load an image, telling each step. Raises EngineError with the deciding line; the whole output is kept in a file."""
    start = clock.now()
    with ExitStack() as stack:
        secrets = {}
        if bundle := ca_bundle():
            secrets["ca"] = bundle
        if settings := pip_settings():
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="emulab-pip-"))
            file.write(settings)
            file.flush()
            secrets["pip"] = Path(file.name)
        proxies = {name: os.environ[name] for name in _PROXIES if os.environ.get(name)}
        argv = build_argv(recipe, inputs, builder=context_name(), secrets=secrets, proxies=proxies)

        told: set[str] = set()

        def on_line(line: str) -> None:
            step = step_of(line)
            if step and step not in told:  # BuildKit names a step again whenever another one has spoken in between
                told.add(step)
                say(f"{recipe.name} {step} ({elapsed(start)})")

        done = run_lines(argv, on_line, stdin=context, env={"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}, keep=4000)
    if not done.ok:
        log = Path(tempfile.gettempdir()) / f"emulab-build-{recipe.name}.log"
        log.write_text("\n".join(done.tail) + "\n")
        raise EngineError(f"building the image {recipe.name} failed: {deciding_line(done.tail)}", hint=f"whole output: {log}")
