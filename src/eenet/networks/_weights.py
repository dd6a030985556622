"""How the weights of our networks start, and how they are read from a file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from torch import Tensor, nn

from eenet._files import existing_file, require_safetensors
from eenet.errors import FileFormatError

_LISTED = 5


def initialize(model: nn.Module) -> None:
    """Start convolutions as He et al. (ICCV 2015) do for ReLU, by fan-out, and the biases of linear layers at zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def load_weights(
    model: nn.Module, path: str | Path, *, rename: Callable[[str], str] = str, optional: Collection[str] = ()
) -> None:
    """Copy the tensors of a safetensors file into a network, in place.

    `rename` gives the network's name for a name in the file; those in `optional` need not be there. Names and shapes
    must match exactly, except for the counters of batches that batch norms keep. Raises `InvalidInputError` where there
    is no such file, `FileFormatError` where it is not whole safetensors, or of another architecture: the message lists
    the first names that differ.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    source = existing_file(path)
    require_safetensors(source)
    try:
        loaded = load_file(source)
    except SafetensorError as error:
        raise FileFormatError(
            f"{str(source)!r} is not a whole safetensors file ({error}); it may be truncated: get it again"
        ) from error
    tensors = {rename(name): tensor for name, tensor in loaded.items()}
    expected = {
        name: value
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked") and not (name in optional and name not in tensors)
    }
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    problems = _mismatches(expected, given)
    if problems:
        shown = "; ".join(problems[:_LISTED])
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise FileFormatError(
            f"{str(source)!r} holds the weights of another architecture than this {type(model).__name__}: {shown}"
            f"{more}; build the network with the blocks, widths and classes that the weights were trained with"
        )
    model.load_state_dict(tensors, strict=False)


def _mismatches(expected: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """What differs, in the network's order: shapes, names that are missing, then names that are too many."""
    problems = []
    for name, value in expected.items():
        if name not in given:
            problems.append(f"{name!r} is missing")
        elif given[name].shape != value.shape:
            problems.append(f"{name!r} has shape {tuple(given[name].shape)}, expected {tuple(value.shape)}")
    return problems + [f"{name!r} is not expected" for name in given if name not in expected]
