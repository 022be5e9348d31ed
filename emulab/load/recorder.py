"""What a worker writes: one line of CSV per operation and per request, flushed about every second.

A line is formatted when the fact is known and costs two or three microseconds; files are written in one call per flush, so a worker
that is killed loses at most a second and cuts at most the last line, which ``emulab.load.records`` tolerates. Times are written to the
microsecond.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from emulab.load.client import Exchange

OPERATION_COLUMNS = "user,seq,operation,intended_s,start_s,end_s,outcome,error,bytes,requests,cycle_s,worker"
REQUEST_COLUMNS = "user,op_seq,operation,n,method,path,kind,status,intended_s,start_s,end_s,bytes,error,connection,reused"


def plain(text: str | None) -> str:
    """Text that cannot break a line of CSV; empty for None."""
    return "" if text is None else text.replace(",", ";").replace('"', "'").replace("\n", " ").replace("\r", " ")


class _Table:
    def __init__(self, path: Path, columns: str) -> None:
        self._lines = [columns + "\n"]
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self.add = self._lines.append

    def flush(self) -> None:
        if self._lines:
            data = memoryview("".join(self._lines).encode())
            self._lines.clear()
            while data:
                data = data[os.write(self._file, data) :]

    def close(self) -> None:
        self.flush()
        os.close(self._file)


class Recorder:
    """The record files of one worker: ``operations-<worker>.csv`` and ``requests-<worker>.csv`` in ``folder``."""

    def __init__(self, folder: Path, worker: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._worker = worker
        self._operations = _Table(folder / f"operations-{worker}.csv", OPERATION_COLUMNS)
        self._requests = _Table(folder / f"requests-{worker}.csv", REQUEST_COLUMNS)

    def operation(
        self,
        user: int,
        seq: int,
        operation: str,
        *,
        intended_s: float,
        start_s: float,
        end_s: float | None,
        error: str | None,
        size: int,
        requests: int,
        cycle_s: float,
    ) -> None:
        """One finished operation; without an end it is unfinished."""
        outcome = "unfinished" if end_s is None else "ok" if error is None else "error"
        end = "" if end_s is None else f"{end_s:.6f}"
        self._operations.add(
            f"{user},{seq},{operation},{intended_s:.6f},{start_s:.6f},{end},{outcome},{plain(error)},{size},{requests},{cycle_s:.6f},{self._worker}\n"
        )

    def request(self, user: int, seq: int, operation: str, exchange: Exchange, *, n: int, intended_s: float) -> None:
        """One request, the ``n``-th of its operation."""
        method, path, kind, status, start, end, size, error, connection, reused = exchange
        self._requests.add(
            f"{user},{seq},{operation},{n},{method},{plain(path)},{kind},{status},{intended_s:.6f},{start:.6f},{end:.6f},{size},"
            f"{plain(error) if error else ''},{connection},{1 if reused else 0}\n"
        )

    def flush(self) -> None:
        self._operations.flush()
        self._requests.flush()

    def close(self) -> None:
        self._operations.close()
        self._requests.close()
