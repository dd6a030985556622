"""Finding data on disk, reading parquet files and images, and saying what is missing or damaged."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._files import lines_of
from eenet.errors import FileFormatError, InvalidInputError
from eenet.preprocessing._images import eight_bit

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")
_SHOWN = 8
_ROWS = 4096
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")
# Damaged files make Pillow raise errors of several unrelated classes: PNG chunks alone give four of these.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class MissingDataError(InvalidInputError):
    """Data is not where it should be; the message says what was expected and what is there."""


def missing(what: str, root: Path, expected: str, remedy: str) -> MissingDataError:
    """The error for data that is not where it should be."""
    return MissingDataError(f"no {what} in {str(root)!r}: {show(root)}. Expected {expected}. {remedy}")


def show(folder: Path) -> str:
    """What is in a folder, in a few words; for one that is not there, what is in its nearest parent."""
    if not folder.exists():
        parent = next((p for p in folder.absolute().parents if p.is_dir()), None)
        return "it does not exist" if parent is None else f"it does not exist; {str(parent)!r} holds {_listing(parent)}"
    if not folder.is_dir():
        return "it is a file, not a folder"
    return f"it holds {_listing(folder)}"


def _listing(folder: Path) -> str:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def first_folder(root: Path, candidates: Sequence[str], *, holding: Sequence[str]) -> Path | None:
    """The first of `root/candidate` that holds a file or folder that matches one of the patterns of `holding`."""
    for candidate in candidates:
        folder = root / candidate if candidate else root
        if folder.is_dir() and any(next(folder.glob(pattern), None) is not None for pattern in holding):
            return folder
    return None


def entries(folder: Path, *, folders: bool) -> list[Path]:
    """Sub-folders, or files, that are not hidden, sorted by name."""
    with os.scandir(folder) as listing:
        return sorted(
            Path(entry.path)
            for entry in listing
            if not entry.name.startswith(".") and (entry.is_dir() if folders else entry.is_file())
        )


def spread(samples: int, limit: int | None) -> NDArray[np.int64]:
    """At most `limit` positions, evenly spaced: files come sorted by class, so the first ones would be of one class."""
    if limit is None or limit >= samples:
        return np.arange(samples)
    return (2 * np.arange(limit) + 1) * samples // (2 * limit)


def hash_file(path: Path) -> bytes:
    """A hash of a file's bytes; raises `FileFormatError` when it cannot be read."""
    try:
        return blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError as error:
        raise FileFormatError(f"{str(path)!r} cannot be read ({error.strerror or error}); download it again") from error


def parquet_shards(root: Path, candidates: Sequence[str], split: str) -> list[Path]:
    """The parquet files of a split in the first candidate folder that has any, in order; raises when one is missing."""
    folder = first_folder(root, candidates, holding=(f"{split}-*.parquet", f"{split}.parquet"))
    if folder is None:
        return []
    shards = sorted(folder.glob(f"{split}-*.parquet")) or [folder / f"{split}.parquet"]
    numbered = [match for path in shards if (match := _SHARD.search(path.name))]
    if numbered and len(numbered) == len(shards):
        total = int(numbered[0].group(2))
        absent = sorted(set(range(total)) - {int(match.group(1)) for match in numbered})
        if absent or any(int(match.group(2)) != total for match in numbered):
            names = ", ".join(f"{split}-{k:05d}-of-{total:05d}.parquet" for k in absent[:_SHOWN])
            raise InvalidInputError(
                f"{str(folder)!r} holds {len(shards)} of the {total} parquet files of split {split!r}: "
                f"{names or 'files of another numbering'} {'is' if len(absent) == 1 else 'are'} wrong or missing; "
                "download the split again"
            )
    return shards


def parquet_rows(shards: Sequence[Path]) -> tuple[list[int], dict[str, Any]]:
    """The number of rows of each file, and the features that Hugging Face's metadata of the first one describes."""
    sizes, features = [], {}
    for number, path in enumerate(shards):
        with _open_parquet(path) as file:
            sizes.append(file.metadata.num_rows)
            if not number:
                described = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
                features = described.get("info", {}).get("features", {})
    return sizes, features


