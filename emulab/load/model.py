"""The load model of Faban, without any workload in it: which operation comes next, and when.

* A user walks a Markov chain of operations (Faban's ``MatrixMix``), from a fixed first operation.
* After each operation it waits a negative exponential time, drawn by the rule of the operation that has just run. With *cycle* pacing the
  next operation starts that long after the last one's actual **start**, with *think* pacing after its **end**; a late one starts at once,
  and its lateness is not carried on (Faban's ``Cycle``, ``NegativeExponential`` and ``TimeThread``).
* Nothing here depends on what the server answers, so two runs with one seed offer every user the same operations in the same order.

Times are seconds.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

from emulab.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Pacing = Literal["cycle", "think"]


@dataclass(frozen=True)
class Delay:
    """A negative exponential delay, as Faban draws it.

    Args:
        mean_s: mean of the curve before it is capped.
        cap_s: longest delay; Faban's default is five means.
        min_s: shortest delay. The curve is shifted by it and keeps its mean (Faban's ``truncateAtMin=false``).

    """

    mean_s: float
    cap_s: float
    min_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_s < self.mean_s <= self.cap_s:
            raise UsageError(
                f"a delay needs minimum < mean <= cap, not {self.min_s:g}, {self.mean_s:g} and {self.cap_s:g} s",
                hint="the cap is usually five times the mean",
            )

    def draw(self, uniform: float) -> float:
        """The delay at ``uniform`` (0 <= uniform < 1) of its distribution: the inverse of its cumulative function."""
        return min(self.cap_s, self.min_s - (self.mean_s - self.min_s) * math.log1p(-uniform))

    @property
    def expected_s(self) -> float:
        """Mean of the capped curve: 4.966 s for a mean of 5 s and a cap of 25 s."""
        scale = self.mean_s - self.min_s
        return self.min_s - scale * math.expm1(-(self.cap_s - self.min_s) / scale)


@dataclass(frozen=True)
class Mix:
    """A Markov chain of operations.

    Args:
        operations: their names; the first is every user's first operation.
        rows: ``rows[i][j]`` is the weight (say, per cent) with which ``operations[j]`` follows ``operations[i]``. Rows are normalised.

    """

    operations: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        n = len(self.operations)
        if n == 0 or len(self.rows) != n or any(len(row) != n for row in self.rows):
            raise UsageError(f"a mix of {n} operations needs {n} rows of {n} weights")
        if any(weight < 0 for row in self.rows for weight in row) or not all(sum(row) > 0 for row in self.rows):
            raise UsageError("each row of a mix needs weights of at least 0 and a sum above 0")

    @cached_property
    def _cumulative(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(part / sum(row) for part in accumulate(row)) for row in self.rows)

    def follow(self, current: int, uniform: float) -> int:
        """Index of the operation after ``current``, for a uniform number in [0, 1)."""
        cumulative = self._cumulative[current]
        for index, edge in enumerate(cumulative):
            if uniform < edge:
                return index
        return max(index for index, weight in enumerate(self.rows[current]) if weight > 0)

    def stationary(self) -> dict[str, float]:
        """Long-run share of each operation (sums to 1): the required mix of Faban's report."""
        n = len(self.operations)
        share = [1.0 / n] * n
        for _ in range(100_000):
            following = [0.0] * n
            for i, row in enumerate(self.rows):
                total = sum(row)
                for j, weight in enumerate(row):
                    following[j] += share[i] * weight / total
            # The mean of both steps has the same fixed point and also converges for a chain that alternates.
            mixed = [(old + new) / 2 for old, new in zip(share, following, strict=True)]
            moved = max(abs(old - new) for old, new in zip(share, mixed, strict=True))
            share = mixed
            if moved < 1e-14:
                break
        return dict(zip(self.operations, share, strict=True))


@dataclass(frozen=True)
class Model:
    """A mix, the delay after each of its operations, and the pacing.

    Args:
        mix: the chain of operations.
        delay: delay after an operation that has none of its own.
        delays: delays of single operations, by name.
        pacing: ``cycle`` (from start to start) or ``think`` (from end to start).

    """

    mix: Mix
    delay: Delay
    delays: Mapping[str, Delay] = field(default_factory=dict)
    pacing: Pacing = "cycle"

    def delay_after(self, operation: str) -> Delay:
        return self.delays.get(operation, self.delay)

    def expected_delay_s(self) -> float:
        """Mean delay in the long run; users divided by it is the offered rate of cycle pacing, in operations per second."""
        return sum(share * self.delay_after(name).expected_s for name, share in self.mix.stationary().items())

    def next_start_s(self, start_s: float, end_s: float, delay_s: float) -> float:
        """When the next operation is due, given the last one's actual start and end. A due time in the past means: at once."""
        return (start_s if self.pacing == "cycle" else end_s) + delay_s


class Step(NamedTuple):
    """One operation of one user and the delay drawn after it."""

    operation: str
    delay_s: float


def first_start_s(user: int, users: int, ramp_up_s: float) -> float:
    """Start of a user's first operation, in seconds after the begin of the ramp-up: users start evenly spaced over it."""
    return ramp_up_s * (user % users) / users


def stream(seed: int, *key: object) -> Random:
    """An independent deterministic stream of random numbers for a key, the same in every process and on every machine."""
    return Random(":".join(map(str, ("emulab", seed, *key))))


class Plan:
    """What every user of a run is going to do: an endless sequence of steps per user, fixed by model, users, ramp-up and seed.

    Operations come from one stream per user. Delays come from **stratified** uniform numbers. With independent ones, 100 users
    make a number of operations in two minutes that scatters by 2 % (one standard deviation) from seed to seed, which would
    drown the differences this testbed is to measure. So the plan plays the ideal schedule (every operation on time) and deals
    uniform numbers in the order in which users draw them, one from each of ``users`` equal strata before any stratum comes again, in
    random order and at a random place in its stratum: stratified sampling as in McKay, Beckman and Conover (Technometrics
    21(2), 1979), along the time axis. Each delay keeps the negative exponential distribution, while the delays that all users
    draw within about one mean delay always average to its mean. The operations of 100 users in two minutes then scatter by 0.26 %.
    (Strata over the k-th delay of all users, without regard to time, leave 0.9 %: users drift apart in k.)

    Every worker process plays the whole schedule and reads its own users' part. That costs some microseconds per operation and keeps
    the plan independent of the number of workers. Users beyond ``users`` (interactive use) have their own operations and share delays.
    """

    def __init__(self, model: Model, *, users: int, ramp_up_s: float, seed: int) -> None:
        if users < 1:
            raise UsageError(f"a load needs at least one user, not {users}")
        self.model = model
        self.users = users
        self._seed = seed
        self._deal = stream(seed, "delays")
        self._strata: list[int] = []
        self._operations: dict[int, Random] = {}
        self._current: dict[int, int] = {}
        self._steps: list[deque[Step]] = [deque() for _ in range(users)]
        self._schedule = [(first_start_s(user, users, ramp_up_s), user) for user in range(users)]
        heapq.heapify(self._schedule)

    def next(self, user: int) -> Step:
        """The next step of a user. Steps of one user must be asked for in order; users may be asked in any order."""
        if user >= self.users:
            shared = self.next(user % self.users)
            return Step(self.model.mix.operations[self._advance(user)], shared.delay_s)
        steps = self._steps[user]
        while not steps:
            self._play()
        return steps.popleft()

    def _play(self) -> None:
        """Let the user whose turn it is in the ideal schedule make one step."""
        due, user = self._schedule[0]
        name = self.model.mix.operations[self._advance(user)]
        delay = self.model.delay_after(name).draw(self._uniform())
        self._steps[user].append(Step(name, delay))
        heapq.heapreplace(self._schedule, (due + delay, user))

    def _uniform(self) -> float:
        if not self._strata:
            self._strata = list(range(self.users))
            self._deal.shuffle(self._strata)
        return (self._strata.pop() + self._deal.random()) / self.users

    def _advance(self, user: int) -> int:
        if user not in self._operations:
            self._operations[user] = stream(self._seed, "operations", user)
            self._current[user] = 0
        else:
            self._current[user] = self.model.mix.follow(self._current[user], self._operations[user].random())
        return self._current[user]


def offered_operations(plan: Plan, *, ramp_up_s: float, begin_s: float, end_s: float) -> Sequence[float]:
    """Sorted start times in [begin_s, end_s) of all users of a fresh plan on a server that answers in no time."""
    starts: list[float] = []
    for user in range(plan.users):
        due = first_start_s(user, plan.users, ramp_up_s)
        while due < end_s:
            if due >= begin_s:
                starts.append(due)
            due += plan.next(user).delay_s
    return sorted(starts)
