"""Rows of ``bench.json`` from samples alone, so that a bench that was killed, or resumed, has them too."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from emulab.analysis import units
from emulab.bench.model import OURS, PRE_DUMP, STOP_AND_COPY, Line, Row, Sample, Spread, fit, spread, usable
from emulab.node.calibrate import expected_goodput

Value = Callable[[Sample], float | None]

AGAINST = {PRE_DUMP: "(b)", STOP_AND_COPY: "(a)"}
BYTES_GOAL, TOTAL_GOAL, BLACKOUT_GOAL = 0.15, 0.30, 0.25
BLACKOUT_LIMIT_S = {64: 0.6, 32: 0.3}
STALL_LIMIT_S = 0.05
SLOWDOWN_GOAL = 1.3
VISIT_GOAL = 0.3
LINK_FACTOR, LINK_EXTRA_S = 1.2, 0.5
RATE_BIT_S = 1_000_000_000
GROWTHS = (("blackout_s", "blackout"), ("total_s", "total migration time"))


def own_bytes(one: Sample) -> float:
    """What the migration itself sent: the uplink's bytes without the guest's own frames (its answers to the load)."""
    return float(one["wire_bytes"] - one["guest_bytes"])


def _value(key: str) -> Value:
    return lambda one: one.get(key)


def all_rows(samples: Sequence[Sample]) -> list[Row]:
    return [
        *_web(samples), *_dirty(samples), *_idle(samples), *_stall(samples), *_response(samples), *_visit(samples),
        *_growth(samples, "tasks", lambda one: float(one["tasks"]), "task"),
        *_growth(samples, "memory", lambda one: one["memory_mb"] / 1024, "GiB"),
        *_left_out(samples),
        *_slow_restores(samples),
    ]  # fmt: skip


def _settings(samples: Iterable[Sample], group: str) -> list[str]:
    return list(dict.fromkeys(one["setting"] for one in samples if one["group"] == group))


def _dict(found: Spread | None, **more: Any) -> dict[str, Any] | None:
    return None if found is None else {**found.as_dict(), **more}


def _phases(samples: Sequence[Sample]) -> dict[str, float]:
    """Median seconds of each phase of ours; rounds together as "rounds"."""
    names = dict.fromkeys(name for one in samples for name in one["phases"])
    phases = {name: found.median for name in names if (found := spread((one["phases"].get(name) for one in samples), "s"))}
    rounds = spread((sum(r["duration_s"] for r in one["rounds"] if r["kind"] != "final") for one in samples), "s")
    return {"rounds": rounds.median, **phases} if rounds and rounds.median else phases


def _compare(
    samples: Sequence[Sample], group: str, setting: str, figure: str, value: Value, unit: str, *, rival: str, goal: float | None = None
) -> list[Row]:
    ours = usable(samples, group=group, setting=setting, mover=OURS)
    theirs = usable(samples, group=group, setting=setting, mover=rival)
    mine, base = spread(map(value, ours), unit), spread(map(value, theirs), unit)
    if base is None and (mine is None or goal is None):
        return []
    ratio = mine.median / base.median if mine and base and base.median else None
    met = None if goal is None or ratio is None else ratio <= goal
    note = "" if met is not False or ratio is None or goal is None else f"missed by a factor of {ratio / goal:.2f}"
    return [
        Row(
            figure,
            f"{setting}, against {AGAINST[rival]}",
            _dict(mine),
            _dict(base, method=rival),
            ratio,
            f"≤ {goal:g}x" if goal is not None else "",
            met,
            note,
            _phases(ours),
        )
    ]


def _limit(samples: Sequence[Sample], group: str, setting: str, figure: str, value: Value, limit_s: float, baseline: str = "") -> list[Row]:
    ours = usable(samples, group=group, setting=setting, mover=OURS)
    mine = spread(map(value, ours), "s")
    if mine is None:
        return []
    base = spread(map(value, usable(samples, group=group, setting=setting, mover=baseline)), "s") if baseline else None
    met = mine.median <= limit_s
    note = "" if met else f"missed by {units.duration(mine.median - limit_s)}"
    goal = f"≤ {limit_s * 1000:g} ms"
    ratio = mine.median / base.median if base and min(mine.median, base.median) > 0 else None
    return [Row(figure, setting, _dict(mine), _dict(base, method=baseline), ratio, goal, met, note, _phases(ours))]


def _web(samples: Sequence[Sample]) -> list[Row]:
    rows: list[Row] = []
    for setting in _settings(samples, "web"):
        workers = int(setting.split()[0])
        saturated = "saturated" in setting
        for rival in (PRE_DUMP, STOP_AND_COPY):
            judged = rival == PRE_DUMP and workers == 64
            goals = (
                BYTES_GOAL if judged else None,
                TOTAL_GOAL if judged else None,
                BLACKOUT_GOAL if rival == PRE_DUMP and saturated else None,
            )
            rows += _compare(samples, "web", setting, "bytes on the wire", own_bytes, "bytes", rival=rival, goal=goals[0])
            rows += _compare(samples, "web", setting, "total migration time", _value("total_s"), "s", rival=rival, goal=goals[1])
            rows += _compare(samples, "web", setting, "blackout", _value("blackout_s"), "s", rival=rival, goal=goals[2])
        if saturated and workers in BLACKOUT_LIMIT_S:
            rows += _limit(samples, "web", setting, "blackout, absolute", _value("blackout_s"), BLACKOUT_LIMIT_S[workers], PRE_DUMP)
    return rows


def _dirty(samples: Sequence[Sample]) -> list[Row]:
    figures = (
        ("bytes on the wire", own_bytes, "bytes"),
        ("total migration time", _value("total_s"), "s"),
        ("blackout", _value("blackout_s"), "s"),
    )
    return [
        row
        for setting in _settings(samples, "dirty")
        for rival in (PRE_DUMP, STOP_AND_COPY)
        for figure, value, unit in figures
        for row in _compare(samples, "dirty", setting, figure, value, unit, rival=rival)
    ]


def _idle(samples: Sequence[Sample]) -> list[Row]:
    rows: list[Row] = []
    for setting in _settings(samples, "idle"):
        ours = usable(samples, group="idle", setting=setting, mover=OURS)
        if mine := spread((one["total_s"] for one in ours), "s"):
            least = ours[0]["memory_mb"] * 2**20 * 8 / expected_goodput(RATE_BIT_S)
            limit = LINK_FACTOR * least + LINK_EXTRA_S
            met = mine.median <= limit
            rows.append(
                Row(
                    "idle guest: total time against bytes / link rate",
                    setting,
                    _dict(mine),
                    {"median": least, "min": least, "max": least, "n": 1, "unit": "s", "method": "memory / TCP payload rate of the link"},
                    mine.median / least,
                    f"≤ {LINK_FACTOR:g}x + {LINK_EXTRA_S:g} s ({limit:.2f} s)",
                    met,
                    "" if met else f"missed by {units.duration(mine.median - limit)}",
                    _phases(ours),
                )
            )
        for rival in (PRE_DUMP, STOP_AND_COPY):
            rows += _compare(samples, "idle", setting, "total migration time", _value("total_s"), "s", rival=rival)
            rows += _compare(samples, "idle", setting, "blackout", _value("blackout_s"), "s", rival=rival)
    return rows


def _excess(one: Sample) -> float | None:
    return None if one.get("stall_s") is None else float(one["stall_s"] - one["blackout_s"])


def _stall(samples: Sequence[Sample]) -> list[Row]:
    figure = "client stall - blackout"
    return [
        row
        for group, rival in (("stall", PRE_DUMP), ("response", ""))
        for setting in _settings(samples, group)
        for row in _limit(samples, group, setting, figure, _excess, STALL_LIMIT_S, rival)
    ]


def _response(samples: Sequence[Sample]) -> list[Row]:
    rows = []
    for setting in _settings(samples, "response"):
        ours = usable(samples, group="response", setting=setting, mover=OURS)
        # Each migration beside what was just before it: one that begins with a queue, on a machine with neighbours, must not decide.
        each = [one for one in ours if one["p99_before_s"] and one["p99_rounds_s"]]
        before = spread((one["p99_before_s"] for one in each), "s")
        during = spread((one["p99_rounds_s"] for one in each), "s")
        if before is None or during is None:
            continue
        ratio = statistics.median(one["p99_rounds_s"] / one["p99_before_s"] for one in each)
        rows.append(
            Row(
                "slowdown of p99 during the rounds",
                setting,
                during.__dict__,
                {**before.__dict__, "method": "no migration"},
                ratio,
                f"≤ {SLOWDOWN_GOAL:g}x",
                ratio <= SLOWDOWN_GOAL,
                f"p99 of each of {len(each)} migrations, and just before it; the ratio is the median of theirs",
                _phases(ours),
            )
        )
    return rows


def _visit(samples: Sequence[Sample]) -> list[Row]:
    rows = []
    for setting in _settings(samples, "visit"):
        first = spread(map(own_bytes, usable(samples, group="visit", setting=setting, visit="first")), "bytes")
        second = spread(map(own_bytes, usable(samples, group="visit", setting=setting, visit="second")), "bytes")
        if first and second:
            ratio = second.median / first.median
            met = ratio <= VISIT_GOAL
            note = "" if met else f"missed by a factor of {ratio / VISIT_GOAL:.2f}"
            figure = "second visit to a host: bytes against the first"
            rows.append(Row(figure, setting, _dict(second), _dict(first, method="first visit"), ratio, f"≤ {VISIT_GOAL:g}x", met, note))
    return rows


def line_of(samples: Sequence[Sample], group: str, mover: str, x: Value, key: str) -> Line | None:
    return fit([(float(x(one) or 0.0), float(one[key])) for one in usable(samples, group=group, mover=mover)])


def _growth(samples: Sequence[Sample], group: str, x: Value, per: str) -> list[Row]:
    rows = []
    for key, what in GROWTHS:
        ours, theirs = (_line_dict(line_of(samples, group, mover, x, key), per) for mover in (OURS, PRE_DUMP))
        if ours:
            ratio = ours["slope"] / theirs["slope"] if theirs and theirs["slope"] > 0 else None
            sizes = [setting.split() for setting in _settings(samples, group)]
            setting = f"{what}, {', '.join(size[0] for size in sizes)} {sizes[-1][-1]}"
            rows.append(
                Row(f"growth with {group}", setting, ours, {**theirs, "method": PRE_DUMP} if theirs else None, ratio, "a fitted line", None)
            )
    return rows


def _line_dict(line: Line | None, per: str) -> dict[str, Any] | None:
    if line is None:
        return None
    return {
        "intercept": line.intercept, "slope": line.slope, "residual": line.residual, "r2": line.r2, "n": line.n, "unit": "s", "per": per,
    }  # fmt: skip


def _left_out(samples: Sequence[Sample]) -> list[Row]:
    """A row for each setting that was not tried or failed, so that nothing is missing without a word."""
    rows = []
    seen = set()
    for one in samples:
        reason = one["left_out"] or one["error"]
        key = (one["group"], one["setting"], one["mover"], bool(one["left_out"]))
        if reason and key not in seen:
            seen.add(key)
            count = sum((s["group"], s["setting"], s["mover"]) == key[:3] and bool(s["left_out"] or s["error"]) for s in samples)
            word = "left out" if one["left_out"] else "failed"
            rows.append(
                Row(f"{one['group']}: {word}", f"{one['setting']}, {one['mover']}", None, None, None, "", None, f"{count} times: {reason}")
            )
    return rows


def _slow_restores(samples: Sequence[Sample]) -> list[Row]:
    """A row for each setting in which ours was restored by CRIU alone, since a restore before it had failed on that node."""
    rows = []
    for group, setting in dict.fromkeys((one["group"], one["setting"]) for one in samples):
        ours = usable(samples, group=group, setting=setting, mover=OURS)
        slow = sum(one.get("in_place") is False for one in ours)
        if slow:
            note = f"{slow} of {len(ours)} samples: slower than usual, after a restore that had failed"
            rows.append(Row(f"{group}: not restored in place", f"{setting}, {OURS}", None, None, None, "", None, note))
    return rows
