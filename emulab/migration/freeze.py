"""The freeze: every task stopped at a moment at which the guest can be saved, its frames on their way to the destination."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from emulab import clock
from emulab.errors import EmulabError
from emulab.migration import guestnet, prefill
from emulab.node.guest import Guest, is_zombie

if TYPE_CHECKING:
    from emulab.migration.departure import Departure

_TRIES = 100
_READY_S = prefill.PATIENCE_S + 20.0  # for the other side; the guest runs meanwhile


def bring_to_rest(leaving: Departure) -> None:
    """Stop every task at a moment at which none is a zombie and no connection is without an owner, and steer its frames away."""
    guest, report = leaving.guest, leaving.report
    leaving.neighbours = guestnet.neighbours(guest.pid, leaving.runner)
    leaving.peer.ask("hold", timeout_s=_READY_S)  # ready before the guest stands still; nothing is steered there yet
    for _ in range(_TRIES):
        guest.cgroup.lift_quota()
        leaving.frozen = True
        asked = clock.now()
        instant = guest.cgroup.freeze()
        if not guestnet.connections(guest.pid).in_flight and not _has_zombie(guest):
            leaving.peer.send("announce")
            time.sleep(0.001)  # until the switches have learned it; what still comes here goes into the guest's sockets
            guestnet.block(guest.spec.port)
            connections = guestnet.connections(guest.pid)
            if not connections.in_flight:
                break
        let_run(leaving)
        time.sleep(0.004)
    else:
        raise EmulabError(
            f"the guest never came to rest: a zombie or a connection that nobody accepts in {_TRIES} tries",
            hint="give the web server more workers, or try under less load",
        )
    report.freeze_s = instant
    leaving.timeline.mark("migration.freeze", "begin", at=asked)
    report.tasks = len(guest.cgroup.pids())
    report.tcp_established = connections.established
    report.phases["freeze"] = leaving.timeline.mark("migration.freeze", "end", tasks=report.tasks) - asked


def let_run(leaving: Departure) -> None:
    """Back to normal operation here."""
    guestnet.let_run(leaving.guest)
    leaving.frozen = False


def _has_zombie(guest: Guest) -> bool:
    """An exited child that its frozen parent cannot reap: CRIU would try again for 10 s. A task that has just gone counts as one."""
    tasks = set(guest.cgroup.pids())
    for pid in tasks:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return True
        if any(int(child) not in tasks and is_zombie(int(child)) for child in children):
            return True
    return False
