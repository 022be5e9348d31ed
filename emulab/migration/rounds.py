"""When to stop pre-copying: a freeze budget compared with a prediction, a cap, and two rules against rounds that cannot help.

Where the prediction comes from is in ``predict.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emulab.migration.predict import Prediction

# A round during which the guest wrote more than this share of what the round sent is not converging.
DIVERGENCE = 0.9
# Once the transfer is below this share of the predicted blackout, another round cannot shorten it noticeably.
NEGLIGIBLE = 0.15
# Rounds of a throttled guest that are allowed beyond the cap: one for each step of the throttle.
THROTTLED_ROUNDS = 9


@dataclass(frozen=True)
class Round:
    """One finished round. Bytes and pages as counted by CRIU; ``bytes_on_wire`` after deduplication and compression.

    ``dirty_pages``: written by the guest since this round's pages were taken, counted at the round's end; ``dirty_pages_per_s``: the same
    per second. ``throttle``: share of its CPU that was withheld from the guest.
    """

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
    dirty_pages: int = 0
    throttle: float = 0.0


def is_hot(rounds: Sequence[Round]) -> bool:
    """Whether the guest writes the same pages again and again, so that a shorter round leaves as many: 11 000 of a busy web server."""
    if len(rounds) < 2:
        return False
    before, last = rounds[-2:]
    return last.duration_s <= 0.7 * before.duration_s and last.dirty_pages >= DIVERGENCE * before.dirty_pages


@dataclass(frozen=True)
class Decision:
    """``diverging``: more rounds of this kind cannot help because the guest writes too fast."""

    stop: bool
    reason: str
    diverging: bool = False


@dataclass(frozen=True)
class StopRule:
    """``budget_s``: the blackout that is aimed for; ``max_rounds``: pre-dumps at most, those of a throttled guest not counted;
    ``min_rounds``: at least.
    """

    budget_s: float = 0.3
    max_rounds: int = 8
    min_rounds: int = 1

    def __str__(self) -> str:
        return f"predicted blackout within {self.budget_s:g} s, or {self.max_rounds} rounds, or not converging, or dirty pages negligible"

    def decide(self, rounds: Sequence[Round], prediction: Prediction, *, waited: bool = False) -> Decision:
        """After a round: stop, and why. ``prediction``: of a freeze now.

        ``waited``: the last round was long because it waited for the guest; a quicker one may converge, unless the guest is hot.
        """
        last, expected = rounds[-1], prediction.total_s
        if len(rounds) < self.min_rounds:
            return Decision(stop=False, reason=f"fewer than {self.min_rounds} rounds")
        if expected <= self.budget_s:
            return Decision(stop=True, reason=f"predicted blackout {expected:.3f} s is within the budget of {self.budget_s:g} s")
        if prediction.transfer_s <= NEGLIGIBLE * expected:
            return Decision(
                stop=True,
                reason=f"dirty pages cost {prediction.transfer_s:.3f} s of a predicted blackout of {expected:.3f} s: "
                "another round cannot shorten it",
            )
        may_converge = waited and not is_hot(rounds) and len(rounds) < self.max_rounds
        if last.dirty_pages >= DIVERGENCE * last.pages and not may_converge:
            return Decision(
                stop=True, reason=f"not converging: {last.pages} pages sent, {last.dirty_pages} written meanwhile", diverging=True
            )
        if sum(not one.throttle for one in rounds) >= self.max_rounds or len(rounds) >= self.max_rounds + THROTTLED_ROUNDS:
            return Decision(stop=True, reason=f"round cap of {self.max_rounds} reached", diverging=True)
        return Decision(stop=False, reason="converging")
