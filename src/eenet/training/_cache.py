"""The features at the exits, computed once and kept on disk, so that heads train without running the backbone.

A folder per state of the backbone and of the data, named by a hash of both. In it one `.npy` per early exit, one for
the last exit's logits and one for the labels, in the order of the data; they are read as memory maps. The file
`complete.json` is written last: a folder without it is not a cache, whatever else is in it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from eenet._files import write_json
from eenet._values import array_value
from eenet.errors import InvalidInputError, OutOfSpaceError, kind_of
from eenet.models import MultiExitModel
from eenet.models._io import inferring, moved, unpack
from eenet.models._sizes import sizes_refused
from eenet.training._loss import targets_of

_MARKER = "complete.json"
_SCHEMA = 2
_SPARE = 64 * 2**20
"""Bytes to be left free on the disk."""

_log = logging.getLogger("eenet.training")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Array = NDArray[Any]
Parts = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class NotCacheableError(InvalidInputError):
    """The data cannot be cached, but can be trained on."""


@array_value
@dataclass(frozen=True)
class CachedFeatures:
    """What heads train on: `features` of the K-1 early exits, (N, ...) each; `logits` (N, C) of the last; `targets`."""

    features: tuple[Array, ...]
    logits: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, index: Array) -> tuple[list[Tensor], Tensor]:
        """The features and the last exit's logits of some samples, float32, and their targets."""
        parts = [torch.from_numpy(np.asarray(part[index])).float() for part in (*self.features, self.logits)]
        return parts, torch.from_numpy(np.asarray(self.targets[index]))


def cached_features(
    model: MultiExitModel,
    loader: Any,
    folder: Path,
    *,
    dtype: str = "float32",
    reading: int = 0,
    start: Callable[[], None],
    announce: Callable[[str], None],
    advance: Callable[[int, int], None],
) -> CachedFeatures:
    """The features of a loader's data, from `folder` where it has them, else computed and kept there.

    Each sample is read once, in the order of the data set, with the loader's own transform: augmentation is frozen
    as well, as in epoch `reading`; `start` is called before each time that the data are read, and seeds it. What is in
    `folder` is taken where the hash of all inputs and targets is the same. `announce` is called with the size before
    anything is written, `advance` with the samples done and their number. Raises `OutOfSpaceError`, leaving nothing
    behind, where the disk is too small or fills up.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def read() -> tuple[_Source, int]:
        start()
        batches, samples = _each_once(loader, reading)
        return _Source(model, batches, device), samples

    source, samples = read()
    first = source.peek()
    reducers = [_reducer(head, feature) for head, feature in zip(model.heads, first.features, strict=True)]
    parts = _parts(first, reducers, dtype)
    path = folder / _key(model, samples, parts, reducers, first.inputs)
    kept = _digest_of_complete(path)
    if kept is not None and source.digest_of_all(samples, advance) == kept:
        _log.info("features of %d samples are read from %s", samples, path)
    else:
        if kept is not None:
            _log.warning("the features in %s are of other data with the same first batch; they are made again", path)
            source, _ = read()
        needed = sum(samples * math.prod(shape) * kind.itemsize for shape, kind in parts.values())
        _check_room(path, needed)
        announce(f"caching features of {samples} samples at {len(reducers)} exits: {_size(needed)} in {str(path)!r}")
        shutil.rmtree(path, ignore_errors=True)  # half of what a killed run wrote
        try:
            path.mkdir(parents=True)
            _write(path, parts, source, reducers, samples, advance)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            if error.errno in _NO_ROOM:
                raise OutOfSpaceError(
                    f"the disk filled up while features were cached in {str(path)!r}, which needs {_size(needed)}: "
                    "nothing of it is left; free some space, choose another `out`, or cache_dtype='float16'"
                ) from error
            raise
        except (InvalidInputError, KeyboardInterrupt):
            shutil.rmtree(path, ignore_errors=True)
            raise
    return _open(path, len(reducers))


@array_value
@dataclass(frozen=True)
class _Outputs:
    inputs: tuple[Tensor, ...]
    features: list[Tensor]
    logits: Tensor
    targets: Tensor


class _Source:
    """The features of one batch after the other; the first can be looked at before. `data` hashes what was read."""

    def __init__(self, model: MultiExitModel, batches: Iterable[Any], device: torch.device) -> None:
        self.model = model
        self.device = device
        self.data = hashlib.sha256()
        self._batches = iter(batches)
        self._first: _Outputs | None = None

    def peek(self) -> _Outputs:
        for batch in self._batches:
            self._first = self._run(batch)
            return self._first
        raise InvalidInputError("the loader gave no batch; expected at least one")

    def __iter__(self) -> Iterator[_Outputs]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        for batch in self._batches:
            yield self._run(batch)

    def digest_of_all(self, samples: int, advance: Callable[[int, int], None]) -> str:
        """The hash of all inputs and targets; the network does not run on them."""
        done = 0 if self._first is None else len(self._first.targets)
        for batch in self._batches:
            done += len(self._read(batch)[1])
            advance(min(done, samples), samples)
        return self.data.hexdigest()

    def _read(self, batch: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        """The inputs of a batch, on the model's device, and its targets."""
        args, kwargs, labels = unpack(batch)
        args, kwargs = moved((args, kwargs), self.device)
        inputs = self.model.staged.flatten_inputs(*args, **kwargs)
        targets = targets_of(labels, torch.device("cpu"))
        for tensor in (*inputs, targets):
            self.data.update(_bytes(tensor))
        return inputs, targets

    def _run(self, batch: Any) -> _Outputs:
        inputs, targets = self._read(batch)
        model = self.model
        with inferring(model), sizes_refused(model, inputs):
            *early, last = model.staged.walk(inputs)
            features = [step.feature for step in early]
            logits = model.final_logits(last.outputs)
        return _Outputs(inputs, features, logits, targets)


