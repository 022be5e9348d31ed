"""The binding to Locust: a user class made of a workload, and what a worker process does beside it.

The generator (``python -m emulab.load.run``) starts workers as plain ``locust --worker`` with these variables. Without them the same
locustfile runs under plain Locust, with the default configuration and no record files.

=====================  ==========================================
EMULAB_LOAD_CONFIG     JSON file, see ``emulab.load.config``
EMULAB_LOAD_OUT        folder for record files
EMULAB_LOAD_WORKER     number of this worker, from 0
EMULAB_LOAD_WORKERS    how many there are
EMULAB_LOAD_SCHEDULED  1: wait for the master's timetable; otherwise users begin as they are spawned
=====================  ==========================================
"""

from __future__ import annotations

import gc
import os
import types
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import gevent
import locust
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner
from locust.user.task import LOCUST_STATE_WAITING

from emulab import clock
from emulab.load import config as configuration
from emulab.load.driver import Driver, Visitor

if TYPE_CHECKING:
    from locust.env import Environment

    from emulab.load.config import LoadConfig
    from emulab.load.workload import Factory

HELLO, BEGIN, PROGRESS, HURRY = "emulab.hello", "emulab.begin", "emulab.progress", "emulab.hurry"
TICK_S = 1.0


class VirtualUser(locust.User):
    """A Locust user that follows the plan of ``emulab.load.model``: one task is one operation, the wait is its cycle or think time."""

    abstract = True
    driver: ClassVar[Driver | None] = None

    def on_start(self) -> None:
        self._visitor: Visitor | None = None
        assert self.driver is not None
        # As a waiting user it can be stopped at any time before its first operation.
        self._state = LOCUST_STATE_WAITING
        number, due_s = self.driver.admit()
        self._visitor = Visitor(self.driver, number, due_s)
        self.wait()  # type: ignore[no-untyped-call]

    def on_stop(self) -> None:
        if self._visitor is not None and self.driver is not None:
            self._visitor.close()
            self.driver.dismiss(self._visitor.number)
            self._visitor = None

    def wait_time(self) -> float:
        assert self._visitor is not None
        return max(0.0, self._visitor.due_s - clock.now())

    def operate(self) -> None:
        assert self._visitor is not None
        assert self.driver is not None
        # A timer of the event loop may fire a little early.
        while (left := self._visitor.due_s - clock.now()) > 0:
            gevent.sleep(left)
        if clock.now() >= self.driver.end_s:
            raise StopUser
        self._visitor.step()

    tasks = [operate]  # noqa: RUF012 - Locust's own way to declare them


def user_class(name: str, factory: Factory) -> type[VirtualUser]:
    """The user class of a workload, for its locustfile. Importing such a file prepares this process to be a worker."""
    made: type[VirtualUser] = types.new_class(
        name, (VirtualUser,), exec_body=lambda body: body.update(abstract=False, __module__="locustfile")
    )
    path = os.environ.get("EMULAB_LOAD_CONFIG")
    given = configuration.read(Path(path)) if path else None
    made.host = f"http://{given.target.host}:{given.target.port}" if given else "http://127.0.0.1:80"

    @locust.events.init.add_listener  # type: ignore[untyped-decorator]
    def on_init(environment: Environment, **_: Any) -> None:
        if environment.runner is not None and not isinstance(environment.runner, MasterRunner):
            made.driver = _start(environment, given or _at_host(configuration.LoadConfig(), environment), factory)

    return made


def _at_host(config: LoadConfig, environment: Environment) -> LoadConfig:
    """The configuration with the host that was chosen in Locust's web page or with ``--host``, if one was."""
    at = urlsplit(environment.host or "")
    if not at.hostname:
        return config
    return replace(config, target=configuration.Target(at.hostname, at.port or 80))


def _start(environment: Environment, config: LoadConfig, factory: Factory) -> Driver:
    """Make this process's driver and connect it to Locust's events."""
    fire = environment.events.request.fire

    def report(method: str, name: str, seconds: float, size: int, error: str | None) -> None:
        fire(request_type=method, name=name, response_time=seconds * 1000, response_length=size, exception=error, context={})  # type: ignore[no-untyped-call]

    out = os.environ.get("EMULAB_LOAD_OUT")
    workload = factory(config)
    workload.prepare()
    runner = environment.runner
    assert runner is not None
    worker = int(os.environ.get("EMULAB_LOAD_WORKER", max(0, getattr(runner, "worker_index", 0))))
    driver = Driver(config, workload, folder=Path(out) if out else None, worker=worker, report=report)
    runs = 0

    def begin(msg: Any, **_: Any) -> None:
        gc.collect()
        gc.freeze()  # what lives now lives to the end; later collections need not look at it
        driver.schedule(msg.data["origin_s"], msg.data["numbers"])

    def hurry(msg: Any, **_: Any) -> None:
        environment.stop_timeout = msg.data["limit_s"]

    def on_test_start(**_: Any) -> None:
        nonlocal runs
        runs += 1
        driver.config = _at_host(driver.config, environment)
        driver.open(runs, int(os.environ.get("EMULAB_LOAD_WORKERS", "1")))

    def every_second() -> None:
        while True:
            gevent.sleep(TICK_S)
            progress = driver.tick()
            if isinstance(runner, WorkerRunner):
                runner.send_message(PROGRESS, progress)

    def on_quit(**_: Any) -> None:
        ticker.kill()
        driver.close()

    runner.register_message(HURRY, hurry)
    if os.environ.get("EMULAB_LOAD_SCHEDULED") == "1":
        runner.register_message(BEGIN, begin)
    else:
        environment.events.test_start.add_listener(on_test_start)  # type: ignore[no-untyped-call]
    environment.events.quit.add_listener(on_quit)  # type: ignore[no-untyped-call]
    if isinstance(runner, WorkerRunner):
        runner.send_message(HELLO, {"worker": worker})
    ticker = gevent.spawn(every_second)
    return driver
