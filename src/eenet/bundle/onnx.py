"""Bundles of ONNX graphs, run by ONNX Runtime: needs numpy and onnxruntime, and imports no torch.

`eenet.bundle.onnx.load("bundle")` gives a bundle. `bundle(images)` takes arrays; its answers have `logits` and `exits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._files import atomic_path, existing_file
from eenet.bundle._load import LoadedBundle, known
from eenet.bundle._manifest import read_manifest
from eenet.bundle._onnx import OnnxBackend as OnnxBackend
from eenet.bundle._onnx import Session, errors_of
from eenet.bundle._quantize import quantized
from eenet.errors import FileFormatError, InvalidInputError
from eenet.runtime._backend import Array

__all__ = ["load", "quantize"]

_FEWEST, _CHUNK = 32, 16


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


def quantize(network: str | Path, out: str | Path, samples: Mapping[str, Array] | Array) -> tuple[str, ...]:
    """Write a plain network's ONNX graph in int8, as `eenet.export(..., precision=...)` quantizes stages.

    It is what exits compete with: weights per channel in int8, activations in uint8. Around convolutions their ranges
    are those of the samples; a matrix product with weights takes that of each row of its input while it runs. Returns
    the kinds of operators that stay fp32, such as `("Softmax",)`. NaN and infinity in an input become numbers, unlike
    in a bundle: look for them before. The graph is run on the samples, and is not written where it gives NaN or
    infinity and the network does not. Needs `eenet[export]`.

    Parameters
    ----------
    network : path
        The `.onnx` file, with its weights in it or in a file beside it.
    out : path
        The file to write.
    samples : array or dict of str to array
        At least 32 inputs of the kind that the network will see, (N, ...), best about 128 and not trained on. Of a
        network with several inputs by their names.

    Raises
    ------
    InvalidInputError
        Where the samples do not fit the network or are not finite, nothing in it can be quantized, or the graph in int8
        gives NaN or infinity where the network gives numbers.
    FileFormatError
        Where the file is no network that ONNX Runtime runs, or weights that belong beside it are missing.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(128, 4)
    >>> import eenet.bundle.onnx
    >>> model = eenet.attach(network, ["1"], example=x[:2])
    >>> scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0]), budget=1.5)
    >>> _ = eenet.export(model, scheduler, "bundle", example=x, measure=False)
    >>> eenet.bundle.onnx.quantize("bundle/plain.onnx", "plain-int8.onnx", x.numpy())  # or a file of torch.onnx.export
    ('Relu',)
    """
    runtime, onnx = require("onnxruntime", "onnx"), require("onnx", "export")
    content = _with_weights(onnx, existing_file(network))
    before = Session(runtime, content, str(network), None)
    names = before.inputs
    if not isinstance(samples, Mapping) and len(names) == 1:
        samples = {names[0]: samples}
    if not isinstance(samples, Mapping) or set(samples) != set(names):
        said = sorted(samples) if isinstance(samples, Mapping) else "one array"
        raise InvalidInputError(f"samples are {said}, the network takes {names}; give arrays by these names")
    arrays = [np.asarray(samples[name]) for name in names]
    sizes = sorted({len(one) if one.ndim else 0 for one in arrays})
    if len(sizes) > 1 or sizes[0] < _FEWEST:
        raise InvalidInputError(
            f"samples have {sizes} rows, expected the same for each input and at least {_FEWEST}: about 128 are good"
        )
    strange = next((name for name, one in zip(names, arrays, strict=True) if not _finite(one).all()), None)
    if strange is not None:
        raise InvalidInputError(
            f"the samples of {strange!r} hold NaN or infinity, of which the quantizer can take no ranges; correct them"
        )
    fixed = onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim[0].dim_value
    step = fixed or _CHUNK
    feeds = [[one[n : n + step] for one in arrays] for n in range(0, sizes[0], step)]
    feeds = [feed for feed in feeds if not fixed or len(feed[0]) == fixed]
    if not feeds:
        raise InvalidInputError(f"samples have {sizes} rows, the network takes {fixed} at a time; give as many")
    try:
        before(feeds[0])
    except errors_of(runtime) as error:
        raise InvalidInputError(f"{str(network)!r} does not take these samples: {error}") from error
    made = quantized(content, [dict(zip(names, feed, strict=True)) for feed in feeds])
    if made.content is None:
        raise InvalidInputError(f"{str(network)!r} cannot be quantized: {made.reason}")
    after = Session(runtime, made.content, f"{network} in int8", None)
    lost = sum(_lost(before(feed), after(feed)) for feed in feeds)
    if lost:
        raise InvalidInputError(
            f"{str(network)!r} in int8 gives NaN or infinity for {lost} of the {sum(len(feed[0]) for feed in feeds)} "
            "samples, for which the network gives numbers: nothing is written. Its numbers are too large for int8; "
            "keep it in fp32"
        )
    with atomic_path(out) as path:
        path.write_bytes(made.content)
    return made.kept


def _finite(array: Array) -> NDArray[np.bool_]:
    return np.isfinite(array) if array.dtype.kind == "f" else np.ones(array.shape, dtype=np.bool_)


def _lost(before: Sequence[Array], after: Sequence[Array]) -> int:
    """For how many samples a graph gives a number that is not finite where another one gives one that is."""
    lost = [
        (_finite(one) & ~_finite(other)).reshape(len(one), -1).any(axis=1)
        for one, other in zip(before, after, strict=True)
        if one.ndim and one.shape == other.shape and len(one) == len(before[0])
    ]
    return int(np.any(lost, axis=0).sum()) if lost else 0


def _with_weights(onnx: Any, path: Path) -> bytes:
    """A graph with the weights that lie in files beside it, as torch.onnx.export writes them by default."""
    beside, protobuf = require("onnx.external_data_helper", "export"), require("google.protobuf.message", "export")
    content = path.read_bytes()
    try:
        graph = onnx.load_from_string(content)
        if not any(beside.uses_external_data(tensor) for tensor in graph.graph.initializer):
            return content
        beside.load_external_data_for_model(graph, str(path.parent))
        whole: bytes = graph.SerializeToString(deterministic=True)
    except protobuf.DecodeError:
        return content  # ONNX Runtime says what is wrong with it
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise FileFormatError(
            f"the weights of {str(path)!r} cannot be read ({error}); keep the files together that torch.onnx.export "
            "wrote, or give external_data=False there"
        ) from error
    return whole
