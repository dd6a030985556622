"""Inputs of sizes that a model fails on, such as too long texts, refused in words: with the nearest that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from eenet._sizes import Inputs, Sizes, TensorSpec, described
from eenet.errors import InvalidInputError
from eenet.models._io import inferring
from eenet.models._multi_exit import MultiExitModel
from eenet.stages._example import MODEL_ERRORS


def sizes_of(model: MultiExitModel) -> Sizes:
    """Which sizes of its inputs a model takes, of which its example says the usual; for a model on the CPU."""
    args, kwargs = model.staged.example
    example = model.staged.flatten_inputs(*args, **kwargs)
    inputs = model.staged.inference_stages[0].inputs

    def run(arrays: Inputs) -> None:
        live = tuple([torch.from_numpy(arrays[one.name]).to(one.dtype) for one in inputs])
        args, kwargs = model.staged.call_of(live)
        with inferring(model):
            model(*args, **kwargs)

    # numpy has no bfloat16.
    arrays = [(tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy() for tensor in example]
    specs = [
        TensorSpec(one.name, str(array.dtype), one.shape, one.batch_dim)
        for one, array in zip(inputs, arrays, strict=True)
    ]
    return Sizes(run, specs, described(arrays), MODEL_ERRORS)


def refusal(model: MultiExitModel, live: tuple[Tensor, ...], sizes: Callable[[], Sizes] | None = None) -> str | None:
    """What to say of inputs that fit and on which a model failed; None where their sizes are not known to be why.

    `sizes` gives what is known of the model's. Only on the CPU is it looked into: on a GPU a position beyond the last
    stops all that the process runs there.
    """
    if any(tensor.device.type != "cpu" for tensor in live):
        return None
    names = [one.name for one in model.staged.inference_stages[0].inputs]
    return (sizes_of(model) if sizes is None else sizes()).refusal(dict(zip(names, live, strict=True)))


@contextmanager
def sizes_refused(
    model: MultiExitModel, live: tuple[Tensor, ...], sizes: Callable[[], Sizes] | None = None
) -> Iterator[None]:
    """Where the model fails within the block on inputs of sizes that it does not take, `InvalidInputError` says so."""
    try:
        yield
    except InvalidInputError:
        raise
    except MODEL_ERRORS as error:
        why = refusal(model, live, sizes)
        if why is None:
            raise
        raise InvalidInputError(why) from error
