"""Guests that leave this node, guests that arrive at it, and what became of either."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from emulab import clock
from emulab.agent.doubts import Doubts
from emulab.agent.recovery import Doubt
from emulab.command import Runner
from emulab.errors import EmulabError, UsageError
from emulab.migration import journal, store
from emulab.migration.channel import Incoming, Peer, PeerError, connect
from emulab.migration.control import Control
from emulab.migration.departure import Departure
from emulab.migration.destination import Arrival
from emulab.migration.image_files import check_file_name
from emulab.migration.lazy import handover
from emulab.migration.model import AbortedError, Options, Report, Timeline
from emulab.migration.plan import kept_of, make_plan
from emulab.migration.predict import Machine
from emulab.migration.preflight import refuse_unmovable
from emulab.node.guest import Guests

log = logging.getLogger("emulab.agent")

_UNDONE_S = 2.0  # a source that tries again at once comes while what arrived before is still being removed


class Call(Protocol):
    """The request being served, as the agent hands it in."""

    def emit(self, event: dict[str, Any]) -> None: ...

    def gone(self) -> bool: ...


@dataclass
class Lan:
    """What this node was told of the others: addresses by node, the secret that all share, the links' rate."""

    addresses: dict[str, str] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)
    rate_bit_s: int = 0

    def connect(self, node: str, timeout_s: float = 5.0) -> Peer:
        """Raises PeerError."""
        return connect(self.addresses[node], self.secret, timeout_s=timeout_s)

    def payload_bytes_s(self, options: Options) -> float:
        """Payload of full frames: 1448 bytes of each 1538 on the wire."""
        bit_s = min(self.rate_bit_s, options.link_budget_bit_s or self.rate_bit_s)
        return bit_s * 1448 / 1538 / 8


