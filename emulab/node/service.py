"""What an agent can be asked to do. Each public request is one method; ``handle`` finds it by its name on the channel."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import emulab
from emulab import clock
from emulab.command import Runner
from emulab.criu import tracker
from emulab.errors import EmulabError, UsageError
from emulab.migration import journal, store
from emulab.migration.channel import Incoming, Listener, Peer, PeerError, connect
from emulab.migration.control import Control
from emulab.migration.departure import Departure
from emulab.migration.destination import Arrival
from emulab.migration.images import check_file_name
from emulab.migration.lazy import handover
from emulab.migration.model import AbortedError, Options, Report, Timeline
from emulab.migration.plan import make_plan
from emulab.migration.predict import Machine
from emulab.migration.preflight import refuse_unmovable
from emulab.node import cgroup
from emulab.node.doubts import Doubts
from emulab.node.guest import Guests, GuestSpec
from emulab.node.link import Link
from emulab.node.processes import run_streamed
from emulab.node.recovery import recover
from emulab.node.sampler import GuestTarget, Sampler

log = logging.getLogger("emulab.agent")

CONFIGURATION = Path("/run/emulab-agent.json")


class Call(Protocol):
    """The request being served, as the agent hands it in."""

    def emit(self, event: dict[str, Any]) -> None: ...

    def gone(self) -> bool: ...


class Service:
    """State of one node: its guests, its link, the agents it may talk to."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.runner = Runner()
        self.guests = Guests(self.runner)
        self._peers: dict[str, str] = {}
        self._secret = b""
        self._rate_bit_s = 0
        self._listener: Listener | None = None
        self._link: Link | None = None
        self._sampler: Sampler | None = None
        self._lock = threading.Lock()
        self._busy: set[str] = set()  # guests that are being started, stopped or moved
        self._moving: dict[str, Control] = {}
        self._doubts = Doubts(self.guests, self._ask, self._claim)
        self._machine = Machine()
        self._methods: dict[str, Callable[..., Any]] = {
            "ping": self.ping,
            "node.configure": self.configure,
            "node.facts": self.facts,
            "link.show": self.link_show,
            "link.set": self.link_set,
            "vm.start": self.vm_start,
            "vm.stop": self.vm_stop,
            "vm.list": self.vm_list,
            "vm.logs": self.vm_logs,
            "vm.migrate": self.vm_migrate,
            "vm.migrate.abort": self.vm_migrate_abort,
            "vm.plan": self.vm_plan,
            "process.run": self.process_run,
            "samples.start": self.samples_start,
            "samples.stop": self.samples_stop,
        }

    def handle(self, request: dict[str, Any], call: Call) -> Any:
        """Serve one request. Raises what the method raises; the agent sends it back."""
        method = self._methods.get(str(request.get("method")))
        if method is None:
            raise UsageError(
                f"this agent knows no {request.get('method')!r}", hint="is the node older than the command line? make down, then up"
            )
        return method(call, **request.get("params", {}))

    # -- the node ----------------------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Once, at start: writable control files, a leaf for our own processes, no remains of guests that died with an earlier agent."""
        self.runner.try_run(("mount", "-o", "remount,bind,rw", "/proc/sys"))
        for mount in _cgroup_mounts():
            self.runner.try_run(("mount", "-o", "remount,bind,rw", mount))
        cgroup.prepare_node()
        tracker.warm_feature_cache(self.runner)
        self._resume_after_restart()

    def _resume_after_restart(self) -> None:
        """An agent before this one was configured: take over its link, its peers and its guests."""
        try:
            known = json.loads(CONFIGURATION.read_text())
        except (OSError, ValueError):
            for name in self.guests.names():  # of an earlier life of this node: nothing of them can run
                self.guests.discard_name(name)
            return
        doubts = recover(self.guests)
        self._configure(**known)
        for doubt in doubts:
            self._doubts.settle(doubt)
        self._find_post_copies({str(doubt.entry["migration"]) for doubt in doubts})

    def _find_post_copies(self, in_doubt: set[str]) -> None:
        """Those of an agent before this one go on by themselves; a guest can be neither moved nor stopped until its own has ended."""
        for state in handover.left_behind("out"):
            if self.guests.find(str(state["guest"])) is None:
                self._meanwhile_busy(state, lambda state=state: handover.serve_on(state, self.guests))  # type: ignore[misc]
            elif state["key"] not in in_doubt:  # it was before the commit, and its server has ended with that agent
                handover.forget("out", state)
        for state in handover.left_behind("in"):
            self._meanwhile_busy(state, lambda state=state: handover.await_arrival(state))  # type: ignore[misc]

    def _meanwhile_busy(self, state: dict[str, Any], wait: Callable[[], None]) -> None:
        claim = self._claim(str(state["guest"]))
        claim.__enter__()

        def run() -> None:
            try:
                wait()
            finally:
                claim.__exit__()

        threading.Thread(target=run, name="recovery", daemon=True).start()

    def _ask(self, node: str, key: str) -> str:
        """What became of a migration, from the agent of another node. Raises PeerError."""
        peer = connect(self._peers[node], self._secret)
        try:
            return str(peer.ask("status", key=key, timeout_s=5)["state"])
        finally:
            peer.close()

    def ping(self, call: Call) -> dict[str, Any]:
        del call
        return {"node": self.node, "version": emulab.__version__, "configured": bool(self._secret)}

    def configure(self, call: Call, *, peers: dict[str, str], secret: str, rate_bit_s: int, subnet: str) -> dict[str, Any]:
        """Build and shape the link, learn the other agents, listen for them. Safe to repeat."""
        del call
        self._configure(peers=peers, secret=secret, rate_bit_s=rate_bit_s, subnet=subnet)
        # In memory, readable by root alone: what a restarted agent needs to know.
        CONFIGURATION.touch(mode=0o600)
        CONFIGURATION.write_text(json.dumps({"peers": peers, "secret": secret, "rate_bit_s": rate_bit_s, "subnet": subnet}))
        return self._configured_link().show().as_dict()

    def _configure(self, *, peers: dict[str, str], secret: str, rate_bit_s: int, subnet: str) -> None:
        with self._lock:
            self._peers, self._secret, self._rate_bit_s = dict(peers), bytes.fromhex(secret), rate_bit_s
            self._link = Link(self.runner, subnet=subnet)
            self._link.ensure(rate_bit_s)
            if self._listener:
                self._listener.close()
            self._listener = Listener(self._peers[self.node], self._secret, self._serve_peer)
            threading.Thread(target=self._listener.accept_forever, name="peers", daemon=True).start()

    def facts(self, call: Call) -> dict[str, Any]:
        """Versions and kernel features, for the manifest."""
        del call
        criu = self.runner.try_run(("criu", "--version")).stdout.split()
        runc = self.runner.try_run(("runc", "--version")).stdout.split()
        return {
            "kernel": platform.release(),
            "criu": criu[1] if len(criu) > 1 else "?",
            "runc": runc[2] if len(runc) > 2 else "?",
            "python": platform.python_version(),
            "cgroup": "v2" if cgroup.is_v2() else "v1",
            "soft_dirty": tracker.has_soft_dirty(),
        }

    def link_show(self, call: Call) -> dict[str, Any]:
        del call
        return self._configured_link().show().as_dict()

    def link_set(self, call: Call, *, rate_bit_s: int) -> dict[str, Any]:
        del call
        self._configured_link().set_rate(rate_bit_s)
        self._rate_bit_s = rate_bit_s
        return self._configured_link().show().as_dict()

    def _configured_link(self) -> Link:
        if self._link is None:
            raise EmulabError(f"{self.node} has no link yet", hint="run emulab up")
        return self._link

    # -- guests ------------------------------------------------------------------------------------------------------------------------

    def vm_start(self, call: Call, *, spec: dict[str, Any]) -> dict[str, Any]:
        del call
        wanted = GuestSpec.from_dict(spec)
        with self._claim(wanted.name):
            return self.guests.describe(self.guests.start(wanted))

    def vm_stop(self, call: Call, *, name: str) -> None:
        del call
        self._doubts.give_up(name)
        with self._claim(name):
            self.guests.stop(name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        """The pages that this node and the others keep of a guest are of no use any longer."""
        store.discard(name)
        for node, address in self._peers.items():
            if node in (self.node, "head"):
                continue
            try:
                peer = connect(address, self._secret, timeout_s=1)
                with contextlib.closing(peer):
                    peer.ask("forget", name=name, timeout_s=2)
            except PeerError as error:
                log.info("%s was not told to forget %s: %s", node, name, error)

    def vm_list(self, call: Call) -> list[dict[str, Any]]:
        del call
        found = [guest for name in self.guests.names() if (guest := self.guests.find(name)) is not None]
        return [{**self.guests.describe(guest), "node": self.node, "migration": self._progress(guest.spec.name)} for guest in found]

    def _progress(self, name: str) -> dict[str, Any] | None:
        """The newest progress of a guest that is leaving, or None."""
        control = self._moving.get(name)
        return dict(control.progress) if control else None

    def vm_logs(self, call: Call, *, name: str, lines: int = 100) -> str:
        del call
        return self.guests.logs(name, lines)

    def _claim(self, name: str) -> _Claim:
        return _Claim(self._busy, self._lock, name)

    # -- migration ---------------------------------------------------------------------------------------------------------------------

    def vm_migrate(self, call: Call, *, name: str, to: str, options: dict[str, Any], number: int = 1) -> dict[str, Any]:
        """Move a guest that runs here. Phases are emitted as timeline rows; the result is a row of ``migrations.json``.

        It is given up, until its commit, if the caller goes away.
        """
        wanted = Options.from_dict(options)
        if to == self.node:
            raise UsageError(f"{name} is on {to} already", hint="choose another destination")
        if to not in self._peers:
            raise UsageError(f"no host {to}", hint=f"hosts: {', '.join(sorted(set(self._peers) - {'head', self.node}))}")
        if to == "head":
            raise UsageError("the head node carries no guests", hint=f"hosts: {', '.join(sorted(set(self._peers) - {'head', self.node}))}")
        try:
            return self._migrate(call, name, to, wanted, number)
        except AbortedError as error:
            if error.details["frozen"]:
                self._doubts.settle_newest(name)
            raise

    def _migrate(self, call: Call, name: str, to: str, wanted: Options, number: int) -> dict[str, Any]:
        with self._claim(name):
            guest = self.guests.running(name)
            if guest.cgroup.frozen():
                raise UsageError(f"guest {name} stands still: nobody knows yet how its last migration ended", hint="emulab vm list")
            started = clock.now()
            control = Control()
            report = Report(number, name, self.node, to, wanted.strategy, wanted.dirty_tracker, started)
            departure = Departure(
                guest,
                connect=lambda: connect(self._peers[to], self._secret),
                guests=self.guests,
                runner=self.runner,
                options=wanted,
                report=report,
                timeline=Timeline(call.emit, self.node, number, wanted.hold_at, control.pause),
                key=f"{name}-{time.time_ns():x}",
                link_bytes_s=self._link_bytes_s(wanted),
                machine=self._machine,
                control=control,
                secret=self._secret,
            )
            self._moving[name] = control
            control.watch(call.gone)
            try:
                return departure.run().as_dict()
            finally:
                del self._moving[name]
                control.end()

    def vm_migrate_abort(self, call: Call, *, name: str) -> dict[str, Any]:
        """Give up the migration of a guest that is leaving; returns where it runs. Raises UsageError after its commit."""
        del call
        control = self._moving.get(name)
        if control is None:
            raise UsageError(f"{name} is not being moved away from {self.node}", hint="emulab vm list shows which guests are on the move")
        try:
            control.request_abort("on request")
        except UsageError as error:
            raise UsageError(f"the migration of {name} cannot be aborted any more: {error.message}", hint=error.hint) from error
        if not control.wait(60):
            raise EmulabError(f"the migration of {name} was told to end and has not within 60 s", hint="emulab vm list shows where it is")
        return {"running_on": self.node}

    def vm_plan(self, call: Call, *, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Predict a migration; the guest goes on and nothing is changed. Takes about a second."""
        del call
        wanted = Options.from_dict(options)
        with self._claim(name):
            guest = self.guests.running(name)
            refuse_unmovable(guest, self.runner)
            return make_plan(guest, wanted, self._link_bytes_s(wanted), self._machine, time.sleep).as_dict()

    def _link_bytes_s(self, options: Options) -> float:
        """Payload of full frames: 1448 bytes of each 1538 on the wire."""
        bit_s = min(self._rate_bit_s, options.link_budget_bit_s or self._rate_bit_s)
        return bit_s * 1448 / 1538 / 8

    def _serve_peer(self, peer: Peer, address: str) -> None:
        """A connection from another agent: a guest that arrives, or a question about one."""
        try:
            first = peer.receive(timeout_s=10)
            if first.kind == "arrive":
                self._arrive(peer, first)
            elif first.kind == "status":
                key = str(first.fields["key"])
                peer.send("ok", state=journal.last_state(key))
            elif first.kind == "forget":
                store.discard(check_file_name(str(first.fields["name"])))
                peer.send("ok")
            else:
                peer.send("error", message=f"unknown request {first.kind!r}")
        except PeerError as error:
            log.info("connection from %s ended: %s", address, error)

    def _arrive(self, peer: Peer, first: Incoming) -> None:
        name = str(first.fields["spec"]["name"])
        try:
            with self._claim(name):
                Arrival(peer, self.guests, self.runner, first, secret=self._secret).serve()
        except UsageError as error:
            peer.send("error", message=error.message, hint=error.hint)

    # -- programs on this node ---------------------------------------------------------------------------------------------------------

    def process_run(self, call: Call, *, argv: list[str], timeout_s: float, cwd: str | None = None) -> dict[str, Any]:
        """Run a program, emitting its lines of output; it ends with the caller. Result: {"code", "stderr"}."""
        return run_streamed(argv, timeout_s=timeout_s, cwd=cwd, emit=call.emit, gone=call.gone)

    def samples_start(self, call: Call, *, interval_s: float, machine: bool = False) -> None:
        """Begin to sample this node and its guests; starts anew if it runs already."""
        del call
        if self._sampler:
            self._sampler.stop()
        uplink = self._configured_link().uplink
        self._sampler = Sampler(self.node, self._sampled_guests, uplink=uplink, interval_s=interval_s, machine=machine)
        self._sampler.start()

    def _sampled_guests(self) -> list[GuestTarget]:
        found = [guest for name in self.guests.names() if (guest := self.guests.find(name)) is not None]
        return [GuestTarget(guest.spec.name, guest.cgroup.name, guest.spec.port) for guest in found]

    def samples_stop(self, call: Call, *, path: str) -> int:
        """End sampling and write a CSV file on this node; returns its number of rows."""
        del call
        if self._sampler is None:
            raise EmulabError(f"{self.node} is not being sampled")
        self._sampler.stop()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        rows = self._sampler.write_csv(Path(path))
        self._sampler = None
        return rows


class _Claim:
    """One operation per guest at a time."""

    def __init__(self, busy: set[str], lock: threading.Lock, name: str) -> None:
        self._busy, self._lock, self._name = busy, lock, name

    def __enter__(self) -> None:
        with self._lock:
            if self._name in self._busy:
                raise UsageError(f"guest {self._name} is busy with another operation", hint="wait for it to end: emulab vm list")
            self._busy.add(self._name)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._busy.discard(self._name)


def _cgroup_mounts() -> list[str]:
    """Mount points of control groups, the tmpfs above those of version 1 first."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [fields[1] for fields in mounts if fields[1].startswith("/sys/fs/cgroup") and fields[2] in ("cgroup", "cgroup2", "tmpfs")]
