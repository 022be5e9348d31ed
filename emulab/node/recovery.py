"""After an agent was killed: what its successor does with guests that were on the move.

A guest of ours that stands still belongs to a migration that nobody drives any more. Before the commit it is resumed here. After the
commit this node never resumes it by itself: it asks the destination, and only an answer decides. What had arrived in part is removed.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from emulab import clock
from emulab.command import Runner
from emulab.errors import EmulabError
from emulab.migration import guestnet, journal
from emulab.migration.destination import IMAGES
from emulab.node.guest import Guest, Guests

log = logging.getLogger("emulab.recovery")

# Asks the agent of a node what became of a migration: running, aborted, failed, unknown. Raises EmulabError if it cannot be reached.
Ask = Callable[[str, str], str]

_CRIU_ENDS_S = 15.0


def recover(guests: Guests, runner: Runner, ask: Ask, *, path: Path = journal.JOURNAL, patience_s: float = 60.0) -> None:
    """Bring every guest of this node to rest: running here, or gone. Logs what it did."""
    _wait_for_criu()
    _remove_images()
    _close_arrivals(guests, path)
    departures = {entry["vm"]: entry for entry in journal.entries(path).values() if entry.get("role") == "source" and "vm" in entry}
    for name in guests.names():
        guest = guests.find(name)
        if guest is None:
            continue
        entry = departures.get(name, {})
        if guest.alive() and guest.cgroup.frozen() and entry.get("state") in ("commit", "in-doubt"):
            _settle(guests, runner, guest, entry, ask, path, patience_s)
        elif guest.alive():
            guestnet.let_run(guest, runner)
        else:
            log.info("guest %s ended with the agent before", name)
            guests.discard(guest)


def _wait_for_criu() -> None:
    """A CRIU that lost its agent hears no verdict at its hook and undoes its work; only then the guest is ours again."""
    end = clock.now() + _CRIU_ENDS_S
    while clock.now() < end and any(process.info["name"] == "criu" for process in psutil.process_iter(["name"])):
        time.sleep(0.05)


def _remove_images(folder: Path = IMAGES) -> None:
    """Images and sockets of migrations that nobody drives any more."""
    for pattern in ("in-*", "out-*", "dump-*.sock", "restore-*.sock"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _close_arrivals(guests: Guests, path: Path) -> None:
    """Guests that were arriving: here if they run, otherwise as if they had never come. The source will ask."""
    for key, entry in journal.entries(path).items():
        if entry.get("role") != "destination" or entry.get("state") not in ("prepared", "commit"):
            continue
        guest = guests.find(str(entry["vm"]))
        if guest is not None and guest.alive():
            journal.record(key, "running", path, role="destination", vm=entry["vm"])
        else:
            guests.discard_name(str(entry["vm"]))
            journal.record(key, "aborted", path, role="destination", vm=entry["vm"], reason="the agent was restarted")


def _settle(guests: Guests, runner: Runner, guest: Guest, entry: dict[str, str], ask: Ask, path: Path, patience_s: float) -> None:
    """A guest frozen after the commit: end it if the destination has it, resume it if not, leave it frozen if nobody answers."""
    name, key, to = guest.spec.name, entry["migration"], entry.get("to", "")
    end = clock.now() + patience_s
    while clock.now() < end:
        try:
            state = ask(to, key)
        except EmulabError as error:
            log.info("asking %s about %s: %s", to, name, error.message)
            time.sleep(0.5)
            continue
        if state == "running":
            guests.discard(guest)
            journal.record(key, "released", path, role="source", vm=name)
            return
        if state in ("aborted", "failed", "unknown"):
            guestnet.let_run(guest, runner)
            journal.record(key, "aborted", path, role="source", vm=name, reason=f"{to} does not have it")
            return
        time.sleep(0.1)
    log.error("%s stays frozen: %s cannot be asked whether it has it", name, to)
