"""Running the load on the head node."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.agent.rpc import Client
from emulab.errors import EmulabError, LoadError
from emulab.experiment.guests import dataset
from emulab.scenario import Scenario
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
    """The load generator on the head: started by ``start``, ends by itself, or with ``end``."""

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
        self._pid = 0
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
        if row.get("name") == "load.process":
            self._pid = int(row["pid"])
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

    def end(self, patience_s: float = 8.0) -> None:
        """End it before its time, with all that it has recorded so far written. Raises EmulabError if the head does not answer."""
        try:
            if self._pid and not self._ended.is_set():
                self._testbed.project.exec_run("head", ("kill", "-TERM", str(self._pid)))
                self._ended.wait(patience_s)
        finally:
            if self._client:
                self._client.close()  # its agent then ends the process and all its children

    def collect(self, destination: Path) -> list[Path]:
        """Copy its records into a folder."""
        return self._testbed.project.copy_from("head", REMOTE, destination)
