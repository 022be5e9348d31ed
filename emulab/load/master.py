"""The process that owns a load run: Locust's master, its workers and the prober, and the timetable.

Importing it loads Locust, which patches the standard library for gevent.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import stat
import sys
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import gevent
import gevent.event
import gevent.select
import locust.argument_parser
import locust.runners
import locust.stats
from locust.env import Environment

from emulab import clock
from emulab.errors import LoadError, UsageError
from emulab.load import children, totals
from emulab.load.binding import BEGIN, HELLO, HURRY, PROGRESS, VirtualUser
from emulab.load.model import first_start_s

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from emulab.load.config import LoadConfig
    from emulab.load.workload import Factory, Workload

    Emit = Callable[[dict[str, Any]], None]

READY_LIMIT_S = 120.0
LEAD_S = 0.5
HURRY_LIMIT_S = 1.5
_RATE_WINDOW_S = 5.0


def timetable(config: LoadConfig, out: Path, *, emit: Emit) -> int:
    """Run ramp-up, steady state and ramp-down, and write ``out/load.json``.

    Returns:
        0; also for a run that was stopped from outside, whose ``status`` is then ``stopped``.

    Raises:
        LoadError: a worker or the prober failed.

    """
    with _Run(config, out, emit) as run:
        run.start_workers(scheduled=True)
        prober = None
        try:
            if run.await_workers():
                prober = run.start_prober()
                run.begin()
                run.follow_timetable()
        finally:
            run.finish(prober)
    document = totals.collect(config, run.workload, out, origin_s=run.origin_s, status="stopped" if run.stop.is_set() else "complete")
    (out / "load.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for warning in document["warnings"]:
        emit({"mono_s": clock.now(), "wall": clock.wall(), "name": "load.warning", "kind": "event", "message": warning})
    return 0


def _await_page(bind: str, port: int, timeout_s: float = 30.0) -> None:
    """Locust starts its server in the background. Raises LoadError if nobody answers there."""
    end = clock.now() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1" if bind == "0.0.0.0" else bind, port), timeout=1.0).close()
        except OSError as error:
            if clock.now() > end:
                raise LoadError(f"the web page on {bind}:{port} does not come up: {error}") from None
            gevent.sleep(0.02)
        else:
            return


def interactive(config: LoadConfig, out: Path, *, bind: str, port: int, emit: Emit) -> int:
    """Serve Locust's web page until stopped from outside. Users and their spawn rate are chosen there."""
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((bind, port))
        except OSError as error:
            raise LoadError(f"cannot serve the web page on {bind}:{port}: {error}", hint="is another one running?") from None
    sys.argv[1:] = []  # the web page reads options of Locust's from there
    with _Run(config, out, emit) as run:
        # After a stop, Locust's workers are not ready for a new start before this time is over.
        run.environment.stop_timeout = min(config.stop_limit_s, HURRY_LIMIT_S)
        run.start_workers(scheduled=False)
        page = None
        try:
            if run.await_workers():
                page = run.environment.create_web_ui(host=bind, port=port)
                gevent.spawn(locust.stats.stats_history, run.runner)
                _await_page(bind, port)
                emit({"mono_s": clock.now(), "wall": clock.wall(), "name": "load.ui", "kind": "begin", "bind": bind, "port": port})
                run.wait_until(float("inf"))
        finally:
            if page is not None:
                page.stop()  # type: ignore[no-untyped-call]
            run.finish(None)
    emit({"mono_s": clock.now(), "wall": clock.wall(), "name": "load.ui", "kind": "end"})
    return 0