def read_columns(
    shards: Sequence[Path], columns_of_role: Mapping[str, Sequence[str]], limit: int | None
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield (file, first row, columns by role) in pieces, up to `limit` rows in all.

    `columns_of_role` gives for each role the column names that may hold it, the preferred one first. Other columns are
    not read. Raises `InvalidInputError` naming expected and present columns, `FileFormatError` for a damaged file.
    """
    left = limit
    for path in shards:
        for row, columns, rows in _pieces(path, columns_of_role, left):
            yield path, row, columns
            left = None if left is None else left - rows
        if left == 0:
            return


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """An open parquet file; damage becomes `FileFormatError`."""
    parquet = require("pyarrow.parquet", "train", "reading parquet files")
    arrow_error: type[Exception] = require("pyarrow", "train", "reading parquet files").ArrowException
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (arrow_error, OSError) as error:
        raise FileFormatError(
            f"{str(path)!r} is not a whole parquet file ({str(error).splitlines()[0]}); download it again"
        ) from error


def _pieces(
    path: Path, columns_of_role: Mapping[str, Sequence[str]], limit: int | None
) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(first row, columns by role, number of rows) of each piece of one file."""
    with _open_parquet(path) as file:
        names = _columns(path, file.schema_arrow.names, columns_of_role)
        row = 0
        size = _ROWS if limit is None else min(_ROWS, limit)
        for batch in file.iter_batches(batch_size=size, columns=list(names.values())):
            piece = batch if limit is None else batch.slice(0, limit - row)
            if piece.num_rows:
                yield row, {role: piece.column(name) for role, name in names.items()}, piece.num_rows
            row += piece.num_rows
            if row == limit:
                return


def _columns(path: Path, present: Sequence[str], columns_of_role: Mapping[str, Sequence[str]]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for role, options in columns_of_role.items():
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


def image_bytes(cell: Any) -> bytes | None:
    """The encoded image of a parquet cell, bytes or Hugging Face's {bytes, path}; None where there is none."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) and data else None


def decode(source: Path | bytes, mode: str | None = "RGB") -> Any:
    """A decoded Pillow image in `mode` (None: as stored); raises `FileFormatError` with the reason only."""
    with _open_image(source) as image:
        image.load()
        return image.copy() if mode is None or image.mode == mode else eight_bit(image).convert(mode)


def header_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header alone; raises `FileFormatError` with the reason only."""
    with _open_image(path) as image:
        return int(image.height), int(image.width)


@contextmanager
def _open_image(source: Path | bytes) -> Iterator[Any]:
    """An open Pillow image; damage becomes `FileFormatError`."""
    pillow = require("PIL.Image", "train", "decoding images")
    try:
        with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image
    except (*_DAMAGED, pillow.DecompressionBombError) as error:
        # Pillow names its in-memory stream by address.
        text = str(error) or type(error).__name__
        reason = "not an image format that Pillow knows" if "cannot identify image file" in text else text
        raise FileFormatError(f"does not decode as an image ({reason})") from error


def channels_first(image: Any) -> NDArray[np.uint8]:
    """(3, H, W) pixels of a decoded RGB image."""
    pixels: NDArray[np.uint8] = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
    return pixels


class Normalize:
    """Pixels 0..255 to (pixel / 255 - mean) / std, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int = 3) -> None:
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            numbers = {1: "one number", 3: "three numbers"}.get(channels, f"{channels} numbers")
            raise InvalidInputError(
                f"mean {tuple(mean)!r} and std {tuple(std)!r}: expected {numbers} each, std above 0"
            )
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Normalize (N, channels, H, W) pixels into a new float32 tensor."""
        import torch

        scale = torch.tensor([1 / (255 * s) for s in self.std]).view(1, -1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)]).view(1, -1, 1, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(torch.float32).mul_(scale).add_(shift)


def class_names(given: str | Path | Iterable[str], root: Path, *, field: str = "synsets") -> list[str]:
    """Class names in the order of their numbers: a list, or a file with a name on each line or in JSON."""
    if not isinstance(given, (str, Path)):
        names = list(given)
    else:
        path = next((path for path in (Path(given).expanduser(), root / given) if path.is_file()), None)
        if path is None:
            raise InvalidInputError(
                f"{field} is {str(given)!r}, and there is no such file, nor in {str(root)!r}; give a file with a "
                "class name on each line, or a list of them"
            )
        text = path.read_text(encoding="utf-8-sig")
        try:
            names = (
                _names_in(json.loads(text))
                if path.suffix == ".json"
                else [line.split()[0] for line in lines_of(text) if line.strip()]
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise FileFormatError(
                f"{str(path)!r} lists no {field} ({error}); expected a class name on each line, or JSON: a list, or a "
                "mapping of class numbers"
            ) from error
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InvalidInputError(f"{field} has {len(names)} names, expected at least one, and none of them twice")
    return names


def _names_in(value: Any) -> list[str]:
    """Names in a list, a list of {label, wnid}, or a mapping of numbers to a name or [name, words]."""
    rows = value
    if isinstance(value, dict):
        rows = [value[str(number)] for number in range(len(value))]
    elif value and isinstance(value[0], dict):
        rows = [row.get("wnid") or row["name"] for row in sorted(value, key=lambda row: int(row["label"]))]
    return [row if isinstance(row, str) else row[0] for row in rows]
