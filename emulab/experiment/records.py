"""Raw records of the nodes as the typed tables of the run folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emulab.load.records import read_operations, read_probes, read_requests, write_parquet

ROUND_COLUMNS = (
    "migration", "n", "kind", "start_s", "duration_s", "frozen_s", "pages", "bytes", "bytes_on_wire", "layer_bytes", "predicted_blackout_s",
    "dirty_pages_per_s",
)  # fmt: skip


def write_samples(files: Sequence[Path], target: Path) -> int:
    """Join the nodes' CSV files, in order of time; returns the number of rows."""
    tables = [table for table in (pd.read_csv(path) for path in files) if len(table)]
    table = pd.concat(tables).sort_values("t_s", ignore_index=True) if tables else pd.DataFrame()
    table.to_parquet(target, compression="zstd")
    return len(table)


def write_rounds(migrations: Iterable[dict[str, Any]], target: Path) -> int:
    """One row per round of every migration."""
    rows = [{"migration": migration["id"], **one} for migration in migrations for one in migration["rounds"]]
    table = pd.DataFrame(rows, columns=list(ROUND_COLUMNS))
    for column in ("migration", "n"):
        table[column] = table[column].astype("int16")
    for column in ("pages", "bytes", "bytes_on_wire", "layer_bytes"):
        table[column] = table[column].astype("int64")
    for column in ("start_s", "duration_s", "frozen_s", "predicted_blackout_s", "dirty_pages_per_s"):
        table[column] = table[column].astype("float64")
    table["kind"] = table["kind"].astype("str")
    table.to_parquet(target, compression="zstd")
    return len(table)


def write_load(raw: Path, target: Path) -> None:
    """Operations, requests and probes of a load run."""
    write_parquet(read_operations(raw), target / "operations.parquet")
    write_parquet(read_requests(raw), target / "requests.parquet")
    write_parquet(read_probes(raw), target / "probes.parquet")
