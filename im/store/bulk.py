"""SQL about many rows at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

__all__ = ["Bulk"]

PARAMETERS_MAX = 999
"""That any SQLite allows."""
ROWS_MAX = 64


class Bulk:
    """A statement about many rows at once: `{rows}` in its text becomes `(?,?),(?,?),...`.

    Not `executemany`, which gives up and takes back the interpreter lock for every row: next to a busy event loop
    each of these can take milliseconds. Here one step is up to 64 rows.
    """

    def __init__(self, template: str, *, width: int) -> None:
        row = "(" + ",".join("?" * width) + ")"
        rows_max = min(ROWS_MAX, PARAMETERS_MAX // width)
        # Sizes are powers of two, so that a few texts serve all batches and stay in the statement cache.
        sizes = [1 << power for power in reversed(range(rows_max.bit_length()))]
        self._texts = [(size, template.replace("{rows}", ",".join([row] * size))) for size in sizes]

    def run(self, connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """Execute for all rows, in their order; return the rows that it selects."""
        found: list[Any] = []
        begin = 0
        for size, text in self._texts:
            while len(rows) - begin >= size:
                values = list(chain.from_iterable(rows[begin : begin + size]))
                found += connection.execute(text, values).fetchall()
                begin += size
        return found
