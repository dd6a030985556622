"""TorchBackend: the stages of a `MultiExitModel` behind the same interface as those of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from eenet.errors import FileFormatError
from eenet.models import MultiExitModel, feature_of
from eenet.runtime._backend import Array, Ints, Live
from eenet.runtime._boundaries import Boundaries
from eenet.runtime._compiled import compiled
from eenet.runtime._frozen import Variant, eager
from eenet.runtime._graphs import tensor_spec
from eenet.runtime._manifest import Manifest


class TorchBackend:
    """Runs a model's stages, or a variant of them, in PyTorch; numpy in and out. See `StageBackend`."""

    def __init__(self, model: MultiExitModel, variant: Variant | None = None) -> None:
        self.model = model.eval()
        variant = variant or eager(model)
        self._stages, self._heads = variant.stages, variant.heads
        self._boundaries = Boundaries([[tensor_spec(one) for one in stage.inputs] for stage in self._stages])
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

    @property
    def num_exits(self) -> int:
        """K, the last exit included."""
        return len(self._stages)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.model.num_classes

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        """The live tensors before stage 0; raises `InvalidInputError`, naming the input, where one does not fit."""
        return self._boundaries.enter(inputs)

    @torch.inference_mode()
    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        """The live tensors before stage k + 1, and the logits of exit k; see `StageBackend.run`."""
        stage = self._stages[k]
        outputs = stage(*[torch.from_numpy(array).to(self._device) for array in live])
        if k == len(self._stages) - 1:
            return (), self.model.final_logits(outputs).float().cpu().numpy()
        passed = tuple([outputs[i].cpu().contiguous().numpy() for i in stage.passed])
        if not observe:
            return passed, None
        return passed, self._heads[k](feature_of(stage, outputs)).float().cpu().numpy()

    def size(self, k: int, live: Live) -> int:
        """The number of samples in the live tensors before stage k."""
        return self._boundaries.size(k, live)

    def take(self, k: int, live: Live, rows: Ints) -> Live:
        """The samples `rows` of the live tensors before stage k."""
        return self._boundaries.take(k, live, rows)

    def join(self, k: int, parts: Sequence[Live]) -> Live:
        """The live tensors before stage k of several requests as those of one."""
        return self._boundaries.join(k, parts)


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
