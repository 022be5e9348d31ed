"""The testbed with the site and Locust's web page, until the user ends it."""

from __future__ import annotations

from collections.abc import Callable

from emulab.command import last_line
from emulab.engine.settings import Settings
from emulab.engine.streaming import Say
from emulab.errors import LoadError
from emulab.experiment.guests import load_data, place_guests
from emulab.experiment.load import REMOTE, load_config
from emulab.experiment.warm import warm_up
from emulab.experiment.workflow import Progress
from emulab.scenario import Scenario
from emulab.testbed import Testbed
from emulab.testbed.testbed import PYTHON

_FOREVER_S = 30 * 24 * 3600.0


def serve_ui(scenario: Scenario, progress: Progress, ready: Callable[[str], None]) -> None:
    """Block until Ctrl-C; then nothing is left. ``ready`` is called with the page's address. Raises LoadError if Locust ends by itself."""
    testbed = Testbed(Settings.from_env().on(scenario.topology.subnet))
    say: Say = progress.say
    try:
        progress.step("bringing up six nodes", 6)
        testbed.down()
        testbed.up(say, rate_bit_s=scenario.topology.rate)
        progress.step("placing the guests", 5)
        place_guests(testbed, scenario, say)
        load_data(testbed, scenario, say)
        warm_up(testbed, scenario)
        testbed.put_json("head", f"{REMOTE}.json", load_config(scenario))
        argv = [
            PYTHON,
            "-m",
            "emulab.load.run",
            "--config",
            f"{REMOTE}.json",
            "--out",
            REMOTE,
            "--ui",
            "--port",
            "8089",
            "--bind",
            "0.0.0.0",
        ]
        ready(f"http://127.0.0.1:{testbed.settings.ui_port}")
        result = testbed.call("head", "process.run", argv=argv, timeout_s=_FOREVER_S)
        reason = last_line(str(result.get("stderr", "")), str(result.get("reason") or "no reason given"))
        raise LoadError(f"Locust ended: {reason}")
    finally:
        progress.step("taking the nodes down", 3)
        testbed.down()