def _each_once(loader: Any, reading: int) -> tuple[Iterable[Any], int]:
    """Batches that hold each of a loader's samples once, in the order of the data set, and the number of samples."""
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        if loader.batch_size is None and loader.batch_sampler is None:
            return _whole_batches_once(loader, reading)
        # Through the sampler, which may leave out a part that is held out on purpose.
        if loader.batch_sampler is not None and loader.batch_size is None:
            index = sorted(i for rows in loader.batch_sampler for i in rows)
        else:
            index = sorted(loader.sampler)
        dataset: Dataset[Any] = loader.dataset
        if not isinstance(dataset, Sized) or index != list(range(len(dataset))):
            dataset = Subset(dataset, index)
        ordered = DataLoader(
            dataset,
            batch_size=batch_size_of(loader),
            shuffle=False,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
        )
        return ordered, len(index)
    if isinstance(loader, Sequence):
        counts = [len(targets_of(unpack(batch)[2], torch.device("cpu"))) for batch in loader]
        return loader, sum(counts)
    raise NotCacheableError(
        f"freeze_backbone needs data of known length, got {kind_of(loader)}; give a DataLoader of a data set "
        "with a length, or a list of batches"
    )


def _whole_batches_once(loader: DataLoader[Any], reading: int) -> tuple[Iterable[Any], int]:
    """As `_each_once`, for a loader whose data set gives whole batches, such as `experiments.data.loader` makes."""
    in_order = getattr(loader.sampler, "in_order", None)
    if not callable(in_order):
        raise NotCacheableError(
            "freeze_backbone cannot tell which samples are in a DataLoader with batch_size=None, whose data set gives "
            "whole batches: give one that batches by itself (batch_size=...), one of `experiments.data.loader`, or a "
            "list of batches"
        )
    sampler = in_order()
    sampler.set_epoch(reading)
    ordered = DataLoader(
        loader.dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )
    return ordered, int(sampler.samples)


def batch_size_of(loader: Any) -> int:
    """The number of samples in a full batch of a loader or of a list of batches."""
    size = getattr(loader, "batch_size", None)
    for name in ("batch_sampler", "sampler"):
        if size is None:
            size = getattr(getattr(loader, name, None), "batch_size", None)
    if size is None:
        for batch in loader:
            return len(targets_of(unpack(batch)[2], torch.device("cpu")))
    return int(size or 1)


def _reducer(head: nn.Module, feature: Tensor) -> Callable[[Tensor], Tensor]:
    """What the default heads do to a feature before anything that learns: the rest need not be kept.

    Taken only where the head gives the same for the reduced feature.
    """
    reduced: Callable[[Tensor], Tensor] = getattr(head, "reduced", _whole)
    with inferring(head):
        same = reduced is _whole or torch.allclose(head(reduced(feature)), head(feature), rtol=1e-5, atol=1e-6)
    return reduced if same else _whole


def _whole(feature: Tensor) -> Tensor:
    return feature


