"""The side that gives a guest away: the steps that the strategies are made of, and what they share.

Until the commit every error resumes the guest here; after it, every doubt leaves the guest frozen here and asks the destination.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.command import Runner
from emulab.criu import commands
from emulab.criu.breakpoints import Breakpoints
from emulab.criu.tracker import DirtyTracker
from emulab.errors import EmulabError
from emulab.migration import commit, freeze, journal, store, undo
from emulab.migration.affinity import OneCpu
from emulab.migration.channel import Peer
from emulab.migration.control import Control
from emulab.migration.dump import FinalDump, Nobody
from emulab.migration.images import FINAL, IMAGES, FolderSender
from emulab.migration.inventory import moving_bytes
from emulab.migration.last_images import LastImages
from emulab.migration.layer import LayerSender
from emulab.migration.lazy import leaving as lazy_steps
from emulab.migration.lazy.handover import ServerProcess
from emulab.migration.mapped import mapped_files
from emulab.migration.model import Options, Report, Timeline
from emulab.migration.page_sender import Offer, PageSender
from emulab.migration.pages import PAGE
from emulab.migration.plan import foresee_at_rest, kept_of, make_plan
from emulab.migration.precopy import PreCopyRounds
from emulab.migration.predict import Machine, Prediction, Wire
from emulab.migration.preflight import refuse_unmovable
from emulab.migration.priority import PATIENCE_S, GiveWay, Signs
from emulab.migration.progress import Progress
from emulab.migration.reserve import Reserve
from emulab.migration.strategies import STRATEGIES
from emulab.migration.throttle import Throttle
from emulab.migration.watched import watched_paths
from emulab.node.guest import Guest, Guests

Connect = Callable[[], Peer]

_FIRST_GUESS = 0.4  # bytes on the wire per byte of pages, until a round has told
_FILES_RATIO = 0.5
_PARTING_S = 5.0


class Departure:
    """One guest leaving.

    ``connect`` opens a connection to the destination's agent; ``link_bytes_s`` is the payload rate that this migration may use;
    ``machine`` knows what things cost here, and learns; ``control`` is how others reach the migration while it is under way.
    """

    def __init__(
        self,
        guest: Guest,
        *,
        connect: Connect,
        guests: Guests,
        runner: Runner,
        options: Options,
        report: Report,
        timeline: Timeline,
        key: str,
        link_bytes_s: float,
        machine: Machine,
        control: Control,
        secret: bytes,
    ) -> None:
        self.guest = guest
        self.connect = connect
        self.guests = guests
        self.runner = runner
        self.options = options
        self.report = report
        self.timeline = timeline
        self.key = key
        self.machine = machine
        self.control = control
        self.link_bytes_s = link_bytes_s
        self.wire = Wire(link_bytes_s, _FIRST_GUESS)
        self.prediction: Prediction | None = None
        self.expected_blackout_s = 0.0
        self.throttle: Throttle | None = None
        self.give_way = GiveWay(PATIENCE_S if STRATEGIES[options.strategy].has_rounds else 0.0)
        self.secret = secret
        self.folder = IMAGES / f"out-{key}"
        self.sender = PageSender(self.rate, asks=options.page_store)
        self.stream: FolderSender | None = None  # has the connection while images travel
        self.layer = LayerSender(guest.rootfs.upper, self.give_way)
        self.tracker: DirtyTracker | None = None
        self.dump: FinalDump | None = None
        self.last_images: LastImages | None = None
        self.one_cpu: OneCpu | None = None
        self.reserve = Reserve(self.give_way)  # for the images of the final dump
        self.breakpoints: Breakpoints | None = None
        self.pages: ServerProcess | None = None  # post-copy: serves the frozen guest's memory
        self.late_distinct = self.late_zero = self.late_stored = 0  # pages that it served
        self.chain: list[Path] = []  # image folders, the oldest first: each one's parent is the one before
        self.mapped: Collection[str] = ()
        self.watched: list[str] = []
        self.neighbours: list[tuple[str, str]] = []
        self.frozen = False
        self.committed = False
        self._peer: Peer | None = None
        self._layer_copied = False

    @property
    def peer(self) -> Peer:
        assert self._peer is not None
        return self._peer

    @property
    def reached(self) -> Peer | None:
        """The destination, if it was reached."""
        return self._peer

    def run(self) -> Report:
        """Move the guest by the strategy asked for. Raises AbortedError (the guest runs here, or stays frozen here in doubt)."""
        self.timeline.mark("migration", "begin", at=self.report.start_s, **self._labels())
        try:
            if self.give_way.waits:
                self.give_way.judge_meanwhile(Signs.of(self.guest))
            STRATEGIES[self.options.strategy].run(self)
        except BaseException as error:
            undo.abort(self, error)
            raise
        finally:
            self._close()
        return self.report

    # -- steps, in the order in which they may come ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Before anything is staged: raises EmulabError if this guest cannot move, or not as fast as was asked for."""
        refuse_unmovable(self.guest, self.runner, self.give_way)
        self.find_watched()
        options, guest = self.options, self.guest
        if options.max_blackout_s is not None:
            self.expect(make_plan(guest, options, self.wire.link_bytes_s, self.machine, self.control.pause, self._kept()).blackout)
            self._refuse_too_long()
        elif not STRATEGIES[options.strategy].has_rounds:
            self.expect(foresee_at_rest(guest, options, self.wire.link_bytes_s, self.machine, self._kept()).blackout)

    def reach_destination(self) -> None:
        """Connect, and let the destination prepare everything that needs no guest."""
        self._peer = self.connect()
        if self.options.link_budget_bit_s:
            self._peer.limit(self.budget_bytes_s)
        self.control.on_abort(self._peer.cut)
        # For a successor of this agent: whatever the journal says of this guest's earlier moves is over.
        journal.record(self.key, "prepared", role="source", vm=self.guest.spec.name)
        self.folder.mkdir(parents=True)
        self.breakpoints = Breakpoints()
        spec = self.guest.spec
        self.peer.ask(
            "arrive",
            key=self.key,
            source=self.report.source,
            spec={**spec.__dict__, "argv": list(spec.argv), "env": dict(spec.env)},
            waits=self.give_way.waits,
        )

    def prepare_pages(self) -> None:
        """Post-copy: on both sides, what the guest's memory will need to follow it."""
        lazy_steps.check_room(self)
        store.ask(self.peer, self.sender)
        lazy_steps.start_server(self)
        self.peer.ask("memory-follows")

    def copy_layer(self) -> None:
        """All of the writable layer; later passes carry only what changed since. A shared one stays where it is."""
        started = self.timeline.mark("migration.layer", "begin")
        with Progress(self, "layer", expected_bytes=_FILES_RATIO * moving_bytes(self.guest)):
            self.report.layer_bytes += self.layer_pass()
        self._layer_copied = True
        self.report.phases["layer"] = self.timeline.mark("migration.layer", "end", bytes=self.report.layer_bytes) - started

    def rounds(self) -> None:
        """Pre-copy: memory in rounds while the guest runs, until the stop rule ends them."""
        PreCopyRounds(self).run()
        self._refuse_too_long()

    def freeze(self) -> None:
        """The blackout begins: every task stops, frames for the guest are steered to the destination and held there."""
        self.control.check()
        store.ask(self.peer, self.sender)  # not inside the freeze
        if self._layer_copied:
            self.report.layer_bytes += self.layer_pass()
            self.find_watched()
        self.mapped = mapped_files(self.give_way.between(self.guest.cgroup.pids()))  # a file mapped later shows it by its time
        self.give_way.end()
        self._prepare_dump()
        freeze.bring_to_rest(self)

    def _prepare_dump(self) -> None:
        """CRIU started and loaded, waiting for the guest to stand still."""
        images = self.folder / FINAL
        images.mkdir()
        nobody = Nobody() if self.pages else None
        try:
            call = commands.dump(
                pid=self.guest.pid,
                images=images,
                parent=self.chain[-1] if self.chain else None,
                rootfs=str(self.guest.rootfs.merged),
                freezer=self.guest.cgroup.freezer_path(),
                hook_socket=str(IMAGES / f"dump-{self.key}.sock"),
                write_protect=bool(self.tracker and self.tracker.write_protect),
                watched=self.watched,
                lazy=nobody.descriptor if nobody else None,
            )
            self.dump = FinalDump(call, images, IMAGES / f"dump-{self.key}.sock")
        finally:
            if nobody:
                nobody.close()

    def dump_and_send(self) -> None:
        """Final dump; the pages of tasks that are done travel while CRIU works on the others. CRIU then waits for the verdict."""
        self.last_images = LastImages(self)
        self.last_images.dump_and_send()

    def restore_there(self) -> None:
        """The destination restores the guest up to its gate, complete but not running, and receives the last pages meanwhile."""
        assert self.last_images is not None
        self.last_images.restore_there()

    def commit(self) -> None:
        """The one decision. From here on this side never resumes the guest unless the destination says that it does not have it."""
        commit.decide(self)

    def release(self) -> None:
        """The guest lives elsewhere: end the frozen tree here and remove what it had. After post-copy its server has done so."""
        if self.pages is None:
            self._end_original()
        self.finish("committed", "")

    def _end_original(self) -> None:
        assert self.dump is not None
        journal.record(self.key, "released", role="source", vm=self.guest.spec.name)
        self.dump.end()  # the frozen tree ends with its cgroup: at no moment can it run
        self.frozen = False
        if self.tracker:
            self.tracker.close()
            self.tracker = None
        self.guests.discard(self.guest)
        if self.prediction:
            phases = self.report.phases
            self.machine.saw_blackout(self.prediction, dump_s=phases["dump"], restore_s=phases["restore"])

    def serve_pages(self) -> None:
        """Post-copy: the frozen original stays, and is served from, until its last page has arrived at the destination."""
        lazy_steps.hand_over(self)
        lazy_steps.serve_rest(self)

    # -- what steps share --------------------------------------------------------------------------------------------------------------

    def layer_pass(self) -> int:
        """Bring the destination's copy of the layer up to date; returns bytes sent."""
        if self.layer_is_shared:
            return 0
        sent = self.layer.send_pass(self.peer, waits=self.give_way.waits)
        self.peer.expect_ok(self.left() if self.frozen else 120)
        return sent

    @property
    def layer_is_shared(self) -> bool:
        return self.guest.spec.storage == "shared"

    def limit_guest(self) -> None:
        """The guest's CPU limit, after it was lifted for a stop."""
        if self.throttle:
            self.throttle.apply()
        else:
            self.guest.cgroup.set_quota(self.guest.spec.vcpus)

    def expect(self, blackout: Prediction) -> None:
        """Remember the newest prediction of the blackout, in the report too."""
        self.prediction, self.expected_blackout_s = blackout, blackout.total_s
        self.report.predicted_blackout_s, self.report.predicted = blackout.total_s, blackout.parts()

    def _kept(self) -> Offer | None:
        """What the destination keeps of the guest, where that bears on the blackout: pages that follow are not in it."""
        return None if STRATEGIES[self.options.strategy].pages_follow else kept_of(self.guest, self.options, self.connect)

    def _refuse_too_long(self) -> None:
        longest, expected = self.options.max_blackout_s, self.expected_blackout_s
        if longest is not None and expected > longest:
            raise EmulabError(
                f"the predicted blackout of {expected * 1000:.0f} ms is longer than the {longest * 1000:.0f} ms allowed",
                hint="try at less load, with fewer tasks, or with --auto-converge; emulab migrate --plan shows what it consists of",
            )

    def find_watched(self) -> None:
        """Learn the paths of what the guest watches by inotify, for CRIU."""
        self.watched = watched_paths(self.guest.pid, self.give_way.between(self.guest.cgroup.pids()))[0]

    def left(self) -> float:
        """Seconds until the deadline of the blackout. Raises EmulabError once it has passed."""
        left = (self.report.freeze_s or clock.now()) + self.options.deadline_s - clock.now()
        if left <= 0:
            raise EmulabError(f"the guest was frozen for {self.options.deadline_s:g} s: giving up")
        return left

    def finish(self, outcome: str, reason: str) -> None:
        """Complete the report."""
        report = self.report
        report.outcome, report.reason = outcome, reason
        late = sum(item.bytes_on_wire for item in report.rounds if item.kind == "post-copy")
        report.bytes_on_wire = late + (self._peer.bytes_out + self._peer.bytes_in if self._peer else 0)
        report.bytes_of_pages = sum(item.bytes for item in report.rounds)
        report.pages_distinct, report.pages_zero = self.sender.distinct_pages + self.late_distinct, self.sender.zero_pages + self.late_zero
        report.pages_from_store = self.sender.stored_pages + self.late_stored
        report.bytes_from_store = report.pages_from_store * PAGE
        report.pages_changed = self.sender.changed_pages
        report.end_s = self.timeline.mark("migration", "end", outcome=outcome, **self._labels())

    def rate(self) -> float:
        """What the link is believed to carry now, in bytes/s."""
        measured = self._peer.meter.rate if self._peer else None
        return min(self.link_bytes_s, measured or self.link_bytes_s)

    @property
    def budget_bytes_s(self) -> float:
        """What this migration may use of the link; 0 for all of it."""
        return self.link_bytes_s if self.options.link_budget_bit_s else 0.0

    def _labels(self) -> dict[str, Any]:
        return {"vm": self.report.vm, "from": self.report.source, "to": self.report.destination, "strategy": self.report.strategy}

    def _close(self) -> None:
        self.give_way.end()
        self.reserve.give_back()
        for used in (self.breakpoints, self.tracker, self.dump, self.pages, self.sender):
            if used:
                used.close()
        # After post-copy alone hardly any pages are in files, and would replace what was kept before.
        has_pages = STRATEGIES[self.options.strategy].has_rounds or not STRATEGIES[self.options.strategy].pages_follow
        if self.committed and self.options.page_store and self.sender.distinct_pages and has_pages:
            store.keep_in_background(self.guest.spec.name, self.sender, self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._peer:
            # Whoever is told that this has ended may stop or move the guest at once: the destination is to have let go of it.
            self._peer.part(_PARTING_S)
            self._peer.close()
