"""Image files: decoded, resized, cropped, scaled and normalized, with Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError, kind_of
from eenet.preprocessing._base import EXTRA, Input, Inputs, Preprocessing, how_to_fit, require_names

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_MODES = {1: "L", 3: "RGB"}
# What Pillow raises for damaged files is not one family: PNG chunks alone give four of these.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True)
class ImagePreprocessing(Preprocessing):
    """Image files to float32 (N, channels, height, width): resized, cropped, scaled to 0..1, normalized.

    Parameters
    ----------
    size
        (height, width) of what the network takes, in pixels.
    resize
        The shorter side is brought to this many pixels and the center is cropped, as in the evaluation of ImageNet
        networks (256 for 224); without it the whole image is stretched to `size`.
    mean, std
        One number for each channel, of which there are 3 (RGB) or 1 (gray), at a scale of 0..1.
    input
        The name of the network's input; `eenet.export` sets it where the network has one input.
    max_pixels
        A larger image is refused before it is decoded.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> from eenet.preprocessing import ImagePreprocessing
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (300, 200)).save(file, "PNG")
    >>> ImagePreprocessing((224, 224), resize=256)([file.getvalue()])["x"].shape
    (1, 3, 224, 224)
    """

    size: tuple[int, int]
    resize: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    input: str = "x"
    max_pixels: int = 50_000_000
    kind: str = field(default="image", init=False)

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.size) != 2 or min(self.size) < 1 or (self.resize is not None and self.resize < max(self.size)):
            raise InvalidInputError(
                f"size is {self.size} and resize {self.resize}; expected (height, width), and resize not below them"
            )
        if len(self.mean) not in _MODES or len(self.std) != len(self.mean) or min(self.std) <= 0:
            raise InvalidInputError(
                f"mean is {self.mean} and std {self.std}; expected one number for each of 1 or 3 channels, std above 0"
            )

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The images, each given as the bytes or the path of a file; raises `FileFormatError` naming the item."""
        height, width = self.size
        pixels = np.empty((len(items), len(self.mean), height, width), np.uint8)
        for n, item in enumerate(items):
            pixels[n] = self._pixels(item, n)
        scale = np.array([1 / (255 * s) for s in self.std], np.float32).reshape(1, -1, 1, 1)
        shift = np.array([-m / s for m, s in zip(self.mean, self.std, strict=True)], np.float32).reshape(1, -1, 1, 1)
        return {self.input: pixels.astype(np.float32) * scale + shift}

    def _pixels(self, item: Any, n: int) -> NDArray[np.uint8]:
        pillow = require("PIL.Image", EXTRA)
        if not isinstance(item, (bytes, bytearray, str, Path)):
            raise InvalidInputError(f"item {n} is {kind_of(item)}, expected the bytes or path of an image file")
        source = io.BytesIO(item) if isinstance(item, (bytes, bytearray)) else item
        what = f"item {n}" if isinstance(item, (bytes, bytearray)) else repr(str(item))
        try:
            with pillow.open(source) as image:
                if image.width * image.height > self.max_pixels:
                    raise FileFormatError(
                        f"{what} has {image.width} x {image.height} pixels, more than the {self.max_pixels} that are "
                        "accepted; send a smaller image"
                    )
                return self._cut(eight_bit(image).convert(_MODES[len(self.mean)]), pillow.Resampling.BILINEAR)
        except FileFormatError:
            raise
        except (*_DAMAGED, pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
            # Pillow names its in-memory stream by address, which helps no reader.
            text = str(error) or type(error).__name__
            reason = "not an image format that Pillow knows" if "cannot identify image file" in text else text
            raise FileFormatError(f"{what} does not decode as an image ({reason})") from error

    def _cut(self, image: Any, bilinear: Any) -> NDArray[np.uint8]:
        height, width = self.size
        if self.resize is None:
            image = image.resize((width, height), bilinear)
        else:
            shorter, (w, h) = self.resize, image.size
            w, h = (shorter, int(shorter * h / w)) if w <= h else (int(shorter * w / h), shorter)
            if w * h > self.max_pixels:  # a strip of a few pixels' width would become billions of them
                raise FileFormatError(
                    f"the image is {image.width} x {image.height} and would be {w} x {h} with its shorter side at "
                    f"{shorter}, more than the {self.max_pixels} pixels that are accepted; send a squarer one"
                )
            left, top = round((w - width) / 2), round((h - height) / 2)
            image = image.resize((w, h), bilinear).crop((left, top, left + width, top + height))
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def fitted(self, inputs: Sequence[Input]) -> ImagePreprocessing:
        """With the name of the network's input; raises `InvalidInputError` where it takes other images."""
        made = replace(self, input=inputs[0].name) if len(inputs) == 1 else self
        require_names((made.input,), inputs)
        shape, sizes = inputs[0].shape, (len(self.mean), *self.size)
        if len(shape) != 4 or any(isinstance(w, int) and w != s for w, s in zip(shape[1:], sizes, strict=True)):
            raise InvalidInputError(
                f"the preprocessing makes images of {sizes}, the network takes {shape[1:]}; "
                + how_to_fit((1, *sizes), shape, floating=True)
            )
        return made

    def describe(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {**asdict(self), "size": list(self.size), "mean": list(self.mean), "std": list(self.std)}


def eight_bit(image: Any) -> Any:
    """A Pillow image of 16 bits at 8 bits, others as they are; raises `ValueError` where no range of pixels is known.

    Pillow's own conversion cuts off above 255: nearly all of an image of 16 bits would be white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # "I" up to Pillow 11
        pixels = np.asarray(image).astype(np.float32)
        return require("PIL.Image", EXTRA).fromarray(np.rint(pixels / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'whole' if image.mode == 'I' else 'real'} numbers of 32 bits, of which black and white "
            "are not known; convert it to 8 or 16 bits"
        )
    return image
