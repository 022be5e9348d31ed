"""The data set of the Olio-like site: how many rows, and the rows themselves as SQL. Standard library only.

>>> counts(100, 100)
Counts(registered_users=10000, tags=2311, events=6933)
"""

from __future__ import annotations

from workloads.olio.loader.dataset import generate
from workloads.olio.loader.scale import Counts, counts

__all__ = ["Counts", "counts", "generate"]
