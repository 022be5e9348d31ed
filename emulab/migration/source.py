"""The side that gives a guest away. ``Departure.run`` is the whole migration, a list of steps.

Until the commit every error resumes the guest here; after it, every doubt leaves the guest frozen here and asks the destination.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from emulab import clock
from emulab.command import Runner
from emulab.criu import commands, tracker
from emulab.criu.log import read_deciding_line
from emulab.criu.stats import read_dump_stats
from emulab.errors import EmulabError
from emulab.migration import guestnet, journal
from emulab.migration.channel import Peer, PeerError
from emulab.migration.destination import IMAGES
from emulab.migration.dump import FinalDump, is_traced, pages_in, start
from emulab.migration.images import FolderSender, send_folder
from emulab.migration.layer import LayerSender
from emulab.migration.mapped import mapped_files
from emulab.migration.model import AbortedError, Options, Report, Timeline
from emulab.migration.pages import PAGE, PageSender
from emulab.migration.rounds import Round, StopRule
from emulab.node import link
from emulab.node.guest import Guest, Guests, is_zombie

log = logging.getLogger("emulab.migration")

Connect = Callable[[], Peer]


class Departure:
    """One guest leaving. ``connect`` opens a connection to the destination's agent; ``rate_bytes_s`` is the link's payload rate."""

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
        rate_bytes_s: float,
    ) -> None:
        self.guest = guest
        self._connect = connect
        self._guests = guests
        self._runner = runner
        self._options = options
        self.report = report
        self._timeline = timeline
        self._key = key
        self._rate = rate_bytes_s
        self._folder = IMAGES / f"out-{key}"
        self._sender = PageSender()
        self._layer = LayerSender(guest.rootfs.upper)
        self._peer: Peer | None = None
        self._tracker: tracker.DirtyTracker | None = None
        self._dump: FinalDump | None = None
        self._chain: list[Path] = []
        self._mapped: Collection[str] = ()
        self._frozen = False
        self._done = False

    @property
    def peer(self) -> Peer:
        assert self._peer is not None
        return self._peer

    # -- the list of steps -------------------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Move the guest. Raises AbortedError (the guest runs here, or stays frozen here if the destination cannot be asked)."""
        self._timeline.mark("migration", "begin", at=self.report.start_s, **self._labels())
        try:
            self._reach_destination()
            self._copy_layer()
            if self._options.strategy == "pre-copy":
                self._pre_copy()
            self._freeze()
            self._dump_and_send()
            self._restore_there()
            self._commit()
            self._release()
        except BaseException as error:
            self._abort(error)
            raise
        finally:
            self._close()
        return self.report

    def _labels(self) -> dict[str, Any]:
        return {"vm": self.report.vm, "from": self.report.source, "to": self.report.destination, "strategy": self.report.strategy}

    # -- before the freeze -------------------------------------------------------------------------------------------------------------

    def _reach_destination(self) -> None:
        self._peer = self._connect()
        # For a successor of this agent: whatever the journal says of this guest's earlier moves is over.
        journal.record(self._key, "prepared", role="source", vm=self.guest.spec.name)
        self._folder.mkdir(parents=True)
        spec = self.guest.spec
        self.peer.ask(
            "arrive", key=self._key, source=self.report.source, spec={**spec.__dict__, "argv": list(spec.argv), "env": dict(spec.env)}
        )

    def _copy_layer(self) -> None:
        """All of it, while the guest runs; later passes carry only what changed since."""
        started = self._timeline.mark("migration.layer", "begin")
        self.report.layer_bytes += self._layer_pass()
        self.report.phases["layer"] = self._timeline.mark("migration.layer", "end", bytes=self.report.layer_bytes) - started

    def _layer_pass(self, again: Collection[str] = ()) -> int:
        sent = self._layer.send_pass(self.peer, again)
        self.peer.expect_ok(120)
        return sent

    def _pre_copy(self) -> None:
        self._tracker = tracker.choose(self._options.dirty_tracker)
        self.report.dirty_tracker = self._tracker.name
        rule = StopRule(self._options.freeze_budget_s, self._options.max_rounds)
        self.report.stop_rule = (
            f"predicted blackout within {rule.budget_s:g} s, or {rule.max_rounds} rounds, or not converging, or dirty pages negligible"
        )
        while True:
            last, transfer_s = self._round(len(self.report.rounds) + 1, rule)
            self.report.rounds.append(last)
            decision = rule.decide(self.report.rounds, transfer_s=transfer_s)
            if decision.stop:
                break
        self.report.stop_reason = decision.reason
        self._timeline.mark("migration.stop_rule", reason=decision.reason, predicted_blackout_s=last.predicted_blackout_s)

    def _round(self, number: int, rule: StopRule) -> tuple[Round, float]:
        """One pre-dump: freeze for milliseconds, take the pages written since the last one, send them while the guest runs."""
        assert self._tracker is not None
        started = self._timeline.mark("migration.round", "begin", n=number)
        before = self.peer.bytes_out
        images = self._folder / str(number)
        images.mkdir()
        tasks = self.guest.cgroup.pids()
        self.guest.cgroup.lift_quota()  # a throttled task could not reach its stop before the next period
        try:
            self._tracker.arm(tasks)
            frozen_s = self._pre_dump(images)
        finally:
            self.guest.cgroup.set_quota(self.guest.spec.vcpus)
        stats = read_dump_stats(images)
        send_folder(self.peer, images, self._sender)
        self.peer.expect_ok(120)
        self._chain.append(images)
        layer_bytes = self._layer_pass()
        ended = clock.now()
        pages = pages_in(images)
        frozen_s = frozen_s or (stats.freezing_us + stats.frozen_us) / 1e6
        since = ended - (self.report.rounds[-1].start_s if self.report.rounds else started)
        predicted, transfer_s = rule.predict(frozen_s=frozen_s, tasks=len(tasks), pages=pages, link_bytes_per_s=self._rate)
        result = Round(
            n=number,
            kind="pre-dump",
            start_s=started,
            duration_s=ended - started,
            frozen_s=frozen_s,
            pages=pages,
            bytes=pages * PAGE,
            bytes_on_wire=self.peer.bytes_out - before,
            layer_bytes=layer_bytes,
            predicted_blackout_s=predicted,
            dirty_pages_per_s=pages / since if number > 1 else 0.0,
        )
        self._timeline.mark("migration.round", "end", at=ended, n=number, pages=pages, bytes=result.bytes_on_wire, frozen_s=frozen_s)
        return result, transfer_s

    def _pre_dump(self, images: Path) -> float:
        """Run CRIU; the vCPU limit is back as soon as the guest runs again. Returns how long it was stopped, seen from outside."""
        assert self._tracker is not None
        call = commands.pre_dump(
            pid=self.guest.pid,
            images=images,
            parent=self._chain[-1] if self._chain else None,
            rootfs=str(self.guest.rootfs.merged),
            freezer=self.guest.cgroup.freezer_path(),
            write_protect=self._tracker.write_protect,
        )
        process = start(call)
        stopped_at = resumed_at = 0.0
        while process.poll() is None:
            traced = is_traced(self.guest.pid)
            if traced and not stopped_at:
                stopped_at = clock.now()
            elif stopped_at and not traced and not resumed_at:
                resumed_at = clock.now()
                self.guest.cgroup.set_quota(self.guest.spec.vcpus)
            time.sleep(0.002)
        if process.returncode != 0:
            raise EmulabError(f"CRIU pre-dump failed: {read_deciding_line(images / 'pre-dump.log')}")
        return resumed_at - stopped_at if resumed_at else 0.0

    # -- the blackout ------------------------------------------------------------------------------------------------------------------

    def _freeze(self) -> None:
        """Stop every task at a moment at which none is a zombie and no connection is without an owner, and steer its frames away."""
        self.report.layer_bytes += self._layer_pass()
        self._mapped = mapped_files(self.guest.cgroup.pids())  # a file mapped later than this pass shows it by its time
        if self._tracker:
            self.guest.cgroup.lift_quota()
            self._tracker.arm(self.guest.cgroup.pids())
        self._neighbours = guestnet.neighbours(self.guest.pid, self._runner)
        for _ in range(100):
            self.guest.cgroup.lift_quota()
            self._frozen = True
            asked = clock.now()
            instant = self.guest.cgroup.freeze()
            if self._quiet():
                self.peer.ask("hold", timeout_s=5)
                link.port_block(self.guest.spec.port, self._runner)
                time.sleep(0.001)  # frames already on their way into the guest
                if self._quiet():
                    self.peer.send("announce")
                    break
                self._let_run()
            else:
                self._let_run()
            time.sleep(0.004)
        else:
            raise EmulabError(
                "the guest never came to rest: a zombie or a connection that nobody accepts in 100 tries",
                hint="give the web server more workers, or try under less load",
            )
        self.report.freeze_s = instant
        self._timeline.mark("migration.freeze", "begin", at=asked)
        self.report.tasks = len(self.guest.cgroup.pids())
        self.report.tcp_established = guestnet.established(self.guest.pid)
        self.report.phases["freeze"] = self._timeline.mark("migration.freeze", "end", tasks=self.report.tasks) - asked

    def _quiet(self) -> bool:
        """No unowned connection, and no exited child that its frozen parent cannot reap (CRIU would retry that for 10 s)."""
        if guestnet.in_flight(self.guest.pid):
            return False
        tasks = set(self.guest.cgroup.pids())
        for pid in tasks:
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                return False
            if any(int(child) not in tasks and is_zombie(int(child)) for child in children):
                return False
        return True

    def _let_run(self) -> None:
        guestnet.let_run(self.guest, self._runner)
        self._frozen = False

    def _dump_and_send(self) -> None:
        started = self._timeline.mark("migration.dump", "begin")
        before = self.peer.bytes_out
        images = self._folder / "final"
        images.mkdir()
        call = commands.dump(
            pid=self.guest.pid,
            images=images,
            parent=self._chain[-1] if self._chain else None,
            rootfs=str(self.guest.rootfs.merged),
            freezer=self.guest.cgroup.freezer_path(),
            hook_socket=str(IMAGES / f"dump-{self._key}.sock"),
            write_protect=bool(self._tracker and self._tracker.write_protect),
        )
        self._dump = FinalDump(call, images, IMAGES / f"dump-{self._key}.sock")
        stream = FolderSender(self.peer, images, self._sender)
        self._dump.wait_until_dumped(self._left(), meanwhile=stream.poll)
        dumped = self._timeline.mark("migration.dump", "end")
        self.report.phases["dump"] = dumped - started
        self._timeline.mark("migration.transfer", "begin", at=dumped)
        stream.finish()
        self.peer.expect_ok(self._left())
        layer_bytes = self._layer_pass(self._mapped)
        self.report.layer_bytes += layer_bytes
        sent = self._timeline.mark("migration.transfer", "end", bytes=self.peer.bytes_out - before)
        self.report.phases["transfer"] = sent - dumped
        self._chain.append(images)
        pages = pages_in(images)
        previous = self.report.rounds[-1] if self.report.rounds else None
        self.report.rounds.append(
            Round(
                n=len(self.report.rounds) + 1,
                kind="final",
                start_s=started,
                duration_s=sent - started,
                frozen_s=dumped - (self.report.freeze_s or started),
                pages=pages,
                bytes=pages * PAGE,
                bytes_on_wire=self.peer.bytes_out - before,
                layer_bytes=layer_bytes,
                predicted_blackout_s=previous.predicted_blackout_s if previous else 0.0,
                dirty_pages_per_s=pages / (started - previous.start_s) if previous else 0.0,
            )
        )

    def _left(self) -> float:
        """Seconds until the deadline of the blackout. Raises EmulabError once it has passed."""
        left = (self.report.freeze_s or clock.now()) + self._options.deadline_s - clock.now()
        if left <= 0:
            raise EmulabError(f"the guest was frozen for {self._options.deadline_s:g} s: giving up")
        return left

    def _restore_there(self) -> None:
        started = self._timeline.mark("migration.restore", "begin")
        chain = [folder.name for folder in self._chain]
        self.peer.ask("restore", folder="final", chain=chain, neighbours=self._neighbours, timeout_s=self._left())
        self.report.phases["restore"] = self._timeline.mark("migration.restore", "end") - started

    def _commit(self) -> None:
        """The one decision. From here on this side never resumes the guest unless the destination says that it does not have it."""
        journal.record(self._key, "commit", role="source", vm=self.guest.spec.name, to=self.report.destination)
        started = self._timeline.mark("migration.commit")
        try:
            answer = self.peer.ask("commit", timeout_s=15)
        except PeerError as error:
            answer = self._ask_again(error)
        self.report.resume_s = float(answer["resume_s"])
        self.report.frames_held = int(answer.get("frames_held", 0))
        if "hold_since_s" in answer:
            self.report.network_hold_s = self.report.resume_s - float(answer["hold_since_s"])
        self.report.phases["resume"] = self.report.resume_s - started
        self.report.stages = {str(name): float(at) for name, at in answer.get("stages", {}).items()}
        self._timeline.mark("migration.resume", at=self.report.resume_s)
        journal.record(self._key, "released", role="source", vm=self.guest.spec.name)

    def _ask_again(self, error: PeerError, patience_s: float = 60.0) -> dict[str, Any]:
        """No clear answer to the commit: ask until the destination knows. Raises EmulabError if it does not have the guest."""
        log.warning("no answer to the commit of %s: %s", self.guest.spec.name, error)
        end = clock.now() + patience_s
        while clock.now() < end:
            try:
                peer = self._connect()
                try:
                    answer = peer.ask("status", key=self._key, timeout_s=5)
                finally:
                    peer.close()
            except PeerError:
                time.sleep(0.5)
                continue
            if answer["state"] == "running":
                return {"resume_s": answer.get("resume_s") or clock.now()}
            if answer["state"] in ("aborted", "failed", "unknown"):
                raise EmulabError(f"{self.report.destination} did not keep the guest: {error.message}")
            time.sleep(0.1)
        raise _InDoubtError(f"{self.report.destination} cannot be asked whether it has the guest: {error.message}")

    def _release(self) -> None:
        """The guest lives elsewhere: end the frozen tree here and remove what it had."""
        assert self._dump is not None
        self._done = True
        self._dump.verdict(commit=True)
        self._frozen = False
        if self._tracker:
            self._tracker.close()
            self._tracker = None
        self._guests.discard(self.guest)
        self._finish("committed", "")

    # -- the ways out ------------------------------------------------------------------------------------------------------------------

    def _finish(self, outcome: str, reason: str) -> None:
        report = self.report
        report.outcome, report.reason = outcome, reason
        report.bytes_on_wire = self._peer.bytes_out if self._peer else 0
        report.bytes_of_pages = sum(item.bytes for item in report.rounds)
        report.pages_distinct, report.pages_zero = self._sender.distinct_pages, self._sender.zero_pages
        report.end_s = self._timeline.mark("migration", "end", outcome=outcome, **self._labels())

    def _abort(self, error: BaseException) -> None:
        """Undo everything on both sides and say where the guest is. Replaces ``error`` by AbortedError."""
        if self._done:
            raise error
        message = error.message if isinstance(error, EmulabError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, EmulabError):
            log.error("migration of %s", self.guest.spec.name, exc_info=error)
        logs = self._logs(error)
        in_doubt = isinstance(error, _InDoubtError)
        if not in_doubt:
            self._tell_abort()
            if self._dump:
                self._dump.verdict(commit=False)
            if self._frozen:
                self._let_run()
            else:
                self.guest.cgroup.set_quota(self.guest.spec.vcpus)
        journal.record(self._key, "in-doubt" if in_doubt else "aborted", role="source", vm=self.guest.spec.name, reason=message)
        self._timeline.mark("migration.abort", reason=message)
        self._finish("aborted", message)
        name, here = self.guest.spec.name, self.report.source
        where = f"{name} is frozen on {here}" if in_doubt else f"{name} runs on {here}"
        hint = error.hint if isinstance(error, EmulabError) and error.hint else "the CRIU logs are in the run folder"
        if in_doubt:
            hint = f"once {self.report.destination} is known not to have it, stop and start {name}"
        raise AbortedError(
            f"migration of {name} to {self.report.destination} aborted, {where}: {message}",
            hint=hint,
            details={"report": self.report.as_dict(), "logs": logs, "running_on": here, "frozen": in_doubt},
        ) from error

    def _tell_abort(self) -> None:
        if self._peer:
            try:
                self._peer.send("abort")
            except PeerError:
                return

    def _logs(self, error: BaseException) -> dict[str, str]:
        logs = {}
        for path in sorted(self._folder.glob("*/*.log")):
            logs[f"{path.parent.name}-{path.name}"] = path.read_text(errors="replace")[-200_000:]
        details = getattr(error, "details", None)
        if isinstance(details, dict):
            logs.update({f"destination-{name}": text for name, text in details.get("logs", {}).items() if text})
        return logs

    def _close(self) -> None:
        if self._tracker:
            self._tracker.close()
        if self._dump:
            self._dump.close()
        if self._peer:
            self._peer.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _InDoubtError(EmulabError):
    """After the commit, and the destination cannot be asked."""
