"""Finding the logits in whatever a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eenet.errors import InvalidInputError


def logits_in(output: Any, num_classes: int) -> Tensor:
    """The logits (N, num_classes) in a network's output: a tensor, a mapping with "logits", or a tuple with one.

    Raises `InvalidInputError`, saying what was found, where that is not clear.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif isinstance(output, (tuple, list)):
        fitting = [t for t in output if _fits(t, num_classes)]
        found = fitting[0] if len(fitting) == 1 else None
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if not isinstance(found, Tensor) or not _fits(found, num_classes):
        raise InvalidInputError(
            f"the network returns {_describe(output)}, in which there is not one tensor of logits of shape (batch, "
            f"{num_classes}); wrap the network so that it returns them, or correct num_classes"
        )
    return found


def _fits(value: Any, num_classes: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == num_classes


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a mapping of " + ", ".join(f"{k!r}: {_describe(v)}" for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return "a tuple of " + (", ".join(_describe(v) for v in value) or "nothing")
    return f"a {type(value).__name__}"
