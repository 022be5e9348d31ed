"""What an agent can be asked to do. Each public request is one method; ``handle`` finds it by its name on the channel."""

from __future__ import annotations

import json
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emulab
from emulab.agent.moves import Call, Claims, Lan, Moves
from emulab.agent.recovery import recover
from emulab.command import Runner
from emulab.criu import tracker
from emulab.errors import EmulabError, UsageError
from emulab.migration.channel import Listener
from emulab.migration.model import Options
from emulab.node import cgroup, link_guest
from emulab.node.guest import Guests, GuestSpec
from emulab.node.link import Link
from emulab.node.processes import run_streamed
from emulab.node.sampler import GuestTarget, Sampler

CONFIGURATION = Path("/run/emulab-agent.json")


class Service:
    """State of one node: its guests, its link, the agents it may talk to."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.runner = Runner()
        self.guests = Guests(self.runner)
        self._lan = Lan()
        self._listener: Listener | None = None
        self._link: Link | None = None
        self._sampler: Sampler | None = None
        self._lock = threading.Lock()
        self._claims = Claims()
        self._moves = Moves(node, self._lan, self.guests, self.runner, self._claims)
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
        link_guest.give_own_tcp_tables()
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
        self._moves.resume_after_restart(doubts)

    def ping(self, call: Call) -> dict[str, Any]:
        del call
        return {"node": self.node, "version": emulab.__version__, "configured": bool(self._lan.secret)}

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
            self._lan.addresses, self._lan.secret, self._lan.rate_bit_s = dict(peers), bytes.fromhex(secret), rate_bit_s
            self._link = Link(self.runner, subnet=subnet)
            self._link.ensure(rate_bit_s)
            if self._listener:
                self._listener.close()
            self._listener = Listener(peers[self.node], self._lan.secret, self._moves.serve_peer)
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
        self._lan.rate_bit_s = rate_bit_s
        return self._configured_link().show().as_dict()

    def _configured_link(self) -> Link:
        if self._link is None:
            raise EmulabError(f"{self.node} has no link yet", hint="run emulab up")
        return self._link

    # -- guests ------------------------------------------------------------------------------------------------------------------------

    def vm_start(self, call: Call, *, spec: dict[str, Any]) -> dict[str, Any]:
        del call
        wanted = GuestSpec.from_dict(spec)
        with self._claims(wanted.name):
            return self.guests.describe(self.guests.start(wanted))

    def vm_stop(self, call: Call, *, name: str) -> None:
        del call
        self._moves.give_up(name)
        with self._claims(name):
            self.guests.stop(name)
        self._moves.forget(name)

    def vm_list(self, call: Call) -> list[dict[str, Any]]:
        del call
        found = [guest for name in self.guests.names() if (guest := self.guests.find(name)) is not None]
        return [{**self.guests.describe(guest), "node": self.node, "migration": self._moves.progress(guest.spec.name)} for guest in found]

    def vm_logs(self, call: Call, *, name: str, lines: int = 100) -> str:
        del call
        return self.guests.logs(name, lines)

    # -- migration ---------------------------------------------------------------------------------------------------------------------

    def vm_migrate(self, call: Call, *, name: str, to: str, options: dict[str, Any], number: int = 1) -> dict[str, Any]:
        """Move a guest that runs here. Phases are emitted as timeline rows; the result is a row of ``migrations.json``.

        It is given up, until its commit, if the caller goes away.
        """
        return self._moves.migrate(call, name, to, Options.from_dict(options), number)

    def vm_migrate_abort(self, call: Call, *, name: str, reason: str = "on request") -> dict[str, Any]:
        """Give up the migration of a guest that is leaving; returns where it runs. Raises UsageError after its commit."""
        del call
        self._moves.abort(name, reason)
        return {"running_on": self.node}

    def vm_plan(self, call: Call, *, name: str, options: dict[str, Any], to: str | None = None) -> dict[str, Any]:
        """Predict a migration; the guest goes on and nothing is changed. Takes about a second."""
        del call
        return self._moves.plan(name, Options.from_dict(options), to)

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


def _cgroup_mounts() -> list[str]:
    """Mount points of control groups, the tmpfs above those of version 1 first."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [fields[1] for fields in mounts if fields[1].startswith("/sys/fs/cgroup") and fields[2] in ("cgroup", "cgroup2", "tmpfs")]