class Claims:
    """One operation per guest at a time: guests that are being started, stopped or moved."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._changed = threading.Condition()

    @contextmanager
    def __call__(self, name: str, *, patience_s: float = 0.0) -> Iterator[None]:
        """Raises UsageError if another operation is still at work on the guest after ``patience_s``."""
        with self._changed:
            if not self._changed.wait_for(lambda: name not in self._busy, patience_s):
                raise UsageError(f"guest {name} is busy with another operation", hint="wait for it to end: emulab vm list")
            self._busy.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(name)
                self._changed.notify_all()

    def idle(self) -> bool:
        return not self._busy


class Moves:
    """The migrations of one node."""

    def __init__(self, node: str, lan: Lan, guests: Guests, runner: Runner, claims: Claims) -> None:
        self._node = node
        self._lan = lan
        self._guests = guests
        self._runner = runner
        self._claims = claims
        self._leaving: dict[str, Control] = {}
        self._doubts = Doubts(guests, self._ask, claims)
        self._machine = Machine()

    # -- leaving -----------------------------------------------------------------------------------------------------------------------

    def migrate(self, call: Call, name: str, to: str, wanted: Options, number: int) -> dict[str, Any]:
        """Move a guest that runs here; see ``Service.vm_migrate``."""
        hosts = ", ".join(sorted(set(self._lan.addresses) - {"head", self._node}))
        if to == self._node:
            raise UsageError(f"{name} is on {to} already", hint="choose another destination")
        if to not in self._lan.addresses:
            raise UsageError(f"no host {to}", hint=f"hosts: {hosts}")
        if to == "head":
            raise UsageError("the head node carries no guests", hint=f"hosts: {hosts}")
        try:
            return self._migrate(call, name, to, wanted, number)
        except AbortedError as error:
            if error.details["frozen"]:
                self._doubts.settle_newest(name)
            raise
        finally:
            self._tidy()

    def _migrate(self, call: Call, name: str, to: str, wanted: Options, number: int) -> dict[str, Any]:
        with self._claims(name):
            guest = self._guests.running(name)
            if guest.cgroup.frozen():
                raise UsageError(f"guest {name} stands still: nobody knows yet how its last migration ended", hint="emulab vm list")
            control = Control()
            departure = Departure(
                guest,
                connect=lambda: self._lan.connect(to),
                guests=self._guests,
                runner=self._runner,
                options=wanted,
                report=Report(number, name, self._node, to, wanted.strategy, wanted.dirty_tracker, clock.now()),
                timeline=Timeline(call.emit, self._node, number, wanted.hold_at, control.pause),
                key=f"{name}-{time.time_ns():x}",
                link_bytes_s=self._lan.payload_bytes_s(wanted),
                machine=self._machine,
                control=control,
                secret=self._lan.secret,
            )
            self._leaving[name] = control
            control.watch(call.gone)
            try:
                return departure.run().as_dict()
            finally:
                del self._leaving[name]
                control.end()

    def progress(self, name: str) -> dict[str, Any] | None:
        """The newest progress of a guest that is leaving, or None."""
        control = self._leaving.get(name)
        return dict(control.progress) if control else None

    def abort(self, name: str, reason: str) -> None:
        """Give up the migration of a guest that is leaving. Raises UsageError after its commit."""
        control = self._leaving.get(name)
        if control is None:
            raise UsageError(f"{name} is not being moved away from {self._node}", hint="emulab vm list shows which guests are on the move")
        try:
            control.request_abort(reason)
        except UsageError as error:
            raise UsageError(f"the migration of {name} cannot be aborted any more: {error.message}", hint=error.hint) from error
        if not control.wait(60):
            raise EmulabError(f"the migration of {name} was told to end and has not within 60 s", hint="emulab vm list shows where it is")

    def plan(self, name: str, wanted: Options, to: str | None) -> dict[str, Any]:
        """Predict a migration; the guest goes on and nothing is changed. Takes about a second. ``to``: where to, if that is known."""
        with self._claims(name):
            guest = self._guests.running(name)
            refuse_unmovable(guest, self._runner)
            offer = kept_of(guest, wanted, lambda: self._lan.connect(to)) if to else None
            return make_plan(guest, wanted, self._lan.payload_bytes_s(wanted), self._machine, time.sleep, offer).as_dict()

    # -- what other agents ask ---------------------------------------------------------------------------------------------------------

    def serve_peer(self, peer: Peer, address: str) -> None:
        """A connection from another agent: a guest that arrives, or a question about one."""
        try:
            first = peer.receive(timeout_s=10)
            if first.kind == "arrive":
                self._arrive(peer, first)
            elif first.kind == "status":
                key = str(first.fields["key"])
                peer.send("ok", state=journal.last_state(key))
            elif first.kind == "kept":
                peer.send("stored", store.names(check_file_name(str(first.fields["name"]))))
            elif first.kind == "forget":
                store.discard(check_file_name(str(first.fields["name"])))
                peer.send("ok")
            else:
                peer.send("error", message=f"unknown request {first.kind!r}")
        except PeerError as error:
            log.info("connection from %s ended: %s", address, error)

    def _arrive(self, peer: Peer, first: Incoming) -> None:
        name = str(first.fields["spec"]["name"])
        arrival: Arrival | None = None
        try:
            with self._claims(name, patience_s=_UNDONE_S):
                arrival = Arrival(peer, self._guests, self._runner, first, secret=self._lan.secret)
                arrival.serve()
        except UsageError as error:
            peer.send("error", message=error.message, hint=error.hint)
        finally:
            if arrival:
                arrival.clear_away()
            self._tidy()

    def _tidy(self) -> None:
        """A migration leaves cycles of a few hundred objects with megabytes of buffers in them; left alone, they grew to 300 MB."""
        if self._claims.idle():  # 10-35 ms in which nothing else of this agent runs: not while another guest may be frozen
            gc.collect()

    # -- doubts and restarts -----------------------------------------------------------------------------------------------------------

    def resume_after_restart(self, doubts: list[Doubt]) -> None:
        """What migrations of an agent before this one have left: doubts to settle, and post-copies that go on by themselves."""
        for doubt in doubts:
            self._doubts.settle(doubt)
        in_doubt = {str(doubt.entry["migration"]) for doubt in doubts}
        for state in handover.left_behind("out"):
            if self._guests.find(str(state["guest"])) is None:
                self._meanwhile_busy(state, lambda state=state: handover.serve_on(state, self._guests))  # type: ignore[misc]
            elif state["key"] not in in_doubt:  # it was before the commit, and its server has ended with that agent
                handover.forget("out", state)
        for state in handover.left_behind("in"):
            self._meanwhile_busy(state, lambda state=state: handover.await_arrival(state))  # type: ignore[misc]

    def _meanwhile_busy(self, state: dict[str, Any], wait: Callable[[], None]) -> None:
        """The guest can be neither moved nor stopped until its post-copy has ended."""
        claim: AbstractContextManager[None] = self._claims(str(state["guest"]))
        claim.__enter__()

        def run() -> None:
            try:
                wait()
            finally:
                claim.__exit__(None, None, None)

        threading.Thread(target=run, name="recovery", daemon=True).start()

    def _ask(self, node: str, key: str) -> str:
        """What became of a migration, from the agent of another node. Raises PeerError."""
        with contextlib.closing(self._lan.connect(node)) as peer:
            return str(peer.ask("status", key=key, timeout_s=5)["state"])

    def give_up(self, name: str) -> None:
        """Its owner has decided what becomes of a guest: nobody is asked about it any more."""
        self._doubts.give_up(name)

    def forget(self, name: str) -> None:
        """The pages that this node and the others keep of a guest are of no use any longer."""
        store.discard(name)
        for node in set(self._lan.addresses) - {self._node, "head"}:
            try:
                with contextlib.closing(self._lan.connect(node, timeout_s=1)) as peer:
                    peer.ask("forget", name=name, timeout_s=2)
            except PeerError as error:
                log.info("%s was not told to forget %s: %s", node, name, error)
