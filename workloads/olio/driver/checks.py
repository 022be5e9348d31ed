"""The checks of Olio's driver on a run: does the load do what it claims? Source: ``UIDriverMetrics`` in ``UIDriver.java``."""

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

    attended = per("attended", events)
    tag_low, tag_wanted = (3.6, ">= 3.6") if profile == "olio-0.1" else (1e-9, "> 0")
    return [
        check("EventDetail views where an attendee was added (%)", None if attended is None else 100 * attended, ">= 6", 6),
        check("images referenced by a home page", per("home_pictures", homes), "10 +- 0.5", 9.5, 10.5),
        check("images loaded per home page", per("home_pictures_loaded", homes), ">= 3", 3),
        check("image bytes loaded per home page", per("home_picture_bytes", homes), ">= 15000", 15_000),
        check("images on a page of a tag search", per("tag_pictures", tags), tag_wanted, tag_low),
        check("images on an event page", per("event_pictures", events), ">= 1", 1),
        check("users per operation per second", users / ops_per_s if ops_per_s > 0 else None, "<= 5.25", 0, 5.25),
    ]
