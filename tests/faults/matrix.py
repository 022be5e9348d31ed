"""Runs one case of the fault matrix and judges it: what happened, and what must be true afterwards whatever happened."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass

from accidents import Killed, Scene
from conftest import SETTINGS, SLOWNESS, TRACKER, answers, settled, wait_until

from emulab.agent.rpc import RemoteError
from emulab.errors import EmulabError

_ROUTES = {
    "host1": ("host2", "host3"),
    "host2": ("host3", "host4"),
    "host3": ("host4", "host5"),
    "host4": ("host5", "host1"),
    "host5": ("host1", "host2"),
}

_SOON_S = 5.0  # after a program was killed, the guest is not left standing until somebody's patience ends
# A migration ordered by a process of its own: project, subnet, guest, destination, options.
_COMMANDER = """
import json, sys
from emulab.engine.settings import Settings
from emulab.testbed import Testbed
project, subnet, guest, to, options = sys.argv[1:]
testbed = Testbed(Settings(project=project, subnet=subnet, ui_port=0))
testbed.migrate(guest, to, json.loads(options), on_event=lambda row: print(json.dumps(row), flush=True))
"""


@dataclass
class Outcome:
    """A row of the table. ``outcome``: committed, aborted, refused. ``client``: "continued", or how its connection ended."""

    strategy: str
    phase: str
    fault: str
    outcome: str = ""
    runs_on: str = ""
    client: str = ""
    error: str = ""


def run_case(guest, strategy, phase, accident):
    """Move the guest while the accident happens; returns its row. Raises AssertionError if anything is not as it must be afterwards."""
    source = guest.node
    destination, onwards = _ROUTES[source]
    row = Outcome(strategy, phase, accident.name)
    uplink = guest.testbed.call(source, "link.show")["uplink"]
    scene = Scene(guest.testbed, guest.name, source, destination, uplink)
    options = {"strategy": strategy, "dirty_tracker": TRACKER, "hold_at": {phase: accident.held_s * SLOWNESS}, **accident.options}
    options["deadline_s"] = options.get("deadline_s", 20.0) * SLOWNESS
    with guest.a_client() as client:
        with accident:
            accident.arrange(scene)
            row.outcome, row.error = _migrate(scene, accident, phase, options)
        assert accident.struck, f"the migration never came to the phase {phase}: {row.error}"
        for node in (source, destination):
            wait_until(lambda node=node: answers(guest.testbed, node))
        row.runs_on = "source" if settled(guest) == source else "destination"
    row.outcome = row.outcome or ("committed" if row.runs_on == "destination" else "aborted")
    row.client = client["error"] or "continued"
    if row.outcome == "aborted" and isinstance(accident, Killed) and phase in ("dump", "transfer"):
        assert client["longest_s"] < _SOON_S * SLOWNESS, f"the guest stood still for {client['longest_s']:.1f} s"
    assert (row.outcome == "committed") == (row.runs_on == "destination"), row
    assert row.error or row.outcome == "committed", row
    again = onwards if row.runs_on == "destination" else destination
    assert guest.move(again, strategy=strategy)["outcome"] == "committed"
    assert settled(guest) == again  # what served its memory is removed a moment after the answer
    return row


def _migrate(scene, accident, phase, options):
    """(outcome, error); no outcome where whoever ordered it was not told."""

    def watch(event):
        if event["name"] == f"migration.{phase}" and event["kind"] != "end" and not accident.struck:
            accident.strike()

    if accident.own_commander:
        return _command(scene, watch, options)
    try:
        record = scene.testbed.migrate(scene.guest, scene.destination, options, on_event=watch)
    except RemoteError as error:
        return ("aborted" if error.kind == "AbortedError" else "refused"), error.message
    except EmulabError as error:  # the agent that was asked is gone
        return "", error.message
    return record["outcome"], ""


def _command(scene, watch, options):
    argv = (sys.executable, "-c", _COMMANDER, SETTINGS.project, SETTINGS.subnet, scene.guest, scene.destination, json.dumps(options))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        scene.commander = process
        for line in process.stdout:
            watch(json.loads(line))
    wait_until(lambda: not _busy(scene), timeout_s=60)
    return "", f"ended by signal {-process.returncode}"


def _busy(scene):
    """A migration goes on without the one who ordered it; while it does, its images are there."""
    return bool(scene.run(scene.source, "ls -d /run/emulab/out-* 2>/dev/null || true"))


class Table:
    """All outcomes, as rows and counted."""

    def __init__(self):
        self.rows = []
        self._lock = threading.Lock()

    def add(self, row):
        with self._lock:
            self.rows.append(row)

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "faults.json").write_text(json.dumps({"counts": self.counts(), "cases": [asdict(row) for row in self.rows]}, indent=1))

    def counts(self):
        kinds = [row.outcome for row in self.rows]
        return {
            "cases": len(self.rows),
            **{kind: kinds.count(kind) for kind in ("committed", "aborted", "refused")},
            "clients that continued": sum(row.client == "continued" for row in self.rows),
        }

    def summary(self):
        return "fault matrix: " + ", ".join(f"{number} {what}" for what, number in self.counts().items())
