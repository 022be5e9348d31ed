"""From a loaded run to summary.json: one function, one part of the document each."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulab.analysis import checks, connections, downtime, migrations, model, paper, resources, sla
from emulab.analysis.accounting import Steady, steady_state
from emulab.analysis.interval import Interval
from emulab.analysis.migrations import Affected, connection_counts, describe
from emulab.analysis.percentiles import faban_percentile, percentiles
from emulab.analysis.quantities import finite, number, text
from emulab.analysis.run import Run, load_run, probe_interval_s
from emulab.analysis.split import phases
from emulab.analysis.story import story

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Analysis:
    """What several parts of the summary (and the report's figures) share, computed once."""

    run: Run
    steady: Steady | None
    affected: list[Affected]
    rule: sla.Rule
    rates: pd.DataFrame

    @property
    def phases(self) -> dict[str, pd.DataFrame]:
        return phases(self.steady.counted, [item.interval for item in self.affected]) if self.steady else {}


def summarise(run: Run) -> dict[str, Any]:
    """The content of summary.json (shape: emulab.analysis.model.Summary; JSON-ready, null instead of NaN)."""
    return summarise_analysis(analyse(run))


def write_summary(run_dir: str | Path) -> dict[str, Any]:
    """Summarise a run folder, write its summary.json, return it."""
    summary = summarise(load_run(run_dir))
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (Path(run_dir) / "summary.json").write_text(text, encoding="utf-8")
    return summary


def analyse(run: Run) -> Analysis:
    """Steady-state accounting, the affected interval of every migration, rates of the samples."""
    steady = steady_state(run.operations, run.steady) if run.steady else None
    return Analysis(run, steady, migrations.affected(run, steady), sla.Rule.from_scenario(run.section("sla")), resources.rates(run.samples))


def summarise_analysis(analysis: Analysis) -> dict[str, Any]:
    """As ``summarise``, from an analysis that is at hand."""
    run = analysis.run
    operations = _operations(analysis)
    verdict = _sla(analysis, operations)
    migrations = [describe(run, analysis.steady, item) for item in analysis.affected]
    load = _load(analysis)
    requests = _steady_requests(analysis)
    summary = model.Summary(
        status=run.status,
        error=text(run.manifest.get("error")),
        run_id=str(run.manifest.get("id") or run.path.resolve().name),
        scenario=str(run.scenario.get("name") or "unnamed"),
        seed=run.scenario.get("seed"),
        started_at=text(run.manifest.get("started_at")),
        story=story(run.status, load, verdict, operations, migrations),
        steady=model.Steady(start_mono_s=run.steady.start_s, length_s=run.steady.length_s) if run.steady else None,
        load=load,
        sla=verdict,
        operations=operations,
        migrations=migrations,
        probe=_probe(run),
        checks=_checks(analysis, load),
        requests=_request_kinds(requests),
        connections=connection_counts(run, None),
        resources=_resources(analysis),
        calibration=_calibration(run),
        paper=_paper(load, verdict, operations, migrations),
        missing=list(run.missing),
    )
    return summary.model_dump(mode="json", by_alias=True)


def _steady_requests(analysis: Analysis) -> pd.DataFrame:
    requests = analysis.run.requests
    if analysis.steady is None:
        return requests.iloc[0:0]
    interval = analysis.steady.interval
    return requests[(requests["start_s"] >= interval.start_s) & (requests["start_s"] < interval.end_s)]


def _load(analysis: Analysis) -> model.Load:
    run, steady = analysis.run, analysis.steady
    requests = _steady_requests(analysis)
    rate = steady.done_per_s if steady else math.nan
    return model.Load(
        users=run.users,
        steady_s=finite(steady.interval.length_s) if steady else None,
        operations=len(steady.counted) if steady else 0,
        ops_per_s=finite(rate),
        offered_ops_per_s=finite(steady.offered_per_s) if steady else None,
        errors=len(steady.errors) if steady else 0,
        unfinished=len(steady.unfinished) if steady else 0,
        http_requests=len(requests),
        http_failed=int(connections.failed(requests).sum()),
        driver_cpu_max=_driver_cpu_max(analysis),
        users_per_rate=finite(run.users / rate) if rate > 0 else None,
    )


def _driver_cpu_max(analysis: Analysis) -> float | None:
    """As the drivers measured themselves; from the samples of processes where there is no such record."""
    stated = analysis.run.load_totals.get("driver_cpu_max")
    if isinstance(stated, int | float):
        return finite(float(stated))
    return finite(resources.busiest_process(analysis.rates, analysis.steady.interval)) if analysis.steady else None


def _operations(analysis: Analysis) -> dict[str, model.Operation]:
    """One entry for each operation that has a limit or was seen."""
    if analysis.steady is None:
        names = list(analysis.rule.limits_s)
        return {name: _operation(analysis, name, None) for name in names}
    seen = (
        set(analysis.steady.counted["operation"]) | set(analysis.steady.errors["operation"]) | set(analysis.steady.unfinished["operation"])
    )
    names = [*analysis.rule.limits_s, *sorted(str(name) for name in seen if name not in analysis.rule.limits_s)]
    return {name: _operation(analysis, name, analysis.steady) for name in names}


def _operation(analysis: Analysis, name: str, steady: Steady | None) -> model.Operation:
    limit = analysis.rule.limits_s.get(name, math.inf)
    if steady is None:
        empty = model.Window(passed=False, worst_s=None, worst_window_start_s=None, samples=0)
        nothing = dict.fromkeys(
            ("mean_s", "p50_s", "p90_s", "p99_s", "max_s", "corrected_p90_s", "corrected_p99_s", "faban_p90_s", "faban_p99_s"),
        )
        return model.Operation(count=0, errors=0, unfinished=0, **nothing, limit_s=finite(limit), sla90=empty, sla99=empty, phases={})
    rows = steady.counted[steady.counted["operation"] == name]
    response, corrected = rows["response_s"].to_numpy(float), rows["corrected_s"].to_numpy(float)
    p50, p90, p99 = percentiles(response, 50, 90, 99)
    corrected90, corrected99 = percentiles(corrected, 90, 99)
    largest = max((value for value in analysis.rule.limits_s.values() if math.isfinite(value)), default=4.0)
    windows = {}
    for percent in sla.PERCENTS:
        verdict = sla.judge(rows, limit, percent, analysis.rule.window_s, steady.interval)
        windows[percent] = model.Window(
            passed=verdict.passed,
            worst_s=finite(verdict.worst.value_s),
            worst_window_start_s=finite(verdict.worst.start_s - steady.interval.start_s),
            samples=verdict.worst.samples,
        )
    return model.Operation(
        count=len(rows),
        errors=int((steady.errors["operation"] == name).sum()),
        unfinished=int((steady.unfinished["operation"] == name).sum()),
        mean_s=finite(float(response.mean())) if len(response) else None,
        p50_s=finite(p50),
        p90_s=finite(p90),
        p99_s=finite(p99),
        max_s=finite(float(response.max())) if len(response) else None,
        corrected_p90_s=finite(corrected90),
        corrected_p99_s=finite(corrected99),
        faban_p90_s=finite(faban_percentile(response, 90, largest)),
        faban_p99_s=finite(faban_percentile(response, 99, largest)),
        limit_s=finite(limit),
        sla90=windows[90],
        sla99=windows[99],
        phases={phase: _phase(table[table["operation"] == name], limit) for phase, table in analysis.phases.items()},
    )


def _phase(rows: pd.DataFrame, limit: float) -> model.PhaseValues:
    values = sla.phase_values(rows)
    return model.PhaseValues(
        count=len(rows),
        p90_s=finite(values[90]),
        p99_s=finite(values[99]),
        pass90=len(rows) > 0 and values[90] <= limit,
        pass99=len(rows) > 0 and values[99] <= limit,
    )


def _sla(analysis: Analysis, operations: dict[str, model.Operation]) -> model.Sla:
    limited = {name: operations[name] for name in analysis.rule.limits_s}
    broken90 = [name for name, operation in limited.items() if not operation.sla90.passed]
    broken99 = [name for name, operation in limited.items() if not operation.sla99.passed]
    length = analysis.steady.interval.length_s if analysis.steady else 0.0
    return model.Sla(
        window_s=min(analysis.rule.window_s, length) if length else analysis.rule.window_s,
        whole_steady=0 < length <= analysis.rule.window_s,
        pass90=bool(limited) and not broken90,
        pass99=bool(limited) and not broken99,
        broken90=broken90,
        broken99=broken99,
    )


def _probe(run: Run) -> model.Probe:
    latency = (run.probes["done_s"] - run.probes["intended_s"]).dropna().to_numpy(float)
    p50, p99 = percentiles(latency, 50, 99)
    gap = downtime.longest_gap(run.probes)
    return model.Probe(
        interval_s=finite(probe_interval_s(run)),
        sent=int(run.probes["sent_s"].notna().sum()),
        lost=downtime.lost(run.probes),
        p50_s=finite(p50),
        p99_s=finite(p99),
        longest_gap_s=finite(gap.length_s),
        longest_gap_start_s=finite(gap.start_s - run.origin_s),
    )


def _checks(analysis: Analysis, load: model.Load) -> model.Checks:
    run, steady = analysis.run, analysis.steady
    shares = checks.mix(steady.counted if steady else run.operations.iloc[0:0])
    deviation = max(abs(share - expected) for share, expected in shares.values())
    section = run.section("load")
    interval = steady.interval if steady else Interval(math.nan, math.nan)
    delay = checks.delays(run.operations, interval, str(section.get("pacing") or "cycle"))
    return model.Checks(
        mix={name: model.MixShare(share=finite(share), expected=round(expected, 9)) for name, (share, expected) in shares.items()},
        mix_deviation=finite(deviation),
        mix_holds=deviation <= checks.MIX_TOLERANCE,
        delay_drawn_s=finite(delay.drawn_s),
        delay_achieved_s=finite(delay.achieved_s),
        delay_deviation=finite(delay.deviation),
        delay_holds=delay.holds,
        users_per_rate_holds=load.users_per_rate is not None and load.users_per_rate <= checks.USERS_PER_RATE_LIMIT,
    )


def _request_kinds(requests: pd.DataFrame) -> dict[str, model.RequestKind]:
    found = {}
    for kind, group in requests.groupby("kind"):
        bad = connections.failed(group)
        good = group[~bad]
        p50, p90, p99 = percentiles((good["end_s"] - good["start_s"]).dropna().to_numpy(float), 50, 90, 99)
        found[str(kind)] = model.RequestKind(
            count=len(group),
            failed=int(bad.sum()),
            bytes=int(group["bytes"].sum()),
            p50_s=finite(p50),
            p90_s=finite(p90),
            p99_s=finite(p99),
        )
    return found


def _resources(analysis: Analysis) -> model.Resources:
    peak, when = resources.peak_memory(analysis.run.samples)
    used = resources.use(analysis.rates, analysis.steady.interval) if analysis.steady else []
    return model.Resources(
        peak_memory_bytes=finite(peak),
        peak_memory_at_s=finite(when - analysis.run.origin_s),
        use=[
            model.ResourceUse(
                kind=item.kind,
                node=item.node,
                name=item.name,
                cores_mean=finite(item.cores_mean),
                cores_max=finite(item.cores_max),
                memory_max_bytes=finite(item.memory_max_bytes),
                rx_bit_s_mean=finite(item.rx_bit_s_mean),
                tx_bit_s_mean=finite(item.tx_bit_s_mean),
            )
            for item in used
        ],
    )


def _calibration(run: Run) -> dict[str, model.Link]:
    nodes = run.calibration.get("nodes")
    return {
        str(name): model.Link(
            up_bit_s=finite(number(values.get("up_best"))),
            down_bit_s=finite(number(values.get("down_best"))),
            rtt_s=finite(number(values.get("rtt_idle_s"))),
            rtt_loaded_s=finite(number(values.get("rtt_loaded_s"))),
        )
        for name, values in (nodes.items() if isinstance(nodes, dict) else ())
        if isinstance(values, dict)
    }


def _paper(
    load: model.Load, verdict: model.Sla, operations: dict[str, model.Operation], migrations: list[model.Migration]
) -> dict[str, model.PaperValue]:
    """The first committed migration beside the paper's. Empty if there was none."""
    first = next((migration for migration in migrations if migration.outcome == "committed"), None)
    if first is None:
        return {}
    here: dict[str, float | str | None] = {
        "users": float(load.users),
        "migration_total_s": first.total_s,
        "downtime_s": first.blackout_s,
        "recovery_s": first.recovery_s,
        "requests_lost": float(first.requests_failed),
        "sla90": _ruling([operations[name].sla90 for name in verdict.broken90]),
        "sla99": _ruling([operations[name].sla99 for name in verdict.broken99]),
    }
    return {
        item.key: model.PaperValue(
            paper=item.value,
            here=here[item.key],
            ratio=finite(paper.ratio(item.value, here[item.key])),
            label=item.label,
            unit=item.unit,
            source=paper.SOURCE,
        )
        for item in paper.PUBLISHED
    }


def _ruling(broken: list[model.Window]) -> str:
    if not broken:
        return "holds"
    return "breaks" if any(window.samples for window in broken) else "not shown"
