"""When to stop pre-copying: a freeze budget compared with a prediction, a cap, and two rules against rounds that cannot help.

The prediction of the blackout after round n is::

    freeze and dump    frozen_s(n) scaled from a pre-dump to a final dump
    restore            tasks x restore cost of one task
    transfer           pages written during the last round x 4096 / rate of the link
    fixed              commit, hooks, network

Costs per task start from values measured on Apache prefork workers with 170-240 mappings and follow the measured rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAGE = 4096
# Measured: a final dump takes about 1.7 times the freeze of a pre-dump of the same tasks (it also saves files, sockets and registers).
DUMP_PER_PRE_DUMP = 1.7
RESTORE_PER_TASK_S = 0.006
FIXED_S = 0.08
# A round that leaves more than this share of the pages of the one before is not converging.
DIVERGENCE = 0.9
# Once the transfer is below this share of the predicted blackout, another round cannot shorten it noticeably.
NEGLIGIBLE = 0.1


@dataclass(frozen=True)
class Round:
    """One finished round. Bytes and pages as counted by CRIU; ``bytes_on_wire`` after deduplication and compression."""

    n: int
    kind: str
    start_s: float
    duration_s: float
    frozen_s: float
    pages: int
    bytes: int
    bytes_on_wire: int
    layer_bytes: int
    predicted_blackout_s: float
    dirty_pages_per_s: float


@dataclass(frozen=True)
class Decision:
    stop: bool
    reason: str


@dataclass(frozen=True)
class StopRule:
    """``budget_s``: the blackout that is aimed for; ``max_rounds``: pre-dumps at most."""

    budget_s: float = 0.3
    max_rounds: int = 8

    def predict(self, *, frozen_s: float, tasks: int, pages: int, link_bytes_per_s: float) -> tuple[float, float]:
        """Expected blackout and the part of it that is transfer of dirty pages, in seconds."""
        transfer = pages * PAGE / link_bytes_per_s
        return frozen_s * DUMP_PER_PRE_DUMP + tasks * RESTORE_PER_TASK_S + transfer + FIXED_S, transfer

    def decide(self, rounds: Sequence[Round], *, transfer_s: float) -> Decision:
        """After a round: stop, and why. ``transfer_s``: from ``predict`` for the last round."""
        last = rounds[-1]
        if last.predicted_blackout_s <= self.budget_s:
            return Decision(
                stop=True, reason=f"predicted blackout {last.predicted_blackout_s:.3f} s is within the budget of {self.budget_s:g} s"
            )
        if len(rounds) >= self.max_rounds:
            return Decision(stop=True, reason=f"round cap of {self.max_rounds} reached")
        if len(rounds) < 2:
            return Decision(stop=False, reason="first round")
        if transfer_s <= NEGLIGIBLE * last.predicted_blackout_s:
            return Decision(
                stop=True,
                reason=f"dirty pages cost {transfer_s:.3f} s of a predicted blackout of {last.predicted_blackout_s:.3f} s: "
                "another round cannot shorten it",
            )
        if last.pages >= DIVERGENCE * rounds[-2].pages:
            return Decision(stop=True, reason=f"not converging: {rounds[-2].pages} pages, then {last.pages}")
        return Decision(stop=False, reason="converging")
