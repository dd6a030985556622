"""The backend of a bundle of weights: a network that PyTorch builds again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eenet.bundle._manifest import Manifest
from eenet.errors import FileFormatError
from eenet.models import MultiExitModel
from eenet.optimize import compiled
from eenet.runtime import TorchBackend


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
