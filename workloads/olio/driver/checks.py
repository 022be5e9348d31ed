"""The checks of Olio's driver on a run: does the load do what it claims? Source: ``UIDriverMetrics`` in ``UIDriver.java``.

One limit is not Olio's. It asks for 3 images and 15000 image bytes loaded per home page. A browser loads each image once per session, and
as the ten events of our home page hardly change, the mix gives 3.06 images in the long run, 2.8 in ten minutes and about 2 in two
minutes (sessions end at the next log-in only). So 1 image is asked for, and Olio's 5000 bytes for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulab.load.workload import Check

if TYPE_CHECKING:
    from collections.abc import Mapping


def judge(counts: Mapping[str, float], operations: Mapping[str, int], ops_per_s: float, *, users: int, profile: str) -> list[Check]:
    """Judge the steady state of a run.

    Args:
        counts: sums of what ``Session.perform`` returned.
        operations: successful operations by name.
        ops_per_s: their rate.
        users: concurrent users.
        profile: 0.1 asked for more images on the page of a tag search.

    A figure without a sample is None and not passed.

    """
    homes, tags, events = (operations.get(name, 0) for name in ("HomePage", "TagSearch", "EventDetail"))

    def per(name: str, samples: int) -> float | None:
        return counts.get(name, 0) / samples if samples else None

    def check(name: str, value: float | None, wanted: str, low: float, high: float = float("inf")) -> Check:
        return Check(name=name, value=value, wanted=wanted, passed=value is not None and low <= value <= high)

    loaded = counts.get("home_pictures_loaded", 0)
    attended = per("attended", events)
    tag_low, tag_wanted = (3.6, ">= 3.6") if profile == "olio-0.1" else (1e-9, "> 0")
    return [
        check("EventDetail views where an attendee was added (%)", None if attended is None else 100 * attended, ">= 6", 6),
        check("images referenced by a home page", per("home_pictures", homes), "10 +- 0.5", 9.5, 10.5),
        check("images loaded per home page", per("home_pictures_loaded", homes), ">= 1", 1),
        check("bytes per image loaded by a home page", per("home_picture_bytes", int(loaded)), ">= 5000", 5000),
        check("images on a page of a tag search", per("tag_pictures", tags), tag_wanted, tag_low),
        check("images on an event page", per("event_pictures", events), ">= 1", 1),
        check("users per operation per second", users / ops_per_s if ops_per_s > 0 else None, "<= 5.25", 0, 5.25),
    ]
