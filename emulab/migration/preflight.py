"""Before anything is staged: what of a guest cannot be saved or restored, by name.

Each rule was seen to fail in a guest with CRIU 4.2; what CRIU can move is not refused, whatever its reputation (raw and netlink sockets,
AIO, leases, seccomp filters, pidfds). What comes up after this look still fails at the dump, and the guest stays where it is.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emulab import clock
from emulab.command import Runner
from emulab.criu.commands import GHOST_LIMIT
from emulab.errors import MigrationError
from emulab.migration.pages import PAGE
from emulab.migration.watched import open_files, watched_paths
from emulab.node.cgroup import is_v2
from emulab.node.guest import Guest

_NAMESPACES = ("user", "pid", "pid_for_children", "mnt", "net", "ipc", "uts", "time", "time_for_children", "cgroup")
_KINDS = {"mnt": "mount", "net": "network", "pid_for_children": "pid", "time_for_children": "time"}
# Every other kind of anonymous file is refused by CRIU: io_uring, perf_event, userfaultfd, bpf-*, kvm-*, landlock-ruleset, fscontext.
_ANONYMOUS = {"eventpoll", "eventfd", "signalfd", "timerfd", "inotify", "fanotify", "pidfd"}
# As the kernel calls them. A family that CRIU does not know ends the dump; a ping socket may not be made in a fresh namespace.
_SOCKETS = {
    "MPTCP": "an MPTCP socket", "MPTCPv6": "an MPTCP socket", "XDP": "an XDP socket", "AF_VSOCK": "a vsock socket",
    "SCTP": "an SCTP socket", "SCTPv6": "an SCTP socket", "ALG": "an AF_ALG socket", "TIPC": "a TIPC socket", "KEY": "an AF_KEY socket",
    "PING": "an ICMP ping socket", "PINGv6": "an ICMP ping socket",
}  # fmt: skip
_DEVICES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx")}
_MAPPED = re.compile(rb"(?:anon_inode:\[?([\w:-]+)|(/dev/(?!zero\b|shm/)\S+)|(/secretmem)).*$", re.MULTILINE)
_ENTERED_PATIENCE_S = 2.0


class UnmovableError(MigrationError):
    """The guest cannot move as it is. The message names everything that is in the way."""


@dataclass(frozen=True)
class _Task:
    pid: int
    name: str
    state: str
    parent: int
    tracer: int
    threads: int
    session: int  # its number in the innermost pid namespace: 0 if its leader is outside of that

    def says(self, what: str) -> str:
        return f"process {self.pid} ({self.name}) {what}"


def refuse_unmovable(guest: Guest, runner: Runner, give_way: Callable[[], object] = lambda: None) -> None:
    """Raises UnmovableError with every reason. Commands that entered the guest get a moment to end: they cannot move with it.

    ``give_way`` is called before each look at a task.
    """
    end = clock.now() + _ENTERED_PATIENCE_S
    while _entered(guest.pid, _tasks(guest.cgroup.pids())) and clock.now() < end:
        time.sleep(0.05)
    reasons = unmovable(guest.pid, guest.cgroup.pids(), runner, give_way)
    if reasons:
        raise UnmovableError(f"it cannot move: {'; '.join(reasons)}", hint="end or reconfigure what is named, then try again")


def unmovable(first: int, pids: Collection[int], runner: Runner, give_way: Callable[[], object] = lambda: None) -> list[str]:
    """Sentences on what cannot move among these tasks of the guest whose first process is ``first``; empty: all of it can."""
    tasks = _tasks(pids)
    entered = _entered(first, tasks)
    reasons = [task.says("entered from outside and is no descendant of the guest's first process") for task in entered]
    inside = [task for task in tasks.values() if task not in entered]
    seen = _Seen(first)
    for task in inside:
        give_way()
        reasons += [task.says(what) for what in (*_states(task), *_namespaces(task, first), *_mappings(task), *seen.descriptors(task))]
    if first in tasks and tasks[first].session:
        reasons += [task.says("belongs to a session from outside: start it with setsid") for task in inside if not task.session]
    reasons += _terminals(tasks)
    lost = watched_paths(first, pids)[1]
    if lost:
        reasons.append(f"{lost} of the files that it watches by inotify have no name any more")
    reasons += _first(first, runner)
    return list(dict.fromkeys(reasons))


def _tasks(pids: Iterable[int]) -> dict[int, _Task]:
    tasks = {}
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text(errors="replace")
        except OSError:
            continue  # it has ended
        fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        tasks[pid] = _Task(
            pid,
            fields["Name"],
            fields["State"][0],
            int(fields["PPid"]),
            int(fields["TracerPid"]),
            int(fields.get("Threads", "1")),
            int(fields.get("NSsid", "1").split()[-1]),
        )
    return tasks


def _entered(first: int, tasks: dict[int, _Task]) -> list[_Task]:
    """Tasks of `vm exec` and their like: in the guest's cgroup and namespaces, but not in its tree."""
    inside = {first}
    for task in tasks.values():
        path = []
        at: _Task | None = task
        while at and at.pid not in inside:
            path.append(at.pid)
            at = tasks.get(at.parent)
        if at:
            inside.update(path)
    return [task for task in tasks.values() if task.pid not in inside]


