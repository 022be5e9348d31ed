"""The published numbers that a run stands beside.

Voorsluys, Broberg, Venugopal, Buyya: Cost of Virtual Machine Live Migration in Clouds: A Performance Evaluation, CloudCom 2009. The values
below are second hand: taken from a report about the paper, whose body and figures were not at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CITATION = (
    "Voorsluys, Broberg, Venugopal, Buyya: Cost of Virtual Machine Live Migration in Clouds: A Performance Evaluation (CloudCom 2009)"
)
SOURCE = "second hand: a report about the paper"


@dataclass(frozen=True)
class Published:
    """One published value: what it is, its number and unit."""

    key: str
    label: str
    value: float | str
    unit: str


PUBLISHED = (
    Published("users", "Concurrent users", 600.0, "users"),
    Published("migration_total_s", "Whole migration", 44.0, "s"),
    Published("downtime_s", "Downtime", 3.0, "s"),
    Published("recovery_s", "Backlog gone after resume", 5.0, "s"),
    Published("requests_lost", "Requests lost or timed out", 0.0, "requests"),
    Published("sla90", "90 % rule with one migration", "holds", ""),
    Published("sla99", "99 % rule with one migration", "breaks", ""),
)


def ratio(paper: float | str, here: float | str | None) -> float | None:
    """Our value / the paper's, where that means something."""
    if isinstance(paper, str) or isinstance(here, str) or here is None or paper == 0 or not math.isfinite(here):
        return None
    return here / paper
