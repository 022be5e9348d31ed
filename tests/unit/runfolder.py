"""A synthetic, plausible run folder, for tests of analysis and report only. The numbers are invented; the shapes are the contract's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import runload
import yaml
from runspec import BOOT_S, HOSTS, Move, Spec

__all__ = ["BOOT_S", "Move", "Spec", "write"]


def write(folder: Path, spec: Spec | None = None) -> Path:
    """Write a run folder and return it."""
    spec = spec or Spec()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    rng = np.random.default_rng(spec.seed)
    steady = BOOT_S + spec.ramp_up_s
    stops = [_times(spec, move, steady) for move in spec.moves]
    operations, requests = runload.load(spec, steady, stops, rng)
    operations.to_parquet(folder / "operations.parquet")
    requests.to_parquet(folder / "requests.parquet")
    runload.probes(spec, steady, stops, rng).to_parquet(folder / "probes.parquet")
    runload.samples(spec, steady, stops, rng).to_parquet(folder / "samples.parquet")
    migrations = [_migration(spec, n, move, stop) for n, (move, stop) in enumerate(zip(spec.moves, stops, strict=True))]
    _rounds(migrations).to_parquet(folder / "rounds.parquet")
    _json(folder / "migrations.json", migrations)
    _json(folder / "calibration.json", _calibration(rng))
    _json(folder / "manifest.json", _manifest(spec, steady))
    (folder / "scenario.resolved.yaml").write_text(yaml.safe_dump(_scenario(spec), sort_keys=False))
    rows = _timeline(spec, steady, migrations)
    (folder / "timeline.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n, move in enumerate(spec.moves):
        if move.log:
            (folder / "logs" / f"migration-{n}-criu-dump.log").write_text(move.log)
    (folder / "logs" / "load.log").write_text("ramp-up\nsteady\nramp-down\n")
    return folder


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))


def _times(spec: Spec, move: Move, steady: float) -> dict[str, Any]:
    """Instants of one migration: rounds that shrink, a freeze, a resume."""
    start = steady + move.at_s
    at, rounds = start + 0.4, []
    for n in range(1, move.rounds + 1):
        duration = 4.2 * 0.42 ** (n - 1) + 0.35
        rounds.append((at, duration, 0.05))
        at += duration
    freeze = at + 0.05
    resume = freeze + move.blackout_s
    if move.aborted:
        return {"start": start, "rounds": rounds, "freeze": None, "resume": None, "end": at + 0.3}
    return {"start": start, "rounds": rounds, "freeze": freeze, "resume": resume, "end": resume + 0.2}


def _migration(spec: Spec, n: int, move: Move, stop: dict[str, Any]) -> dict[str, Any]:
    rounds = []
    for i, (start, duration, frozen) in enumerate(stop["rounds"]):
        pages = int(64_000 * 0.38**i) + 900
        rounds.append(_round(i + 1, "pre-dump", start, duration, frozen, pages, move.blackout_s * (1.9 - 0.25 * i)))
    phases = {"layer": 0.31}
    if stop["freeze"] is not None:
        shares = {"freeze": 0.03, "dump": 0.42, "transfer": 0.09, "restore": 0.41, "resume": 0.03}
        phases |= {name: share * move.blackout_s for name, share in shares.items()}
        frozen = stop["resume"] - stop["freeze"]
        rounds.append(
            _round(len(rounds) + 1, "final", stop["freeze"], frozen * 0.5, frozen * 0.45, 2100, rounds[-1]["predicted_blackout_s"])
        )
    return {
        "id": n,
        "vm": spec.vm,
        "source": move.source,
        "destination": move.destination,
        "strategy": "pre-copy",
        "dirty_tracker": "write-protect",
        "outcome": "aborted" if move.aborted else "committed",
        "reason": move.reason,
        "start_s": stop["start"],
        "end_s": stop["end"],
        "total_s": stop["end"] - stop["start"],
        "freeze_s": stop["freeze"],
        "resume_s": stop["resume"],
        "blackout_s": None if stop["freeze"] is None else stop["resume"] - stop["freeze"],
        "network_hold_s": None if stop["freeze"] is None else move.blackout_s * 0.97,
        "rounds": rounds,
        "bytes_on_wire": sum(row["bytes_on_wire"] for row in rounds),
        "bytes_of_pages": sum(row["bytes"] for row in rounds),
        "tasks": 58,
        "tcp_established": spec.users // 2,
        "phases": phases,
        "stop_rule": "predicted blackout <= 0.3 s, or 8 rounds, or no gain",
        "stop_reason": "dirty pages cost 0.012 s of a predicted blackout of 0.88 s: another round cannot shorten it",
    }


def _round(n: int, kind: str, start: float, duration: float, frozen: float, pages: int, predicted: float) -> dict[str, Any]:
    return {
        "n": n,
        "kind": kind,
        "start_s": start,
        "duration_s": duration,
        "frozen_s": frozen,
        "pages": pages,
        "bytes": pages * 4096,
        "bytes_on_wire": int(pages * 4096 * 0.29),
        "layer_bytes": 1_800_000 // n,
        "predicted_blackout_s": predicted,
        "dirty_pages_per_s": pages / duration,
    }


def _rounds(migrations: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["migration", "n", "kind", "start_s", "duration_s", "frozen_s", "pages", "bytes", "bytes_on_wire", "layer_bytes"]
    rows = [{"migration": migration["id"], **row} for migration in migrations for row in migration["rounds"]]
    return pd.DataFrame(rows, columns=[*columns, "predicted_blackout_s", "dirty_pages_per_s"])


def _calibration(rng: np.random.Generator) -> dict[str, Any]:
    nodes = {}
    for name in ("head", *HOSTS):
        up, down = (9.41e8 + rng.normal(0, 3e6, (2, 3))).tolist()
        nodes[name] = {
            "up_bit_s": up,
            "down_bit_s": down,
            "up_best": max(up),
            "down_best": max(down),
            "rtt_idle_s": 0.00009,
            "rtt_loaded_s": 0.0031,
        }
    return {"asked": {"rate_bit_s": 1e9}, "tolerance": 0.05, "expected_bit_s": 941e6, "nodes": nodes}


def _manifest(spec: Spec, steady: float) -> dict[str, Any]:
    manifest = {
        "format_version": 1,
        "id": "20260101T120000Z-a1b2c3",
        "started_at": "2026-01-01T12:00:00.000Z",
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "argv": ["emulab", "experiment", spec.name, "--users", str(spec.users)],
        "command": f"make experiment SCENARIO={spec.name} USERS={spec.users} SEED={spec.seed}",
        "versions": {
            "emulab": "0.1.0",
            "kernel": "6.12.41",
            "criu": "4.2",
            "engine": "26.1.5",
            "compose": "2.26.1",
            "python": "3.11.2",
            "locust": "2.46.3",
            "images": {"node": "sha256:" + "ab" * 32, "olio-web": "sha256:" + "cd" * 32},
        },
        "host": {
            "cpu_model": "Example CPU @ 2.40GHz",
            "cores": 2,
            "memory_bytes": 16 << 30,
            "cgroup": "v2",
            "soft_dirty": False,
            "sysctl": {"fs.pipe-max-size": "4194304"},
        },
        "clock": {"mono_s": BOOT_S - 60, "wall": "2026-01-01T12:00:00.000Z"},
        "steady": {"start_s": steady, "end_s": steady + spec.steady_s},
        "links": {"rate_bit_s": 1_000_000_000},
    }
    if spec.status is not None:
        manifest["status"] = spec.status
    if spec.error is not None:
        manifest["error"] = spec.error
    return manifest


def _scenario(spec: Spec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "description": "One live migration of the web server under load.",
        "seed": spec.seed,
        "topology": {"hosts": 5, "subnet": "198.18.0.0/24", "rate": "1gbit"},
        "workload": {"name": "olio", "profile": "olio-0.1", "data_ratio": 100, "keepalive": "5s", "workers": 40, "cache_warm": 0.6},
        "guests": {
            "web": {"host": "host1", "vcpus": 1, "memory": "2GiB", "image": "olio-web"},
            "db": {"host": "host2", "vcpus": 2, "memory": "1GiB", "image": "olio-db"},
        },
        "load": {
            "users": spec.users,
            "ramp_up": f"{spec.ramp_up_s:g}s",
            "steady": f"{spec.steady_s:g}s",
            "ramp_down": f"{spec.ramp_down_s:g}s",
            "pacing": "cycle",
            "mean": "5s",
            "cap": "25s",
        },
        "probe": {"interval": "10ms", "path": "/probe.txt"},
        "migrations": [{"vm": spec.vm, "at": f"{move.at_s:g}s", "to": move.destination, "strategy": "pre-copy"} for move in spec.moves],
        "sla": {
            "window": "300s",
            "limits": {
                "HomePage": "1s",
                "Login": "1s",
                "TagSearch": "2s",
                "EventDetail": "2s",
                "PersonDetail": "2s",
                "AddPerson": "3s",
                "AddEvent": "4s",
            },
        },
        **spec.scenario,
    }


def _timeline(spec: Spec, steady: float, migrations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def mark(at: float, name: str, kind: str = "event", source: str = "cli", **fields: Any) -> None:
        rows.append({"mono_s": at, "wall": "2026-01-01T12:00:00.000Z", "source": source, "name": name, "kind": kind, **fields})

    def span(begin: float, end: float, name: str, source: str, **fields: Any) -> None:
        mark(begin, name, "begin", source, **fields)
        mark(end, name, "end", source, **fields)

    for n, step in enumerate(("doctor", "up", "calibrate links", "place guests", "load data")):
        mark(BOOT_S - 60 + 10 * n, "experiment.step", step=step)
    span(BOOT_S, steady, "load.ramp_up", "head")
    span(steady, steady + spec.steady_s, "load.steady", "head")
    span(steady + spec.steady_s, steady + spec.steady_s + spec.ramp_down_s, "load.ramp_down", "head")
    for row in migrations:
        identity, source = row["id"], row["source"]
        labels = {"id": identity, "vm": row["vm"], "from": source, "to": row["destination"], "strategy": row["strategy"]}
        span(row["start_s"], row["end_s"], "migration", source, **labels)
        for item in row["rounds"]:
            if item["kind"] == "pre-dump":
                span(item["start_s"], item["start_s"] + item["duration_s"], "migration.round", source, id=identity, n=item["n"])
        if row["freeze_s"] is None:
            mark(row["end_s"], "migration.abort", source=source, id=identity, reason=row["reason"])
            continue
        mark(
            row["freeze_s"] - 0.02, "migration.stop_rule", source=source, id=identity, reason=row["stop_reason"], predicted_blackout_s=0.88
        )
        at = row["freeze_s"]
        for name in ("freeze", "dump", "transfer", "restore"):
            length = row["phases"][name]
            span(at, at + length, f"migration.{name}", source, id=identity)
            at += length
        mark(at, "migration.commit", source=source, id=identity)
        mark(row["resume_s"], "migration.resume", source=source, id=identity)
    return sorted(rows, key=lambda row: row["mono_s"])
