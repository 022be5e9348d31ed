"""Before, during and after: the parts of steady state as the migrations cut it.

*during* is the union of the affected intervals (emulab.analysis.recovery.affected); *before* is what lies ahead of the first of them;
*after* is the rest, the time between two migrations included. An operation belongs where it starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from emulab.analysis.interval import Interval

PHASES = ("before", "during", "after")


def phase_of(starts: NDArray[np.float64], affected: Sequence[Interval]) -> NDArray[np.object_]:
    """The phase of each start. Without migrations everything is before."""
    phase = np.full(len(starts), "before", dtype=object)
    if not affected:
        return phase
    phase[starts >= min(interval.start_s for interval in affected)] = "after"
    for interval in affected:
        phase[(starts >= interval.start_s) & (starts < interval.end_s)] = "during"
    return phase


def phases(counted: pd.DataFrame, affected: Sequence[Interval]) -> dict[str, pd.DataFrame]:
    """Counted operations of each phase; empty without migrations."""
    if not affected:
        return {}
    phase = phase_of(counted["start_s"].to_numpy(float), affected)
    return {name: counted[phase == name] for name in PHASES}
