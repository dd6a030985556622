"""Tables in text files, .csv, .tsv and .jsonl: checked once, then read a row at a time from any row on."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from eenet.errors import FileFormatError, InvalidInputError

TEXT_TABLES = (".csv", ".tsv", ".jsonl")
_MARKED = 1024  # rows between two places that reading starts at


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
            for row in rows:
                if self.rows % _MARKED == 0:
                    self._marks.append(start)
                self.columns = self.columns or list(row)
                self.rows += 1
                start = handle.tell()
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
        delimiter = "\t" if self.path.suffix == ".tsv" else ","
        reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
        try:
            yield from ((reader.line_num, cells) for cells in reader if cells)
        except csv.Error as error:
            raise FileFormatError(
                f"{str(self.path)!r} line {reader.line_num}: {error}; write it with a library such as pandas, or as "
                ".jsonl"
            ) from error

    def _records(self, found: Iterator[tuple[int, list[str]]]) -> Iterator[dict[str, Any]]:
        for number, cells in found:
            if len(cells) != len(self.columns):
                raise FileFormatError(
                    f"{str(self.path)!r} line {number} has {len(cells)} fields, and the header {len(self.columns)}; "
                    "put texts that hold a separator in quotes"
                )
            yield dict(zip(self.columns, cells, strict=True))

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
