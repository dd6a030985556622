"""ExitRecords: made, joined, divided, saved and loaded."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eenet._cascades import labels_and_utility, require_same_task, require_several
from eenet._files import read_arrays, write_arrays
from eenet._values import equal, hash_of
from eenet.errors import FileFormatError, InvalidInputError, kind_of
from eenet.records._checks import (
    are_probabilities,
    checked,
    class_labels,
    exit_cube,
    kept_numbers,
    require_distributions,
    require_most_probable,
    utilities,
    warn_of_probabilities,
)
from eenet.tasks import POOLED, VOTES, Evidence, softmax

_SCHEMA = 1
_POOLED = "pooled."


class ExitRecords:
    """The outputs of K exits for N samples with C classes, and what stopping at each exit is worth.

    `from_logits` and `from_probabilities` are the usual ways to make records. All are validated.

    Parameters
    ----------
    probabilities : array_like of shape (K, N, C)
        Class probabilities, kept as float32; each row sums to 1 within 0.001. A row that is not finite stands for an
        output that was not finite.
    predictions : array_like of shape (K, N)
        The predicted classes: at each exit a most probable class.
    labels : array_like of shape (N,), optional
        The true classes, from 0 to C - 1.
    utility : array_like of shape (K, N), optional
        What stopping at each exit is worth, in [0, 1]. By default, where there are labels, 1 for a right prediction.
    pooled : mapping of str to array_like of shape (K, N), optional
        For samples with many predictions each, such as images with a class per pixel: means over the parts of a sample,
        by the names in `eenet.tasks.POOLED`; NaN for those in `eenet.tasks.VOTES` at exits where they are not known.
    pixel_counts : array_like of shape (K, N, C, 3), optional
        The pixels of each class that are right, predicted and labeled.

    Raises
    ------
    InvalidInputError
        If a shape, a dtype or a value is not as described; the message names the first place.

    Examples
    --------
    >>> import numpy as np
    >>> probabilities = np.array([[[0.6, 0.4], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]]])
    >>> records = ExitRecords(probabilities, predictions=[[0, 1], [0, 1]], labels=[0, 0])
    >>> records
    ExitRecords(2 exits, 2 labeled samples, 2 classes)
    >>> records.accuracies
    array([0.5, 0.5])
    """

    probabilities: NDArray[np.float32]
    predictions: NDArray[np.intp]
    labels: NDArray[np.intp] | None
    utility: NDArray[np.float32] | None
    pooled: dict[str, NDArray[np.float64]]
    pixel_counts: NDArray[np.int64] | None
    network: str | None = None
    """A digest of the network's weights, where `eenet.collect` made them: records of another are then refused."""

    def __init__(
        self,
        probabilities: ArrayLike,
        predictions: ArrayLike,
        labels: ArrayLike | None = None,
        utility: ArrayLike | None = None,
        *,
        pooled: Mapping[str, ArrayLike] | None = None,
        pixel_counts: ArrayLike | None = None,
    ) -> None:
        p = exit_cube(probabilities, "probabilities", least=(1, 1, 1))
        shape = p.shape[:2]
        self.labels = None if labels is None else class_labels(labels, p)
        predicted = checked(predictions, "predictions", "iu", shape).astype(np.intp)
        for k, of_exit in enumerate(p):
            require_distributions(of_exit, p, k)
        p = np.ascontiguousarray(p, dtype=np.float32)
        require_most_probable(p, predicted)
        self.probabilities, self.predictions = p, predicted
        if utility is None and self.labels is not None:
            utility = predicted == self.labels
        self.utility = None if utility is None else utilities(utility, shape)
        self.pooled = {
            name: checked(values, f"pooled[{name!r}]", "f", shape).astype(np.float64, copy=False)
            for name, values in (pooled or {}).items()
        }
        unknown = sorted(set(self.pooled) - set(POOLED))
        if unknown:
            raise InvalidInputError(f"pooled holds {unknown}, expected names among {list(POOLED)}")
        self.pixel_counts = None
        if pixel_counts is not None:
            counts = checked(pixel_counts, "pixel_counts", "iu", (*p.shape, 3))
            self.pixel_counts = counts.astype(np.int64, copy=False)

    @classmethod
    def from_probabilities(cls, probabilities: ArrayLike, labels: ArrayLike | None = None) -> ExitRecords:
        """Records of class probabilities.

        Parameters
        ----------
        probabilities : array_like of shape (K, N, C)
            Class probabilities of K exits for N samples. Rows are normalized to a sum of exactly 1. Those of a plain
            network, (N, C), give records of one exit: a member of a `cascade`.
        labels : array_like of shape (N,), optional
            The true classes. Without labels only costs can be replayed.

        Raises
        ------
        InvalidInputError
            If a row is negative, not finite or does not sum to 1 within 0.001, or a shape is wrong.

        Examples
        --------
        >>> import numpy as np
        >>> probabilities = np.full((3, 100, 4), 0.25)
        >>> ExitRecords.from_probabilities(probabilities, labels=np.arange(100) % 4)
        ExitRecords(3 exits, 100 labeled samples, 4 classes)
        """
        p = exit_cube(probabilities, "probabilities")
        y = None if labels is None else class_labels(labels, p)
        if not np.isfinite(p).all():
            k, n, c = np.argwhere(~np.isfinite(p))[0]
            raise InvalidInputError(
                f"probabilities[{k}, {n}, {c}] is {p[k, n, c]}: expected finite values; drop the sample, or use "
                "from_logits, which lets a sample whose output is not finite go on to the last exit"
            )
        normal = np.empty(p.shape, dtype=np.float32)
        for k, of_exit in enumerate(p):  # one exit at a time: in float64 all of them would take twice their memory
            exact, sums = require_distributions(of_exit, p, k)
            np.divide(exact, sums[:, None], out=normal[k], casting="same_kind")
        return cls._of(normal, normal.argmax(axis=-1), y)

    @classmethod
    def from_logits(cls, logits: ArrayLike, labels: ArrayLike | None = None) -> ExitRecords:
        """Records of logits.

        Parameters
        ----------
        logits : array_like of shape (K, N, C)
            Logits of K exits for N samples. NaN and infinities are allowed, and kept as outputs that are not finite.
            Those of a plain network, (N, C), give records of one exit: a member of a `cascade`. Warns
            (`ReliabilityWarning`) where those of an exit look like probabilities.
        labels : array_like of shape (N,), optional
            The true classes. Without labels only costs can be replayed.

        Raises
        ------
        InvalidInputError
            If a shape or dtype is wrong, or a label is outside the classes.

        Examples
        --------
        >>> import numpy as np
        >>> logits = np.random.default_rng(0).normal(size=(3, 100, 4))
        >>> ExitRecords.from_logits(logits)
        ExitRecords(3 exits, 100 unlabeled samples, 4 classes)
        """
        z = exit_cube(logits, "logits")
        y = None if labels is None else class_labels(labels, z, name="logits")
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is for a network that runs in float32
            z = np.ascontiguousarray(z, dtype=np.float32)
        warn_of_probabilities([k for k, of_exit in enumerate(z) if are_probabilities(of_exit)])
        return cls._of(softmax(z), z.argmax(axis=-1), y)

    @classmethod
    def from_evidence(
        cls,
        batches: Sequence[Sequence[Evidence]],
        *,
        utility: NDArray[np.float32] | None = None,
        pixel_counts: NDArray[np.int64] | None = None,
    ) -> ExitRecords:
        """Records of pooled evidence, which a task such as `eenet.tasks.Segmentation` makes.

        Parameters
        ----------
        batches : sequence of sequences of Evidence
            For each batch the evidence of its K exits, in order.
        utility : array_like of shape (K, N), optional
            What stopping at each exit is worth, in [0, 1].
        pixel_counts : array_like of shape (K, N, C, 3), optional
            The pixels of each class that are right, predicted and labeled.
        """

        def joined(name: str) -> NDArray[Any]:
            exits = range(len(batches[0]))
            return np.stack([np.concatenate([getattr(batch[k], name) for batch in batches]) for k in exits])

        probabilities = joined("probabilities")
        probabilities[~joined("finite")] = np.nan
        pooled = {name: joined(name) for name in POOLED}
        return cls(probabilities, joined("predictions"), None, utility, pooled=pooled, pixel_counts=pixel_counts)

    @classmethod
    def cascade(cls, members: Sequence[ExitRecords] | Mapping[str, ExitRecords]) -> ExitRecords:
        """Records of a cascade: several models on the same samples, asked one after another.

        The exits of each member count one by one, so that a multi-exit network of three exits before a plain network
        makes four. No model is run: predictions of any framework will do. `ExitCosts.cascade` has the costs.

        Where each pixel has a class, on how many pixels a member agrees with those before it is not known: schedulers
        that count agreement need `eenet.collect` of the cascade.

        Parameters
        ----------
        members : sequence of ExitRecords, or mapping of str to them
            At least two, in the order in which the models are asked, the cheapest first. Labels are needed in one.
            Records have no names of exits: those of a mapping are not kept.

        Raises
        ------
        InvalidInputError
            If they are of other samples, labels, classes or tasks; the message names the member and the first place.

        Examples
        --------
        >>> import numpy as np
        >>> small = ExitRecords.from_probabilities(np.array([[0.6, 0.4], [0.4, 0.6]]), labels=[0, 0])
        >>> big = ExitRecords.from_probabilities(np.array([[0.9, 0.1], [0.8, 0.2]]))
        >>> both = ExitRecords.cascade([small, big])
        >>> both, both.accuracies
        (ExitRecords(2 exits, 2 labeled samples, 2 classes), array([0.5, 1. ]))
        """
        members, _ = require_several(members)
        for number, member in enumerate(members):
            if not isinstance(member, ExitRecords):
                raise InvalidInputError(
                    f"member {number} is {kind_of(member)}, expected ExitRecords: make them with "
                    "ExitRecords.from_probabilities or from_logits, of a plain network from an array (samples, classes)"
                )
            require_same_task(members[0], member, number)
        labels, utility = labels_and_utility(members)

        def joined(parts: Sequence[Any]) -> NDArray[Any]:
            return np.concatenate(parts)

        records = cls.__new__(cls)
        records.probabilities = joined([member.probabilities for member in members])
        records.predictions = joined([member.predictions for member in members])
        records.labels = labels
        records.utility = None if utility is None else joined(utility)
        pooled = {name: joined([member.pooled[name] for member in members]) for name in members[0].pooled}
        records.pooled = _with_votes(pooled, members[0].num_exits)
        counts = [member.pixel_counts for member in members]
        records.pixel_counts = None if counts[0] is None else joined(counts)
        return records

    @classmethod
    def _of(
        cls, probabilities: NDArray[np.float32], predictions: NDArray[np.intp], labels: NDArray[np.intp] | None
    ) -> ExitRecords:
        """Records of arrays that are known to be valid, without the time of validation."""
        records = cls.__new__(cls)
        records.probabilities, records.predictions, records.labels = probabilities, predictions, labels
        records.utility = None if labels is None else (predictions == labels).astype(np.float32)
        records.pooled, records.pixel_counts = {}, None
        return records

    def _each(self, part: Callable[[NDArray[Any]], NDArray[Any]], labels: NDArray[np.intp] | None) -> ExitRecords:
        """Records of a part of every array (K, N, ...), and of these labels."""
        records = copy.copy(self)
        records.probabilities, records.predictions, records.labels = (
            part(self.probabilities),
            part(self.predictions),
            labels,
        )
        records.utility = None if self.utility is None else part(self.utility)
        records.pooled = {name: part(values) for name, values in self.pooled.items()}
        records.pixel_counts = None if self.pixel_counts is None else part(self.pixel_counts)
        return records

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
        labeled = "labeled" if self.utility is not None else "unlabeled"
        return f"ExitRecords({self.num_exits} exits, {len(self)} {labeled} samples, {self.num_classes} classes)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExitRecords):
            return False
        mine, theirs = ({n: v for n, v in vars(r).items() if n != "network"} for r in (self, other))
        return equal(mine, theirs)

    def __hash__(self) -> int:
        return hash_of((self.probabilities, self.predictions, self.labels, self.utility))

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """Mean utility of each exit, (K,)."""
        means: NDArray[np.float64] = self.require_utility().mean(axis=1, dtype=np.float64)
        return means

    def require_utility(self) -> NDArray[np.float32]:
        """The utility (K, N); raises `InvalidInputError` for records without labels."""
        if self.utility is None:
            raise InvalidInputError(
                "these records have no labels: pass labels=... when making them, or name them 'labels' in the "
                "file of predictions; where none are known, records.judged_by_last(), or --judged-by-last on the "
                "command line, takes the last exit's answers in their place"
            )
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
        earlier: list[Evidence] = []
        for k in range(self.num_exits):
            earlier.append(self.evidence(k, rows, tuple(earlier)))
        return earlier

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
        # np.take, unlike an index, gives rows that are contiguous.
        return self._each(
            lambda values: np.take(values, index, axis=1), None if self.labels is None else self.labels[index]
        )

    def first_exits(self, exits: int) -> ExitRecords:
        """The records of the first `exits` exits, of all samples."""
        if not 1 <= exits <= self.num_exits:
            raise InvalidInputError(f"exits is {exits}, expected 1 to {self.num_exits}")
        records = self._each(lambda values: values[:exits], self.labels)
        if exits < self.num_exits:
            records.network = None  # the digest is of the network with all exits
        return records

    def keep_exits(self, exits: Sequence[int]) -> ExitRecords:
        """The records of these exits only, by their numbers from 0, of all samples; for `MultiExitModel.keep_exits`.

        Where each pixel has a class, on how many pixels an exit agrees with those before it is not known once one of
        them is left out: schedulers that count agreement need `eenet.collect` of the model with these exits.
        """
        chosen = kept_numbers(exits, self.num_exits, fewest=1)
        records = self._each(lambda values: values[chosen], self.labels)
        records.pooled = _with_votes(records.pooled, sum(k == own for k, own in enumerate(chosen)))
        records.network = None  # the digest is of the network with all exits
        return records

    def judged_by_last(self) -> ExitRecords:
        """The same records with the last exit's answers as labels, for samples whose true classes are not known.

        Accuracy is then the share of samples with the answer of the last exit, and `max_accuracy_drop=0.02` bounds the
        share of other answers by 2 %. Where the last exit is wrong an early one that is right counts as wrong, so true
        accuracy falls by no more than that share.

        Raises
        ------
        InvalidInputError
            If each pixel has a class: on how many pixels an exit agrees with the last one is not in records.

        Examples
        --------
        >>> import numpy as np
        >>> records = ExitRecords.from_probabilities(np.array([[[0.6, 0.4], [0.4, 0.6]], [[0.9, 0.1], [0.8, 0.2]]]))
        >>> records.judged_by_last(), records.judged_by_last().accuracies
        (ExitRecords(2 exits, 2 labeled samples, 2 classes), array([0.5, 1. ]))
        """
        if self.pooled:
            raise InvalidInputError(
                "these are records of samples with many predictions each: on how many of them an exit agrees with the "
                "last one is not in records; label some samples"
            )
        records = copy.copy(self)
        records.labels = self.predictions[-1].copy()
        records.utility = (self.predictions == records.labels).astype(np.float32)
        return records

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
        digests = [hashlib.blake2b(digest_size=16) for _ in range(len(self))]
        for of_exit in np.ascontiguousarray(self.probabilities):
            for digest, row in zip(digests, of_exit, strict=True):
                digest.update(row)
        return np.array([digest.digest() for digest in digests], dtype="V16")

    def digest(self) -> str:
        """The same for records with the same outputs of the same samples, in whatever order the samples are."""
        return hashlib.blake2b(np.sort(self.digests()).tobytes(), digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically."""
        arrays: dict[str, NDArray[Any]] = {"probabilities": self.probabilities, "predictions": self.predictions}
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.utility is not None:
            arrays["utility"] = self.utility
        if self.pixel_counts is not None:
            arrays["pixel_counts"] = self.pixel_counts
        arrays |= {f"{_POOLED}{name}": values for name, values in self.pooled.items()}
        header = {} if self.network is None else {"network": self.network}
        write_arrays(path, arrays, kind="records", schema=_SCHEMA, header=header)

    @classmethod
    def load(cls, path: str | Path) -> ExitRecords:
        """Read what `save` wrote."""
        arrays, header = read_arrays(path, kind="records", schema=_SCHEMA)
        pooled = {f"{_POOLED}{name}": name for name in POOLED}
        known = {"probabilities", "predictions", "labels", "utility", "pixel_counts"}
        shapes = {name: array.shape for name, array in arrays.items()}
        if not {"probabilities", "predictions"} <= shapes.keys() <= known | pooled.keys():
            raise FileFormatError(
                f"{str(path)!r} holds arrays of shapes {shapes}, which are no records; save them again"
            )
        try:
            records = cls(
                **{name: array for name, array in arrays.items() if name in known},
                pooled={pooled[name]: array for name, array in arrays.items() if name in pooled},
            )
        except InvalidInputError as error:
            raise FileFormatError(f"{str(path)!r} holds no valid records: {error}; save them again") from error
        records.network = str(header["network"]) if "network" in header else None
        return records


def _with_votes(pooled: dict[str, NDArray[np.float64]], known: int) -> dict[str, NDArray[np.float64]]:
    """Pooled quantities (K, N) in which agreement with the exits before is known of the first `known` exits alone."""
    pooled = dict(pooled)
    for name in pooled.keys() & set(VOTES):
        values = pooled[name].copy()
        values[known:] = np.nan
        if not known:
            values[0] = 1.0  # whatever was before it is left out: it agrees with itself
        pooled[name] = values
    return pooled


def require_records(records: ExitRecords) -> None:
    """Raise `InvalidInputError` for anything that is no records."""
    if not isinstance(records, ExitRecords):
        raise InvalidInputError(
            f"records are {kind_of(records)}, expected ExitRecords: see ExitRecords.from_probabilities"
        )
