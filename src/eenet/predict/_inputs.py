"""Items to predict: image files in a folder, lines of text, rows of a table, or arrays."""

from __future__ import annotations

import hashlib
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._files import lines_of, require_safetensors
from eenet.errors import FileFormatError, InvalidInputError
from eenet.predict._tables import TEXT_TABLES, TextTable

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_COLUMNS = {"image": ("image", "img", "bytes"), "text": ("text", "sentence"), "array": ("array", "x", "input")}
_ROWS = 1024


class Items(Protocol):
    """The items to predict, in an order that does not change from one run to the next."""

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Changes when the items do: a continued run checks it."""
        ...

    def batches(self, size: int, start: int) -> Iterator[tuple[list[str], list[Any]]]:
        """Names and items from number `start` on, `size` at a time."""
        ...


def open_items(path: str | Path, kind: str, *, column: str | None = None) -> Items:
    """The items of a folder of images, a table, a text file (a line each), or a .npy or .npz file.

    Tables are .parquet files and, of texts, .csv and .tsv with a header and .jsonl with an object on each line.

    Parameters
    ----------
    path : path
        The folder or file.
    kind : str
        That of the bundle's preprocessing: "image", "text" or "array".
    column : str
        The column to read of a table; by default "text" or "sentence", "image", "img" or "bytes", or "array", "x" or
        "input".

    Returns
    -------
    Items

    Raises
    ------
    InvalidInputError
        For a path that holds no such items.
    FileFormatError
        For a damaged file.

    Examples
    --------
    >>> from eenet.predict import open_items
    >>> np.save("x.npy", np.zeros((5, 4), dtype=np.float32))
    >>> len(open_items("x.npy", "array"))
    5
    """
    if kind not in ("image", "text", "array"):
        raise InvalidInputError(f"kind is {kind!r}, expected 'image', 'text' or 'array'")
    source = Path(path)
    tables = (".parquet", *(TEXT_TABLES if kind == "text" else ()))
    if column is not None and source.exists() and (source.suffix not in tables or source.is_dir()):
        raise InvalidInputError(
            f"{str(source)!r} has no columns, which {kind}s in {', '.join(tables)} have; leave the column {column!r} "
            "out"
        )
    if source.is_dir():
        if kind != "image":
            raise InvalidInputError(
                f"{str(source)!r} is a folder, from which image files are read, but this bundle takes {kind}s; give a "
                "file"
            )
        return _Folder(source)
    if not source.is_file():
        raise InvalidInputError(f"there is no {str(source)!r}; give a folder or a file")
    if source.suffix == ".parquet":
        return _Parquet(source, kind, column)
    if kind == "text" and source.suffix in TEXT_TABLES:
        return _TextRows(source, column)
    if kind == "array" and source.suffix in (".npy", ".npz"):
        return _Arrays(source)
    if kind == "text" and source.suffix in (".txt", ""):
        return _Lines(source)
    if kind == "image" and source.suffix.lower() in IMAGE_ENDINGS:
        return _Folder(source.parent, only=source)
    accepted = {
        "image": "a folder of images, an image",
        "text": "a .txt, .csv, .tsv or .jsonl file",
        "array": "a .npy or .npz file",
    }
    raise InvalidInputError(f"{str(source)!r} cannot be read as {kind}s; expected {accepted[kind]} or a .parquet file")


@dataclass(frozen=True, init=False)
class _Folder:
    root: Path
    paths: Sequence[Path]

    def __init__(self, root: Path, only: Path | None = None) -> None:
        files = [only] if only is not None else sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
        paths = [path for path in files if path.is_file()]
        if not paths:
            raise InvalidInputError(f"{str(root)!r} holds no image files; expected {', '.join(IMAGE_ENDINGS)}")
        object.__setattr__(self, "root", root)
        object.__setattr__(self, "paths", paths)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def fingerprint(self) -> str:
        # Not the contents: reading all files takes about as long as the network does.
        about = [(path.relative_to(self.root).as_posix(), path.stat()) for path in self.paths]
        return _hash(json.dumps([(name, one.st_size, one.st_mtime_ns) for name, one in about]).encode())

    def batches(self, size: int, start: int) -> Iterator[tuple[list[str], list[Any]]]:
        for first in range(start, len(self.paths), size):
            paths = self.paths[first : first + size]
            yield [path.relative_to(self.root).as_posix() for path in paths], list(paths)


@dataclass(frozen=True, init=False)
class _Lines:
    path: Path
    lines: Sequence[str]

    def __init__(self, path: Path) -> None:
        try:
            lines = lines_of(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{str(path)!r} is not UTF-8 text ({error.reason}); convert it") from error
        if not lines:
            raise InvalidInputError(f"{str(path)!r} is empty; expected a text on each line")
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "lines", lines)

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def fingerprint(self) -> str:
        return _hash("\n".join(self.lines).encode())

    def batches(self, size: int, start: int) -> Iterator[tuple[list[str], list[Any]]]:
        for first in range(start, len(self.lines), size):
            texts = list(self.lines[first : first + size])
            yield [str(first + n) for n in range(len(texts))], texts


class _Arrays:
    def __init__(self, path: Path) -> None:
        self._arrays = read_arrays_file(path)
        if len(self._arrays) > 1:
            self._arrays.pop("labels", None)  # files for eenet collect and benchmark have them
        sizes = {name: len(array) if array.ndim else 0 for name, array in self._arrays.items()}
        if len(set(sizes.values())) != 1 or not next(iter(sizes.values())):
            raise InvalidInputError(f"{str(path)!r} holds {sizes or 'no'} samples; expected as many in each array")
        self._samples = next(iter(sizes.values()))

    def __len__(self) -> int:
        return self._samples

    @property
    def fingerprint(self) -> str:
        about = [(name, array.dtype.str, array.shape) for name, array in self._arrays.items()]
        contents = [np.ascontiguousarray(array).tobytes() for array in self._arrays.values()]
        return _hash(json.dumps(about).encode(), *contents)

    def batches(self, size: int, start: int) -> Iterator[tuple[list[str], list[Any]]]:
        for first in range(start, self._samples, size):
            rows = range(first, min(first + size, self._samples))
            if len(self._arrays) == 1:
                (array,) = self._arrays.values()
                yield [str(n) for n in rows], [array[n] for n in rows]
            else:
                yield [str(n) for n in rows], [{name: a[n] for name, a in self._arrays.items()} for n in rows]


class _Rows(ABC):
    """Rows of a table by their numbers."""

    def batches(self, size: int, start: int) -> Iterator[tuple[list[str], list[Any]]]:
        values = self._values(start)
        while items := list(islice(values, size)):
            yield [str(start + n) for n in range(len(items))], items
            start += len(items)

    @abstractmethod
    def _values(self, start: int) -> Iterator[Any]:
        """The values from a row on."""


class _TextRows(_Rows):
    def __init__(self, path: Path, column: str | None) -> None:
        self._table = TextTable(path)
        self._column = _column_of(path, self._table.columns, "text", column)

    def __len__(self) -> int:
        return self._table.rows

    @property
    def fingerprint(self) -> str:
        return _hash(self._table.fingerprint.encode(), self._column.encode())

    def _values(self, start: int) -> Iterator[Any]:
        return self._table.values(self._column, start)


class _Parquet(_Rows):
    def __init__(self, path: Path, kind: str, column: str | None) -> None:
        self._path, self._kind = path, kind
        parquet = require("pyarrow.parquet", "predict")
        self._damaged: type[Exception] = require("pyarrow", "predict").ArrowException
        try:
            with parquet.ParquetFile(path) as file:
                self._rows = int(file.metadata.num_rows)
                names: list[str] = list(file.schema_arrow.names)
        except (self._damaged, OSError) as error:
            raise self._not_whole(error) from error
        self._column = _column_of(path, names, kind, column)
        if not self._rows:
            raise InvalidInputError(f"{str(path)!r} has no rows; expected at least one")

    def __len__(self) -> int:
        return self._rows

    @property
    def fingerprint(self) -> str:
        # The footer has the offsets, sizes and statistics of every column, which other rows may have too.
        about = self._path.stat()
        with self._path.open("rb") as handle:
            handle.seek(max(0, about.st_size - 65536))
            return _hash(str((about.st_size, about.st_mtime_ns, self._column)).encode(), handle.read())

    def _values(self, start: int) -> Iterator[Any]:
        parquet = require("pyarrow.parquet", "predict")
        row = 0
        try:
            with parquet.ParquetFile(self._path) as file:
                groups = list(range(file.num_row_groups))
                while groups and row + file.metadata.row_group(groups[0]).num_rows <= start:
                    row += file.metadata.row_group(groups.pop(0)).num_rows  # before the first that is read
                for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=[self._column]):
                    if row + batch.num_rows > start:
                        for offset in range(max(0, start - row), batch.num_rows):
                            yield self._item(batch.column(0)[offset].as_py())
                    row += batch.num_rows
        except (self._damaged, OSError) as error:
            raise self._not_whole(error) from error

    def _item(self, value: Any) -> Any:
        if self._kind == "image" and isinstance(value, dict):
            return value.get("bytes")  # as Hugging Face keeps images
        return np.asarray(value) if self._kind == "array" else value

    def _not_whole(self, error: Exception) -> FileFormatError:
        return FileFormatError(
            f"{str(self._path)!r} is not a whole parquet file ({str(error).splitlines()[0]}); get it again"
        )


def _column_of(path: Path, names: Sequence[str], kind: str, column: str | None) -> str:
    """The column that is asked for, or the one of the usual names that there is."""
    accepted = (column,) if column is not None else _COLUMNS[kind]
    found = next((name for name in accepted if name in names), None)
    if found is None:
        raise InvalidInputError(
            f"{str(path)!r} has the columns {list(names)}, expected {' or '.join(map(repr, accepted))}; name it with "
            "--column"
        )
    if names.count(found) > 1:
        raise InvalidInputError(
            f"{str(path)!r} has {names.count(found)} columns {found!r}; rename all but the one to read"
        )
    return found


def read_arrays_file(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name, or the one of a .npy file as "array"; never a pickle."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if path.suffix == ".npy":
            return {"array": np.load(path, allow_pickle=False)}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FileFormatError(
            f"{str(path)!r} cannot be read ({error}); write plain arrays of numbers with numpy.save or numpy.savez: "
            "pickled objects, which can run code, are not read"
        ) from error
    require_safetensors(path)
    raise InvalidInputError(f"{str(path)!r} ends in {path.suffix or 'nothing'!r}; arrays are read from .npy or .npz")


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
