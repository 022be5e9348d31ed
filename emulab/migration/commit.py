"""The decision: one message, journalled on both sides. Whoever does not know its outcome asks until it does."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from emulab import clock
from emulab.errors import EmulabError
from emulab.migration import journal
from emulab.migration.channel import PeerError

if TYPE_CHECKING:
    from emulab.migration.departure import Departure

log = logging.getLogger("emulab.migration")


class InDoubtError(EmulabError):
    """After the commit, and the destination cannot be asked."""


def decide(leaving: Departure) -> None:
    """Tell the destination to let the guest run. Raises EmulabError if it does not have it, InDoubtError if that cannot be known."""
    report, timeline = leaving.report, leaving.timeline
    leaving.control.pass_commit()
    journal.record(leaving.key, "commit", role="source", vm=leaving.guest.spec.name, to=report.destination)
    started = timeline.mark("migration.commit")
    try:
        answer = leaving.peer.ask("commit", timeout_s=15)
    except PeerError as error:
        answer = _ask_again(leaving, error)
    leaving.committed = True
    report.resume_s = float(answer["resume_s"])
    report.frames_held = int(answer.get("frames_held", 0))
    report.pages_filled = int(answer.get("pages_filled", 0))
    report.restored_in_place = answer.get("in_place")
    if "hold_since_s" in answer:
        report.network_hold_s = report.resume_s - float(answer["hold_since_s"])
    report.phases["resume"] = report.resume_s - started
    report.stages = {str(name): float(at) for name, at in answer.get("stages", {}).items()}
    timeline.mark("migration.resume", at=report.resume_s)


def _ask_again(leaving: Departure, error: PeerError, patience_s: float = 60.0) -> dict[str, Any]:
    """No clear answer to the commit: ask until the destination knows. Raises EmulabError if it does not have the guest."""
    destination = leaving.report.destination
    log.warning("no answer to the commit of %s: %s", leaving.guest.spec.name, error)
    end = clock.now() + patience_s
    while clock.now() < end:
        try:
            peer = leaving.connect()
            try:
                answer = peer.ask("status", key=leaving.key, timeout_s=5)
            finally:
                peer.close()
        except PeerError:
            time.sleep(0.5)
            continue
        if answer["state"] == "running":
            return {"resume_s": answer.get("resume_s") or clock.now()}
        if answer["state"] in ("aborted", "failed", "unknown"):
            raise EmulabError(f"{destination} did not keep the guest: {error.message}")
        time.sleep(0.1)
    raise InDoubtError(f"{destination} cannot be asked whether it has the guest: {error.message}")
