"""TorchBackend: the stages of a MultiExitModel in eager PyTorch, numpy in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet.bundle._boundaries import Boundaries
from eenet.bundle._graphs import tensor_spec
from eenet.bundle._manifest import Manifest
from eenet.errors import FileFormatError, InvalidInputError
from eenet.models import MultiExitModel
from eenet.optimize._compiled import compiled
from eenet.optimize._frozen import Variant, eager
from eenet.runtime._adaptive import to_numpy
from eenet.runtime._backend import Array, Ints, Live
from eenet.stages import LiveTensor, walk


class TorchBackend:
    """Runs the stages and exit heads of a model, or a variant of them, on the CPU; a `StageBackend`.

    The model is put in inference mode. Live tensors share their memory with PyTorch's. Raises `InvalidInputError` for a
    model that is not on the CPU or whose live tensors have a dtype that numpy does not know, such as bfloat16.
    """

    def __init__(self, model: MultiExitModel, variant: Variant | None = None) -> None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if device.type != "cpu":
            raise InvalidInputError(
                f"the model is on {device}, expected the CPU: call model.cpu(), or use AdaptiveModel"
            )
        self.model = model.eval()
        self.num_exits = model.num_exits
        self.num_classes = model.num_classes
        self.inputs: tuple[LiveTensor, ...] = model.staged.inference_stages[0].inputs
        for stage in model.staged.inference_stages:
            for live in stage.inputs:
                if live.dtype not in _NUMPY:
                    raise InvalidInputError(
                        f"the live tensor {live.name!r} before stage {stage.name!r} is {live.dtype}, which numpy does "
                        "not have: call model.float()"
                    )
        variant = variant or eager(model)
        self._stages, self._heads = variant.stages, variant.heads
        self._boundaries = Boundaries([[tensor_spec(one) for one in stage.inputs] for stage in self._stages])

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        """The live tensors before stage 0; raises `InvalidInputError`, naming the input, where one does not fit."""
        return self._boundaries.enter(inputs)

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        """Run stage k and, if asked, its exit head."""
        stage = self._stages[k]
        with torch.inference_mode():
            step = next(walk((stage,), _tensors(live)))
            if k == self.num_exits - 1:
                return (), to_numpy(self.model.final_logits(step.outputs))
            logits = to_numpy(self._heads[k](step.feature)) if observe else None
            return tuple([tensor.contiguous().numpy() for tensor in step.live]), logits

    def size(self, k: int, live: Live) -> int:
        """The number of samples in the live tensors before stage k."""
        dims = self.model.staged.inference_stages[k].batch_dims
        return int(next(array.shape[dim] for array, dim in zip(live, dims, strict=True) if dim is not None))

    def take(self, k: int, live: Live, rows: Ints) -> Live:
        """The samples `rows` of the live tensors before stage k."""
        with torch.inference_mode():
            taken = self.model.staged.compact(_tensors(live), torch.from_numpy(np.ascontiguousarray(rows)), k)
            return tuple([tensor.numpy() for tensor in taken])

    def join(self, k: int, parts: Sequence[Live]) -> Live:
        """The live tensors before stage k of several requests as those of one."""
        dims = self.model.staged.inference_stages[k].batch_dims
        with torch.inference_mode():
            return tuple(
                arrays[0] if dim is None else torch.cat(_tensors(arrays), dim).numpy()
                for arrays, dim in zip(zip(*parts, strict=True), dims, strict=True)
            )


def load_torch(manifest: Manifest, *, threads: int | None, allow: Sequence[str]) -> TorchBackend:
    """The backend of a bundle of weights; `threads` is set for the whole process, as PyTorch has it."""
    manifest.check()
    model = MultiExitModel.from_pretrained(manifest.root / "model", allow=allow)
    if (model.num_exits, model.num_classes) != (manifest.num_exits, manifest.num_classes):
        raise FileFormatError(
            f"the model in {str(manifest.root)!r} has {model.num_exits} exits and {model.num_classes} classes, its "
            f"manifest says {manifest.num_exits} and {manifest.num_classes}; export the bundle again"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchBackend(model, compiled(model) if manifest.backend == "aoti" else None)


_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    getattr(torch, name): np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def _tensors(live: Sequence[Array]) -> tuple[Tensor, ...]:
    # An array over a request's bytes cannot be written to, which PyTorch warns of; stages do not write to their inputs,
    # but a network might, so such an array is copied.
    return tuple([torch.from_numpy(array if array.flags.writeable else array.copy()) for array in live])
