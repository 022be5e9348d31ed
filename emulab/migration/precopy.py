"""Pre-copy rounds: pages written since the last round travel while the guest runs, until the stop rule ends it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from emulab import clock
from emulab.criu import commands, tracker
from emulab.criu.log import read_deciding_line
from emulab.criu.stats import read_dump_stats
from emulab.errors import EmulabError
from emulab.migration.dump import is_traced, pages_in, start
from emulab.migration.images import send_folder
from emulab.migration.pages import PAGE
from emulab.migration.rounds import Round, StopRule

if TYPE_CHECKING:
    from emulab.migration.departure import Departure


def run_rounds(leaving: Departure) -> None:
    """Rounds until the stop rule says so; rule and reason go into the report."""
    leaving.tracker = tracker.choose(leaving.options.dirty_tracker)
    report = leaving.report
    report.dirty_tracker = leaving.tracker.name
    rule = StopRule(leaving.options.freeze_budget_s, leaving.options.max_rounds)
    report.stop_rule = (
        f"predicted blackout within {rule.budget_s:g} s, or {rule.max_rounds} rounds, or not converging, or dirty pages negligible"
    )
    while True:
        last, transfer_s = _round(leaving, len(report.rounds) + 1, rule, leaving.tracker)
        report.rounds.append(last)
        decision = rule.decide(report.rounds, transfer_s=transfer_s)
        if decision.stop:
            break
    report.stop_reason = decision.reason
    leaving.timeline.mark("migration.stop_rule", reason=decision.reason, predicted_blackout_s=last.predicted_blackout_s)


def _round(leaving: Departure, number: int, rule: StopRule, dirty: tracker.DirtyTracker) -> tuple[Round, float]:
    """One pre-dump: freeze for milliseconds, take the pages written since the last one, send them while the guest runs."""
    started = leaving.timeline.mark("migration.round", "begin", n=number)
    before = leaving.peer.bytes_out
    images = leaving.folder / str(number)
    images.mkdir()
    tasks = leaving.guest.cgroup.pids()
    leaving.guest.cgroup.lift_quota()  # a throttled task could not reach its stop before the next period
    try:
        dirty.arm(tasks)
        frozen_s = _pre_dump(leaving, images, dirty)
    finally:
        leaving.guest.cgroup.set_quota(leaving.guest.spec.vcpus)
    stats = read_dump_stats(images)
    send_folder(leaving.peer, images, leaving.sender)
    leaving.peer.expect_ok(120)
    leaving.chain.append(images)
    layer_bytes = leaving.layer_pass()
    ended = clock.now()
    pages = pages_in(images)
    frozen_s = frozen_s or (stats.freezing_us + stats.frozen_us) / 1e6
    since = ended - (leaving.report.rounds[-1].start_s if leaving.report.rounds else started)
    predicted, transfer_s = rule.predict(frozen_s=frozen_s, tasks=len(tasks), pages=pages, link_bytes_per_s=leaving.link_bytes_s)
    result = Round(
        n=number,
        kind="pre-dump",
        start_s=started,
        duration_s=ended - started,
        frozen_s=frozen_s,
        pages=pages,
        bytes=pages * PAGE,
        bytes_on_wire=leaving.peer.bytes_out - before,
        layer_bytes=layer_bytes,
        predicted_blackout_s=predicted,
        dirty_pages_per_s=pages / since if number > 1 else 0.0,
    )
    leaving.timeline.mark("migration.round", "end", at=ended, n=number, pages=pages, bytes=result.bytes_on_wire, frozen_s=frozen_s)
    return result, transfer_s


def _pre_dump(leaving: Departure, images: Path, dirty: tracker.DirtyTracker) -> float:
    """Run CRIU; the vCPU limit is back as soon as the guest runs again. Returns how long it was stopped, seen from outside."""
    call = commands.pre_dump(
        pid=leaving.guest.pid,
        images=images,
        parent=leaving.chain[-1] if leaving.chain else None,
        rootfs=str(leaving.guest.rootfs.merged),
        freezer=leaving.guest.cgroup.freezer_path(),
        write_protect=dirty.write_protect,
    )
    process = start(call)
    stopped_at = resumed_at = 0.0
    while process.poll() is None:
        traced = is_traced(leaving.guest.pid)
        if traced and not stopped_at:
            stopped_at = clock.now()
        elif stopped_at and not traced and not resumed_at:
            resumed_at = clock.now()
            leaving.guest.cgroup.set_quota(leaving.guest.spec.vcpus)
        time.sleep(0.002)
    if process.returncode != 0:
        raise EmulabError(f"CRIU pre-dump failed: {read_deciding_line(images / 'pre-dump.log')}")
    return resumed_at - stopped_at if resumed_at else 0.0
