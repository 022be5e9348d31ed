"""What one worker process keeps: plan, records, sums, and which user has which number. Knows nothing of Locust."""

from __future__ import annotations

import heapq
import json
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import gevent
from gevent.event import Event

from emulab import clock
from emulab.load.client import Client, RequestError
from emulab.load.model import Plan, first_start_s, stream
from emulab.load.recorder import Recorder
from emulab.load.workload import OperationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulab.load.client import Exchange
    from emulab.load.config import LoadConfig
    from emulab.load.workload import Session, Workload


class Report(Protocol):
    """Told about each operation and request, for live statistics."""

    def __call__(self, method: str, name: str, seconds: float, size: int, error: str | None, /) -> None: ...


class Driver:
    """The part of a load run that happens in one worker process.

    Args:
        config: the run.
        workload: what its users do.
        folder: for record files; None keeps none.
        worker: this worker's number, from 0.
        report: told about each operation and request, for live statistics.

    """

    def __init__(self, config: LoadConfig, workload: Workload, *, folder: Path | None, worker: int, report: Report) -> None:
        self.config = config
        self.workload = workload
        self.worker = worker
        self.report = report
        self.end_s = float("inf")
        self._steady = (0.0, float("inf"))
        self._folder = folder
        self._recorder: Recorder | None = None
        self._begun = Event()
        self._origin_s: float | None = None
        self._numbers: deque[int] = deque()
        self._free: list[int] = []
        self._next_free = worker
        self._step = 1
        self._sums: Counter[str] = Counter()
        self._operations: dict[str, Counter[str]] = {"all": Counter(), "steady": Counter()}
        self._durations: list[float] = []
        self._cpu_max = 0.0
        self._cpu_used_s = 0.0
        self._requests = 0
        self._cpu_mark = (clock.now(), time.process_time())
        self._renew(folder)

    def schedule(self, origin_s: float, numbers: Sequence[int]) -> None:
        """Begin a run on a timetable: the ramp-up begins at ``origin_s``, this worker's users have these numbers."""
        ramp, steady = self.config.ramp_up_s, self.config.steady_s
        self._steady = (origin_s + ramp, origin_s + ramp + steady)
        self.end_s = origin_s + self.config.total_s
        self._origin_s = origin_s
        self._numbers = deque(numbers)
        self._cpu_mark = (clock.now(), time.process_time())
        self._begun.set()

    def open(self, run: int, workers: int) -> None:
        """Begin a run without a timetable (interactive use): users begin when they come and take the lowest free number."""
        self._step = workers
        self._next_free = self.worker
        self._free.clear()
        self._renew(self._folder / f"run-{run}" if self._folder is not None else None)
        self._begun.set()

    def admit(self) -> tuple[int, float]:
        """Wait for the begin. Returns the number of one more user and when its first operation is due."""
        self._begun.wait()
        if self._origin_s is not None:
            number = self._numbers.popleft()
            return number, self._origin_s + first_start_s(number, self.config.users, self.config.ramp_up_s)
        if self._free:
            return heapq.heappop(self._free), clock.now()
        self._next_free += self._step
        return self._next_free - self._step, clock.now()

    def dismiss(self, number: int) -> None:
        """Take back the number of a user that has gone."""
        heapq.heappush(self._free, number)

    def count(self, operation: str, start_s: float, outcome: str, duration_s: float | None, counts: dict[str, float]) -> None:
        key = f"{operation} {outcome}"
        self._operations["all"][key] += 1
        if self._steady[0] <= start_s < self._steady[1]:
            self._operations["steady"][key] += 1
            self._sums.update(counts)
        if duration_s is not None and outcome == "ok":
            self._durations.append(duration_s)

    def count_request(self) -> None:
        self._requests += 1

    @property
    def recorder(self) -> Recorder | None:
        return self._recorder

    def tick(self) -> dict[str, Any]:
        """To be called about once a second: write records, measure this process, and return the progress since the last call."""
        now, cpu = clock.now(), time.process_time()
        before, used = self._cpu_mark
        if now - before >= 0.9:
            self._cpu_mark = (now, cpu)
            if before >= (self._origin_s or 0.0) and now <= self.end_s + 1.0:
                self._cpu_max = max(self._cpu_max, (cpu - used) / (now - before))
                self._cpu_used_s += cpu - used
        if self._recorder is not None:
            self._recorder.flush()
            self._write_state()
        durations, self._durations = self._durations, []
        every = self._operations["all"]
        return {
            "worker": self.worker,
            "durations_s": durations,
            "ops": sum(count for key, count in every.items() if key.endswith(" ok")),
            "errors": sum(count for key, count in every.items() if key.endswith(" error")),
            "cpu_max": self._cpu_max,
        }

    def close(self) -> None:
        """Write what is left. May be called twice."""
        self.tick()
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def _renew(self, folder: Path | None) -> None:
        if self._recorder is not None:
            self.close()
        config = self.config
        self.plan = Plan(self.workload.model, users=config.users, ramp_up_s=config.ramp_up_s, seed=config.seed)
        self._recorder = Recorder(folder, self.worker) if folder is not None else None
        self._state_path = folder / f"worker-{self.worker}.json" if folder is not None else None

    def _write_state(self) -> None:
        if self._state_path is None:
            return
        state = {
            "worker": self.worker,
            "cpu_max": self._cpu_max,
            "cpu_s": self._cpu_used_s,
            "requests": self._requests,
            "counts": dict(self._sums),
            **{f"operations_{part}": dict(counter) for part, counter in self._operations.items()},
        }
        fresh = self._state_path.with_suffix(".tmp")
        fresh.write_text(json.dumps(state), encoding="utf-8")
        fresh.replace(self._state_path)


