"""Finding the logits in whatever a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eenet.errors import InvalidInputError

_KEYS = ("logits", "out")


def logits_in(output: Any, num_classes: int | None = None) -> Tensor:
    """The logits in a network's output: a tensor, a mapping with "logits" or "out", or a tuple with one such tensor.

    They are (N, num_classes), or (N, num_classes, H, W) where every pixel has a class; without `num_classes` of any
    number of classes. Raises `InvalidInputError`, saying what was found, where that is not clear.
    """
    found: Any = output
    if isinstance(output, Mapping):
        found = next((output[key] for key in _KEYS if key in output), None)
    elif isinstance(output, (tuple, list)):
        fitting = [t for t in output if _fits(t, num_classes)]
        found = fitting[0] if len(fitting) == 1 else None
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if not isinstance(found, Tensor) or not _fits(found, num_classes):
        classes = "classes" if num_classes is None else num_classes
        raise InvalidInputError(
            f"the network returns {_describe(output)}, in which there is not one tensor of logits of shape (batch, "
            f"{classes}), or (batch, {classes}, height, width); wrap the network so that it returns them, or correct "
            "num_classes"
        )
    return found


def _fits(value: Any, num_classes: int | None) -> bool:
    if not isinstance(value, Tensor) or value.ndim not in (2, 4) or not value.is_floating_point():
        return False
    return value.shape[1] >= 2 if num_classes is None else value.shape[1] == num_classes


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a mapping of " + ", ".join(f"{k!r}: {_describe(v)}" for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return "a tuple of " + (", ".join(_describe(v) for v in value) or "nothing")
    return f"a {type(value).__name__}"
