"""Takes away what we made, found by its labels, whatever state it is in. Nothing without our labels is touched."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from docker.errors import APIError, NotFound

from emulab.engine import frames
from emulab.engine.settings import PROJECT_LABEL, ROLE_LABEL
from emulab.engine.streaming import Say, quiet
from emulab.errors import EngineError

if TYPE_CHECKING:
    from docker import DockerClient


@dataclass
class Removed:
    """What was taken away, by kind; ``kept``: what was found but not touched, and why."""

    containers: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.containers or self.networks or self.volumes or self.images)


def is_ours(labels: dict[str, str] | None, project: str, roles: Iterable[str]) -> bool:
    """Both the project's label and one of our roles: somebody else's project may have the same name."""
    labels = labels or {}
    return labels.get(PROJECT_LABEL) == project and labels.get(ROLE_LABEL) in set(roles)


def our_containers(client: DockerClient, project: str, *, stopped: bool = True, kept: list[str] | None = None) -> list[Any]:
    """The containers of a project. Those with the project's name but without our role are named in ``kept``."""
    found = client.containers.list(all=stopped, filters={"label": f"{PROJECT_LABEL}={project}"}, ignore_removed=True)
    ours = []
    for container in found:
        if is_ours(container.labels, project, ("node",)):
            ours.append(container)
        elif kept is not None:
            kept.append(f"container {container.name}: not labelled as ours")
    return ours


def remove_project(client: DockerClient, project: str, say: Say = quiet, *, volume_roles: Iterable[str] = ("guests",)) -> Removed:
    """Remove containers, networks and the volumes of the given roles. Raises EngineError if something of ours resists."""
    removed = Removed()
    _remove_containers(client, project, removed, say)
    _remove_networks(client, project, removed)
    for volume in client.volumes.list(filters={"label": f"{PROJECT_LABEL}={project}"}):
        if is_ours((volume.attrs or {}).get("Labels"), project, volume_roles):
            with suppress(NotFound):
                volume.remove(force=True)
                removed.volumes.append(str(volume.name))
    # Left by an unpacking that was killed.
    for container in client.containers.list(all=True, filters={"label": f"{ROLE_LABEL}=unpack"}, ignore_removed=True):
        if container.status == "created":
            _remove_container(container)
    return removed


def _remove_containers(client: DockerClient, project: str, removed: Removed, say: Say) -> None:
    ours = our_containers(client, project, kept=removed.kept)
    if not ours:
        return
    say(f"removing {len(ours)} containers")
    with ThreadPoolExecutor(len(ours)) as pool:
        for name, error in pool.map(_remove_container, ours):
            if error:
                raise EngineError(f"cannot remove the container {name}: {error}", hint="docker rm -f, then make down")
            removed.containers.append(name)


# Tasks of a guest that stands still in a version 1 freezer cannot be ended, and keep their container from ending.
_END_FROZEN = (
    "for g in /sys/fs/cgroup/freezer/guest-*; do [ -e $g/freezer.state ] || continue;"
    " kill -9 $(cat $g/cgroup.procs) 2>/dev/null; echo THAWED >$g/freezer.state; done"
)


def _remove_container(container: Any) -> tuple[str, str]:
    """Its name, and why it is still there ("" if it is gone)."""
    if container.status == "running":
        with suppress(NotFound, APIError):
            container.exec_run(("sh", "-c", _END_FROZEN))
    try:
        container.remove(force=True, v=True)
    except NotFound:
        pass
    except APIError as error:
        if "already in progress" not in str(error):
            return str(container.name), str(error.explanation or error)
        with suppress(NotFound, APIError):
            container.wait(condition="removed", timeout=20)
    return str(container.name), ""


def _remove_networks(client: DockerClient, project: str, removed: Removed) -> None:
    for network in client.networks.list(filters={"label": f"{PROJECT_LABEL}={project}"}):
        if not is_ours((network.attrs or {}).get("Labels"), project, ("lan", "door")):
            removed.kept.append(f"network {network.name}: not labelled as ours")
            continue
        frames.forget(str(network.id))
        try:
            network.remove()
        except NotFound:
            continue
        except APIError as error:
            raise EngineError(
                f"cannot remove the network {network.name}: {error.explanation}", hint="docker network inspect tells who uses it"
            ) from error
        removed.networks.append(str(network.name))
