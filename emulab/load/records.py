"""From the load generator's record files to typed tables. Runs on the user's machine (pandas, pyarrow).

A worker or prober that was killed leaves a cut last line; such a line is dropped, all others count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from emulab.errors import LoadError

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS = pa.float64()

OPERATIONS = pa.schema(
    {
        "user": pa.int32(),
        "seq": pa.int32(),
        "operation": pa.string(),
        "intended_s": _SECONDS,
        "start_s": _SECONDS,
        "end_s": _SECONDS,
        "outcome": pa.string(),
        "error": pa.string(),
        "bytes": pa.int64(),
        "requests": pa.int32(),
        "cycle_s": _SECONDS,
        "worker": pa.int16(),
    }
)
REQUESTS = pa.schema(
    {
        "user": pa.int32(),
        "op_seq": pa.int32(),
        "operation": pa.string(),
        "n": pa.int16(),
        "method": pa.string(),
        "path": pa.string(),
        "kind": pa.string(),
        "status": pa.int16(),
        "intended_s": _SECONDS,
        "start_s": _SECONDS,
        "end_s": _SECONDS,
        "bytes": pa.int64(),
        "error": pa.string(),
        "connection": pa.int32(),
        "reused": pa.bool_(),
    }
)
PROBES = pa.schema({"n": pa.int32(), "intended_s": _SECONDS, "sent_s": _SECONDS, "done_s": _SECONDS, "error": pa.string()})


def read_operations(folder: Path) -> pd.DataFrame:
    """One row per operation of all workers, by start. ``end_s`` is NaN where ``outcome`` is ``unfinished``."""
    return _read(folder, "operations-*.csv", OPERATIONS, by="start_s")


def read_requests(folder: Path) -> pd.DataFrame:
    """One row per HTTP request of all workers, by start. ``status`` is 0 where there was no answer."""
    return _read(folder, "requests-*.csv", REQUESTS, by="start_s")


def read_probes(folder: Path) -> pd.DataFrame:
    """One row per probe, by number; ``done_s`` is NaN where it was lost. No row if the prober was switched off."""
    return _read(folder, "probes.csv", PROBES, by="n", required=False)


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table as it stands in a run folder: Parquet with zstd."""
    table.to_parquet(path, compression="zstd", index=False)


def _read(folder: Path, pattern: str, schema: pa.Schema, *, by: str, required: bool = True) -> pd.DataFrame:
    files = sorted(folder.glob(pattern))
    if required and not files:
        raise LoadError(f"{folder} holds no {pattern}", hint="did the load generator begin its ramp-up? see logs/ there")
    parts = [part for part in (_parse(path, schema) for path in files) if part is not None]
    table = pa.concat_tables(parts) if parts else schema.empty_table()
    frame: pd.DataFrame = table.sort_by(by).to_pandas()
    return frame


def _parse(path: Path, schema: pa.Schema) -> pa.Table | None:
    data = path.read_bytes()
    data = data[: data.rfind(b"\n") + 1]
    if not data:
        return None
    convert = pa.csv.ConvertOptions(
        column_types=schema, strings_can_be_null=True, null_values=[""], true_values=["1"], false_values=["0"], include_columns=schema.names
    )
    try:
        return pa.csv.read_csv(pa.BufferReader(data), convert_options=convert)
    except (pa.ArrowException, KeyError) as error:
        raise LoadError(f"{path} is not a record file: {error}") from None
