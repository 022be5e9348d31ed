"""The connection to the container engine of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import docker
from docker.context import ContextAPI
from docker.errors import DockerException

from emulab.errors import EngineError

if TYPE_CHECKING:
    from docker import DockerClient

DEFAULT_HOST = "unix:///var/run/docker.sock"
REPAIR = "make doctor FIX=1"


def context_name() -> str:
    """Name of the Docker context that the docker command uses now."""
    if os.environ.get("DOCKER_HOST"):
        return "default"
    if name := os.environ.get("DOCKER_CONTEXT"):
        return name
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        return str(json.loads(config.read_text()).get("currentContext") or "default")
    except (OSError, ValueError):
        return "default"


def endpoint() -> str:
    """Address of the engine, for example ``unix:///var/run/docker.sock``: DOCKER_HOST, else the current context's."""
    if host := os.environ.get("DOCKER_HOST"):
        return host
    name = context_name()
    if name == "default":
        return DEFAULT_HOST
    context = ContextAPI.get_context(name)
    if context is None:
        raise EngineError(f"the Docker context {name!r} does not exist", hint="docker context ls")
    return str(context.Host)


def socket_path(host: str) -> Path | None:
    """Path of the engine's socket, or None if the engine is reached in another way."""
    return Path(host.removeprefix("unix://")) if host.startswith("unix://") else None


def connect(*, timeout_s: int = 60) -> DockerClient:
    """A client of the engine of this machine. Raises EngineError if none answers, or if it runs elsewhere.

    The engine must share this machine's files, kernel and clock: only a unix socket will do.
    """
    host = endpoint()
    if socket_path(host) is None:
        raise EngineError(
            f"the engine at {host} is not on this machine",
            hint="emulab needs a local engine: unset DOCKER_HOST, docker context use default",
        )
    try:
        client = docker.DockerClient(base_url=host, version="auto", timeout=timeout_s)
        client.ping()
    except (DockerException, OSError) as error:
        raise EngineError(f"no container engine answers at {host}: {_reason(error)}", hint=REPAIR) from error
    return client


def _reason(error: BaseException) -> str:
    """The system's own word inside a stack of wrapped exceptions."""
    text = str(error)
    for word in ("Permission denied", "No such file or directory", "Connection refused", "timed out"):
        if word in text:
            return word.lower()
    return text.splitlines()[0] if text else type(error).__name__
