"""Six nodes and their guests, addressed by name. Everything here goes through the nodes' agents."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emulab.agent.rpc import Client, RemoteError
from emulab.command import last_line
from emulab.engine.channel import ExecStream
from emulab.engine.project import Project
from emulab.engine.removal import Removed
from emulab.engine.settings import NODES, Settings
from emulab.engine.streaming import Say, quiet
from emulab.errors import AgentError, EmulabError, UsageError
from emulab.node import calibrate
from emulab.node.guest import GuestSpec

HOSTS = tuple(node for node in NODES if node != "head")
PYTHON = "/opt/emulab/venv/bin/python"
RATE_BIT_S = 1_000_000_000
_KEPT_CHANNELS = 2  # of each node
_FIRST_NODE = 10  # last byte of the head's address

OnEvent = Callable[[dict[str, Any]], None]


class Testbed:
    """The nodes of one project. ``up`` brings them up or finds them up."""

    __test__ = False  # not a test case, whatever its name says to pytest

    def __init__(self, settings: Settings | None = None, project: Project | None = None) -> None:
        self.settings = settings or Settings.from_env()
        self.project = project or Project(self.settings)
        self._idle: dict[str, list[tuple[ExecStream, Client]]] = {}
        self._lock = threading.Lock()

    # -- nodes -------------------------------------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> dict[str, str]:
        return {node: f"{self.settings.lan_prefix}.{_FIRST_NODE + n}" for n, node in enumerate(NODES)}

    def up(self, say: Say = quiet, *, rate_bit_s: int = RATE_BIT_S) -> dict[str, Any]:
        """Bring the nodes up, build and shape their links, give them a common secret. Returns the links by node. Safe to repeat."""
        self.project.up(say)
        secret = secrets.token_hex(32)
        params = {"peers": self.addresses, "secret": secret, "rate_bit_s": rate_bit_s, "subnet": self.settings.subnet}
        return dict(zip(NODES, self._everywhere("node.configure", **params), strict=True))

    def down(self, say: Say = quiet) -> Removed:
        self.close()
        return self.project.down(say)

    @contextmanager
    def agent(self, node: str) -> Iterator[Client]:
        """A channel to a node's agent for the duration of the block.

        Kept for the next one: to open a channel costs the machine 0.1 s of CPU, at the expense of the guests.
        """
        stream, client = self._take_channel(node) or self._open_channel(node)
        try:
            yield client
        except RemoteError:  # an answer like any other
            self._keep_channel(node, stream, client)
            raise
        except BaseException:
            client.close()
            raise
        self._keep_channel(node, stream, client)

    def _open_channel(self, node: str) -> tuple[ExecStream, Client]:
        stream = self.project.connect_agent(node)
        return stream, Client(node, stream)

    def _take_channel(self, node: str) -> tuple[ExecStream, Client] | None:
        """One that was used before, and is still of use."""
        while True:
            with self._lock:
                idle = self._idle.get(node)
                if not idle:
                    return None
                stream, client = idle.pop()
            if stream.is_quiet():
                return stream, client
            client.close()

    def _keep_channel(self, node: str, stream: ExecStream, client: Client) -> None:
        with self._lock:
            idle = self._idle.setdefault(node, [])
            if len(idle) < _KEPT_CHANNELS:
                idle.append((stream, client))
                return
        client.close()

    def close(self) -> None:
        """Close the channels that were kept. Safe to repeat; the next call opens new ones."""
        with self._lock:
            kept, self._idle = self._idle, {}
        for _, client in (pair for idle in kept.values() for pair in idle):
            client.close()

    def call(self, node: str, method: str, *, on_event: OnEvent | None = None, **params: Any) -> Any:
        with self.agent(node) as client:
            return client.call(method, on_event=on_event, **params)

    def _everywhere(self, method: str, **params: Any) -> list[Any]:
        with ThreadPoolExecutor(len(NODES)) as pool:
            return list(pool.map(lambda node: self.call(node, method, **params), NODES))

    def facts(self) -> dict[str, Any]:
        """Versions and kernel features as a node sees them."""
        return dict(self.call("host1", "node.facts"))

    def running(self) -> list[str]:
        return [row.name for row in self.project.status() if row.state == "running"]

    # -- guests ------------------------------------------------------------------------------------------------------------------------

    def guests(self) -> list[dict[str, Any]]:
        """Every guest on every node: its specification, state, tasks and node."""
        nodes = [node for node in self.running() if node != "head"]
        with ThreadPoolExecutor(max(1, len(nodes))) as pool:
            return [guest for found in pool.map(lambda node: self.call(node, "vm.list"), nodes) for guest in found]

    def find(self, name: str) -> dict[str, Any]:
        """Where a guest is and what it is. Raises UsageError if there is none of this name, AgentError if its node may have ended."""
        guests = self.guests()
        for guest in guests:
            if guest["name"] == name:
                return guest
        known, up = ", ".join(sorted({str(guest["name"]) for guest in guests})), self.running()
        if not up:
            raise UsageError(f"there is no guest {name!r}", hint="no node is up: emulab up")
        if ended := set_without(NODES, *up):
            raise AgentError(f"guest {name} is on no node that runs; ended: {', '.join(ended)}", hint="start anew: emulab down, emulab up")
        raise UsageError(f"there is no guest {name!r}", hint=f"guests: {known}" if known else "no guest runs: emulab vm start")

    def start_guest(self, node: str, spec: GuestSpec, say: Say = quiet, *, tag: str | None = None) -> dict[str, Any]:
        """Start a guest from one of the guest images (``spec.image`` is its short name; ``tag``: if it is none of the checkout's)."""
        check_host(node)
        for other in self.guests():
            if other["name"] == spec.name:
                raise UsageError(f"guest {spec.name} runs on {other['node']} already", hint=f"emulab vm stop {spec.name}")
        image = self.project.ensure_guest_image(spec.image, say, tag=tag)
        return dict(self.call(node, "vm.start", spec={**asdict(spec), "image": image.folder}))

    def stop_guest(self, name: str) -> str:
        """Stop a guest wherever it is; returns the node it was on."""
        node = str(self.find(name)["node"])
        self.call(node, "vm.stop", name=name)
        return node

    def stop_all_guests(self) -> list[str]:
        names = [str(guest["name"]) for guest in self.guests()]
        for name in names:
            self.stop_guest(name)
        return names

    def enter_argv(self, name: str, argv: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """(node, command on it) that runs ``argv`` inside a guest."""
        return str(self.find(name)["node"]), (PYTHON, "-m", "emulab.node.enter", name, *argv)

    def exec_in_guest(self, name: str, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 300.0) -> str:
        """Run a command in a guest and return its output. Raises EmulabError with its last line of error if it fails."""
        node, command = self.enter_argv(name, argv)
        outcome = self.project.exec_run(node, command, stdin=stdin, timeout_s=timeout_s)
        if not outcome.ok:
            reason = last_line(outcome.stderr or outcome.stdout, f"code {outcome.code}")
            raise EmulabError(f"`{' '.join(argv)}` in guest {name} failed: {reason}")
        return outcome.stdout

    def migrate(self, name: str, to: str, options: dict[str, Any], *, number: int = 1, on_event: OnEvent | None = None) -> dict[str, Any]:
        """Move a guest; returns a row of ``migrations.json``. Raises UsageError for a bad destination, RemoteError if it was aborted."""
        source = self._source(name, to)
        return dict(self.call(source, "vm.migrate", name=name, to=to, options=options, number=number, on_event=on_event))

    def plan_migration(self, name: str, options: dict[str, Any], to: str | None = None) -> dict[str, Any]:
        """What moving a guest would take: ``emulab.migration.plan.Plan`` as a dictionary. Takes about a second and changes nothing.

        ``to``: a host which may have kept pages of it. Raises UsageError for a bad one.
        """
        source = self._source(name, to) if to else str(self.find(name)["node"])
        return dict(self.call(source, "vm.plan", name=name, options=options, to=to))

    def _source(self, name: str, to: str) -> str:
        """The node that a guest would leave for ``to``."""
        check_host(to)
        source = str(self.find(name)["node"])
        if source == to:
            raise UsageError(f"guest {name} is on {to} already", hint=f"choose another host: {', '.join(set_without(HOSTS, to))}")
        return source

    def abort_migration(self, name: str, reason: str = "on request") -> str:
        """Give up the migration of a guest; returns the node on which it goes on. Raises UsageError if none is under way, or too late."""
        self.find(name)
        for guest in self.guests():
            if guest["name"] == name and guest["migration"] is not None:
                try:
                    return str(self.call(str(guest["node"]), "vm.migrate.abort", name=name, reason=reason)["running_on"])
                except RemoteError as error:
                    raise (UsageError(error.message, hint=error.hint) if error.kind == "UsageError" else error) from error
        raise UsageError(f"{name} is not being moved", hint="emulab vm list shows which guests are on the move")

    # -- links -------------------------------------------------------------------------------------------------------------------------

    def calibrate(self, rate_bit_s: int, say: Say = quiet) -> dict[str, Any]:
        """Measure every node's link each way; returns calibration.json. Raises CalibrationError that names what is out of tolerance."""
        measured: dict[str, calibrate.Measurement] = {}
        servers = dict.fromkeys(server for _, server in calibrate.calibration_pairs(HOSTS))
        with ThreadPoolExecutor(len(servers)) as pool:
            stops = [self._serve_calibration(server, pool) for server in servers]
            try:
                for node, server in calibrate.calibration_pairs(HOSTS):
                    say(f"measuring the link of {node}")
                    argv = calibrate.client_argv(PYTHON, self.addresses[server], rate_bit_s=rate_bit_s)
                    measured[node] = calibrate.parse_result(self._run(node, argv, timeout_s=60))
            finally:
                for stop in stops:
                    stop()
        calibrate.check(measured, rate_bit_s)
        return calibrate.calibration_record(measured, rate_bit_s)

    def _serve_calibration(self, node: str, pool: ThreadPoolExecutor) -> Callable[[], None]:
        """Start the measuring server on a node and wait until it is ready; returns what ends it."""
        stream = self.project.connect_agent(node)
        client = Client(node, stream)
        ready = threading.Event()

        def serve() -> None:
            argv = list(calibrate.server_argv(PYTHON, self.addresses[node]))
            try:
                client.call("process.run", argv=argv, timeout_s=300, on_event=lambda _: ready.set())
            except EmulabError:
                return  # the channel was closed: that is how it ends
            finally:
                ready.set()

        pool.submit(serve)
        if not ready.wait(20):
            stream.close()
            raise AgentError(f"{node}: the measuring server did not start")
        return stream.close

    def _run(self, node: str, argv: Sequence[str], *, timeout_s: float) -> str:
        """Run a program on a node; returns its output. Raises AgentError if it fails."""
        lines: list[str] = []
        result = self.call(
            node, "process.run", argv=list(argv), timeout_s=timeout_s, on_event=lambda event: lines.append(str(event.get("line", "")))
        )
        if result["code"] != 0:
            reason = last_line(str(result["stderr"]), str(result["reason"]))
            raise AgentError(f"{node}: `{' '.join(argv[:4])} …` failed: {reason}")
        return "\n".join(lines)

    # -- samples -----------------------------------------------------------------------------------------------------------------------

    def start_samples(self, interval_s: float = 0.1) -> None:
        for node in NODES:
            self.call(node, "samples.start", interval_s=interval_s, machine=node == "head")

    def collect_samples(self, node: str, destination: Path) -> Path:
        """End sampling on a node and copy its CSV file into a folder."""
        path = f"/run/emulab/samples-{node}.csv"
        self.call(node, "samples.stop", path=path)
        return self.project.copy_from(node, path, destination)[0]

    # -- load --------------------------------------------------------------------------------------------------------------------------

    def put_json(self, node: str, path: str, data: Any) -> None:
        self.project.put_bytes(node, path, json.dumps(data).encode())


def check_host(name: str) -> None:
    """Raises UsageError unless ``name`` is a host that may carry guests."""
    if name not in HOSTS:
        raise UsageError(f"there is no host {name!r}", hint=f"hosts: {', '.join(HOSTS)}")


def set_without(names: Sequence[str], *left_out: str) -> list[str]:
    return [other for other in names if other not in left_out]
