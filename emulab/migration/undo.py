"""The ways out: everything undone on both sides, and an error that says where the guest is."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from emulab.errors import EmulabError
from emulab.migration import freeze, journal
from emulab.migration.channel import PeerError
from emulab.migration.commit import InDoubtError
from emulab.migration.model import AbortedError
from emulab.migration.repair import end_repair

if TYPE_CHECKING:
    from emulab.migration.departure import Departure

log = logging.getLogger("emulab.migration")


def abort(leaving: Departure, error: BaseException) -> None:
    """Undo everything on both sides and say where the guest is. Replaces ``error`` by AbortedError.

    After the commit there is nothing to undo: the guest lives elsewhere, and ``error`` stays what it is.
    """
    if leaving.committed:
        raise error
    message = error.message if isinstance(error, EmulabError) else f"{type(error).__name__}: {error}"
    if leaving.control.abort_requested:
        message = leaving.control.reason  # what broke first, broke because of that
    if not isinstance(error, EmulabError):
        log.error("migration of %s", leaving.guest.spec.name, exc_info=error)
    logs = _logs(leaving, error)
    in_doubt = isinstance(error, InDoubtError)
    if not in_doubt:
        _resume_here(leaving)
    elif leaving.dump:
        leaving.dump.refuse()  # CRIU lets go of the tasks; their control group stays frozen
    journal.record(leaving.key, "in-doubt" if in_doubt else "aborted", role="source", vm=leaving.guest.spec.name, reason=message)
    leaving.timeline.mark("migration.abort", reason=message)
    leaving.finish("aborted", message)
    name, here, there = leaving.guest.spec.name, leaving.report.source, leaving.report.destination
    where = f"{name} is frozen on {here}" if in_doubt else f"{name} runs on {here}"
    hint = error.hint if isinstance(error, EmulabError) and error.hint else "the CRIU logs are in the run folder"
    if in_doubt:
        hint = f"{there} is asked until it answers; emulab vm stop {name} ends what is on {here}"
    raise AbortedError(
        f"migration of {name} to {there} aborted, {where}: {message}",
        hint=hint,
        details={"report": leaving.report.as_dict(), "logs": logs, "running_on": here, "frozen": in_doubt},
    ) from error


def _resume_here(leaving: Departure) -> None:
    if leaving.stream:
        leaving.stream.close()
    if leaving.reached:
        with contextlib.suppress(PeerError):
            leaving.reached.send("abort")
    if leaving.dump:
        leaving.dump.refuse()
    if leaving.one_cpu:
        leaving.one_cpu.release()
    if leaving.frozen:
        end_repair(leaving.guest.cgroup.pids())  # of a CRIU that died at its work
        freeze.let_run(leaving)
    else:
        leaving.guest.cgroup.set_quota(leaving.guest.spec.vcpus)


def _logs(leaving: Departure, error: BaseException) -> dict[str, str]:
    """CRIU's logs of both sides by name."""
    logs = {}
    for path in sorted(leaving.folder.glob("*/*.log")):
        logs[f"{path.parent.name}-{path.name}"] = path.read_text(errors="replace")[-200_000:]
    details = getattr(error, "details", None)
    if isinstance(details, dict):
        logs.update({f"destination-{name}": text for name, text in details.get("logs", {}).items() if text})
    return logs
