"""The images of the final dump: made, sent while they are, and restored from while the last pages still travel.

Small files overtake the pages that wait for the link, so that CRIU at the destination begins as soon as CRIU here is done: until it reaches
the memory of the last tasks, their pages have arrived.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from emulab import clock
from emulab.migration.affinity import OneCpu
from emulab.migration.images import FINAL, FolderSender
from emulab.migration.pages import PAGE
from emulab.migration.rounds import Round

if TYPE_CHECKING:
    from emulab.migration.departure import Departure


class LastImages:
    """Of one migration; its two methods are called one after the other."""

    def __init__(self, leaving: Departure) -> None:
        self._leaving = leaving
        self._images = leaving.folder / FINAL
        self._started = 0.0
        self._bytes_before = 0
        self._layer_bytes = 0
        self._pages: dict[str, int] = {}  # of each pages file

    def dump_and_send(self) -> None:
        """Final dump, and all of it sent that a restore begins with. The last pages follow."""
        leaving, report, timeline, dump = self._leaving, self._leaving.report, self._leaving.timeline, self._leaving.dump
        assert dump is not None
        self._started = timeline.mark("migration.dump", "begin")
        self._bytes_before = leaving.peer.bytes_out
        leaving.one_cpu = OneCpu(leaving.guest.cgroup.pids(), dump.pid, leaving.key)
        dump.begin()
        leaving.reserve.give_back_meanwhile()
        stream = leaving.stream = FolderSender(leaving.peer, self._images, leaving.sender, eager=True)
        # The last layer pass begins while CRIU is at work, on what a frozen guest no longer changes.
        with nullcontext() if leaving.layer_is_shared else leaving.layer.looking(leaving.mapped):
            try:
                dump.wait_until_dumped(leaving.left(), meanwhile=stream.poll, check=leaving.control.check)
            except BaseException:
                dump.settle()
                leaving.guest.cgroup.freeze()  # a CRIU that died has let the tasks run, with their connections half taken apart
                raise
            # CRIU has thawed the cgroup and holds the tasks by ptrace alone: should it die after the commit, they must not run.
            leaving.guest.cgroup.freeze()
            dumped = timeline.mark("migration.dump", "end")
            report.phases["dump"] = dumped - self._started
            timeline.mark("migration.transfer", "begin", at=dumped)
            self._pages = stream.finish_files()
        self._layer_bytes = 0 if leaving.layer_is_shared else leaving.layer.send_pass(leaving.peer)
        report.layer_bytes += self._layer_bytes
        leaving.chain.append(self._images)
        ended = timeline.mark("migration.transfer", "end", bytes=leaving.peer.bytes_out - self._bytes_before)
        report.phases["transfer"] = ended - dumped

    def restore_there(self) -> None:
        """Ask for the restore, and send the last pages. Returns once the guest is complete at the destination, behind CRIU's gate."""
        leaving, report, peer = self._leaving, self._leaving.report, self._leaving.peer
        assert leaving.stream is not None
        started = leaving.timeline.mark("migration.restore", "begin")
        peer.send(
            "restore",
            chain=[folder.name for folder in leaving.chain],
            neighbours=leaving.neighbours,
            pages=self._pages,
            pages_port=leaving.pages.port if leaving.pages else 0,
        )
        leaving.stream.finish()
        self._report_round()
        if not leaving.layer_is_shared:
            peer.expect_ok(leaving.left())
        peer.expect_ok(leaving.left())
        leaving.control.check()
        report.phases["restore"] = leaving.timeline.mark("migration.restore", "end") - started

    def _report_round(self) -> None:
        report = self._leaving.report
        pages = sum(self._pages.values())
        previous = report.rounds[-1] if report.rounds else None
        report.rounds.append(
            Round(
                n=len(report.rounds) + 1,
                kind="final",
                start_s=self._started,
                duration_s=clock.now() - self._started,
                frozen_s=self._started + report.phases["dump"] - (report.freeze_s or self._started),
                pages=pages,
                bytes=pages * PAGE,
                bytes_on_wire=self._leaving.peer.bytes_out - self._bytes_before,
                layer_bytes=self._layer_bytes,
                predicted_blackout_s=previous.predicted_blackout_s if previous else 0.0,
                dirty_pages_per_s=pages / (self._started - previous.start_s) if previous else 0.0,
            )
        )
