"""What the doctor's list is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "skipped"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        status: "warning" does not stop an experiment; "skipped" could not be looked at, because something before it failed.
        text: what is there, in one line.
        remedy: what a person can do about it; "" for ok.

    """

    status: Status
    text: str
    remedy: str = ""


def good(text: str) -> Finding:
    return Finding("ok", text)


def bad(text: str, remedy: str = "") -> Finding:
    return Finding("failed", text, remedy)


def warn(text: str, remedy: str = "") -> Finding:
    return Finding("warning", text, remedy)


@dataclass(frozen=True)
class Item:
    """One thing the machine must have.

    Args:
        name: short, as printed.
        explain: why it is needed, one sentence.
        check: looks, changes nothing, is quick.
        fix: repairs, telling each step; None where only a person can.
        changes: what the repair changes on the user's machine; "" if nothing outside our own containers and images.
        needs: names of items without which this one cannot be looked at.

    """

    name: str
    explain: str
    check: Callable[[], Finding]
    fix: Callable[[Say], None] | None = None
    changes: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """An item and what was found; ``repaired``: the fix ran and the check passes now. ``error``: the fix's own error."""

    item: Item
    finding: Finding
    repaired: bool = False
    error: str = ""

    @property
    def failed(self) -> bool:
        return self.finding.status in {"failed", "skipped"}

    @property
    def remedy(self) -> str:
        """What to do, in one line; "" if nothing."""
        if self.finding.status in {"ok", "skipped"}:
            return ""
        if self.item.fix and not self.error:
            return "make doctor FIX=1" + (f" ({self.item.changes})" if self.item.changes else "")
        return self.finding.remedy
