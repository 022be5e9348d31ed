"""The testbed's containers, networks and volumes: brought up by compose, found again by their labels."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from docker.errors import DockerException, NotFound

from emulab import clock
from emulab.command import Argv, Outcome
from emulab.engine import channel, frames, images, unpack
from emulab.engine.client import connect, endpoint, socket_path
from emulab.engine.grants import Grants, grants
from emulab.engine.recipe import NODE
from emulab.engine.removal import Removed, our_containers, remove_project
from emulab.engine.settings import NODES, PROJECT_LABEL, SERVICE_LABEL, Settings
from emulab.engine.streaming import Say, quiet, run_lines
from emulab.errors import EngineError, UsageError

if TYPE_CHECKING:
    from docker import DockerClient

T = TypeVar("T")
Answers = Callable[[str], bool]
CONNECT = ("/opt/emulab/venv/bin/python", "-m", "emulab.agent.connect")


@dataclass(frozen=True)
class NodeStatus:
    """``state``: the engine's word (running, exited, …) or "missing"."""

    name: str
    state: str
    container: str = ""
    address: str = ""
    started_at: str = ""


def compose_environment(settings: Settings, given: Grants) -> dict[str, str]:
    """The variables of compose.yaml that depend on the machine and on the settings."""
    return {
        "EMULAB_SUBNET": settings.subnet,
        "EMULAB_LAN": settings.lan_prefix,
        "EMULAB_UI_PORT": str(settings.ui_port),
        # A default capability in its place says nothing; compose refuses an empty entry.
        "EMULAB_CAP_SYS_RESOURCE": "SYS_RESOURCE" if given.sys_resource else "CHOWN",
        "EMULAB_NOFILE": str(given.open_files),
    }


def up_argv(settings: Settings) -> Argv:
    file = str(settings.compose_file)
    return ("docker", "compose", "-p", settings.project, "-f", file, "up", "--detach", "--remove-orphans", "--no-build", "--pull", "never")


_FAILURES = (
    (r"port is already allocated|address already in use", "another program uses the port: choose one with EMULAB_UI_PORT=8090"),
    (r"overlaps with other one|Pool overlaps", "another network uses the range: choose one with EMULAB_SUBNET=198.18.1.0/24"),
    (r"No such image|pull access denied", "make doctor FIX=1"),
    (r"already in use by container", "a container of that name is not ours: remove it, or choose EMULAB_PROJECT"),
)


def up_failure(tail: Sequence[str]) -> EngineError:
    """Compose's last words as an error with a remedy."""
    lines = [line for line in tail if line.strip()]
    text = next((line for line in reversed(lines) if re.search("error|fail", line, re.IGNORECASE)), lines[-1] if lines else "no output")
    hint = next((hint for pattern, hint in _FAILURES if re.search(pattern, text)), "make doctor")
    return EngineError(f"cannot bring up the nodes: {text.removeprefix('Error response from daemon: ').strip()}", hint=hint)


