"""The source's steps of post-copy, beside those that all strategies share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulab import clock
from emulab.errors import EmulabError
from emulab.migration.lazy.handover import ServerProcess
from emulab.migration.pages import PAGE
from emulab.migration.rounds import Round
from emulab.node import link

if TYPE_CHECKING:
    from emulab.migration.departure import Departure

log = logging.getLogger("emulab.migration.lazy")


def start_server(leaving: Departure) -> None:
    """Before the freeze, because a Python program takes its time to start."""
    offered = leaving.folder / "offered"
    if leaving.sender.offer:
        offered.write_bytes(leaving.sender.offer.message)
    leaving.pages = ServerProcess.start(
        guest=leaving.guest.spec.name,
        key=leaving.key,
        host=leaving.peer.local_host,
        secret=leaving.secret,
        limit_bytes_s=leaving.budget_bytes_s,
        offered=str(offered) if leaving.sender.offer else "",
    )


def check_room(leaving: Departure) -> None:
    """What tasks share copy-on-write here each of them has for itself there. Raises EmulabError if that is more than the guest may have."""
    wanted = sum(_anonymous_bytes(pid) for pid in leaving.guest.cgroup.pids())
    limit = leaving.guest.spec.memory_bytes
    if wanted > limit:
        raise EmulabError(
            f"its memory would take {wanted >> 20} MiB at the destination, where tasks share no pages; its limit is {limit >> 20} MiB",
            hint="move it by pre-copy",
        )


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0  # it has ended
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


def hand_over(leaving: Departure) -> None:
    """After the commit: the frozen tree is only memory now, and the server's own."""
    assert leaving.pages is not None
    assert leaving.dump is not None
    leaving.pages.keep()
    leaving.guests.forget(leaving.guest.spec.name)
    leaving.dump.end()
    link.unplug(leaving.guest.spec.port, leaving.runner)
    if leaving.tracker:
        leaving.tracker.close()
        leaving.tracker = None


def serve_rest(leaving: Departure) -> None:
    """Until the last page has arrived; the server then ends the frozen tree. Raises EmulabError if it never did."""
    report = leaving.report
    assert leaving.pages is not None
    started = leaving.timeline.mark("migration.post-copy", "begin", at=report.resume_s)
    said = _last_word(leaving)
    ended = leaving.timeline.mark("migration.post-copy", "end", bytes=int(said["bytes_on_wire"]), pages=int(said["pages"]))
    leaving.frozen = False
    report.phases["post-copy"] = ended - started
    report.pages_faulted = int(said.get("pages_faulted", 0))
    report.fault_p50_s = float(said.get("fault_p50_s", 0.0))
    report.fault_max_s = float(said.get("fault_max_s", 0.0))
    report.rounds.append(
        Round(
            n=len(report.rounds) + 1,
            kind="post-copy",
            start_s=started,
            duration_s=ended - started,
            frozen_s=0.0,
            pages=int(said["pages"]),
            bytes=int(said["pages"]) * PAGE,
            bytes_on_wire=int(said["bytes_on_wire"]),
            layer_bytes=0,
            predicted_blackout_s=0.0,
            dirty_pages_per_s=0.0,
        )
    )
    leaving.late_distinct, leaving.late_zero = int(said["distinct_pages"]), int(said["zero_pages"])
    leaving.late_stored = int(said["stored_pages"])
    if not said["complete"]:
        leaving.finish("committed", str(said["reason"]))
        raise EmulabError(f"{report.vm} was ended on {report.destination}: {said['reason']}")


def _last_word(leaving: Departure) -> dict[str, Any]:
    """The server's report. One that was killed is started again, where its daemon looks for it."""
    assert leaving.pages is not None
    while True:
        try:
            return leaving.pages.hear()
        except EmulabError as error:
            log.warning("pages of %s: %s", leaving.report.vm, error.message)
            port = leaving.pages.port
            leaving.pages.close()
            if not leaving.guest.cgroup.pids():
                raise
            since = clock.now()
            leaving.pages = ServerProcess.start(
                guest=leaving.report.vm,
                key=leaving.key,
                host=leaving.peer.local_host,
                secret=leaving.secret,
                port=port,
                limit_bytes_s=leaving.budget_bytes_s,
            )
            leaving.pages.keep()
            log.info("served again after %.2f s", clock.now() - since)
