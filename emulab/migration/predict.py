"""What moving a guest would cost: the blackout, and before anything happens the whole migration.

The blackout is the sum of::

    freeze     until every task stands still and its frames are held elsewhere
    dump       per task, per mapping, per page that the final dump still has to save
    transfer   those pages, after deduplication and compression, at the rate of the link; or as fast as pages were hashed so far
    restore    per task, per mapping, per page of the whole guest (less for one that was there before, or is its parent's)
    resume     commit, hooks, network

and every per-task cost is scaled by the freezes that the rounds have measured on this machine and by what the last migrations from this
node really took (``Machine``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

PAGE = 4096


@dataclass(frozen=True)
class Costs:
    """Seconds. Fitted to Apache prefork workers on a two-core x86-64 machine: pre-dump freezes of 3.1 ms per task with 168 mappings, 4 ms
    with 239, 12 ms with 768; final dumps of 4.5-4.7 ms and restores of 4.5 ms per task with 160-175 mappings. Costs per page: memory copied
    at 2-3 GB/s; a page that the restore allocates, from 262 144 of one task that took 1.0 s.
    """

    pre_dump_task: float = 0.5e-3
    pre_dump_mapping: float = 15e-6
    pre_dump_page: float = 0.2e-6
    dump_task: float = 1.0e-3
    dump_mapping: float = 22e-6
    dump_page: float = 1.5e-6
    restore_task: float = 0.7e-3
    restore_mapping: float = 23e-6
    restore_page: float = 3.7e-6
    restore_repeat: float = 1.0e-6  # compared with the parent's and found to be the same
    restore_filled: float = 0.3e-6  # its entries in page tables, copied and moved; known to be the one
    freeze: float = 0.01
    resume: float = 0.07
    send_page: float = 8e-6  # hashing, compressing, writing: 500 MB/s
    round: float = 0.15  # starting CRIU, walking the layer
    waiting: float = 4.0  # a round that waits for its guest, against one that does not: 9-14 s and 2.5 s of 64 web workers


@dataclass(frozen=True)
class Rest:
    """What a freeze would find. ``pages``: still to be saved and sent; ``all_pages``: of the guest, each task's counted;
    ``distinct_pages``: of them, with those that tasks share counted once; ``filled_pages``: of these, in memory at the destination
    before the freeze; ``other_bytes``: layer, on the wire.
    """

    tasks: int
    mappings: int
    pages: int
    all_pages: int
    distinct_pages: int
    other_bytes: int = 0
    filled_pages: int = 0


@dataclass(frozen=True)
class Prediction:
    """Parts of a blackout, in seconds."""

    freeze_s: float
    dump_s: float
    transfer_s: float
    restore_s: float
    resume_s: float

    @property
    def total_s(self) -> float:
        return self.freeze_s + self.dump_s + self.transfer_s + self.restore_s + self.resume_s

    def parts(self) -> dict[str, float]:
        return {name.removesuffix("_s"): round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Wire:
    """How pages cross: ``link_bytes_s``; ``ratio``: bytes on the wire per byte of pages; ``page_s``: least time per page."""

    link_bytes_s: float
    ratio: float
    page_s: float = Costs.send_page

    def seconds(self, pages: int, other_bytes: int = 0) -> float:
        return max((self.bytes(pages) + other_bytes) / self.link_bytes_s, pages * self.page_s)

    def bytes(self, pages: int) -> int:
        return int(pages * PAGE * self.ratio)


def predict(rest: Rest, wire: Wire, machine: Machine) -> Prediction:
    costs, scale = machine.costs, machine.pre_dump
    dump = rest.tasks * costs.dump_task + rest.mappings * costs.dump_mapping
    restore = rest.tasks * costs.restore_task + rest.mappings * costs.restore_mapping
    pages = (rest.distinct_pages - rest.filled_pages) * costs.restore_page + rest.filled_pages * costs.restore_filled
    pages += (rest.all_pages - rest.distinct_pages) * costs.restore_repeat
    return Prediction(
        freeze_s=costs.freeze,
        dump_s=(dump * scale + rest.pages * costs.dump_page) * machine.dump,
        transfer_s=wire.seconds(rest.pages, rest.other_bytes),
        restore_s=(restore * scale + pages) * machine.restore,
        resume_s=costs.resume,
    )


@dataclass
class Machine:
    """What a node has learnt about itself: factors on the costs of pre-dump, dump and restore. 1 is the machine of ``Costs``."""

    pre_dump: float = 1.0
    dump: float = 1.0
    restore: float = 1.0
    costs: Costs = Costs()

    def saw_round(self, *, frozen_s: float, tasks: int, mappings: int, pages: int) -> None:
        """The freeze of one pre-dump. Single freezes scatter: the newest counts as much as all before it."""
        costs = self.costs
        expected = tasks * costs.pre_dump_task + mappings * costs.pre_dump_mapping + pages * costs.pre_dump_page
        if expected > 0 and frozen_s > 0:
            self.pre_dump = _bounded(0.5 * self.pre_dump + 0.5 * frozen_s / expected)

    def saw_blackout(self, predicted: Prediction, *, dump_s: float, restore_s: float) -> None:
        """Dump and restore of a finished migration, beside what was predicted for them. Half of the difference is believed."""
        self.dump = _bounded(self.dump * (0.5 + 0.5 * dump_s / predicted.dump_s))
        self.restore = _bounded(self.restore * (0.5 + 0.5 * restore_s / predicted.restore_s))


def _bounded(factor: float) -> float:
    return min(8.0, max(0.125, factor))
