"""Loading a run folder. Everything the analysis and the report know about a run comes from here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import yaml

from emulab.analysis.interval import Interval
from emulab.analysis.quantities import seconds
from emulab.analysis.records import TABLES, RunError, empty_table, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

Document = dict[str, Any]
Status = Literal["complete", "aborted", "failed"]


@dataclass(frozen=True)
class Span:
    """A ``begin``/``end`` pair of the timeline. ``end_s`` is NaN if the end was never written."""

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Migration:
    """One row of migrations.json. Instants and durations that did not happen are NaN."""

    id: int
    vm: str
    source: str
    destination: str
    outcome: str
    start_s: float
    end_s: float
    total_s: float
    freeze_s: float
    resume_s: float
    blackout_s: float
    network_hold_s: float
    raw: Mapping[str, Any]

    @property
    def committed(self) -> bool:
        return self.outcome == "committed"

    @property
    def reason(self) -> str:
        return str(self.raw.get("reason") or "")

    @property
    def phases(self) -> dict[str, float]:
        return {str(name): float(value) for name, value in (self.raw.get("phases") or {}).items() if value is not None}

    @property
    def rounds(self) -> list[Document]:
        return list(self.raw.get("rounds") or [])


@dataclass(frozen=True)
class Run:
    """A loaded run folder: tables as DataFrames (columns in emulab.analysis.records), documents as dictionaries."""

    path: Path
    status: Status
    manifest: Document
    scenario: Document
    calibration: Document
    timeline: list[Document]
    migrations: list[Migration]
    operations: pd.DataFrame
    requests: pd.DataFrame
    probes: pd.DataFrame
    samples: pd.DataFrame
    rounds: pd.DataFrame
    steady: Interval | None
    missing: tuple[str, ...] = field(default=())
    load_totals: Document = field(default_factory=dict)

    @property
    def origin_s(self) -> float:
        """The instant that summaries and figures count from: start of steady state, else the manifest's clock."""
        if self.steady is not None:
            return self.steady.start_s
        return _number(self.manifest.get("clock", {}).get("mono_s"), 0.0)

    @property
    def users(self) -> int:
        return int(self.section("load").get("users") or 0)

    def section(self, name: str) -> Document:
        """A part of the scenario, or an empty dictionary."""
        value = self.scenario.get(name)
        return value if isinstance(value, dict) else {}

    def spans(self, name: str, identity: int | None = None) -> list[Span]:
        """All ``begin``/``end`` pairs of that name (and migration id), in order of their beginning."""
        return spans(self.timeline, name, identity)

    def events(self, name: str, identity: int | None = None) -> list[Document]:
        return [row for row in self.timeline if row.get("name") == name and row.get("kind") == "event" and _is(row, identity)]


def spans(timeline: list[Document], name: str, identity: int | None = None) -> list[Span]:
    """Pair ``begin`` and ``end`` rows of one name. Rows of different ``id`` or ``n`` do not pair."""
    open_rows: dict[tuple[Any, Any], Document] = {}
    found: list[Span] = []
    for row in timeline:
        if row.get("name") != name or not _is(row, identity):
            continue
        key = (row.get("id"), row.get("n"))
        if row.get("kind") == "begin":
            open_rows[key] = row
        elif row.get("kind") == "end" and key in open_rows:
            begin = open_rows.pop(key)
            found.append(Span(name, float(begin["mono_s"]), float(row["mono_s"]), {**begin, **row}))
    found += [Span(name, float(row["mono_s"]), math.nan, row) for row in open_rows.values()]
    return sorted(found, key=lambda span: span.start_s)


def _is(row: Document, identity: int | None) -> bool:
    return identity is None or row.get("id") == identity


