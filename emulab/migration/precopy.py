"""Pre-copy rounds: pages written since the last round travel while the guest runs, until the stop rule ends it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from emulab import clock
from emulab.criu import commands, tracker
from emulab.criu.dirty import DirtyPages
from emulab.criu.log import read_deciding_line
from emulab.criu.standby import end, start
from emulab.criu.stats import read_dump_stats
from emulab.errors import EmulabError
from emulab.migration.dump import is_traced, pages_in
from emulab.migration.images import FolderSender
from emulab.migration.inventory import count_mappings, take_inventory
from emulab.migration.live import LiveRounds
from emulab.migration.pages import PAGE
from emulab.migration.predict import Prediction, Rest, Wire, predict
from emulab.migration.prefill import filled_before
from emulab.migration.progress import Progress
from emulab.migration.rounds import Round, StopRule
from emulab.migration.same_frame import Alike
from emulab.migration.strategies import STRATEGIES
from emulab.migration.throttle import Throttle

if TYPE_CHECKING:
    from emulab.migration.departure import Departure

_TOO_MANY = 1 / 3  # written during a round, of the pages that it sent
_FEW_PAGES = 256  # of fewer, the wire tells more about headers than about pages


class PreCopyRounds:
    """The rounds of one departure. ``run`` returns once the stop rule says so; rule, reason and prediction go into the report."""

    def __init__(self, leaving: Departure) -> None:
        self._leaving = leaving
        options = leaving.options
        self._tracker = leaving.tracker = tracker.choose(options.dirty_tracker)
        self._dirty = DirtyPages(write_protect=self._tracker.write_protect)
        self._live = LiveRounds() if self._tracker.write_protect else None
        self._rule = StopRule(options.freeze_budget_s, options.max_rounds, options.min_rounds)
        self._give_way = leaving.give_way
        self._found = take_inventory(self._give_way.between(leaving.guest.cgroup.pids()))
        leaving.throttle = Throttle(leaving.guest.cgroup, leaving.guest.spec.vcpus)
        leaving.report.dirty_tracker = self._tracker.name
        leaving.report.stop_rule = str(self._rule)

    def run(self) -> None:
        leaving, rounds = self._leaving, self._leaving.report.rounds
        self._make_room(0)
        while True:
            leaving.control.check()
            last, prediction = self._round(len(rounds) + 1)
            rounds.append(last)
            self._make_room(last.dirty_pages)
            decision = self._rule.decide(rounds, prediction, waited=self._give_way.waits)
            if last.dirty_pages > _TOO_MANY * last.pages:
                self._give_way.hurry()  # the guest may write as fast as who waits for it copies
            if not decision.stop or (decision.diverging and leaving.options.auto_converge and self._tighten(decision.reason)):
                continue
            break
        leaving.sender.look_no_more()
        report = leaving.report
        report.stop_reason = decision.reason
        leaving.expect(prediction)
        leaving.timeline.mark(
            "migration.stop_rule", reason=decision.reason, predicted_blackout_s=prediction.total_s, predicted=prediction.parts()
        )

    def _make_room(self, pages: int) -> None:
        """Let both sides have memory ready for what the freeze will need: images of so many pages, there also the guest itself."""
        found = self._found
        images = (found.shared_pages + (0 if STRATEGIES[self._leaving.options.strategy].pages_follow else pages)) * PAGE
        self._leaving.reserve.want(images)
        guest = (found.distinct_pages + found.shared_pages) * PAGE
        large = found.large_pages * PAGE
        self._leaving.peer.send("make-room", images=images, guest=guest, large=large, waits=self._give_way.waits)

    def _tighten(self, reason: str) -> bool:
        """Withhold more CPU from the guest; False if there is nothing left to withhold."""
        leaving = self._leaving
        if not (leaving.throttle and leaving.throttle.tighter()):
            return False
        share, vcpus = leaving.throttle.share, round(leaving.throttle.vcpus, 4)
        at = leaving.timeline.mark("migration.throttle", share=share, vcpus=vcpus, reason=reason)
        leaving.report.throttle.append({"at_s": at, "share": share, "vcpus": vcpus})
        return True

    def _round(self, number: int) -> tuple[Round, Prediction]:
        """Take the pages written since the last round, and send them while the guest runs."""
        leaving, guest = self._leaving, self._leaving.guest
        previous = leaving.report.rounds[-1] if leaving.report.rounds else None
        expected = leaving.wire.bytes(previous.dirty_pages if previous else self._found.distinct_pages)
        started = leaving.timeline.mark("migration.round", "begin", n=number)
        with Progress(leaving, "round", expected_bytes=expected, number=number):
            before = leaving.peer.bytes_out
            images = leaving.folder / str(number)
            images.mkdir()
            tasks = guest.cgroup.pids()
            distinct = leaving.sender.sent_pages
            alike = Alike()
            # It sends while the images are still being written.
            leaving.stream = FolderSender(
                leaving.peer,
                images,
                leaving.sender,
                give_way=self._give_way,
                alike=alike,
                maps_grow=bool(self._live and filled_before(self._found, STRATEGIES[leaving.options.strategy], 0)),
            )
            guest.cgroup.lift_quota()  # a throttled task could not reach its stop before the next period
            try:
                self._tracker.arm(tasks, self._give_way)
                if self._live:
                    leaving.limit_guest()
                    frozen_s, clean_since = 0.0, self._live.take(images, tasks, alike, self._go_on)
                else:
                    frozen_s, clean_since = self._pre_dump(images)
            finally:
                leaving.limit_guest()
            sending = clock.now()
            leaving.stream.finish()
            leaving.peer.expect_ok(120)
            sent_s, image_bytes = clock.now() - sending, leaving.peer.bytes_out - before
            leaving.chain.append(images)
            layer_bytes = leaving.layer_pass()
        pages, mappings = pages_in(images), count_mappings(self._give_way.between(tasks))
        # What the guest writes again will hardly be repeats of other pages: of the first round, only distinct pages count.
        fresh = pages if number > 1 else leaving.sender.sent_pages - distinct
        self._learn_wire(pages, fresh, image_bytes, sent_s)
        leaving.machine.saw_round(frozen_s=frozen_s, tasks=len(tasks), mappings=mappings, pages=pages)
        strategy = STRATEGIES[leaving.options.strategy]
        dirty = self._dirty.count(self._give_way.between(guest.cgroup.pids()))
        ended = clock.now()
        rest = Rest(
            tasks=len(tasks),
            mappings=mappings,
            pages=self._found.shared_pages + (0 if strategy.pages_follow else dirty),
            all_pages=self._found.own_pages + self._found.shared_pages,
            distinct_pages=self._found.distinct_pages + self._found.shared_pages,
            filled_pages=filled_before(self._found, strategy, dirty),
        )
        prediction = predict(rest, leaving.wire, leaving.machine)
        leaving.expected_blackout_s = prediction.total_s
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
            predicted_blackout_s=prediction.total_s,
            dirty_pages_per_s=dirty / max(0.001, ended - clean_since),
            dirty_pages=dirty,
            throttle=leaving.throttle.share if leaving.throttle else 0.0,
        )
        leaving.timeline.mark(
            "migration.round", "end", at=ended, n=number, pages=pages, bytes=result.bytes_on_wire, frozen_s=frozen_s, dirty_pages=dirty,
            predicted_blackout_s=prediction.total_s, throttle=result.throttle,
        )  # fmt: skip
        return result, prediction

    def _go_on(self) -> None:
        self._give_way()
        self._leaving.control.check()
        if self._leaving.stream:
            self._leaving.stream.poll()

    def _learn_wire(self, pages: int, fresh: int, sent_bytes: int, sent_s: float) -> None:
        """What a page costs on the wire and in time, from a round that sent enough of them. One that waits for guests tells no time."""
        wire = self._leaving.wire
        ratio, page_s = wire.ratio, wire.page_s
        if fresh >= _FEW_PAGES:
            ratio = min(1.1, max(0.01, sent_bytes / (fresh * PAGE)))
            page_s = page_s if self._give_way.waits else sent_s / pages
        self._leaving.wire = Wire(self._leaving.rate(), ratio, page_s)

    def _pre_dump(self, images: Path) -> tuple[float, float]:
        """CRIU's own way, for soft-dirty: the guest stands still for some ms per task; its vCPU limit is back as soon as it runs again.

        Returns how long it was stopped, seen from outside if that was long enough to see, and when it ran again.
        """
        leaving, guest = self._leaving, self._leaving.guest
        call = commands.pre_dump(
            pid=guest.pid,
            images=images,
            parent=leaving.chain[-1] if leaving.chain else None,
            rootfs=str(guest.rootfs.merged),
            freezer=guest.cgroup.freezer_path(),
            write_protect=self._tracker.write_protect,
            watched=leaving.watched,
        )
        stream, process = leaving.stream, start(call)
        stopped_at = resumed_at = 0.0
        while process.poll() is None:
            traced = is_traced(guest.pid)
            if traced and not stopped_at:
                stopped_at = clock.now()
            elif stopped_at and not traced and not resumed_at:
                resumed_at = clock.now()
                leaving.limit_guest()
            if resumed_at and leaving.control.abort_requested:
                end(process)  # it only writes files now: the guest is out of its hands
                leaving.control.check()
            if stream:
                stream.poll()
            time.sleep(0.002)
        end(process)
        if process.returncode != 0:
            raise EmulabError(f"CRIU pre-dump failed: {read_deciding_line(images / 'pre-dump.log', process.returncode)}")
        if resumed_at:
            return resumed_at - stopped_at, resumed_at
        stats = read_dump_stats(images)
        return (stats.freezing_us + stats.frozen_us) / 1e6, clock.now()
