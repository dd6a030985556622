"""The samples that a report shows: images and texts, in the order of the records."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eenet._extras import require
from eenet._files import existing_file
from eenet.errors import FileFormatError, InvalidInputError

_LARGEST = 160  # pixels of a side of an image in the page
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_TEXT_COLUMNS = ("text", "sentence", "document", "review", "title", "description")


@dataclass(frozen=True)
class Samples:
    """Images (files, or arrays of one image each) or texts, one for each record."""

    images: Sequence[Any] = ()
    texts: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images) or len(self.texts)

    def take(self, rows: Sequence[int]) -> Samples:
        """Some of them, by number."""
        images, texts = self.images, self.texts
        return Samples([images[n] for n in rows] if len(images) else (), [texts[n] for n in rows] if texts else ())

    def png(self, n: int) -> bytes | None:
        """The image of a sample as a small PNG file; None where there are no images."""
        if not len(self.images):
            return None
        pillow = require("PIL.Image", "report", "an image in a report")
        given = self.images[n]
        if isinstance(given, Path):
            try:
                image = pillow.open(given).convert("RGB")
            except OSError as error:
                raise FileFormatError(f"{str(given)!r} cannot be read as an image ({error})") from error
        else:
            image = pillow.fromarray(_bytes(np.asarray(given), n))
        image.thumbnail((_LARGEST, _LARGEST))
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()


def _bytes(array: Any, n: int) -> Any:
    """An image as Pillow takes it, from (H, W), (H, W, C) or (C, H, W)."""
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.dtype.kind not in "buif":
        raise InvalidInputError(
            f"image {n} has shape {array.shape} and dtype {array.dtype}, expected numbers of shape (height, width), "
            "(height, width, 3) or (3, height, width)"
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    values = np.nan_to_num(array.astype(np.float64))
    low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (values.min(), values.max())
    return np.ascontiguousarray(((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8))


def samples_of(data: Any) -> Samples:
    """Samples from what a caller has: texts, images as arrays or Pillow images, or files of images."""
    if isinstance(data, Samples):
        return data
    if isinstance(data, np.ndarray) and data.ndim >= 3:
        return Samples(images=list(data))
    items = list(data)
    if items and all(isinstance(item, str) for item in items):
        return Samples(texts=items)
    if not items:
        raise InvalidInputError("there are no samples in data; give one text or image for each record")
    return Samples(images=[item if isinstance(item, Path) else np.asarray(item) for item in items])


def read_images(path: str | Path) -> Samples:
    """Images in a folder, in the order of their names, or in an .npz or .npy file as one array (N, ...)."""
    source = Path(path)
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.suffix.lower() in _IMAGES)
        if not files:
            raise InvalidInputError(f"{str(path)!r} holds no images; expected files such as .png or .jpg")
        return Samples(images=files)
    source = existing_file(source)
    if source.suffix not in (".npz", ".npy"):
        raise InvalidInputError(f"{str(path)!r} is neither a folder of images nor an .npz or .npy file of an array")
    try:
        with source.open("rb") as handle:
            loaded = np.load(handle, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return Samples(images=list(loaded))
            names = [name for name in ("images", "x", "data") if name in loaded.files] or loaded.files
            if len(names) != 1 and "images" not in names:
                raise InvalidInputError(f"{str(path)!r} holds {loaded.files}; name the array of images 'images'")
            return Samples(images=list(loaded[names[0]]))
    except (ValueError, EOFError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise FileFormatError(f"{str(path)!r} cannot be read ({error}); write plain arrays of numbers") from error


def read_texts(path: str | Path) -> Samples:
    """Texts, one for each line of a .txt file, or one for each row of a .csv or .tsv file with a header."""
    source = existing_file(path)
    text = _read(source)
    if source.suffix not in (".csv", ".tsv"):
        return Samples(texts=text.splitlines())
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if source.suffix == ".tsv" else ","))
    columns = list(rows[0]) if rows else []
    column = next((name for name in _TEXT_COLUMNS if name in columns), columns[0] if len(columns) == 1 else None)
    if column is None:
        raise InvalidInputError(f"{str(path)!r} has the columns {columns}; name that of the texts 'text'")
    return Samples(texts=[str(row[column]) for row in rows])


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Names of classes: one for each line, or a JSON list."""
    source = existing_file(path)
    text = _read(source)
    if source.suffix != ".json":
        return tuple(line for line in text.splitlines() if line.strip())
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"{str(path)!r} is not JSON ({error})") from error
    if not isinstance(names, list):
        raise FileFormatError(f"{str(path)!r} holds a {type(names).__name__}, expected a list of names")
    return tuple(map(str, names))


def _read(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{str(source)!r} is not UTF-8 text ({error}); save it as UTF-8") from error
