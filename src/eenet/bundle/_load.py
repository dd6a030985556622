"""`load`: a bundle of any backend."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eenet.bundle._loaded import LoadedBundle
from eenet.bundle._manifest import read_manifest
from eenet.runtime._boundaries import NoStages


def load(
    folder: str | Path,
    *,
    threads: int | None = None,
    allow: Iterable[str] = (),
    stages: Iterable[int] | None = None,
) -> LoadedBundle:
    """The bundle that `eenet.export` wrote to a folder, ready to run.

    A bundle of ONNX graphs needs no PyTorch. `threads` is how many a stage may use. `allow` lists the import paths that
    may be called to build the network of a bundle of weights, where that is the caller's own; see
    `MultiExitModel.from_pretrained`. `stages` are the numbers of those that will be run, by default all: the graphs of
    others are not loaded, and with none at all no weights are (a bundle of weights is loaded whole otherwise). Raises
    `InvalidInputError` for a folder that holds no bundle, `FileFormatError`, which names the file, where anything in it
    is not what was written.
    """
    manifest = read_manifest(folder)
    chosen = None if stages is None else frozenset(stages)
    if chosen is not None and not chosen:
        return LoadedBundle(manifest, NoStages([stage.inputs for stage in manifest.stages], manifest.num_classes))
    if manifest.backend == "onnx":
        from eenet.bundle.onnx import OnnxBackend

        return LoadedBundle(manifest, OnnxBackend(manifest, threads=threads, stages=chosen))
    from eenet.bundle._weights import load_torch

    return LoadedBundle(manifest, load_torch(manifest, threads=threads, allow=tuple(allow)))