def load_run(path: str | Path) -> Run:
    """Load a run folder.

    A run whose manifest says ``aborted`` or ``failed`` may lack tables: they are empty then and named in ``Run.missing``.

    Raises RunError: no such folder, a file is missing or corrupt.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RunError(f"{folder} is not a run folder", hint="Give a folder below runs/, for example runs/latest.")
    manifest = _read_json(folder / "manifest.json")
    if not isinstance(manifest, dict):
        raise RunError(f"{folder / 'manifest.json'} is not a JSON object")
    version = manifest.get("format_version")
    if version != 1:
        raise RunError(f"{folder / 'manifest.json'} has format_version {version}; this program reads 1")
    scenario = _read_yaml(folder / "scenario.resolved.yaml")
    timeline_path = folder / "timeline.ndjson"
    stated = manifest.get("status")
    timeline = _read_timeline(timeline_path, cut_off=stated != "complete") if timeline_path.exists() else []
    steady = _steady(manifest, timeline)
    status = cast("Status", stated) if stated in ("complete", "aborted", "failed") else _infer_status(manifest, timeline)
    missing: list[str] = [] if timeline_path.exists() else ["timeline.ndjson"]
    tables: dict[str, pd.DataFrame] = {}
    for name in TABLES:
        file = folder / f"{name}.parquet"
        if file.exists():
            tables[name] = read_table(file, name)
        else:
            missing.append(file.name)
            tables[name] = empty_table(name)
    load_file = folder / "load.json"
    load_totals = _read_json(load_file) if load_file.exists() else {}
    documents: dict[str, Any] = {"calibration": {}, "migrations": []}
    for name in documents:
        file = folder / f"{name}.json"
        if file.exists():
            documents[name] = _read_json(file)
        elif name != "migrations" or scenario.get("migrations"):
            missing.append(file.name)
    if missing and status == "complete":
        raise RunError(
            f"{folder} lacks {', '.join(missing)}", hint="A complete run has all files; the folder was copied in part or cleaned."
        )
    return Run(
        path=folder,
        status=status,
        manifest=manifest,
        scenario=scenario,
        calibration=documents["calibration"] if isinstance(documents["calibration"], dict) else {},
        timeline=timeline,
        migrations=_migrations(documents["migrations"], folder / "migrations.json"),
        steady=steady,
        missing=tuple(missing),
        load_totals=load_totals if isinstance(load_totals, dict) else {},
        **tables,
    )


def _steady(manifest: Document, timeline: list[Document]) -> Interval | None:
    stated = manifest.get("steady") or {}
    start, end = _number(stated.get("start_s")), _number(stated.get("end_s"))
    if not (math.isfinite(start) and math.isfinite(end)):
        found = spans(timeline, "load.steady")
        if not found:
            return None
        start = found[0].start_s
        end = found[0].end_s if math.isfinite(found[0].end_s) else float(timeline[-1]["mono_s"])
    return Interval(start, end) if end > start else None


def _infer_status(manifest: Document, timeline: list[Document]) -> Status:
    """A manifest without status: complete if steady state was seen to its end."""
    steady = spans(timeline, "load.steady")
    ended = bool(steady) and math.isfinite(steady[0].end_s)
    return "complete" if ended or (not steady and manifest.get("steady")) else "aborted"


def _migrations(rows: Any, path: Path) -> list[Migration]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RunError(f"{path} is not a list of migrations")
    found = []
    for n, row in enumerate(rows):
        lacking = [key for key in ("vm", "source", "destination", "outcome", "start_s") if key not in row]
        if lacking:
            raise RunError(f"{path}: migration {n} lacks {', '.join(lacking)}")
        start = _number(row["start_s"])
        end = _number(row.get("end_s"))
        found.append(
            Migration(
                id=int(row.get("id", n)),
                vm=str(row["vm"]),
                source=str(row["source"]),
                destination=str(row["destination"]),
                outcome=str(row["outcome"]),
                start_s=start,
                end_s=end,
                total_s=_number(row.get("total_s"), end - start),
                freeze_s=_number(row.get("freeze_s")),
                resume_s=_number(row.get("resume_s")),
                blackout_s=_number(row.get("blackout_s")),
                network_hold_s=_number(row.get("network_hold_s")),
                raw=row,
            ),
        )
    return sorted(found, key=lambda migration: migration.start_s)


def _number(value: Any, default: float = math.nan) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing", hint="Give a folder that an experiment has written, for example runs/latest.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is not valid JSON: {error}") from error


def _read_yaml(path: Path) -> Document:
    try:
        value = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise RunError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is not a scenario")
    return cast("Document", value)


def _read_timeline(path: Path, *, cut_off: bool) -> list[Document]:
    """Rows in order of time. The last line may be cut off in a run that did not end by itself."""
    lines = _read_text(path).splitlines()
    rows: list[Document] = []
    for n, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({**row, "mono_s": float(row["mono_s"])})
        except (ValueError, TypeError, KeyError) as error:
            if cut_off and n == len(lines):
                break
            raise RunError(f"{path}, line {n} is not a timeline row") from error
    return sorted(rows, key=lambda row: row["mono_s"])


def probe_interval_s(run: Run) -> float:
    """Seconds between probes as the scenario asks; 10 ms if it does not say."""
    return seconds(run.section("probe").get("interval"), 0.010)
