"""Checks and their fixes: one list, used by ``doctor``, by ``doctor --fix`` and before every experiment.

``check_all(all_items())`` looks; ``repair(all_items(), say)`` mends; ``require(results)`` raises for the first that still fails.
"""

from emulab.doctor.items import all_items
from emulab.doctor.model import Finding, Item, Result
from emulab.doctor.run import check_all, repair, require

__all__ = ["Finding", "Item", "Result", "all_items", "check_all", "repair", "require"]
