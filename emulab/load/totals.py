"""``load.json``: what a load run amounts to, from the workers' sums. Percentiles are computed from the record files, elsewhere.

Keys: ``status`` (complete or stopped), ``users``, ``seed``, ``profile``, ``pacing``, ``ramp_up``, ``steady`` and ``ramp_down``
(``begin_s`` and ``end_s``, monotonic), ``offered_ops_per_s`` (users by mean delay), ``ops_per_s`` (successful operations started in
steady state, by its length), ``operations`` (of the steady state: by name, by outcome), ``totals`` (of the whole run), ``mix`` (share and
expected share by name), ``checks`` (the workload's own), ``driver_cpu_max`` (largest share of a core that a worker used over a second),
``workers`` (with CPU seconds and requests of each), ``probe``, ``warnings``.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from emulab.load.config import LoadConfig
    from emulab.load.workload import Workload

CPU_LIMIT = 0.9
OUTCOMES = ("ok", "error", "unfinished")


def collect(config: LoadConfig, workload: Workload, folder: Path, *, origin_s: float, status: str) -> dict[str, Any]:
    """Sum up the workers' ``worker-N.json`` and the prober's ``probes.json`` in ``folder``; missing ones are named in ``warnings``."""
    warnings: list[str] = []
    workers = []
    counts: Counter[str] = Counter()
    tables: dict[str, Counter[str]] = {"all": Counter(), "steady": Counter()}
    for number in range(config.drivers):
        state = _read(folder / f"worker-{number}.json")
        if state is None:
            warnings.append(f"worker {number} left no totals")
            continue
        workers.append({key: state[key] for key in ("worker", "cpu_max", "cpu_s", "requests")})
        counts.update(state["counts"])
        for part, table in tables.items():
            table.update(state[f"operations_{part}"])
    names = workload.model.mix.operations
    steady = {name: {outcome: tables["steady"][f"{name} {outcome}"] for outcome in OUTCOMES} for name in names}
    ok = {name: steady[name]["ok"] for name in names}
    started = sum(sum(outcomes.values()) for outcomes in steady.values())
    rate = sum(ok.values()) / config.steady_s
    cpu_max = max((worker["cpu_max"] for worker in workers), default=0.0)
    if cpu_max > CPU_LIMIT:
        warnings.append(f"a driver used {cpu_max:.0%} of a core: its own delays are in the response times; use more drivers")
    probe = _read(folder / "probes.json")
    if config.probe.interval_s > 0 and probe is None:
        warnings.append("the prober left no summary")
    ramp_up, ramp_down = origin_s + config.ramp_up_s, origin_s + config.ramp_up_s + config.steady_s
    return {
        "status": status,
        "users": config.users,
        "seed": config.seed,
        "profile": config.profile,
        "pacing": config.pacing,
        "ramp_up": {"begin_s": origin_s, "end_s": ramp_up},
        "steady": {"begin_s": ramp_up, "end_s": ramp_down},
        "ramp_down": {"begin_s": ramp_down, "end_s": origin_s + config.total_s},
        "offered_ops_per_s": config.users / workload.model.expected_delay_s(),
        "ops_per_s": rate,
        "operations": steady,
        "totals": {outcome: sum(tables["all"][f"{name} {outcome}"] for name in names) for outcome in OUTCOMES},
        "mix": {
            name: {"share": sum(steady[name].values()) / started if started else None, "expected": expected}
            for name, expected in workload.model.mix.stationary().items()
        },
        "checks": workload.checks(counts, ok, rate),
        "driver_cpu_max": cpu_max,
        "workers": workers,
        "probe": probe,
        "warnings": warnings,
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document
