"""``emulab migrate --plan``: what a migration would take, measured on the running guest in about a second, before anything happens."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import zstandard
from blake3 import blake3

from emulab.criu import tracker
from emulab.criu.dirty import DirtyPages, scan_written
from emulab.errors import EmulabError
from emulab.migration import store
from emulab.migration.channel import Peer, PeerError
from emulab.migration.inventory import Inventory, moving_bytes, take_inventory
from emulab.migration.model import Options
from emulab.migration.page_sender import Offer
from emulab.migration.predict import PAGE, Machine, Prediction, Rest, Wire, predict
from emulab.migration.prefill import filled_before
from emulab.migration.priority import is_waited_for
from emulab.migration.rounds import Round, StopRule
from emulab.migration.strategies import STRATEGIES
from emulab.node.guest import Guest

SAMPLE_S = 1.0
_SAMPLED_PAGES = 256
_FEW_PAGES = 16  # too few to tell how well they compress
_UNKNOWN_RATIO = 0.4
_FILES_RATIO = 0.5  # of the writable layer, compressed
_STAGE_S = 0.2  # connecting, preparing, releasing


@dataclass(frozen=True)
class Plan:
    """What was found and what follows from it. Bytes are expected on the wire, times in seconds.

    ``compression``: bytes on the wire per byte of pages that are sent; ``kept``: share of the pages that the destination has already.
    """

    strategy: str
    inventory: Inventory
    layer_bytes: int
    dirty_pages_per_s: float
    compression: float
    kept: float
    link_bytes_s: float
    rounds: int
    stop_reason: str
    bytes_on_wire: int
    total_s: float
    blackout: Prediction

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "blackout": self.blackout.parts(),
            "blackout_s": self.blackout.total_s,
            "resident_bytes": self.inventory.resident_bytes,
            "proportional_bytes": self.inventory.proportional_bytes,
        }


def kept_of(guest: Guest, options: Options, connect: Callable[[], Peer]) -> Offer | None:
    """What the destination keeps of a guest, if that will be used. A destination that does not answer is one that keeps nothing."""
    if not options.page_store:
        return None
    try:
        with contextlib.closing(connect()) as peer:
            return store.look(peer, guest.spec.name)
    except PeerError:
        return None


def make_plan(
    guest: Guest, options: Options, link_bytes_s: float, machine: Machine, pause: Callable[[float], None], offer: Offer | None = None
) -> Plan:
    """Look at a running guest for a second or two and predict its migration. ``pause`` waits, and may raise to give up.

    ``offer``: what the destination keeps of it.
    """
    pids = guest.cgroup.pids()
    found = take_inventory(pids)
    if not found.tasks:
        raise EmulabError(f"guest {guest.spec.name} has no tasks that could be looked at")
    ratio, kept = sample(pids, offer)
    wire = Wire(link_bytes_s, ratio)
    rate, waits = 0.0, False
    if STRATEGIES[options.strategy].has_rounds:
        waits = is_waited_for(guest)
        rate = dirty_rate(guest, options.dirty_tracker, pause)
    return foresee(found, options, wire, machine, dirty_pages_per_s=rate, files_bytes=moving_bytes(guest), waits=waits, kept=kept)


def foresee_at_rest(guest: Guest, options: Options, link_bytes_s: float, machine: Machine, offer: Offer | None = None) -> Plan:
    """The same at once, of a guest that does not run while it moves: what it writes need not be known."""
    pids = guest.cgroup.pids()
    ratio, kept = sample(pids, offer)
    found, wire = take_inventory(pids), Wire(link_bytes_s, ratio)
    return foresee(found, options, wire, machine, dirty_pages_per_s=0.0, files_bytes=moving_bytes(guest), kept=kept)


def foresee(
    found: Inventory,
    options: Options,
    wire: Wire,
    machine: Machine,
    *,
    dirty_pages_per_s: float,
    files_bytes: int,
    waits: bool = False,
    kept: float = 0.0,
) -> Plan:
    """The arithmetic of a plan: the rounds, played through with the stop rule that the migration itself will use.

    ``waits``: the rounds will wait for the guest. ``kept``: share of its pages that need not be sent until they are written again.
    """
    strategy = STRATEGIES[options.strategy]
    files = int(files_bytes * _FILES_RATIO)
    total_s, on_wire, reason = _STAGE_S, files, "the strategy has no rounds"
    rounds: list[Round] = []
    left, other = found.own_pages, 0
    if strategy.layer_in_freeze:
        other = files
    else:
        total_s += files / wire.link_bytes_s
    distinct = found.distinct_pages
    new = round((1.0 - kept) * distinct)  # of those, not at the destination already
    blackout = _blackout(found, options, wire, machine, left, distinct, new, other)
    rule = StopRule(options.freeze_budget_s, options.max_rounds, options.min_rounds)
    while strategy.has_rounds:
        took_s = machine.costs.round + left * machine.costs.dump_page + max(wire.seconds(new), left * wire.page_s)
        on_wire += wire.bytes(new)
        total_s += took_s * (machine.costs.waiting if waits else 1.0)
        # Not the longer for waiting: a guest that is waited for writes the same pages again.
        dirty = int(min(found.own_pages, dirty_pages_per_s * took_s))
        rounds.append(_planned(len(rounds) + 1, left, dirty))
        left = distinct = new = dirty
        blackout = _blackout(found, options, wire, machine, left, distinct, new, other)
        decision = rule.decide(rounds, blackout)
        reason = decision.reason
        if decision.stop:
            break
    on_wire += wire.bytes(new + found.shared_pages)
    total_s += blackout.total_s
    if strategy.pages_follow:
        total_s += max(wire.seconds(new), left * wire.page_s)
    return Plan(
        strategy=options.strategy,
        inventory=found,
        layer_bytes=files_bytes,
        dirty_pages_per_s=dirty_pages_per_s,
        compression=wire.ratio,
        kept=kept,
        link_bytes_s=wire.link_bytes_s,
        rounds=len(rounds),
        stop_reason=reason,
        bytes_on_wire=on_wire,
        total_s=total_s,
        blackout=blackout,
    )


def _blackout(
    found: Inventory, options: Options, wire: Wire, machine: Machine, left: int, distinct: int, new: int, other: int
) -> Prediction:
    """``left`` pages to save, of which ``distinct`` are no repeats, and ``new`` of those travel; with post-copy they follow."""
    later = STRATEGIES[options.strategy].pages_follow
    saved = found.shared_pages + (0 if later else left)
    sent = found.shared_pages + (0 if later else new)
    all_pages = found.own_pages + found.shared_pages - (left if later else 0)
    distinct_pages = max(0, found.distinct_pages - (distinct if later else 0)) + found.shared_pages
    filled = filled_before(found, STRATEGIES[options.strategy], left)
    expected = predict(Rest(found.tasks, found.mappings, saved, all_pages, distinct_pages, filled_pages=filled), wire, machine)
    return Prediction(**{**asdict(expected), "transfer_s": max(wire.seconds(sent, other), saved * wire.page_s)})


def _planned(number: int, pages: int, dirty: int) -> Round:
    return Round(number, "planned", 0.0, 0.0, 0.0, pages, pages * PAGE, 0, 0, 0.0, 0.0, dirty_pages=dirty)


def dirty_rate(guest: Guest, tracker_name: str, pause: Callable[[float], None], seconds: float = SAMPLE_S) -> float:
    """Pages that the guest writes per second, by the dirty tracker. Nothing of it stays in the guest."""
    pids = guest.cgroup.pids()
    dirty = tracker.choose(tracker_name)
    try:
        guest.cgroup.lift_quota()  # a throttled task could not reach its stop before the next period
        try:
            dirty.arm(pids)
        finally:
            guest.cgroup.set_quota(guest.spec.vcpus)
        counter = DirtyPages(write_protect=dirty.write_protect)
        counter.mark_clean(pids)
        pause(seconds)
        return counter.count(pids) / seconds
    finally:
        dirty.close()


def sample(pids: Sequence[int], offer: Offer | None = None) -> tuple[float, float]:
    """A few pages of the guest, at random: bytes on the wire per byte of those that would be sent, and the share of them that would not,
    because the other side offers them.
    """
    pages = sample_pages(pids, _SAMPLED_PAGES)
    filled = [page for page in pages if page.count(0) < PAGE]
    if not filled:
        return (0.01 if pages else _UNKNOWN_RATIO), 0.0
    fresh = [page for page in filled if not (offer and offer.find(blake3(page).digest()) is not None)]
    tried = fresh if len(fresh) >= _FEW_PAGES else filled
    ratio = len(zstandard.ZstdCompressor(level=1).compress(b"".join(tried))) / (len(tried) * PAGE) * len(filled) / len(pages)
    return max(0.01, ratio), 1.0 - len(fresh) / len(filled)


def sample_pages(pids: Sequence[int], count: int) -> list[bytes]:
    """Pages of the tasks' own memory, each as likely as any other. Fewer, or none, where they cannot be read."""
    ranges: list[tuple[int, int, int]] = []
    for pid in pids:
        try:
            ranges += [(pid, start, end) for start, end in scan_written(pid)]
        except OSError:
            continue
    if not ranges:
        return []
    chance = random.Random(0)  # the same guest gives the same plan
    pages = []
    for pid, start, end in chance.choices(ranges, weights=[end - start for _, start, end in ranges], k=count):
        try:
            memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            pages.append(os.pread(memory, PAGE, start + chance.randrange((end - start) // PAGE) * PAGE))
        except OSError:
            continue
        finally:
            os.close(memory)
    return [page for page in pages if len(page) == PAGE]