class Visitor:
    """One virtual user at work: takes steps of its plan, performs and records them. The caller waits until ``due_s`` in between."""

    def __init__(self, driver: Driver, number: int, due_s: float) -> None:
        config = driver.config
        self.number = number
        self.due_s = due_s
        self._driver = driver
        self._seq = 0
        self._requests = 0
        self._size = 0
        self._operation = ""
        self._resting: gevent.Greenlet | None = None
        self._client = Client(
            config.target.host,
            config.target.port,
            self._note,
            timeout_s=config.request_timeout_s,
            keepalive_s=config.keepalive_s,
        )
        self._session: Session = driver.workload.session(number, self._client, stream(config.seed, "session", number))

    def step(self) -> None:
        """Perform the next operation, now. Ends with ``due_s`` set to the start of the one after it."""
        driver = self._driver
        self._stop_resting()
        self._operation, delay = driver.plan.next(self.number)
        random = stream(driver.config.seed, "data", self.number, self._seq)
        self._requests = self._size = 0
        error: str | None = None
        counts: dict[str, float] = {}
        finished = False
        start = clock.now()
        try:
            counts.update(self._session.perform(self._operation, random))
            finished = True
        except (RequestError, OperationError) as failure:
            error = failure.message
            finished = True
        except Exception as failure:
            error = f"driver: {failure!r}"
            finished = True
            raise
        finally:
            end = clock.now()
            self._record(start, end if finished else None, error, delay, counts)
            self.due_s = driver.workload.model.next_start_s(start, end, delay)
            self._seq += 1
            # A server worker that lost its client to idleness lingers for two more seconds unless the client closes too.
            self._resting = gevent.spawn_later(self._client.idle_limit_s + 0.001, self._client.rest)

    def close(self) -> None:
        self._stop_resting()
        self._client.close()

    def _stop_resting(self) -> None:
        if self._resting is not None:
            self._resting.kill(block=False)
            self._resting = None

    def _record(self, start: float, end: float | None, error: str | None, delay: float, counts: dict[str, float]) -> None:
        driver = self._driver
        outcome = "unfinished" if end is None else "ok" if error is None else "error"
        driver.count(self._operation, start, outcome, None if end is None else end - start, counts)
        if driver.recorder is not None:
            driver.recorder.operation(
                self.number,
                self._seq,
                self._operation,
                intended_s=self.due_s,
                start_s=start,
                end_s=end,
                error=error,
                size=self._size,
                requests=self._requests,
                cycle_s=delay,
            )
        if end is not None:
            driver.report("OP", self._operation, end - start, self._size, error)

    def _note(self, exchange: Exchange) -> None:
        driver = self._driver
        n = self._requests
        self._requests = n + 1
        self._size += exchange.size
        driver.count_request()
        if driver.recorder is not None:
            due = self.due_s if n == 0 else exchange.start_s
            driver.recorder.request(self.number, self._seq, self._operation, exchange, n=n, intended_s=due)
        if exchange.error != "unfinished":  # cut off by the end of the run: recorded, but no failure of the server
            driver.report(exchange.method, _group(exchange), exchange.end_s - exchange.start_s, exchange.size, exchange.error)


def _group(exchange: Exchange) -> str:
    """Name of a request in live statistics: one per page, one for all static files, one for all pictures."""
    if exchange.kind == "static":
        return "(static files)"
    if exchange.kind == "image":
        return "(images)"
    return exchange.path.partition("?")[0]
