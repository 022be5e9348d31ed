"""Before the load: the site answers, and its pages are compiled and cached."""

from __future__ import annotations

import time

from emulab import clock
from emulab.errors import EmulabError
from emulab.scenario import Scenario
from emulab.testbed import Testbed
from emulab.testbed.testbed import PYTHON

PAGES = (
    "/index.php",
    "/taggedEvents.php?tag=tag1",
    "/events.php?socialEventID=1",
    "/users.php?username=user1",
    "/addPerson.php",
    "/addEvent.php",
)

# Runs on the head, inside its network namespace, with the standard library alone.
_FETCH = """
import sys, urllib.request
base, times, *paths = sys.argv[1:]
for path in paths:
    for _ in range(int(times)):
        with urllib.request.urlopen(base + path, timeout=20) as answer:
            answer.read()
print("fetched")
"""


def warm_up(testbed: Testbed, scenario: Scenario, *, times: int = 5, timeout_s: float = 120.0) -> None:
    """Wait until the site answers, then fetch every kind of page a few times. Raises EmulabError if it never does."""
    base = f"http://{scenario.guests['web'].address}"
    end = clock.now() + timeout_s
    while not (outcome := _fetch(testbed, base, 1, ("/probe.txt",))).startswith("fetched"):
        if clock.now() > end:
            raise EmulabError(f"the site at {base} does not answer: {outcome}", hint="emulab vm logs web")
        time.sleep(0.2)
    outcome = _fetch(testbed, base, times, PAGES)
    if not outcome.startswith("fetched"):
        raise EmulabError(f"the site at {base} does not work: {outcome}", hint="emulab vm logs web")


def _fetch(testbed: Testbed, base: str, times: int, paths: tuple[str, ...]) -> str:
    outcome = testbed.project.exec_run("head", (PYTHON, "-c", _FETCH, base, str(times), *paths), timeout_s=120)
    text = (outcome.stdout if outcome.ok else outcome.stderr).strip()
    return text.splitlines()[-1] if text else "no answer"
