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
    """Load the bundle that `eenet.export` wrote to a folder. A bundle of ONNX graphs needs no PyTorch.

    Parameters
    ----------
    folder
        The bundle.
    threads
        How many threads a stage may use; for a bundle of weights this holds for the whole process.
    allow
        The import paths, such as "mypackage.networks:make", that may be called to build the network of a bundle of
        weights, where it is your own; see `MultiExitModel.from_pretrained`.
    stages
        The numbers of the stages that will be run, by default all. The graphs of others are not loaded. With none at
        all no weights are loaded; otherwise a bundle of weights is loaded whole.

    Returns
    -------
    LoadedBundle
        Call it with numpy arrays: `logits, exits = bundle(inputs)`.

    Raises
    ------
    InvalidInputError
        For a folder that holds no bundle.
    FileFormatError
        Where anything in it is not what was written; the message names the file.

    Examples
    --------
    >>> import eenet
    >>> bundle = eenet.bundle.load("bundle/")  # doctest: +SKIP
    >>> logits, exits = bundle(images)  # doctest: +SKIP
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
