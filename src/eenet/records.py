"""ExitRecords: what N samples showed at K exits; the only thing a scheduler is fitted on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet._files import read_arrays, write_arrays
from eenet.errors import FileFormatError, InvalidInputError
from eenet.tasks import POOLED, Evidence, softmax

_SCHEMA = 1
_POOLED = "pooled."
_SUM_TOLERANCE = 1e-3


class ExitRecords:
    """Evidence and utility of N samples at K exits with C classes.

    `probabilities` (K, N, C) float32, a non-finite row stands for an output that was not finite; `predictions`
    (K, N); `labels` (N,) or None; `utility` (K, N) in [0, 1], what stopping at each exit is worth, or None. For samples
    with many predictions each, such as images with a class per pixel, `pooled` has (K, N) means by name (see
    `eenet.tasks.POOLED`) and `pixel_counts` (K, N, C, 3) the pixels that are right, predicted and labelled.
    """

    def __init__(
        self,
        probabilities: NDArray[np.float32],
        predictions: NDArray[np.intp],
        labels: NDArray[np.intp] | None,
        utility: NDArray[np.float32] | None,
        *,
        pooled: Mapping[str, NDArray[np.float64]] | None = None,
        pixel_counts: NDArray[np.int64] | None = None,
    ) -> None:
        self.probabilities = probabilities
        self.predictions = predictions
        self.labels = labels
        self.utility = utility
        self.pooled = dict(pooled or {})
        self.pixel_counts = pixel_counts

    @classmethod
    def from_probabilities(cls, probabilities: ArrayLike, labels: ArrayLike | None = None) -> ExitRecords:
        """Records of class probabilities (K, N, C) and labels (N,); without labels only costs can be replayed.

        Raises `InvalidInputError` where a row is negative, not finite or does not sum to 1.
        """
        p = _float_array(probabilities, "probabilities")
        if not np.isfinite(p).all():
            k, n, c = np.argwhere(~np.isfinite(p))[0]
            raise InvalidInputError(
                f"probabilities[{k}, {n}, {c}] is {p[k, n, c]}: expected finite values; drop the sample, or use "
                "from_logits, which lets a sample whose output is not finite go on to the last exit"
            )
        if (p < 0).any():
            k, n, c = np.argwhere(p < 0)[0]
            raise InvalidInputError(
                f"probabilities[{k}, {n}, {c}] is {p[k, n, c]:.6g}, which is negative; for logits use from_logits"
            )
        normal = np.empty(p.shape, dtype=np.float32)
        for k, of_exit in enumerate(p):  # one exit at a time: in float64 all of them would take twice their memory
            exact = np.ascontiguousarray(of_exit, dtype=np.float64)
            sums = exact.sum(axis=-1)
            if (np.abs(sums - 1) > _SUM_TOLERANCE).any():
                n = int((np.abs(sums - 1) > _SUM_TOLERANCE).argmax())
                raise InvalidInputError(
                    f"probabilities[{k}, {n}] sums to {sums[n]:.6g}, expected 1 within {_SUM_TOLERANCE}; apply "
                    "softmax, or use from_logits"
                )
            np.divide(exact, sums[:, None], out=normal[k], casting="same_kind")
        return cls._of(normal, normal.argmax(axis=-1), labels)

    @classmethod
    def from_logits(cls, logits: ArrayLike, labels: ArrayLike | None = None) -> ExitRecords:
        """Records of logits (K, N, C) and labels (N,); NaN and infinities are allowed and kept as not finite."""
        z = _float_array(logits, "logits")
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is for a network that runs in float32
            z = np.ascontiguousarray(z, dtype=np.float32)
        return cls._of(softmax(z), z.argmax(axis=-1), labels)

    @classmethod
    def from_evidence(
        cls,
        batches: Sequence[Sequence[Evidence]],
        *,
        utility: NDArray[np.float32] | None = None,
        pixel_counts: NDArray[np.int64] | None = None,
    ) -> ExitRecords:
        """Records of pooled evidence: for each batch that of its K exits, in order, with the utility (K, N).

        A task makes such evidence; see `eenet.tasks.Segmentation`.
        """

        def joined(name: str) -> NDArray[Any]:
            exits = range(len(batches[0]))
            return np.stack([np.concatenate([getattr(batch[k], name) for batch in batches]) for k in exits])

        probabilities = joined("probabilities")
        probabilities[~joined("finite")] = np.nan
        pooled = {name: joined(name).astype(np.float64) for name in POOLED}
        predictions = joined("predictions")
        return cls(probabilities, predictions, None, utility, pooled=pooled, pixel_counts=pixel_counts)

    @classmethod
    def _of(
        cls, probabilities: NDArray[np.float32], predictions: NDArray[np.intp], labels: ArrayLike | None
    ) -> ExitRecords:
        if labels is None:
            return cls(probabilities, predictions, None, None)
        y = _label_array(labels, samples=probabilities.shape[1], classes=probabilities.shape[2])
        return cls(probabilities, predictions, y, (predictions == y).astype(np.float32))

    @property
    def num_exits(self) -> int:
        """K."""
        return int(self.probabilities.shape[0])

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.probabilities.shape[2])

    def __len__(self) -> int:
        return int(self.probabilities.shape[1])

    def __repr__(self) -> str:
        labelled = "labelled" if self.labels is not None else "unlabelled"
        return f"ExitRecords({self.num_exits} exits, {len(self)} {labelled} samples, {self.num_classes} classes)"

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """Mean utility of each exit, (K,)."""
        means: NDArray[np.float64] = self.require_utility().mean(axis=1, dtype=np.float64)
        return means

    def require_utility(self) -> NDArray[np.float32]:
        """The utility (K, N); raises `InvalidInputError` for records without labels."""
        if self.utility is None:
            raise InvalidInputError("these records have no labels: pass labels=... when making them")
        return self.utility

    def evidence(self, exit_index: int, rows: NDArray[np.intp], earlier: Sequence[Evidence] = ()) -> Evidence:
        """The evidence of some samples at one exit, given their evidence at the exits before."""
        if self.pooled:
            quantities = {name: values[exit_index, rows] for name, values in self.pooled.items()}
            return Evidence.pooled(self.probabilities[exit_index, rows], **quantities)
        return Evidence(self.probabilities[exit_index, rows], self.predictions[exit_index, rows], earlier)

    def all_evidence(self) -> list[Evidence]:
        """The evidence of every sample at every exit, K long."""
        rows = np.arange(len(self))
        trail: list[Evidence] = []
        for k in range(self.num_exits):
            trail.append(self.evidence(k, rows, tuple(trail)))
        return trail

    def subset(self, rows: ArrayLike) -> ExitRecords:
        """The records of some samples, in the order of `rows`: their numbers, or one true or false for each."""
        given = np.asarray(rows)
        if given.dtype.kind == "b" and given.shape == (len(self),):
            given = np.flatnonzero(given)
        if given.dtype.kind not in "iu" or given.ndim != 1 or len(given) == 0:
            raise InvalidInputError(
                f"rows have dtype {given.dtype} and shape {given.shape}, expected at least one sample number, or a "
                f"mask of {len(self)} with at least one true"
            )
        index = given.astype(np.intp)
        outside = index[(index < -len(self)) | (index >= len(self))]
        if len(outside):
            raise InvalidInputError(f"rows hold {outside[0]}, expected sample numbers from 0 to {len(self) - 1}")
        return ExitRecords(
            np.ascontiguousarray(self.probabilities[:, index]),
            self.predictions[:, index],
            None if self.labels is None else self.labels[index],
            None if self.utility is None else self.utility[:, index],
            pooled={name: values[:, index] for name, values in self.pooled.items()},
            pixel_counts=None if self.pixel_counts is None else self.pixel_counts[:, index],
        )

    def first_exits(self, exits: int) -> ExitRecords:
        """The records of the first so many exits, of all samples."""
        if not 1 <= exits <= self.num_exits:
            raise InvalidInputError(f"exits is {exits}, expected 1 to {self.num_exits}")
        return ExitRecords(
            self.probabilities[:exits],
            self.predictions[:exits],
            self.labels,
            None if self.utility is None else self.utility[:exits],
            pooled={name: values[:exits] for name, values in self.pooled.items()},
            pixel_counts=None if self.pixel_counts is None else self.pixel_counts[:exits],
        )

    def split(self, fraction: float, *, seed: int) -> tuple[ExitRecords, ExitRecords]:
        """Two disjoint random parts, the first with `fraction` of the samples."""
        first, second = self.split_rows(fraction, seed=seed)
        return self.subset(first), self.subset(second)

    def split_rows(self, fraction: float, *, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The numbers of the samples in the two parts that `split` gives, ascending."""
        first = round(len(self) * fraction) if np.isfinite(fraction) else 0
        if not 0 < first < len(self):
            raise InvalidInputError(
                f"fraction {fraction} of {len(self)} samples leaves one part empty; choose one between 0 and 1"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        return np.sort(order[:first]), np.sort(order[first:])

    def digests(self) -> NDArray[np.void]:
        """For each sample 16 bytes, (N,), that are equal where two samples have equal outputs at all exits."""
        # Sorting or comparing the outputs themselves would take several times their memory.
        found = [hashlib.blake2b(digest_size=16) for _ in range(len(self))]
        for of_exit in np.ascontiguousarray(self.probabilities):
            for digest, row in zip(found, of_exit, strict=True):
                digest.update(row)
        return np.array([digest.digest() for digest in found], dtype="V16")

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically."""
        wrong = _wrong_prediction(self.probabilities, self.predictions)
        if wrong is not None:
            raise InvalidInputError(f"{wrong}; make records with from_logits or from_probabilities")
        arrays: dict[str, NDArray[Any]] = {"probabilities": self.probabilities, "predictions": self.predictions}
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.utility is not None:
            arrays["utility"] = self.utility
        if self.pixel_counts is not None:
            arrays["pixel_counts"] = self.pixel_counts
        arrays |= {f"{_POOLED}{name}": values for name, values in self.pooled.items()}
        write_arrays(path, arrays, kind="records", schema=_SCHEMA, header={})

    @classmethod
    def load(cls, path: str | Path) -> ExitRecords:
        """Read what `save` wrote."""
        arrays, _ = read_arrays(path, kind="records", schema=_SCHEMA)
        labels = arrays.get("labels")
        shapes = {name: array.shape for name, array in arrays.items()}
        whole = shapes.get("probabilities", ())
        expected = {"probabilities": whole, "predictions": whole[:2], "utility": whole[:2], "labels": whole[1:2]}
        expected |= {f"{_POOLED}{name}": whole[:2] for name in POOLED} | {"pixel_counts": (*whole, 3)}
        if len(whole) != 3 or "predictions" not in shapes or any(shapes[n] != expected.get(n) for n in shapes):
            raise FileFormatError(
                f"{str(path)!r} holds arrays of shapes {shapes}, which are no records; save them again"
            )
        kinds = {"predictions": "iu", "labels": "iu", "pixel_counts": "iu"}
        for name, array in arrays.items():
            if array.dtype.kind not in kinds.get(name, "f"):
                raise FileFormatError(f"{str(path)!r} holds {name} of dtype {array.dtype}; save the records again")
        if labels is not None and ((labels < 0) | (labels >= whole[2])).any():
            raise FileFormatError(f"{str(path)!r} holds labels outside 0 to {whole[2] - 1}; save the records again")
        wrong = _wrong_prediction(arrays["probabilities"], arrays["predictions"])
        if wrong is not None:
            raise FileFormatError(f"{str(path)!r}: {wrong}; save the records again")
        return cls(
            arrays["probabilities"],
            arrays["predictions"].astype(np.intp),
            None if labels is None else labels.astype(np.intp),
            arrays.get("utility"),
            pooled={name: arrays[f"{_POOLED}{name}"] for name in POOLED if f"{_POOLED}{name}" in arrays},
            pixel_counts=arrays.get("pixel_counts"),
        )


def _wrong_prediction(probabilities: NDArray[np.floating[Any]], predictions: NDArray[np.integer[Any]]) -> str | None:
    """What is wrong where a prediction is not a most probable class, which evidence takes for granted."""
    classes = probabilities.shape[2]
    for k, (of_exit, predicted) in enumerate(zip(probabilities, predictions, strict=True)):
        wrong = (predicted < 0) | (predicted >= classes)
        if classes:
            most = np.take_along_axis(of_exit, np.where(wrong, 0, predicted).astype(np.intp)[:, None], axis=1)[:, 0]
            wrong |= most < of_exit.max(axis=-1)
        if wrong.any():
            n = int(wrong.argmax())
            return f"exit {k} predicts class {predicted[n]} for sample {n}, which is not its most probable one"
    return None


def _array(values: ArrayLike, name: str) -> NDArray[Any]:
    try:
        return np.asarray(values)
    # Rows of different lengths; tensors with gradients, on a GPU, or of a dtype that numpy lacks.
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInputError(
            f"{name} are a {type(values).__name__} that cannot be made an array ({error}); expected numbers in rows of "
            "one length; of a tensor give tensor.detach().cpu(), of bfloat16 its float() as well"
        ) from error


def _float_array(values: ArrayLike, name: str) -> NDArray[np.floating[Any]]:
    array = _array(values, name)
    if array.dtype.kind != "f":
        raise InvalidInputError(f"{name} have dtype {array.dtype}, expected a float dtype such as float32")
    if array.ndim != 3:
        raise InvalidInputError(f"{name} have shape {array.shape}, expected (exits, samples, classes)")
    exits, samples, classes = array.shape
    if exits < 2:
        raise InvalidInputError(f"{name} have {exits} exit, expected at least 2: with one exit there is no choice")
    if samples < 1:
        raise InvalidInputError(f"{name} have 0 samples, expected at least 1")
    if classes < 2:
        raise InvalidInputError(f"{name} have {classes} class, expected at least 2; give a binary output as (1 - p, p)")
    return array


def _label_array(labels: ArrayLike, *, samples: int, classes: int) -> NDArray[np.intp]:
    y = _array(labels, "labels")
    if y.dtype.kind not in "iu":
        raise InvalidInputError(f"labels have dtype {y.dtype}, expected integers: class numbers from 0")
    if y.shape != (samples,):
        raise InvalidInputError(f"labels have shape {y.shape}, expected ({samples},): one for each sample")
    bad = (y < 0) | (y >= classes)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise InvalidInputError(f"labels[{first}] is {y[first]}, expected 0 to {classes - 1}")
    return y.astype(np.intp)
