"""After an agent was killed: what its successor does with guests that were on the move.

A guest of ours that stands still belongs to a migration that nobody drives any more. Before the commit it is resumed here. After the
commit this node never resumes it by itself: it asks the destination, and only an answer decides. What had arrived in part is removed.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from emulab import clock
from emulab.errors import EmulabError
from emulab.migration import guestnet, journal
from emulab.migration.affinity import release_all
from emulab.migration.images import IMAGES
from emulab.migration.lazy import handover
from emulab.migration.repair import end_repair
from emulab.node.guest import Guest, Guests

log = logging.getLogger("emulab.recovery")

# Asks the agent of a node what became of a migration: running, aborted, failed, unknown. Raises EmulabError if it cannot be reached.
Ask = Callable[[str, str], str]

_CRIU_ENDS_S = 15.0


@dataclass(frozen=True)
class Doubt:
    """A guest frozen here after the commit, and the journal's newest entry about it."""

    guest: Guest
    entry: dict[str, Any]


def recover(guests: Guests, *, path: Path = journal.JOURNAL) -> list[Doubt]:
    """Bring every guest of this node to rest: running here, or gone. Returns those that only their destination can decide on (``settle``).

    To be called before other agents can reach this one: what arrives afterwards is none of its business.
    """
    _wait_for_criu()
    _remove_images()
    journal.compact(path)
    _close_arrivals(guests, path)
    newest = {entry["vm"]: entry for entry in journal.entries(path).values() if "vm" in entry}
    doubts = []
    for name in guests.names():
        try:
            doubts += _bring_to_rest(guests, name, newest.get(name, {}))
        except EmulabError:
            log.exception("guest %s", name)
    return doubts


def _bring_to_rest(guests: Guests, name: str, entry: dict[str, Any]) -> list[Doubt]:
    guest = guests.find(name)
    if guest is None:
        return []
    left = entry.get("role") == "source" and guest.alive() and guest.cgroup.frozen()
    if left and entry["state"] in ("commit", "in-doubt"):
        return [Doubt(guest, entry)]
    if left and entry["state"] == "released":
        log.info("guest %s runs elsewhere", name)
        guests.discard(guest)
    elif guest.alive():
        if left or entry.get("role") == "destination":  # both sides keep it on one CPU for a while
            release_all(guest.cgroup.pids())
        end_repair(guest.cgroup.pids())
        guestnet.let_run(guest)
    else:
        log.info("guest %s ended with the agent before", name)
        guests.discard(guest)
    return []


def _wait_for_criu(patience_s: float = _CRIU_ENDS_S) -> None:
    """A CRIU that lost its agent hears no verdict at its hook and undoes its work; only then the guest is ours again.

    What is left after that is ended: children of a CRIU that was killed, too, which sleep until it ends them.
    """
    end = clock.now() + patience_s
    while left := [process for process in psutil.process_iter(["name"]) if process.info["name"] == "criu"]:
        if clock.now() > end:
            break
        time.sleep(0.05)
    for process in left:
        log.warning("%s is ended: nobody waits for it", process)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _remove_images(folder: Path = IMAGES) -> None:
    """Images and sockets of migrations that nobody drives any more."""
    for pattern in ("in-*", "out-*", "keep-*", "dump-*.sock", "restore-*.sock"):
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


def _give_up(guests: Guests, doubt: Doubt, key: str) -> None:
    """The destination has it: what is here is no longer needed, except memory that has not arrived there yet."""
    served = handover.find("out", key)
    if served:
        handover.serve_on(served, guests)
    else:
        guests.discard(doubt.guest)


def settle(guests: Guests, doubt: Doubt, ask: Ask, *, over: threading.Event, path: Path = journal.JOURNAL) -> None:
    """End a guest in doubt if its destination has it, resume it if not. Until one or the other is known it stays frozen: asks until then.

    ``over`` ends the asking without a decision.
    """
    name, key, to = doubt.guest.spec.name, str(doubt.entry["migration"]), str(doubt.entry.get("to", ""))
    while not over.is_set():
        try:
            state = ask(to, key)
        except EmulabError as error:
            log.info("asking %s about %s: %s", to, name, error.message)
            over.wait(0.5)
            continue
        if state in ("running", "lost"):
            _give_up(guests, doubt, key)
            journal.record(key, "released", path, role="source", vm=name)
            return
        if state in ("aborted", "failed", "unknown"):
            handover.end("out", key)
            guestnet.let_run(doubt.guest)
            journal.record(key, "aborted", path, role="source", vm=name, reason=f"{to} does not have it")
            return
        over.wait(0.1)
