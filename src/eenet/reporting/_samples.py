"""The samples that a report shows: images and texts, in the order of the records."""

from __future__ import annotations

import base64
import colorsys
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._files import existing_file, lines_of
from eenet._values import array_value
from eenet.errors import FileFormatError, InvalidInputError, kind_of
from eenet.preprocessing._images import eight_bit
from eenet.records import ExitRecords

_LARGEST = 160  # pixels of a side of an image in the page
_TINY = 64
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@array_value
@dataclass(frozen=True)
class Samples:
    """Images (files, or arrays of one image each) or texts, one for each record.

    `masks` (K, N, height, width) are the classes that each exit of a network for segmentation predicts. `rows` are the
    records that the images belong to, where there are not images of all.
    """

    images: Sequence[Any] = ()
    texts: Sequence[str] = ()
    masks: NDArray[Any] | None = None
    rows: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.images) or len(self.texts)

    def with_masks(self, masks: Any) -> Samples:
        """The same with the classes that each exit predicts for their pixels."""
        array = np.asarray(masks)
        if array.ndim != 4 or array.dtype.kind not in "iu" or array.shape[1] != len(self.images):
            raise InvalidInputError(
                f"masks have shape {array.shape} and dtype {array.dtype}, expected class numbers of shape (exits, "
                f"{len(self.images)}, height, width): one mask of each exit for each image"
            )
        return replace(self, masks=array)

    def take(self, rows: Sequence[int]) -> Samples:
        """Some of them, by number."""
        images, texts = self.images, self.texts
        return Samples(
            [images[n] for n in rows] if len(images) else (),
            [texts[n] for n in rows] if texts else (),
            None if self.masks is None else self.masks[:, list(rows)],
        )

    def image(self, n: int) -> str | None:
        """The image of a sample, small, as an address that holds it; None where there are no images.

        Pictures of a few pixels stay as they are; larger ones are JPEG, a tenth of the bytes for photographs.
        """
        if not len(self.images):
            return None
        pillow = require("PIL.Image", "report", "an image in a report")
        given = self.images[n]
        if isinstance(given, Path):
            try:
                image = eight_bit(pillow.open(given)).convert("RGB")
            except (OSError, ValueError) as error:
                raise FileFormatError(f"{str(given)!r} cannot be read as an image ({error})") from error
        else:
            image = pillow.fromarray(_bytes(np.asarray(given), n))
        image.thumbnail((_LARGEST, _LARGEST))
        return _address(image, "PNG" if max(image.size) <= _TINY else "JPEG")

    def mask_images(self, n: int) -> list[str]:
        """The masks of a sample, one for each exit, with a color for each class."""
        if self.masks is None:
            return []
        pillow = require("PIL.Image", "report", "an image in a report")
        made = []
        for classes in self.masks[:, n]:
            step = max(1, -(-max(classes.shape) // _LARGEST))
            image = pillow.fromarray((classes[::step, ::step] % 256).astype(np.uint8), mode="P")
            image.putpalette(_PALETTE)
            made.append(_address(image, "PNG"))
        return made


def _address(image: Any, form: str) -> str:
    """A Pillow image as an address that holds it."""
    file = io.BytesIO()
    (image.convert("RGB") if form == "JPEG" else image).save(file, form, optimize=True)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _color(number: int) -> list[int]:
    """A color for a class: hues far from each other, in three brightnesses."""
    hue, value = number * 0.618034 % 1.0, (0.95, 0.7, 0.45)[number % 3]
    return [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value)]


_PALETTE = [part for number in range(256) for part in _color(number)]


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
    if not array.size:
        raise InvalidInputError(f"image {n} has shape {array.shape}, which has no pixels")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    values = np.nan_to_num(array.astype(np.float64))
    low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (values.min(), values.max())
    return np.ascontiguousarray(((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8))


def kept_inputs(folder: Path, count: int) -> Samples | None:
    """The images that a run folder keeps of its `count` test samples, evenly spaced; None where it keeps none."""
    # Of a run they are in work/, of a trained model that ships beside it.
    place = folder / "work" if (folder / "work").is_dir() else folder
    file, whole = place / "samples.npz", place / "test.safetensors"
    if not file.is_file() or not whole.is_file() or len(ExitRecords.load(whole)) != count:
        return None
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = [archive[name] for name in archive.files] if len(archive.files) == 1 else []
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{str(file)!r} cannot be read ({error}); remove it, or run again") from error
    if not arrays or arrays[0].ndim != 4 or arrays[0].shape[1] not in (1, 3):
        return None
    kept = len(arrays[0])
    return Samples(images=list(np.moveaxis(arrays[0], 1, 3)), rows=np.arange(kept) * count // kept)


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
    if not source.is_dir():
        return Samples(images=list(read_array(source, "images")))
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in _IMAGES)
    if not files:
        raise InvalidInputError(f"{str(path)!r} holds no images; expected files such as .png or .jpg")
    return Samples(images=files)


def read_array(path: str | Path, name: str) -> NDArray[Any]:
    """The array in an .npy file, or in an .npz file the one of this name or the only one."""
    source = existing_file(path)
    if source.suffix not in (".npz", ".npy"):
        raise InvalidInputError(f"{str(path)!r} is no .npz or .npy file; {name} are an array in one of them")
    try:
        with source.open("rb") as handle:
            loaded = np.load(handle, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = [one for one in loaded.files if one == name] or loaded.files
            array: NDArray[Any] | None = loaded[names[0]] if len(names) == 1 else None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{str(path)!r} cannot be read ({error}); write plain arrays of numbers") from error
    if array is None:
        raise InvalidInputError(f"{str(path)!r} holds {names}; call the array {name!r}")
    return array


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Names of classes: one for each line, or a JSON list."""
    source = existing_file(path)
    text = _read(source)
    if source.suffix != ".json":
        return tuple(line for line in lines_of(text) if line.strip())
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"{str(path)!r} is not JSON ({error})") from error
    if not isinstance(names, list):
        raise FileFormatError(f"{str(path)!r} holds {kind_of(names)}, expected a list of names")
    return tuple(map(str, names))


def _read(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{str(source)!r} is not UTF-8 text ({error}); save it as UTF-8") from error
