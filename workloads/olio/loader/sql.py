"""Rows to multi-row INSERT statements."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STATEMENT_CHARS = 500_000  # well below max_allowed_packet (16 MB), large enough to make the parser's share small


def quoted(text: str) -> str:
    """A text as an SQL string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def inserts(target: str, rows: Iterable[str]) -> Iterator[bytes]:
    """INSERT statements for rows whose text stands between the brackets of a VALUES item.

    Args:
        target: table and column list, as after INSERT INTO.
        rows: e.g. ``1,'x'``.

    """
    batch: list[str] = []
    length = 0
    for row in rows:
        batch.append(row)
        length += len(row)
        if length >= STATEMENT_CHARS:
            yield statement(target, batch)
            batch, length = [], 0
    if batch:
        yield statement(target, batch)


def statement(target: str, batch: list[str]) -> bytes:
    values = "),\n(".join(batch)
    return f"INSERT INTO {target} VALUES\n({values});\n".encode()