def _key(
    model: MultiExitModel,
    samples: int,
    parts: Parts,
    reducers: Sequence[Callable[[Tensor], Tensor]],
    inputs: Sequence[Tensor],
) -> str:
    """A hash of all that the files depend on, of the data its length and first batch; heads do not matter.

    The rest of the data is compared by the digest that is kept beside the files.
    """
    kinds = {name: [list(shape), str(kind)] for name, (shape, kind) in parts.items()}
    # Heads that reduce a feature to the same shape may do so in other ways.
    reduced = [
        "" if reducer is _whole else f"{type(head).__name__} {getattr(head, 'options', '')}"
        for reducer, head in zip(reducers, model.heads, strict=True)
    ]
    digest = hashlib.sha256(json.dumps([_SCHEMA, samples, model.exit_names, kinds, reduced]).encode())
    for name, tensor in model.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    for tensor in inputs:
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw: bytes = flat.view(torch.uint8).numpy().tobytes()
    return str((tensor.dtype, tuple(tensor.shape))).encode() + raw


def _parts(first: _Outputs, reducers: Sequence[Callable[[Tensor], Tensor]], dtype: str) -> Parts:
    """The shape of one sample and the dtype of each file."""
    kind = np.dtype(dtype)
    parts = {
        f"exit{k}": (tuple(reduce(feature[:1]).shape[1:]), kind)
        for k, (reduce, feature) in enumerate(zip(reducers, first.features, strict=True))
    }
    parts["logits"] = (tuple(first.logits.shape[1:]), np.dtype("float32"))
    parts["targets"] = (tuple(first.targets.shape[1:]), first.targets.numpy().dtype)
    return parts


def _check_room(path: Path, needed: int) -> None:
    existing = next(parent for parent in (path, *path.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if needed + _SPARE > free:
        raise OutOfSpaceError(
            f"caching the features needs {_size(needed)} in {str(path)!r}, where {_size(free)} are free; free some "
            "space, choose another `out`, use cache_dtype='float16', or train without freeze_backbone"
        )


def _write(
    path: Path,
    parts: Parts,
    source: _Source,
    reducers: Sequence[Callable[[Tensor], Tensor]],
    samples: int,
    advance: Callable[[int, int], None],
) -> None:
    # Written as ordinary files: a full disk is an error there, while in a memory map it kills the process.
    with ExitStack() as stack:
        files = {}
        for name, (shape, kind) in parts.items():
            files[name] = stack.enter_context((path / f"{name}.npy").open("wb"))
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (samples, *shape)}
            np.lib.format.write_array_header_2_0(files[name], header)
        done = 0
        for outputs in source:
            tensors = {
                f"exit{k}": reduce(feature)
                for k, (reduce, feature) in enumerate(zip(reducers, outputs.features, strict=True))
            }
            tensors |= {"logits": outputs.logits, "targets": outputs.targets}
            for name, tensor in tensors.items():
                _append(files[name], name, tensor, *parts[name])
            done += len(outputs.targets)
            advance(min(done, samples), samples)
        if done != samples:
            raise InvalidInputError(f"the loader gave {done} samples, expected {samples}; its length is not right")
    sizes = {f"{name}.npy": (path / f"{name}.npy").stat().st_size for name in parts}
    marker = {"schema": _SCHEMA, "samples": samples, "files": sizes, "data": source.data.hexdigest()}
    write_json(path / _MARKER, marker)


def _append(file: BinaryIO, name: str, tensor: Tensor, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
    if tuple(tensor.shape[1:]) != shape:
        raise NotCacheableError(
            f"the feature {name!r} has shape {tuple(tensor.shape[1:])} in one batch and {shape} in another; pad all "
            "inputs to one size to cache features"
        )
    values = tensor.cpu() if kind.kind != "f" else tensor.float().cpu()
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(values.numpy().astype(kind, copy=False))
    if kind == np.float16 and not np.isfinite(array).all() and bool(values.isfinite().all()):
        raise InvalidInputError(f"the feature {name!r} exceeds the range of float16; use cache_dtype='float32'")
    file.write(array.data)


def _digest_of_complete(path: Path) -> str | None:
    """The digest of the data whose features are there in full, which the marker says, written last; else None."""
    if not (path / _MARKER).is_file():
        return None
    marker = json.loads((path / _MARKER).read_text(encoding="utf-8"))
    files: dict[str, int] = marker["files"]
    complete = all((path / name).is_file() and (path / name).stat().st_size == size for name, size in files.items())
    return str(marker["data"]) if complete else None


def _open(path: Path, exits: int) -> CachedFeatures:
    # allow_pickle=False is the default; said here because nothing on disk may run code.
    def mapped(name: str) -> Array:
        array: Array = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return array

    return CachedFeatures(tuple(mapped(f"exit{k}") for k in range(exits)), mapped("logits"), mapped("targets"))


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"
