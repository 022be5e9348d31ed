"""CRIU at work on the destination: started before the freeze, held at its gate until the decision, let through or refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from emulab import clock
from emulab.criu import commands
from emulab.criu.log import read_deciding_line
from emulab.criu.standby import HookedStandby
from emulab.errors import EmulabError
from emulab.migration.affinity import OneCpu
from emulab.migration.prefill import PATIENCE_S, Prefill
from emulab.migration.priority import go_first
from emulab.nice import BEHIND, NORMAL, renice
from emulab.node.guest import Guest

log = logging.getLogger("emulab.migration")


@dataclass(frozen=True)
class RestorePlace:
    """What a restore works with. ``key``: of the migration; ``images``: folder of the final dump; ``distinct``: file of all distinct pages;
    ``lazy``: pages follow once the guest runs; ``enter_namespace`` is given the first task of the new tree; ``before_tasks_run`` is called
    when the guest's sockets are live and its tasks are not yet.
    """

    key: str
    guest: Guest
    images: Path
    hook_socket: Path
    distinct: Path
    lazy: bool
    enter_namespace: Callable[[int], None]
    before_tasks_run: Callable[[], None]


class Restore:
    """``criu restore`` up to its ``post-restore`` gate, and through it. Started when it is made; it waits for ``begin``.

    ``in_place``: how mappings are made. After a restore that failed, CRIU does it alone: should that have been why, the next one succeeds.
    """

    trusts_in_place: ClassVar[bool] = True

    def __init__(self, place: RestorePlace) -> None:
        self._place = place
        self._gate = threading.Event()
        self._reached = threading.Event()
        self._allowed = False
        self._one_cpu: OneCpu | None = None
        self.in_place = Restore.trusts_in_place and not place.lazy
        self._exited = threading.Event()
        self.begun = False
        self.pid = 0
        self.resumed_s = 0.0
        self.prefill: Prefill | None = None
        call = commands.restore(
            images=place.images,
            rootfs=str(place.guest.rootfs.merged),
            pidfile=place.images / "restored.pid",
            hook_socket=str(place.hook_socket),
            join_cgroup=place.guest.cgroup.join_command(),
            distinct=place.distinct,
            lazy=place.lazy,
            in_place=self.in_place,
        )
        verdicts = {"setup-namespaces": self._setup_namespaces, "post-restore": self._at_gate, "pre-resume": self._pre_resume}
        self._criu = HookedStandby(call, place.hook_socket, verdicts)

    # -- before the freeze -------------------------------------------------------------------------------------------------------------

    def fill(self, give_way: Callable[[], object]) -> None:
        """Begin to put what arrives into the memory of large tasks-to-be."""
        renice(self._criu.process.pid, BEHIND)
        self.prefill = Prefill(self._criu.standby, give_way, self._place.guest.spec.memory_bytes)

    @property
    def pages_filled(self) -> int:
        return self.prefill.pages if self.prefill else 0

    def ready(self) -> bool:
        """Let the filling end; returns whether it has soon enough, and CRIU still waits."""
        filled = self.prefill is None or self.prefill.finish(PATIENCE_S)
        renice(self._criu.process.pid, NORMAL)
        return filled and self._criu.process.poll() is None

    # -- up to the gate ----------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Let CRIU begin; it waits for pages that have not arrived."""
        self._criu.standby.go()
        self.begun = True
        threading.Thread(target=self._watch, name="restore", daemon=True).start()

    def wait_at_gate(self, timeout_s: float = 60.0) -> None:
        """Returns once the guest is complete, but not running. Raises EmulabError if CRIU fails, or takes longer."""
        end = clock.now() + timeout_s
        while not self._reached.wait(0.02):
            if self._exited.is_set():
                if self.in_place and self._criu.process.returncode > 0:  # one that was killed tells nothing
                    log.warning("%s: mappings are no longer made in place on this node", self._place.guest.spec.name)
                    Restore.trusts_in_place = False
                raise EmulabError(f"CRIU could not restore: {self._reason()}")
            if clock.now() > end:
                raise EmulabError(f"the restore took longer than {timeout_s:g} s")

    def _watch(self) -> None:
        self._criu.process.wait()
        self._exited.set()

    def _setup_namespaces(self, pid: int) -> bool:
        self._place.enter_namespace(pid)
        return True

    def _at_gate(self, pid: int) -> bool:
        self.pid = pid
        self._reached.set()
        # CRIU lets each task go in turn, at several stops each; they wait meanwhile, and run where they like from pre-resume on.
        self._one_cpu = OneCpu(self._place.guest.cgroup.pids(), self._criu.process.pid, self._place.key)
        # The first tasks it lets go have work waiting, and would take the CPU from it that the others wait for.
        go_first(self._criu.process.pid)
        self._gate.wait()
        return self._allowed

    # -- through it, or not ------------------------------------------------------------------------------------------------------------

    def open_gate(self) -> None:
        """Let the restored guest run. Raises EmulabError if CRIU fails behind the gate."""
        self._allowed = True
        self._gate.set()
        code = self._criu.process.wait()
        self.resumed_s = clock.now()
        if code != 0:
            raise EmulabError(f"CRIU failed after the commit: {self._reason()}")

    def _pre_resume(self, pid: int) -> bool:
        del pid
        if self._one_cpu:
            self._one_cpu.release()
        self._place.before_tasks_run()
        return True

    def give_up(self) -> None:
        """It waits for what will not come: end it at once."""
        self._criu.process.kill()
        self.refuse()

    def refuse(self) -> None:
        """Close the gate for good: CRIU ends everything it restored."""
        if self.prefill:
            self.prefill.close()
        self._gate.set()
        self._criu.stop()
        self.close()

    def close(self) -> None:
        self._criu.hooks.close()

    # -- what became of it -------------------------------------------------------------------------------------------------------------

    @property
    def resumed(self) -> bool:
        """CRIU has let every task go."""
        return "post-resume" in self.times

    @property
    def times(self) -> dict[str, float]:
        """Monotonic instants of the stages reached."""
        return self._criu.hooks.times

    def log_text(self) -> str:
        try:
            return (self._place.images / "restore.log").read_text(errors="replace")
        except OSError:
            return ""

    def _reason(self) -> str:
        return read_deciding_line(self._place.images / "restore.log", self._criu.process.returncode)