def _states(task: _Task) -> Iterator[str]:
    tracers = {task.tracer} | {_tracer(task.pid, thread) for thread in _threads(task)}
    for tracer in tracers - {0}:
        yield f"is traced by process {tracer}"
    if task.state == "Z" and task.threads > 1:
        yield "goes on in threads though its main thread has ended"
    if task.state == "T" and not is_v2():  # the freezer of version 1 and a stopped task wait for each other
        yield "is stopped by a signal"


def _threads(task: _Task) -> list[str]:
    try:
        return [path.name for path in Path(f"/proc/{task.pid}/task").iterdir()] if task.threads > 1 else []
    except OSError:
        return []


def _tracer(pid: int, thread: str) -> int:
    try:
        text = Path(f"/proc/{pid}/task/{thread}/status").read_text(errors="replace")
    except OSError:
        return 0
    return int(text.partition("TracerPid:\t")[2].split("\n", 1)[0])


def _namespaces(task: _Task, first: int) -> Iterator[str]:
    """Nested containers. CRIU saves one namespace of each kind, the first process's."""
    kinds = [
        _KINDS.get(kind, kind)
        for kind in _NAMESPACES
        if _link(f"/proc/{task.pid}/ns/{kind}") not in ("", _link(f"/proc/{first}/ns/{kind}"))
    ]
    if kinds:
        yield f"is in a {kinds[0]} namespace of its own"


def _mappings(task: _Task) -> Iterator[str]:
    try:
        yield from unmovable_mappings(Path(f"/proc/{task.pid}/maps").read_bytes())
    except OSError:
        return


def unmovable_mappings(maps: bytes) -> list[str]:
    """What the text of a ``/proc/PID/maps`` shows that CRIU cannot save."""
    found = []
    for anonymous, device, _ in sorted(set(_MAPPED.findall(maps))):
        if anonymous:
            found.append(f"has {anonymous.decode()} mapped")
        else:
            found.append(f"has the device {device.decode()} mapped" if device else "has secret memory mapped")
    return found


