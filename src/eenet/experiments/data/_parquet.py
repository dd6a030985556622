"""Parquet files as Hugging Face publishes data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError

_ROWS = 4096


def read_columns(
    shards: Sequence[Path], wanted: Mapping[str, Sequence[str]], limit: int | None
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield (file, first row, columns by role) in pieces, up to `limit` rows in all.

    `wanted` gives for each role the column names that may hold it, the preferred one first. Other columns are not
    read. Raises `InvalidInputError` naming expected and present columns, `FileFormatError` for a damaged file.
    """
    left = limit
    for path in shards:
        for row, columns, rows in _pieces(path, wanted, left):
            yield path, row, columns
            left = None if left is None else left - rows
        if left == 0:
            return


def _pieces(
    path: Path, wanted: Mapping[str, Sequence[str]], limit: int | None
) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(first row, columns by role, number of rows) of each piece of one file."""
    parquet = require("pyarrow.parquet", "train", "reading parquet files")
    arrow_error: type[Exception] = require("pyarrow", "train", "reading parquet files").ArrowException
    try:
        with parquet.ParquetFile(path) as file:
            names = _columns(path, file.schema_arrow.names, wanted)
            row = 0
            size = _ROWS if limit is None else min(_ROWS, limit)
            for batch in file.iter_batches(batch_size=size, columns=list(names.values())):
                piece = batch if limit is None else batch.slice(0, limit - row)
                if piece.num_rows:
                    yield row, {role: piece.column(name) for role, name in names.items()}, piece.num_rows
                row += piece.num_rows
                if row == limit:
                    return
    except (arrow_error, OSError) as error:
        raise FileFormatError(
            f"{str(path)!r} is not a whole parquet file ({str(error).splitlines()[0]}); fetch it again"
        ) from error


def _columns(path: Path, present: Sequence[str], wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for role, options in wanted.items():
        name = next((option for option in options if option in present), None)
        if name is None:
            raise InvalidInputError(
                f"{str(path)!r} has the columns {list(present)}, expected {' or '.join(map(repr, options))} for the "
                f"{role}; rename the column, or give the root of other data"
            )
        chosen[role] = name
    return chosen


def integers(column: Any, path: Path, row: int) -> list[int | None]:
    """The values of a label column; raises `InvalidInputError` when it holds something other than integers."""
    arrow = require("pyarrow", "train", "reading parquet files")
    if not arrow.types.is_integer(column.type):
        raise InvalidInputError(f"{str(path)!r}: the labels from row {row} on are {column.type}, expected integers")
    values: list[int | None] = column.to_pylist()
    return values
