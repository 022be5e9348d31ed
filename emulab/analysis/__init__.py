"""Records of a run to percentiles, windows, verdicts and downtime. Pure functions over tables; nothing here talks to a node.

The way through: ``load_run`` (run folder to tables), ``analyse`` (what counts, which stretches a migration disturbed), ``summarise``
(the content of summary.json). ``write_summary`` does all three.
"""

from emulab.analysis.interval import Interval
from emulab.analysis.records import RunError
from emulab.analysis.run import Migration, Run, load_run
from emulab.analysis.summary import Analysis, analyse, summarise, summarise_analysis, write_summary

__all__ = [
    "Analysis",
    "Interval",
    "Migration",
    "Run",
    "RunError",
    "analyse",
    "load_run",
    "summarise",
    "summarise_analysis",
    "write_summary",
]
