"""Running the load on the head node and the migrations on their schedule, side by side."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.agent.rpc import Client, RemoteError
from emulab.engine.streaming import Say, quiet
from emulab.errors import EmulabError, LoadError, MigrationError
from emulab.experiment.folder import RunFolder
from emulab.experiment.guests import dataset
from emulab.scenario import PlannedMigration, Scenario
from emulab.testbed import Testbed
from emulab.testbed.testbed import PYTHON, OnEvent
from workloads.olio.loader import counts

REMOTE = "/run/emulab/load"
_EXTRA_S = 90.0  # beyond its timetable, for starting and ending


def load_config(scenario: Scenario) -> dict[str, Any]:
    """The document that ``emulab.load.run`` reads, from a resolved scenario."""
    load, workload = scenario.load, scenario.workload
    size = counts(*dataset(scenario))
    return {
        "target": {"host": scenario.guests["web"].address, "port": 80},
        "workload": workload.name,
        "profile": workload.profile,
        "users": load.users,
        "ramp_up_s": load.ramp_up,
        "steady_s": load.steady,
        "ramp_down_s": load.ramp_down,
        "pacing": load.pacing,
        "mean_s": load.mean,
        "cap_s": load.cap,
        "drivers": load.drivers,
        "seed": scenario.seed,
        "cache_warm": workload.cache_warm,
        "registered_users": size.registered_users,
        "tags": size.tags,
        "events": size.events,
        "request_timeout_s": load.request_timeout,
        "keepalive_s": workload.keepalive,
        "probe": {"interval_s": scenario.probe.interval, "path": scenario.probe.path},
    }


class LoadRun:
    """The load generator on the head: started by ``start``, ends by itself, or with ``stop``."""

    def __init__(self, testbed: Testbed, scenario: Scenario, on_row: OnEvent, on_progress: OnEvent) -> None:
        self._testbed = testbed
        self._scenario = scenario
        self._on_row = on_row
        self._on_progress = on_progress
        self._steady = threading.Event()
        self._ended = threading.Event()
        self._result: dict[str, Any] = {}
        self._error: EmulabError | None = None
        self._client: Client | None = None
        self.steady_start_s: float | None = None
        self.steady_end_s: float | None = None

    def start(self) -> None:
        """Begin. Raises EmulabError if the head does not answer."""
        self._testbed.project.exec_run("head", ("rm", "-rf", REMOTE))
        self._testbed.put_json("head", f"{REMOTE}.json", load_config(self._scenario))
        self._client = Client("head", self._testbed.project.connect_agent("head"))
        threading.Thread(target=self._run, args=(self._client,), name="load", daemon=True).start()

    def _run(self, client: Client) -> None:
        load = self._scenario.load
        argv = [PYTHON, "-m", "emulab.load.run", "--config", f"{REMOTE}.json", "--out", REMOTE]
        limit = load.ramp_up + load.steady + load.ramp_down + _EXTRA_S
        try:
            self._result = client.call("process.run", argv=argv, timeout_s=limit, on_event=self._line)
        except EmulabError as error:
            self._error = error
        finally:
            client.close()
            self._ended.set()
            self._steady.set()

    def _line(self, event: dict[str, Any]) -> None:
        try:
            row = json.loads(event["line"])
        except (KeyError, ValueError):
            return
        if row.get("name") == "load.progress":
            self._on_progress(row)
            return
        self._on_row({"source": "head", **row})
        if row.get("name") == "load.steady":
            if row.get("kind") == "begin":
                self.steady_start_s = float(row["mono_s"])
                self._steady.set()
            else:
                self.steady_end_s = float(row["mono_s"])

    def wait_for_steady(self) -> float:
        """Block until the steady state begins; returns its instant. Raises LoadError if the load ended before."""
        while not self._steady.wait(0.2):
            pass
        self.check()
        if self.steady_start_s is None:
            raise LoadError("the load ended before its steady state")
        return self.steady_start_s

    def wait_until(self, instant_s: float) -> None:
        """Block until an instant. Raises LoadError if the load fails meanwhile."""
        while (left := instant_s - clock.now()) > 0:
            if self._ended.wait(min(left, 0.2)):
                self.check()
                break

    def wait(self) -> None:
        """Block until the load has ended by itself."""
        while not self._ended.wait(0.2):
            pass
        self.check()

    def check(self) -> None:
        """Raises LoadError if the load generator failed."""
        if self._error is not None:
            raise LoadError(f"the load generator was lost: {self._error.message}", hint=self._error.hint) from self._error
        if self._ended.is_set() and self._result.get("code") != 0:
            lines = [line for line in str(self._result.get("stderr", "")).splitlines() if line.strip()]
            reason = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else self._result.get("reason", ""))
            raise LoadError(f"the load generator failed: {reason or 'no reason given'}", hint="its log is in the run folder's logs/")

    @property
    def stderr(self) -> str:
        return str(self._result.get("stderr", ""))

    def stop(self) -> None:
        """End it now: closing the channel makes the agent end the process and all its children."""
        if self._client:
            self._client.close()

    def collect(self, destination: Path) -> list[Path]:
        """Copy its records into a folder."""
        return self._testbed.project.copy_from("head", REMOTE, destination)


def run_migrations(
    testbed: Testbed, load: LoadRun, planned: list[PlannedMigration], folder: RunFolder, say: Say = quiet
) -> tuple[list[dict[str, Any]], MigrationError | None]:
    """Each planned migration at its time, side by side where their times overlap; of one guest, one after the other.

    A failed one is recorded, its CRIU logs are kept, and the load goes on. Returns the rows of ``migrations.json`` in order of their ids,
    and the first failure.
    """
    moves = Moves(testbed, folder, say)
    start = load.wait_for_steady()
    for migration in planned:
        load.wait_until(start + migration.at_s)
        moves.begin(migration)
    moves.wait()
    return moves.rows(), moves.failure


class Moves:
    """The migrations of a run, each in a thread of its own."""

    def __init__(self, testbed: Testbed, folder: RunFolder, say: Say) -> None:
        self._testbed = testbed
        self._folder = folder
        self._say = say
        self._lock = threading.Lock()
        self._rows: dict[int, dict[str, Any]] = {}
        self._ended: list[threading.Event] = []
        self._last_of: dict[str, threading.Event] = {}
        self._errors: list[BaseException] = []
        self.failure: MigrationError | None = None

    def begin(self, migration: PlannedMigration) -> None:
        """Returns at once. A guest that is still on its way from an earlier migration sets off again when it has arrived."""
        ended, before = threading.Event(), self._last_of.get(migration.vm)
        self._last_of[migration.vm] = ended
        self._ended.append(ended)
        threading.Thread(target=self._run, args=(migration, before, ended), name=f"move {migration.vm}", daemon=True).start()

    def wait(self) -> None:
        """Until all have ended; raises what none of them expected."""
        for ended in self._ended:
            while not ended.wait(0.2):  # in steps, so that an interrupt is heard
                pass
        for error in self._errors:
            raise error

    def rows(self) -> list[dict[str, Any]]:
        with self._lock:
            return [self._rows[number] for number in sorted(self._rows)]

    def _run(self, migration: PlannedMigration, before: threading.Event | None, ended: threading.Event) -> None:
        try:
            if before:
                before.wait()
            self._move(migration)
        except BaseException as error:
            self._errors.append(error)
        finally:
            ended.set()

    def _move(self, migration: PlannedMigration) -> None:
        vm, to = migration.vm, migration.destination
        self._say(f"moving {vm} from {self._testbed.find(vm)['node']} to {to}")
        try:
            row = self._testbed.migrate(vm, to, migration.options, number=migration.id, on_event=self._folder.row)
        except RemoteError as error:
            found = record_failure(error, self._folder, migration.id)
            with self._lock:
                if found:
                    self._rows[migration.id] = found[0]
                self.failure = self.failure or MigrationError(error.message, hint=f"logs: {self._folder.logs}" if found else error.hint)
            self._say(error.message)
        else:
            with self._lock:
                self._rows[migration.id] = row
            self._say(f"{vm} moved to {to} in {row['total_s']:.2f} s, blackout {row['blackout_s'] * 1000:.0f} ms")
        with self._lock:
            self._folder.write_json("migrations.json", [self._rows[number] for number in sorted(self._rows)])


def record_failure(error: RemoteError, folder: RunFolder, number: int) -> list[dict[str, Any]]:
    """Keep what a failed migration left: its logs, and its row if it got far enough to have one."""
    details = error.details if isinstance(error.details, dict) else {}
    for name, text in details.get("logs", {}).items():
        folder.write_log(f"migration-{number}-{name}", text)
    return [details["report"]] if "report" in details else []
