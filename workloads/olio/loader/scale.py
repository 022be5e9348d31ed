"""How much data a number of concurrent users stands for (Olio's ``ScaleFactors``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

MINIMUM_USERS = 25  # Olio loads at least this many


@dataclass(frozen=True)
class Counts:
    """Rows that are given by the scale alone; those of the other tables are drawn per person or event."""

    registered_users: int
    tags: int
    events: int


def counts(users: int, ratio: int) -> Counts:
    """The number of persons, tags and events.

    Args:
        users: concurrent users; fewer than 25 are loaded as 25.
        ratio: registered persons per concurrent user (100 in Olio's code, 10 in its older papers).

    Tags grow with the persons by a half-logistic distribution and end at 5000; an event has three tags to choose from.

    """
    if users < 1 or ratio < 1:
        raise ValueError(f"users and ratio must be at least 1, not {users} and {ratio}")
    registered = max(users, MINIMUM_USERS) * ratio
    decay = math.exp(-registered / 10_000)
    tags = max(1, math.floor(5000 * (1 - decay) / (1 + decay) + 0.5))
    return Counts(registered_users=registered, tags=tags, events=3 * tags)
