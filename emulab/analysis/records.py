"""The tables of a run folder: their columns and types, and how they are read.

``*_s`` columns are seconds of the machine's monotonic clock (see emulab.clock).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emulab.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


class RunError(UsageError):
    """A run folder lacks a file, or one of its files cannot be understood."""


_INT = "int64"
_FLOAT = "float64"
_TEXT = "text"
_BOOL = "bool"

TABLES: dict[str, dict[str, str]] = {
    "operations": {
        "user": _INT,
        "seq": _INT,
        "operation": _TEXT,
        "intended_s": _FLOAT,
        "start_s": _FLOAT,
        "end_s": _FLOAT,  # NaN: unfinished
        "outcome": _TEXT,  # ok | error | unfinished
        "error": _TEXT,
        "bytes": _INT,
        "requests": _INT,
        "cycle_s": _FLOAT,  # the delay drawn after this operation
        "worker": _INT,
    },
    "requests": {
        "user": _INT,
        "op_seq": _INT,
        "operation": _TEXT,
        "n": _INT,
        "method": _TEXT,
        "path": _TEXT,
        "kind": _TEXT,  # page | static | image | post | redirect | upload
        "status": _INT,  # 0: no answer
        "intended_s": _FLOAT,
        "start_s": _FLOAT,
        "end_s": _FLOAT,
        "bytes": _INT,
        "error": _TEXT,
        "connection": _INT,  # number of this user's TCP connection, from 0
        "reused": _BOOL,
    },
    "probes": {"n": _INT, "intended_s": _FLOAT, "sent_s": _FLOAT, "done_s": _FLOAT, "error": _TEXT},
    "samples": {
        "t_s": _FLOAT,
        "node": _TEXT,
        "kind": _TEXT,  # node | guest | machine | process
        "name": _TEXT,
        "cpu_s": _FLOAT,  # cumulative
        "memory_bytes": _INT,
        "rx_bytes": _INT,  # cumulative
        "tx_bytes": _INT,  # cumulative
    },
    "rounds": {
        "migration": _INT,
        "n": _INT,
        "kind": _TEXT,  # pre-dump | final
        "start_s": _FLOAT,
        "duration_s": _FLOAT,
        "frozen_s": _FLOAT,
        "pages": _INT,
        "bytes": _INT,
        "bytes_on_wire": _INT,
        "layer_bytes": _INT,
        "predicted_blackout_s": _FLOAT,
        "dirty_pages_per_s": _FLOAT,
    },
}


def empty_table(name: str) -> pd.DataFrame:
    """A table of that name without rows."""
    return _typed(pd.DataFrame({column: [] for column in TABLES[name]}), name)


def read_table(path: Path, name: str) -> pd.DataFrame:
    """Read ``<name>.parquet``. Columns we do not know are kept.

    Raises RunError: unreadable file, missing column, or a column of the wrong type.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} is not a readable Parquet file: {reason}", hint="The run was probably cut off; repeat it.") from error
    missing = [column for column in TABLES[name] if column not in table.columns]
    if missing:
        raise RunError(f"{path} lacks the columns {', '.join(missing)}", hint="It was written by another version; repeat the run.")
    try:
        return _typed(table, name)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{path} has a column of the wrong type: {error}", hint="It was written by another version; repeat the run."
        ) from error


def _typed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    columns: dict[str, pd.Series] = {}
    for column, kind in TABLES[name].items():
        values = table[column]
        if kind == _TEXT:
            columns[column] = values.astype(object).where(values.notna(), None)
        elif kind == _INT:
            columns[column] = pd.to_numeric(values).fillna(0).astype(np.int64)
        elif kind == _FLOAT:
            columns[column] = pd.to_numeric(values).astype(np.float64)
        else:
            columns[column] = values.astype(bool)
    return table.assign(**columns)
