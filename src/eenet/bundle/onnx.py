"""Bundles of ONNX graphs, run by ONNX Runtime: needs numpy and onnxruntime, and imports no torch.

`eenet.bundle.onnx.load("bundle")` gives a bundle. `bundle(images)` takes arrays; its answers have `logits` and `exits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eenet.bundle._load import LoadedBundle, known
from eenet.bundle._manifest import read_manifest
from eenet.bundle._onnx import OnnxBackend as OnnxBackend
from eenet.errors import InvalidInputError

__all__ = ["load"]


def load(folder: str | Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> LoadedBundle:
    """The bundle that `eenet.export(..., backend="onnx")` wrote to a folder.

    `threads` is how many each stage may use (by default one for each core); `providers` are those of ONNX Runtime, by
    default the CPU. Raises `InvalidInputError` for a folder that holds no such bundle, `FileFormatError`, which names
    the file, where anything in it is not what was written, `MissingExtraError` without onnxruntime.

    Parameters
    ----------
    folder : path
        The bundle.
    threads : int, optional
        The threads of ONNX Runtime; by default its own choice.
    providers : sequence of str, optional
        Its execution providers; by default those of the CPU.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> import eenet.bundle.onnx
    >>> x = torch.randn(40, 4)
    >>> model = eenet.attach(network, ["1"], example=x[:2])
    >>> scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0]), budget=1.5)
    >>> _ = eenet.export(model, scheduler, "bundle", example=x, measure=False)
    >>> eenet.bundle.onnx.load("bundle", threads=1)(x.numpy()).logits.shape
    (40, 3)
    """
    manifest = read_manifest(folder)
    if manifest.backend != "onnx":
        raise InvalidInputError(
            f"{str(manifest.root)!r} is a bundle for {manifest.backend!r}; load it with eenet.bundle.load, which "
            "needs PyTorch"
        )
    backend = OnnxBackend(manifest, threads=threads, providers=providers)
    return known(LoadedBundle(manifest, backend, threads=threads))
