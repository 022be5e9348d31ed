"""CPU, memory and link of a node and its guests, many times a second, in one thread of the node's agent.

A node's row includes its guests (cgroups count what is below them). A guest's link is seen from the guest: what its port on the node
sends, the guest receives. Counters are cumulative; a guest that moves starts again from zero on its new node.
"""

from __future__ import annotations

import csv
import logging
import threading
from array import array
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NamedTuple

import psutil

from emulab import clock
from emulab.node.sampler_read import CGROUP_ROOT, INTERFACES, CgroupReader, ReopenedFile, open_cgroup, parse_interfaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

log = logging.getLogger("emulab.node.sampler")

COLUMNS = ("t_s", "node", "kind", "name", "cpu_s", "memory_bytes", "rx_bytes", "tx_bytes")
INTERVAL_S = 0.1


class Sample(NamedTuple):
    """One row of samples.parquet. ``kind``: "node", "guest", "machine" or "process"; CPU seconds and bytes on the link are cumulative."""

    t_s: float
    node: str
    kind: str
    name: str
    cpu_s: float
    memory_bytes: int
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True)
class GuestTarget:
    """A guest to sample: its cgroup relative to the cgroup root, and its port on br0."""

    name: str
    cgroup: str
    port: str


class _Buffer:
    """Rows in 48 bytes each: one packed array per column, subjects as numbers."""

    def __init__(self) -> None:
        self._subjects: dict[tuple[str, str, str], int] = {}
        self._subject, self._t, self._cpu = array("H"), array("d"), array("d")
        self._counters = (array("q"), array("q"), array("q"))

    def add(self, sample: Sample) -> None:
        subject = (sample.node, sample.kind, sample.name)
        self._subject.append(self._subjects.setdefault(subject, len(self._subjects)))
        self._t.append(sample.t_s)
        self._cpu.append(sample.cpu_s)
        for column, value in zip(self._counters, sample[5:], strict=True):
            column.append(value)

    def __len__(self) -> int:
        return len(self._t)

    def rows(self) -> Iterable[Sample]:
        subjects = list(self._subjects)
        for subject, t, cpu, memory, rx, tx in zip(self._subject, self._t, self._cpu, *self._counters, strict=True):
            node, kind, name = subjects[subject]
            yield Sample(t, node, kind, name, cpu, memory, rx, tx)


class Sampler:
    """Samples from ``start`` to ``stop``; ``drain`` takes out what has been gathered, also while it runs.

    Args:
        node: name of this node, e.g. "host1".
        guests: called before every sample for the guests that are here now; they may come and go.
        uplink: the interface whose counters are the node's.
        interval_s: seconds between samples. A sample that would be late is left out, not caught up.
        machine: also sample the machine under all nodes (to be asked of one node only).
        processes: called before every sample for {name: pid} of single processes to sample, e.g. the load's drivers.

    """

    def __init__(
        self,
        node: str,
        guests: Callable[[], Sequence[GuestTarget]] = tuple,
        *,
        uplink: str = "eth0",
        interval_s: float = INTERVAL_S,
        machine: bool = False,
        processes: Callable[[], Mapping[str, int]] = dict,
        cgroup_root: Path = CGROUP_ROOT,
        interfaces: Path = INTERFACES,
    ) -> None:
        if interval_s <= 0:
            raise ValueError(f"the interval must be above 0 s, got {interval_s}")
        self.node, self.interval_s = node, interval_s
        self._guests, self._processes, self._uplink, self._machine = guests, processes, uplink, machine
        self._root, self._interfaces = cgroup_root, interfaces
        self._readers: dict[GuestTarget, CgroupReader] = {}
        self._watched: dict[tuple[str, int], psutil.Process] = {}
        self._buffer = _Buffer()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; no effect while it runs. Raises OSError if this node's own counters cannot be read."""
        if self._thread is not None:
            return
        own = open_cgroup("", self._root)
        try:
            net = ReopenedFile(self._interfaces)
        except OSError:
            own.close()
            raise
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(own, net), name="sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the sample in progress. What was gathered stays until drained."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def drain(self) -> list[Sample]:
        """Take out all samples gathered so far, in order of time."""
        with self._lock:
            full, self._buffer = self._buffer, _Buffer()
        return list(full.rows())

    def write_csv(self, path: Path) -> int:
        """Drain into a CSV file with the columns ``COLUMNS``; returns the number of rows."""
        rows = self.drain()
        with path.open("w", newline="") as file:
            write_csv(rows, file)
        return len(rows)

    def _run(self, own: CgroupReader, net: ReopenedFile) -> None:
        due = clock.now()
        failed = ""
        try:
            while not self._stop.is_set():
                try:
                    rows = self._sample(own, net)
                except Exception as error:  # one bad sample must not end the record
                    if str(error) != failed:
                        log.warning("a sample of %s failed: %s", self.node, error)
                        failed = str(error)
                else:
                    with self._lock:
                        for row in rows:
                            self._buffer.add(row)
                missed = max(0, int((clock.now() - due) / self.interval_s))
                due += (missed + 1) * self.interval_s
                self._stop.wait(max(0.0, due - clock.now()))
        finally:
            net.close()
            for reader in (own, *self._readers.values()):
                reader.close()
            self._readers.clear()
            self._watched.clear()

    def _sample(self, own: CgroupReader, net: ReopenedFile) -> list[Sample]:
        links = parse_interfaces(net.read())
        rx, tx = links.get(self._uplink, (0, 0))
        rows = [Sample(clock.now(), self.node, "node", self.node, own.cpu_s(), own.memory_bytes(), rx, tx)]
        rows += self._sample_guests(links)
        rows += self._sample_processes()
        if self._machine:
            cpu, memory = psutil.cpu_times(), psutil.virtual_memory()
            # guest and guest_nice are part of user and nice already.
            busy = sum(cpu) - cpu.idle - cpu.iowait - cpu.guest - cpu.guest_nice
            rows.append(Sample(clock.now(), "machine", "machine", "machine", busy, memory.total - memory.available, 0, 0))
        return rows

    def _sample_guests(self, links: Mapping[str, tuple[int, int]]) -> list[Sample]:
        here = tuple(self._guests())
        for gone in self._readers.keys() - set(here):
            self._readers.pop(gone).close()
        rows = []
        for guest in here:
            try:
                if guest not in self._readers:
                    self._readers[guest] = open_cgroup(guest.cgroup, self._root)
                reader = self._readers[guest]
                sent, received = links.get(guest.port, (0, 0))
                rows.append(Sample(clock.now(), self.node, "guest", guest.name, reader.cpu_s(), reader.memory_bytes(), received, sent))
            except OSError:  # not there yet, or no longer: the list of guests is a moment older than the kernel's
                if guest in self._readers:
                    self._readers.pop(guest).close()
        return rows

    def _sample_processes(self) -> list[Sample]:
        rows = []
        here = dict(self._processes())
        for gone in self._watched.keys() - set(here.items()):
            del self._watched[gone]
        for name, pid in here.items():
            try:
                if (name, pid) not in self._watched:
                    self._watched[name, pid] = psutil.Process(pid)
                process = self._watched[name, pid]
                cpu, memory = process.cpu_times(), process.memory_info()
                rows.append(Sample(clock.now(), self.node, "process", name, cpu.user + cpu.system, memory.rss, 0, 0))
            except psutil.Error:
                self._watched.pop((name, pid), None)
        return rows


def write_csv(rows: Iterable[Sample], file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow((f"{row.t_s:.6f}", *row[1:4], f"{row.cpu_s:.6f}", *row[5:]))
