"""Static files, pictures and documents of the site, with the sizes of Olio's, written by us. Standard library only, deterministic.

``python -m workloads.olio.assets DIRECTORY`` writes what the web image holds: ``public/`` and ``seed/``.
"""

from __future__ import annotations

from workloads.olio.assets.jpeg import jpeg
from workloads.olio.assets.pdf import pdf
from workloads.olio.assets.statics import SIZES, STATICS

__all__ = ["SIZES", "STATICS", "event_jpeg", "event_pdf", "jpeg", "pdf", "person_jpeg"]


def event_jpeg(seed: int = 0) -> bytes:
    """The picture uploaded with an event: 1690 x 1268, 669 128 bytes."""
    return jpeg(1690, 1268, 669_128, seed)


def person_jpeg(seed: int = 0) -> bytes:
    """The picture uploaded for a person: 1050 x 1124, 671 520 bytes."""
    return jpeg(1050, 1124, 671_520, 1000 + seed)


def event_pdf(seed: int = 0) -> bytes:
    """The literature uploaded with an event: one page, 129 617 bytes."""
    return pdf(129_617, seed)
