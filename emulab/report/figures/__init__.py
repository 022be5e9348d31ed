"""What each figure of the report shows, as data. ``all_figures`` is the list in the order of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulab.report.figures import moves, response, throughput, use
from emulab.report.figures.model import Figure

if TYPE_CHECKING:
    from emulab.analysis import Analysis

__all__ = ["Figure", "all_figures"]


def all_figures(analysis: Analysis, summary: dict[str, Any]) -> dict[str, Figure]:
    """Figures by key; those that have nothing to show are left out."""
    found = [response.over_time(analysis)]
    found += [response.around_freeze(analysis, migration) for migration in analysis.run.migrations]
    found += [response.distribution(analysis), response.sla_windows(analysis), throughput.throughput(analysis)]
    for migration in summary["migrations"]:
        found += [moves.rounds(analysis, migration), moves.blackout(migration)]
    found.append(use.use(analysis))
    return {figure.key: figure for figure in found if figure is not None}