def last_words(container: Any) -> str:
    """The last line of a container's log."""
    with suppress(DockerException):
        lines = [line for line in container.logs(tail=20).decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "its log is empty"
    return "it has no log"


class Project:
    """One testbed in the engine."""

    def __init__(self, settings: Settings | None = None, client: DockerClient | None = None) -> None:
        self.settings = settings or Settings.from_env()
        self.client = client or connect()
        self._containers: dict[str, str] = {}

    # -- up ---------------------------------------------------------------------------------------------------------------------

    def up(
        self, say: Say = quiet, *, answers: Answers | None = None, environment: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> None:
        """Start what is not running and wait until each node's agent answers. Raises EngineError.

        Args:
            say: told of each step.
            answers: tells whether the agent of a node answers; by default its socket is tried.
            environment: further variables for compose.yaml.
            timeout_s: limit of the wait; a node that stops ends it at once. An emulated processor needs two minutes.

        """
        if images.image_id(self.client, NODE) is None:
            raise EngineError("the node image is not built", hint="make doctor FIX=1")
        env = {**compose_environment(self.settings, grants(socket_path(endpoint()))), **(environment or {})}
        say(f"starting {len(NODES)} nodes")
        done = run_lines(up_argv(self.settings), env=env, timeout_s=300)
        self._containers.clear()
        if not done.ok:
            raise up_failure(done.tail)
        self._wait(answers or self._agent_answers, timeout_s)
        if changed := frames.ensure_pass(self._lan_id(), self.settings.lan_prefix):
            say(changed)
        say(f"{len(NODES)} nodes are up")

    def _lan_id(self) -> str:
        found = self.client.networks.list(
            names=[f"{self.settings.project}_lan"], filters={"label": f"{PROJECT_LABEL}={self.settings.project}"}
        )
        if not found:
            raise EngineError("the LAN of the nodes is gone", hint="make down, then again")
        return str(found[0].id)

    def _agent_answers(self, node: str) -> bool:
        try:
            return self.exec_run(node, CONNECT, timeout_s=30).ok
        except EngineError:  # its container has stopped: what it said last is told by the caller
            return False

    def _wait(self, answers: Answers, timeout_s: float) -> None:
        deadline = clock.now() + timeout_s
        waiting = list(NODES)
        while waiting:
            with ThreadPoolExecutor(len(NODES)) as pool:
                waiting = [node for node, up in zip(waiting, pool.map(answers, waiting), strict=True) if not up]
            found = {self._service(container): container for container in our_containers(self.client, self.settings.project)}
            for node in waiting:
                container = found.get(node)
                if container is None:
                    raise EngineError(f"{node} was removed while it started", hint="is another emulab at work? emulab status")
                if container.status not in {"running", "created"}:
                    raise EngineError(f"{node} stopped at start: {last_words(container)}", hint=f"docker logs {container.name}")
                if clock.now() > deadline:
                    raise EngineError(
                        f"the agent of {node} does not answer after {timeout_s:.0f} s: {last_words(container)}",
                        hint=f"docker logs {container.name}",
                    )
            if waiting:
                threading.Event().wait(0.1)

    # -- what is there ----------------------------------------------------------------------------------------------------------

    def status(self) -> list[NodeStatus]:
        """All nodes, in their usual order."""
        found = {self._service(container): container for container in our_containers(self.client, self.settings.project)}
        rows = []
        for node in NODES:
            container = found.get(node)
            if container is None:
                rows.append(NodeStatus(node, "missing"))
                continue
            networks = container.attrs["NetworkSettings"]["Networks"]
            lan: dict[str, Any] = next((net for name, net in networks.items() if name.endswith("_lan")), {})
            rows.append(NodeStatus(node, container.status, container.id, lan.get("IPAddress", ""), container.attrs["State"]["StartedAt"]))
        return rows

    def container(self, node: str) -> str:
        """Container id of a node. Raises UsageError for an unknown name, EngineError if it is not up."""
        if node not in NODES:
            raise UsageError(f"there is no node {node!r}", hint=f"nodes: {', '.join(NODES)}")
        if node not in self._containers:
            self._containers = {
                self._service(container): str(container.id)
                for container in our_containers(self.client, self.settings.project, stopped=False)
            }
        if node not in self._containers:
            raise EngineError(f"{node} is not up", hint="make up")
        return self._containers[node]

    # -- talking to nodes -------------------------------------------------------------------------------------------------------

    def exec_stream(self, node: str, argv: Sequence[str]) -> channel.ExecStream:
        """Start a command in a node; its stdin and stdout are the stream."""
        return self._fresh(node, lambda container: channel.ExecStream(self.client, container, argv))

    def connect_agent(self, node: str) -> channel.ExecStream:
        """A stream to the node's agent."""
        return self.exec_stream(node, CONNECT)

    def exec_run(self, node: str, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 60.0) -> Outcome:
        """Run a command in a node to its end. Never raises for a failed command: code 124 = timed out."""
        return self._fresh(node, lambda container: channel.run(self.client, container, argv, stdin=stdin, timeout_s=timeout_s))

    def put_bytes(self, node: str, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file in a node, whole or not at all."""
        channel.put_bytes(self.client, self.container(node), path, data, mode=mode)

    def copy_from(self, node: str, path: str, destination: Path) -> list[Path]:
        """Copy a file or folder of a node into the folder ``destination``. Returns the files written."""
        return channel.copy_from(self.client, self.container(node), path, destination)

    def ensure_guest_image(self, name: str, say: Say = quiet, *, tag: str | None = None) -> unpack.GuestImage:
        """Have a guest image ready in all nodes."""
        running = [row.container for row in self.status() if row.state == "running"]
        return unpack.ensure_guest_image(self.client, self.container("head"), name, nodes=running, say=say, tag=tag)

    def _fresh(self, node: str, use: Callable[[str], T]) -> T:
        """Use a node's container; look it up again if the one we knew has been replaced."""
        try:
            return use(self.container(node))
        except EngineError as error:
            if not isinstance(error.__cause__, NotFound):
                raise
            self._containers.clear()
            return use(self.container(node))

    # -- down -------------------------------------------------------------------------------------------------------------------

    def down(self, say: Say = quiet) -> Removed:
        """Remove the containers, networks and guests' volumes of this project, whatever state they are in. Guest images stay.

        Works without the compose file, after a kill -9, and with nothing there. Raises EngineError if something of ours resists.
        """
        self._containers.clear()
        return remove_project(self.client, self.settings.project, say)

    def gc(self, say: Say = quiet, *, image_tags: bool = True) -> Removed:
        """`down`, and everything that makes the next start quick: unpacked guest images, and the images in the engine."""
        self._containers.clear()
        removed = remove_project(self.client, self.settings.project, say, volume_roles=("guests", "images"))
        if image_tags:
            removed.images.extend(images.remove_images(self.client))
        return removed

    @staticmethod
    def _service(container: Any) -> str:
        return str(container.labels.get(SERVICE_LABEL, ""))
