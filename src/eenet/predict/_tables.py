"""Tables in text files, .csv, .tsv and .jsonl: checked once, then read a row at a time from any row on.

In .tsv quotes are characters like others, and no field holds a tab or a line break: so text/tab-separated-values is
defined, and so GLUE's files are, in which a quote may open and never close.
"""

from __future__ import annotations

import csv
import hashlib
import json
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from eenet._warn import warn
from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning

TEXT_TABLES = (".csv", ".tsv", ".jsonl")
_MARKED = 1024  # rows between two places that reading starts at
_LONGEST = 2**31 - 1  # characters of a field, the most that every platform lets the csv module take
_LIMIT = threading.Lock()


class TextTable:
    """The columns, the number of rows and the fingerprint of a table; empty lines are no rows.

    Raises `FileFormatError` with the line of a row that is not whole, and `InvalidInputError` where there is no row.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self.columns: list[str] = []
        self._marks: list[int] = []
        content = hashlib.sha256()
        with path.open("rb") as handle:
            lines = self._lines(handle, content)
            rows = self._objects(lines)
            if path.suffix != ".jsonl":
                cells = self._cells(lines)
                _, self.columns = next(cells, (0, []))
                rows = self._records(cells)
            start = handle.tell()
            suspects = set(self.columns) if path.suffix == ".tsv" else set()  # columns of quoted fields alone, so far
            quoted = "its header" if any(map(_in_quotes, suspects)) else None
            for row in rows:
                if path.suffix == ".tsv" and quoted is None and any(map(_is_quoted, row.values())):
                    quoted = f"a text in row {self.rows + 1}"
                suspects = {column for column in suspects if _in_quotes(row[column])}
                if self.rows % _MARKED == 0:
                    self._marks.append(start)
                self.columns = self.columns or list(row)
                self.rows += 1
                start = handle.tell()
        if suspects and quoted is None and self.rows > 1:
            quoted = f"every text of column {min(suspects)!r}"
        if quoted is not None:
            self._warn_of_quotes(quoted)
        if not self.rows:
            raise InvalidInputError(f"{str(path)!r} has no rows; expected at least one")
        self.fingerprint = content.hexdigest()

    def values(self, column: str, start: int = 0) -> Iterator[Any]:
        """What a column holds from a row on; None in rows that lack it."""
        if start >= self.rows:
            return
        with self.path.open("rb") as handle:
            handle.seek(self._marks[start // _MARKED])
            lines = self._lines(handle)
            rows = self._objects(lines) if self.path.suffix == ".jsonl" else self._records(self._cells(lines))
            for row in islice(rows, start % _MARKED, None):
                yield row.get(column)

    def _lines(self, handle: BinaryIO, content: Any = None) -> Iterator[tuple[int, str]]:
        """Lines with their numbers; they end at line feeds alone."""
        for number, line in enumerate(handle, 1):
            if content is not None:
                content.update(line)
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise FileFormatError(
                    f"{str(self.path)!r} line {number} is not UTF-8 text ({error.reason}); convert it"
                ) from error

    def _cells(self, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
        """The fields of each row, with the number of its last line."""
        if self.path.suffix == ".tsv":
            whole = ((number, line.rstrip("\r\n")) for number, line in lines)
            yield from ((number, line.split("\t")) for number, line in whole if line)
            return
        reader = csv.reader((line for _, line in lines), strict=True)
        try:
            while (cells := _next_row(reader)) is not None:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise FileFormatError(
                f"{str(self.path)!r} line {reader.line_num}: {error}; write it with a library such as pandas, or as "
                ".jsonl"
            ) from error

    def _records(self, found: Iterator[tuple[int, list[str]]]) -> Iterator[dict[str, Any]]:
        for number, cells in found:
            if len(cells) != len(self.columns):
                way = "write texts that hold a tab or a line break as .csv or .jsonl"
                raise FileFormatError(
                    f"{str(self.path)!r} line {number} has {len(cells)} fields, and the header {len(self.columns)}; "
                    f"{way if self.path.suffix == '.tsv' else 'put texts that hold a separator in quotes'}"
                )
            yield dict(zip(self.columns, cells, strict=True))

    def _warn_of_quotes(self, what: str) -> None:
        warn(
            f"{str(self.path)!r} has {what} in quotes as in .csv; in .tsv quotes belong to the text: write it as .csv "
            "or .jsonl if they do not",
            ReliabilityWarning,
        )

    def _objects(self, lines: Iterator[tuple[int, str]]) -> Iterator[dict[str, Any]]:
        for number, line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise FileFormatError(f"{str(self.path)!r} line {number} is not JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise FileFormatError(
                    f"{str(self.path)!r} line {number} holds {line.strip()!r:.40}, expected an object such as "
                    '{"text": "..."}'
                )
            yield row


def _next_row(reader: Any) -> list[str] | None:
    """The next row of a csv reader, of fields of any length; None at the end.

    The limit of the csv module, 131,072 characters by default, is one for the whole process: it is raised for one row,
    by one thread at a time, and put back.
    """
    with _LIMIT:
        usual = csv.field_size_limit(_LONGEST)
        try:
            row: list[str] | None = next(reader, None)
        finally:
            csv.field_size_limit(usual)
    return row


def _in_quotes(cell: str) -> bool:
    """Whether there are quotes around a field."""
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _is_quoted(cell: str) -> bool:
    """Whether a field is quoted for certain: quotes around it, and each within it doubled."""
    inner = cell[1:-1]
    return _in_quotes(cell) and '""' in inner and '"' not in inner.replace('""', "")
