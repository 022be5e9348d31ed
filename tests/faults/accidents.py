"""What can go wrong while a guest moves. Each accident is made ready before, strikes at a phase, and is repaired afterwards.

They act on real parts: processes, the node's uplink, file systems, control groups, bytes on their way.
"""

from __future__ import annotations

import json
import secrets
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from conftest import SLOWNESS, TAKES_ROUNDS
from killing import AGENT, Kill

BEFORE_COMMIT = ("layer", "round", "freeze", "dump", "transfer", "restore")
PHASES = (*BEFORE_COMMIT, "commit", "resume")
FROZEN = ("freeze", "dump", "transfer", "restore", "commit")

_NETDEV = (
    "nft add table netdev accident; nft add chain netdev accident in '{{ type filter hook ingress device {uplink} priority 0; }}';"
    " nft add chain netdev accident out '{{ type filter hook egress device {uplink} priority 0; }}'; {rules}"
)
_NO_ACCIDENT = "nft delete table netdev accident"


@dataclass
class Scene:
    """One migration in which something happens. ``uplink``: the interface by which each node is on the LAN."""

    testbed: object
    guest: str
    source: str
    destination: str
    uplink: str = "eth0"
    commander: object = None  # the process that ordered the migration, where it is one of its own

    def run(self, node, script):
        outcome = self.testbed.project.exec_run(node, ("sh", "-c", script))
        assert outcome.ok, f"{node}: {script}: {outcome.stderr}"
        return outcome.stdout


@dataclass
class Accident(AbstractContextManager):
    """``phases``: where it can happen. ``options``: of the migration. ``heals_s``: repaired so long after it struck, else at the end."""

    name: str
    phases: tuple[str, ...] = PHASES
    options: dict = field(default_factory=dict)
    heals_s: float = 0.0
    own_commander = False
    held_s = 1.0  # how long the migration stands still for it: most accidents take a tenth of a second to happen

    def __enter__(self):
        self.struck = False
        self._timer = None
        return self

    def arrange(self, scene):
        self.scene = scene

    def strike(self):
        self.happen()
        self.struck = True
        if self.heals_s:
            scale = SLOWNESS if "deadline_s" in self.options else 1
            self._timer = threading.Timer(self.heals_s * scale, self.repair)
            self._timer.start()

    def happen(self):
        raise NotImplementedError

    def repair(self):
        """Put the testbed right again, if that is not part of what is tested."""

    def __exit__(self, *_):
        if self._timer:
            self._timer.join()
        elif self.struck:
            self.repair()


@dataclass
class Killed(Accident):
    """Signal 9 for a program on one side. ``delay_s``: how long it lives after it was found."""

    side: str = "source"
    victim: tuple[str, ...] = AGENT
    delay_s: float = 0.0
    held_s = 0.3

    def arrange(self, scene):
        super().arrange(scene)
        self._kill = Kill(scene.testbed, getattr(scene, self.side), self.victim, moment=("order",), delay_s=self.delay_s)
        self._kill.__enter__()

    def happen(self):
        self._kill.order()

    def __exit__(self, *arguments):
        hit = self.struck and self._kill.happened()
        self._kill.__exit__()
        super().__exit__(*arguments)
        assert hit or not self.struck, f"there was no {' '.join(self.victim)} to end"


@dataclass
class CommanderKilled(Accident):
    """Signal 9 for the process that ordered the migration."""

    own_commander = True
    held_s = 0.3

    def happen(self):
        self.scene.commander.kill()


@dataclass
class Cut(Accident):
    """The uplink of one node carries nothing."""

    side: str = "source"

    def happen(self):
        self.scene.run(getattr(self.scene, self.side), f"ip link set dev {self.scene.uplink} down")

    def repair(self):
        # Taking an interface down forgets what the kernel had learnt about its routes, never what a bridge port is.
        self.scene.run(getattr(self.scene, self.side), f"ip link set dev {self.scene.uplink} up")