class _Run:
    """A run's processes. As a context it listens for requests to stop: ``stop`` is then set, and every wait ends."""

    def __init__(self, config: LoadConfig, out: Path, emit: Emit) -> None:
        self.config = config
        self.out = out
        self.emit = emit
        self.stop = gevent.event.Event()
        self.origin_s = clock.now()
        self.locustfile, self.workload, user_class = _load(config)
        user_class.host = f"http://{config.target.host}:{config.target.port}"
        # A worker that is starved of CPU for some seconds is still needed; Locust would move its users to another after three.
        locust.runners.HEARTBEAT_LIVENESS = 120
        self.environment = Environment(
            user_classes=[user_class],
            available_user_classes={user_class.__name__: user_class},  # type: ignore[dict-item]
            host=user_class.host,
            stop_timeout=config.stop_limit_s,
            locustfile=f"{config.workload} ({config.profile})",
            parsed_options=_options(config),
        )
        self.runner: Any = self.environment.create_master_runner("127.0.0.1", 0)
        self.runner.register_message(HELLO, self._on_hello)
        self.runner.register_message(PROGRESS, self._on_progress)
        self._workers: list[subprocess.Popen[bytes]] = []
        self._client_of: dict[int, str] = {}
        self._progress: dict[int, dict[str, Any]] = {}
        self._done: deque[tuple[float, float]] = deque()

    def __enter__(self) -> Self:
        self._handlers = [gevent.signal_handler(number, self.stop.set) for number in (signal.SIGTERM, signal.SIGINT)]
        self._watchers = [gevent.spawn(_end_of_input, self.stop)]
        return self

    def __exit__(self, *_: object) -> None:
        gevent.killall(self._watchers)
        for handler in self._handlers:
            handler.cancel()

    def start_workers(self, *, scheduled: bool) -> None:
        path = self.out / "logs" / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self.config)), encoding="utf-8")
        for number in range(self.config.drivers):
            argv = (sys.executable, "-m", "locust", "--locustfile", str(self.locustfile), "--worker", "--loglevel", "INFO")
            master = ("--master-host", "127.0.0.1", "--master-port", str(self.runner.server.port))
            env = {
                "EMULAB_LOAD_CONFIG": str(path),
                "EMULAB_LOAD_OUT": str(self.out),
                "EMULAB_LOAD_WORKER": str(number),
                "EMULAB_LOAD_WORKERS": str(self.config.drivers),
                "EMULAB_LOAD_SCHEDULED": "1" if scheduled else "0",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            }
            self._workers.append(children.start((*argv, *master), log=self.out / "logs" / f"worker-{number}.log", env=env))

    def await_workers(self) -> bool:
        """Wait until all workers are ready for users. False if stopped meanwhile."""
        deadline = clock.now() + READY_LIMIT_S
        while len(self._client_of) < self.config.drivers:
            if clock.now() > deadline:
                raise LoadError(f"only {len(self._client_of)} of {self.config.drivers} drivers were ready in {READY_LIMIT_S:g} s")
            if not self.wait_until(clock.now() + 0.05):
                return False
        return True

    def start_prober(self) -> subprocess.Popen[bytes] | None:
        probe, target = self.config.probe, self.config.target
        if probe.interval_s <= 0:
            return None
        where = ("--target", f"{target.host}:{target.port}", "--path", probe.path)
        what = ("--interval", str(probe.interval_s), "--out", str(self.out / "probes.csv"))
        return children.start(
            (sys.executable, "-m", "emulab.load.prober", *where, *what), log=self.out / "logs" / "prober.log", env=_here()
        )

    def begin(self) -> None:
        """Spawn all users (they wait), number them, and tell when the ramp-up begins."""
        users = self.config.users
        self.runner.start(users, spawn_rate=users)
        deadline = clock.now() + READY_LIMIT_S
        while self.runner.user_count != users:
            if clock.now() > deadline:
                raise LoadError(f"only {self.runner.user_count} of {users} users were started in {READY_LIMIT_S:g} s")
            if not self.wait_until(clock.now() + 0.05):
                return
        room = {worker: self.runner.clients[client].user_count for worker, client in sorted(self._client_of.items())}
        self.origin_s = clock.now() + LEAD_S
        for worker, numbers in deal(users, room).items():
            self.runner.send_message(BEGIN, {"origin_s": self.origin_s, "numbers": numbers}, self._client_of[worker])

    def follow_timetable(self) -> None:
        """Announce each phase at its begin and end, and the progress in between."""
        config = self.config
        begin = self.origin_s
        for name, length in (("ramp_up", config.ramp_up_s), ("steady", config.steady_s), ("ramp_down", config.ramp_down_s)):
            if not self.wait_until(begin):
                return
            self._announce(name, "begin", begin)
            end = begin + length
            while (now := clock.now()) < end:
                if not self.wait_until(min(end, now + 1.0)):
                    self._announce(name, "end", clock.now())
                    return
                self._report_progress()
            self._announce(name, "end", end)
            begin = end

    def wait_until(self, instant: float) -> bool:
        """Wait until a monotonic instant. False if asked to stop. Raises when a worker has ended by itself."""
        while not self.stop.is_set() and (left := instant - clock.now()) > 0:
            self.stop.wait(min(left, 0.5))
            for number, worker in enumerate(self._workers):
                if not self.stop.is_set() and worker.poll() is not None:
                    log = self.out / "logs" / f"worker-{number}.log"
                    raise LoadError(f"driver {number} ended by itself with code {worker.returncode}: {_last_line(log)}", hint=f"see {log}")
        return not self.stop.is_set()

    def finish(self, prober: subprocess.Popen[bytes] | None) -> None:
        """End everything: operations that still run get their time, unless the run was stopped from outside."""
        patience = HURRY_LIMIT_S if self.stop.is_set() else self.config.stop_limit_s
        with suppress(Exception):  # whatever is wrong with the master, the children must go
            if self.stop.is_set():
                self.runner.send_message(HURRY, {"limit_s": HURRY_LIMIT_S})
            self.runner.quit()
        connected = len(self._client_of) == len(self._workers)
        children.end(self._workers, patience_s=patience + 1.0 if connected else 0.0)
        if prober is not None:
            children.end([prober], patience_s=0.0, grace_s=2.0)

    def _announce(self, name: str, kind: str, instant: float) -> None:
        self.emit({"mono_s": instant, "wall": clock.wall(), "name": f"load.{name}", "kind": kind})

    def _report_progress(self) -> None:
        now = clock.now()
        while self._done and self._done[0][0] < now - _RATE_WINDOW_S:
            self._done.popleft()
        durations = sorted(duration for _, duration in self._done)
        config, since = self.config, now - self.origin_s
        self.emit(
            {
                "mono_s": now,
                "wall": clock.wall(),
                "name": "load.progress",
                "kind": "event",
                "users": sum(first_start_s(user, config.users, config.ramp_up_s) <= since for user in range(config.users)),
                "ops": sum(progress["ops"] for progress in self._progress.values()),
                "errors": sum(progress["errors"] for progress in self._progress.values()),
                "ops_per_s": round(len(durations) / max(1.0, min(_RATE_WINDOW_S, since)), 2),
                "p90_s": round(durations[int(0.9 * len(durations))], 4) if durations else None,
                "driver_cpu_max": round(max((progress["cpu_max"] for progress in self._progress.values()), default=0.0), 3),
            }
        )

    def _on_hello(self, msg: Any, **_: Any) -> None:
        self._client_of[msg.data["worker"]] = msg.node_id

    def _on_progress(self, msg: Any, **_: Any) -> None:
        now = clock.now()
        self._progress[msg.data["worker"]] = msg.data
        self._done.extend((now, duration) for duration in msg.data["durations_s"])


