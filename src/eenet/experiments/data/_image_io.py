"""Decoding images with Pillow, and turning pixels into normalised tensors."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

# What Pillow raises for damaged files is not one family: PNG chunks alone give four of these.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def decode(source: Path | bytes, mode: str | None = "RGB") -> Any:
    """A decoded Pillow image in `mode` (None: as stored); raises `FileFormatError` with the reason only."""
    image_module = require("PIL.Image", "train", "decoding images")
    try:
        with image_module.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return image.copy() if mode is None or image.mode == mode else image.convert(mode)
    except (*_DAMAGED, image_module.DecompressionBombError) as error:
        raise FileFormatError(f"does not decode as an image ({_reason(error)})") from error


def header_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header alone; raises `FileFormatError` with the reason only."""
    image_module = require("PIL.Image", "train", "decoding images")
    try:
        with image_module.open(path) as image:
            return int(image.height), int(image.width)
    except (*_DAMAGED, image_module.DecompressionBombError) as error:
        raise FileFormatError(f"does not decode as an image ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    # Pillow names its in-memory stream by address, which helps nobody.
    text = str(error) or type(error).__name__
    return "not an image format that Pillow knows" if "cannot identify image file" in text else text


class Normalise:
    """Pixels 0..255 to (pixel / 255 - mean) / std, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InvalidInputError(
                f"mean {tuple(mean)!r} and std {tuple(std)!r}: expected three numbers each, std above 0"
            )
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Normalise (N, 3, H, W) pixels into a new float32 tensor."""
        import torch

        scale = torch.tensor([1 / (255 * s) for s in self.std]).view(1, 3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)]).view(1, 3, 1, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(torch.float32).mul_(scale).add_(shift)


def channels_first(image: Any) -> NDArray[np.uint8]:
    """(3, H, W) pixels of a decoded RGB image."""
    pixels: NDArray[np.uint8] = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
    return pixels