class _Seen:
    """Open files, each looked at once: what workers inherited is one file in all of them."""

    def __init__(self, first: int) -> None:
        self._mounts = _mount_ids(first)
        self._bound_packets = _bound_packet_sockets(first)
        self._known: dict[tuple[str, str], str] = {}

    def descriptors(self, task: _Task) -> Iterator[str]:
        for key in open_files(task.pid):
            if key not in self._known:
                self._known[key] = self._judge(task.pid, *key)
            if self._known[key]:
                yield self._known[key]

    def _judge(self, pid: int, number: str, name: str) -> str:
        """Why this file cannot move; empty if it can."""
        path = f"/proc/{pid}/fd/{number}"
        if name.startswith("socket:"):
            return self._judge_socket(path, name)
        if name.startswith("anon_inode:"):
            kind = name.removeprefix("anon_inode:").strip("[]")
            return "" if kind in _ANONYMOUS else f"holds {kind} (descriptor {number})"
        if name.startswith("pipe:"):
            return f"holds a pipe in packet mode (descriptor {number})" if _flags(pid, number) & os.O_DIRECT else ""
        if name.startswith("/"):
            return self._judge_path(pid, number, name, path)
        return ""

    def _judge_socket(self, path: str, name: str) -> str:
        try:
            protocol = os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode()
        except OSError:
            return ""
        if protocol == "PACKET" and name[8:-1] in self._bound_packets:
            return "holds a packet socket bound to an interface"  # by its number, which is another one at the destination
        return f"holds {_SOCKETS[protocol]}" if protocol in _SOCKETS else ""

    def _judge_path(self, pid: int, number: str, name: str, path: str) -> str:
        if name.startswith("/memfd:"):
            return f"holds a memfd of huge pages (descriptor {number})" if _block_size(path) > PAGE else ""
        fields = _fdinfo(pid, number)
        if fields and fields.get("mnt_id", "") not in self._mounts:
            return f"has {name} open, which is outside of the guest's mounts"
        try:
            if name.startswith("/dev/") and name not in _DEVICES and not name.startswith(("/dev/shm/", "/dev/pts/")):
                mode = Path(path).stat().st_mode
                return f"has the device {name} open" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else ""
            if name.endswith(" (deleted)"):
                status = Path(path).stat()
                if status.st_nlink == 0 and status.st_blocks * 512 > GHOST_LIMIT:
                    return f"has the deleted file {name.removesuffix(' (deleted)')} open, larger than {GHOST_LIMIT >> 20} MiB"
        except OSError:
            return ""  # it was closed meanwhile
        return ""


def _terminals(tasks: dict[int, _Task]) -> Iterator[str]:
    """CRIU restores an open /dev/tty only in the task whose terminal it is, not where the terminal was inherited from a parent."""
    for task in tasks.values():
        if "/dev/tty" not in _links(task.pid):
            continue
        terminal = f"/dev/pts/{_terminal(task.pid)}"
        parent = tasks.get(task.parent)
        while parent:
            if terminal in _links(parent.pid):
                yield task.says(f"has /dev/tty open and its terminal {terminal} from process {parent.pid} ({parent.name})")
                break
            parent = tasks.get(parent.parent)


def _first(first: int, runner: Runner) -> Iterator[str]:
    """A process that came by migration and may not be dumped (it changed its user since it started) belongs to the node, not the guest."""
    if _link(f"/proc/{first}/ns/user") == _link("/proc/self/ns/user"):
        return
    if not runner.try_run(("nsenter", f"--user=/proc/{first}/ns/user", "--preserve-credentials", "readlink", f"/proc/{first}/ns/net")).ok:
        yield f"process {first}, its first one, changed its user or its dumpable flag after it started: start it as its user"


def _mount_ids(first: int) -> set[str]:
    try:
        return {line.split(" ", 1)[0] for line in Path(f"/proc/{first}/mountinfo").read_text().splitlines()}
    except OSError:
        return set()


def _bound_packet_sockets(first: int) -> set[str]:
    """Inode numbers of packet sockets that are bound to an interface."""
    try:
        rows = [line.split() for line in Path(f"/proc/{first}/net/packet").read_text().splitlines()[1:]]
    except OSError:
        return set()
    return {row[8] for row in rows if row[4] != "0"}


def _links(pid: int) -> set[str]:
    return {name for _, name in open_files(pid)}


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _fdinfo(pid: int, number: str) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _flags(pid: int, number: str) -> int:
    return int(_fdinfo(pid, number).get("flags", "0"), 8)


def _block_size(path: str) -> int:
    """Of the file system that a file is on: hugetlbfs has the size of its pages, tmpfs that of ordinary ones."""
    try:
        return os.statvfs(path).f_bsize
    except OSError:
        return 0


def _terminal(pid: int) -> int:
    """Number of the pseudo-terminal that controls a process; 0 if it has none."""
    try:
        device = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[4])
    except (OSError, IndexError):
        return 0
    return os.minor(device)