@dataclass
class Lossy(Accident):
    """One frame in a hundred is lost, each way."""

    def happen(self):
        rules = " ".join(f"nft add rule netdev accident {way} numgen random mod 100 \\< 1 drop;" for way in ("in", "out"))
        self.scene.run(self.scene.source, _NETDEV.format(uplink=self.scene.uplink, rules=rules))

    def repair(self):
        self.scene.run(self.scene.source, _NO_ACCIDENT)


@dataclass
class Slow(Accident):
    """The link of the source falls to 10 Mbit/s."""

    def happen(self):
        self.scene.testbed.call(self.scene.source, "link.set", rate_bit_s=10_000_000)

    def repair(self):
        self.scene.testbed.call(self.scene.source, "link.set", rate_bit_s=1_000_000_000)


@dataclass
class Corrupt(Accident):
    """Of everything that the agents send to each other from now on, one byte arrives as another, with a checksum that fits."""

    def happen(self):
        rules = "nft add rule netdev accident in tcp dport 7070 @th,328,8 set 0x5a;"
        self.scene.run(self.scene.destination, _NETDEV.format(uplink=self.scene.uplink, rules=rules))

    def repair(self):
        self.scene.run(self.scene.destination, _NO_ACCIDENT)


@dataclass
class DiskFull(Accident):
    """The destination has no room left for images."""

    def happen(self):
        full = "set -- $(df -k --output=used,size /run/emulab | tail -n 1); mount -o remount,size=$(($1 + 16))k /run/emulab; echo $2"
        self._size = self.scene.run(self.scene.destination, full).strip()

    def repair(self):
        self.scene.run(self.scene.destination, f"mount -o remount,size={self._size}k /run/emulab")


@dataclass
class LittleMemory(Accident):
    """The guest's memory limit at the destination is less than it needs. It goes with the guest."""

    def happen(self):
        group = f"guest-{self.scene.guest}"
        files = f"/sys/fs/cgroup/memory/{group}/memory.limit_in_bytes /sys/fs/cgroup/{group}/memory.max"
        self.scene.run(self.scene.destination, f"for f in {files}; do [ ! -e $f ] || echo 4M >$f; done")


@dataclass
class StaleSecret(Accident):
    """The destination has another key than the source."""

    def happen(self):
        known = json.loads(self.scene.run(self.scene.destination, "cat /run/emulab-agent.json"))
        self._known = known
        self._configure(secret=secrets.token_hex(32))

    def repair(self):
        self._configure()

    def _configure(self, **changed):
        self.scene.testbed.call(self.scene.destination, "node.configure", **{**self._known, **changed})


def accidents():
    """Every accident of the matrix."""
    return [
        Killed("source agent killed", side="source"),
        Killed("destination agent killed", side="destination"),
        Killed("dirty tracker killed", ("round",), side="source", victim=TAKES_ROUNDS),
        Killed("CRIU killed on the source", ("dump", "transfer", "restore", "commit", "resume"), side="source", victim=("criu",)),
        Killed("CRIU killed at work on the source", ("dump",), side="source", victim=("criu",), delay_s=0.03),
        Killed("CRIU killed on the destination", ("restore", "commit"), side="destination", victim=("criu",)),
        Killed("CRIU killed at work on the destination", ("restore",), side="destination", victim=("criu",), delay_s=0.005),
        CommanderKilled("command line killed"),
        Cut("source cut off for 3 s", heals_s=3.0),
        Cut("source cut off beyond the deadline", options={"deadline_s": 4.0}, heals_s=12.0),
        Cut("destination cut off for 3 s", side="destination", heals_s=3.0),
        Cut("destination cut off beyond the deadline", side="destination", options={"deadline_s": 4.0}, heals_s=12.0),
        Lossy("1 % of frames lost"),
        Slow("10 Mbit/s"),
        DiskFull("no room for images"),
        LittleMemory("memory limit too small", ("layer", "round", "freeze", "dump", "transfer", "restore")),
        Corrupt("a byte changed on the wire", heals_s=4.0),
        StaleSecret("stale secret"),
    ]