def deal(users: int, room: dict[int, int]) -> dict[int, list[int]]:
    """Number users over workers: user ``k * workers + worker``, as far as each worker has room. Every number is dealt once."""
    dealt: dict[int, list[int]] = {worker: [] for worker in room}
    numbers = iter(range(users))
    for level in range(max(room.values(), default=0)):
        for worker, size in room.items():
            if size > level:
                dealt[worker].append(next(numbers))
    return dealt


def _load(config: LoadConfig) -> tuple[Path, Workload, type[VirtualUser]]:
    """The workload's locustfile, the workload, and the user class that Locust's master needs the name of."""
    package = f"workloads.{config.workload}"
    if not config.workload.isidentifier() or find_spec(package) is None:
        raise UsageError(f"there is no workload {config.workload!r}")
    module = importlib.import_module(f"{package}.locustfile")
    factory = cast("Factory", importlib.import_module(f"{package}.driver").workload)
    found = [item for item in vars(module).values() if isinstance(item, type) and issubclass(item, VirtualUser) and item is not VirtualUser]
    assert module.__file__ is not None
    return Path(module.__file__), factory(config), found[0]


def _options(config: LoadConfig) -> Any:
    """Locust's options as its web page wants them: users and spawn rate are prefilled from the configuration."""
    parser = locust.argument_parser.get_empty_argument_parser(add_help=False, default_config_files=[])
    locust.argument_parser.setup_parser_arguments(parser)  # type: ignore[no-untyped-call]
    rate = config.users / config.ramp_up_s if config.ramp_up_s > 0 else config.users
    return parser.parse_args(["--users", str(config.users), "--spawn-rate", f"{rate:g}"])


def _here() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "no output"


def _end_of_input(stop: gevent.event.Event) -> None:
    """Set ``stop`` when standard input is closed. Only a pipe or socket counts: a terminal or /dev/null tells nothing of our parent."""
    with suppress(OSError, ValueError):
        mode = os.fstat(0).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return
        while True:
            gevent.select.select([0], [], [])
            if not os.read(0, 4096):
                break
    stop.set()
