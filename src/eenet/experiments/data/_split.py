"""The seeded three-way split: train, calibration and test, which never overlap, saved with the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eenet._files import atomic_path, existing_file
from eenet._values import array_value
from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.data._dataset import Dataset, Subset

PARTS = ("train", "calibration", "test")
SCHEMA = 1

Amount: TypeAlias = "int | float | None"
"""A number of samples, a share of the source below 1, or None for what the other parts leave."""
Take: TypeAlias = "Amount | str | Sequence[Any]"
"""An amount of the only source, the name of a source (what the others leave of it), or (source, amount)."""


@array_value
@dataclass(frozen=True)
class ThreeWaySplit:
    """Which samples of which source are the train, calibration and test part.

    `indices[part]` are sorted positions in the dataset `sources[part]`; `samples` and `fingerprints` are of each
    source. `duplicates[part][earlier]` is how many samples of a part have the same bytes as one of an earlier part
    (None: not looked for). `stratified` says whether classes are shared out evenly.

    Examples
    --------
    >>> from eenet.experiments.data import Texts, three_way_split
    >>> data = Texts([f"text {n}" for n in range(40)], np.arange(40) % 2, ["no", "yes"], name="mine", split="train")
    >>> three_way_split(data, calibration=0.25, test=0.25).seed
    0
    """

    seed: int
    sources: Mapping[str, str]
    indices: Mapping[str, NDArray[np.int64]]
    samples: Mapping[str, int]
    fingerprints: Mapping[str, str]
    stratified: bool
    duplicates: Mapping[str, Mapping[str, int]] | None

    def parts(self, data: Dataset | Mapping[str, Dataset]) -> dict[str, Subset]:
        """The three parts as views: train with the training transform, the others with the evaluation transform only.

        Raises `InvalidInputError` when the data is not what was split.
        """
        given = _by_name(data)
        for name, count in self.samples.items():
            if name not in given:
                raise InvalidInputError(f"the split needs the source {name!r}, given are {sorted(given)}")
            if len(given[name]) != count or given[name].fingerprint() != self.fingerprints[name]:
                raise InvalidInputError(
                    f"source {name!r} is not the data that was split: it has {len(given[name])} samples, {count} were "
                    "split, or others of them; split again, or give the same root and options"
                )
        return {
            part: Subset(
                given[self.sources[part]].with_transform("train" if part == "train" else "eval"),
                self.indices[part],
                part=part,
                augmentable=part == "train",
            )
            for part in PARTS
        }

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, one line for each part."""
        head = {
            "format": "eenet.three_way_split",
            "schema": SCHEMA,
            "seed": self.seed,
            "stratified": self.stratified,
            "samples": dict(self.samples),
            "fingerprints": dict(self.fingerprints),
            "sources": dict(self.sources),
            "sizes": {part: len(self.indices[part]) for part in PARTS},
            "duplicates": None if self.duplicates is None else {k: dict(v) for k, v in self.duplicates.items()},
        }
        lines = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
        parts = [f'"{part}": {json.dumps(self.indices[part].tolist(), separators=(",", ":"))}' for part in PARTS]
        text = "{\n" + ",\n".join(lines) + ',\n"indices": {\n' + ",\n".join(parts) + "\n}\n}\n"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> ThreeWaySplit:
        """Read what `save` wrote; raises `FileFormatError` for anything else, or when parts overlap."""
        source = existing_file(path)
        try:
            value = json.loads(source.read_text(encoding="utf-8"))
            if not isinstance(value, dict) or value.get("format") != "eenet.three_way_split":
                raise FileFormatError(f"{str(source)!r} holds no split; expected what ThreeWaySplit.save wrote")
            if value["schema"] > SCHEMA:
                raise FileFormatError(
                    f"{str(source)!r} has schema {value['schema']}, this eenet reads up to {SCHEMA}: upgrade eenet"
                )
            split = ThreeWaySplit(
                seed=value["seed"],
                sources={part: value["sources"][part] for part in PARTS},
                indices={part: np.array(value["indices"][part], np.int64) for part in PARTS},
                samples=value["samples"],
                fingerprints=value["fingerprints"],
                stratified=value["stratified"],
                duplicates=value["duplicates"],
            )
            _check_disjoint(split)
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"{str(source)!r} is a damaged split ({error}); split again") from error
        return split


def three_way_split(
    data: Dataset | Mapping[str, Dataset],
    *,
    train: Take = None,
    calibration: Take = 0.1,
    test: Take = 0.1,
    seed: int = 0,
    duplicates: bool | str = True,
) -> ThreeWaySplit:
    """Share out samples at random into parts that never overlap, the classes evenly where samples have a label.

    `data` is one dataset, or several by name, such as the published splits: `three_way_split({"train": a, "test": b},
    train="train", calibration=("train", 5000), test="test")` takes 5,000 of `a` for calibration. With
    `duplicates=True` samples of equal bytes are counted across parts, which reads all of the data once; of texts case
    and the spaces around words do not count. `duplicates="leave out"` leaves those of the train part out. Raises
    `InvalidInputError` for amounts that do not fit and for sources that are the same data.

    Parameters
    ----------
    data : Dataset or mapping of str to Dataset
        One data set, or several by the name of their split.
    train, calibration, test : int, float or tuple
        How many samples, which share, or a split and how many of it.
    seed : int
        Of the choice.
    duplicates : bool or str
        Whether to count samples that are equal and in different parts; "leave out" takes those that are in the train
        part and in another out of the train part.

    Examples
    --------
    >>> from eenet.experiments.data import Texts, three_way_split
    >>> data = Texts([f"text {n}" for n in range(40)], np.arange(40) % 2, ["no", "yes"], name="mine", split="train")
    >>> split = three_way_split(data, calibration=0.25, test=0.25)
    >>> {name: len(rows) for name, rows in split.indices.items()}
    {'train': 20, 'calibration': 10, 'test': 10}
    """
    if seed < 0:
        raise InvalidInputError(f"seed is {seed}, expected 0 or more")
    if not isinstance(duplicates, bool) and duplicates != "leave out":
        raise InvalidInputError(f"duplicates is {duplicates!r}, expected True, False or 'leave out'")
    given = _by_name(data)
    takes = {part: _understand(part, take, given) for part, take in zip(PARTS, (train, calibration, test), strict=True)}
    used = {name: given[name] for name in dict.fromkeys(source for source, _ in takes.values())}
    fingerprints = {name: dataset.fingerprint() for name, dataset in used.items()}
    if len(set(fingerprints.values())) < len(used):
        raise InvalidInputError(f"two of the sources {sorted(used)} are the same data: parts would overlap")
    indices: dict[str, NDArray[np.int64]] = {}
    for number, (name, dataset) in enumerate(used.items()):
        amounts = {part: amount for part, (source, amount) in takes.items() if source == name}
        sizes = _sizes(amounts, len(dataset), name)
        indices.update(_share_out(sizes, len(dataset), dataset.labels, np.random.default_rng([seed, number])))
    if duplicates == "leave out":
        held_out = {
            used[takes[part][0]].digest(int(index)) for part in PARTS if part != "train" for index in indices[part]
        }
        whole = used[takes["train"][0]]
        kept = [int(index) for index in indices["train"] if whole.digest(int(index)) not in held_out]
        if not kept:
            raise InvalidInputError(
                "every sample of the train part equals one of another part; nothing is left to train on"
            )
        indices["train"] = np.array(kept, np.int64)
    split = ThreeWaySplit(
        seed=seed,
        sources={part: takes[part][0] for part in PARTS},
        indices={part: indices[part] for part in PARTS},
        samples={name: len(dataset) for name, dataset in used.items()},
        fingerprints=fingerprints,
        stratified=all(dataset.labels is not None for dataset in used.values()),
        duplicates=None,
    )
    if not duplicates:
        return split
    return ThreeWaySplit(**{**vars(split), "duplicates": _count_duplicates(split, used)})


def _by_name(data: Dataset | Mapping[str, Dataset]) -> dict[str, Dataset]:
    return dict(data) if isinstance(data, Mapping) else {"all": data}


def _understand(part: str, take: Take, given: Mapping[str, Dataset]) -> tuple[str, Amount]:
    source: Any
    amount: Any
    if isinstance(take, str):
        source, amount = take, None
    elif isinstance(take, (tuple, list)):
        if len(take) != 2:
            raise InvalidInputError(f"{part} is {take!r}, expected (source, amount)")
        source, amount = take
    elif len(given) == 1:
        source, amount = next(iter(given)), take
    else:
        raise InvalidInputError(
            f"{part} is {take!r} and there are the sources {sorted(given)}; say which, as (source, amount)"
        )
    if source not in given:
        raise InvalidInputError(f"{part} is taken from {source!r}, which is not among the sources {sorted(given)}")
    whole = isinstance(amount, int) and not isinstance(amount, bool) and amount >= 1
    if amount is not None and not whole and not (isinstance(amount, float) and 0 < amount < 1):
        raise InvalidInputError(
            f"{part} has the amount {amount!r}, expected a number of samples, a share between 0 and 1, or None for the "
            "rest"
        )
    return source, amount


def _sizes(amounts: Mapping[str, Amount], samples: int, source: str) -> dict[str, int]:
    rest = [part for part, amount in amounts.items() if amount is None]
    if len(rest) > 1:
        raise InvalidInputError(
            f"{' and '.join(rest)} both take the rest of {source!r}; give all but one of them an amount"
        )
    # Rounded down, so that shares below 1 in sum leave something; 0.29 of 100 is 28.999... in binary, and means 29.
    sizes = {
        part: max(1, int(amount * samples + 1e-9)) if isinstance(amount, float) else amount
        for part, amount in amounts.items()
        if amount is not None
    }
    left = samples - sum(sizes.values())
    if left < len(rest):
        raise InvalidInputError(
            f"the parts {sorted(amounts)} need at least {sum(sizes.values()) + len(rest)} samples of {source!r}, which "
            f"has {samples}; take fewer"
        )
    return {**sizes, **dict.fromkeys(rest, left)}


def _share_out(
    sizes: Mapping[str, int], samples: int, labels: NDArray[np.int64] | None, rng: np.random.Generator
) -> dict[str, NDArray[np.int64]]:
    """Systematic sampling: in an order sorted by class, random within, each part takes samples at even distances.

    So of a class with n of the N samples that are left a part of m takes n m / N, rounded up or down.
    """
    left = rng.permutation(samples)
    if labels is not None:
        classes = rng.permutation(int(labels.max()) + 1)  # or the rounding would always favor the same ones
        left = left[np.argsort(classes[labels[left]], kind="stable")]
    chosen: dict[str, NDArray[np.int64]] = {}
    for part, size in sizes.items():
        # floor((j + u) size / N) steps up exactly `size` times.
        offset = int(rng.integers(0, len(left)))
        ticks = (np.arange(len(left) + 1) * size + offset) // len(left)
        taken = np.diff(ticks) > 0
        chosen[part] = np.sort(left[taken])
        left = left[~taken]
    return chosen


def _count_duplicates(split: ThreeWaySplit, data: Mapping[str, Dataset]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    seen: dict[str, set[bytes]] = {}
    for part in PARTS:
        dataset = data[split.sources[part]]
        digests = [dataset.digest(int(index)) for index in split.indices[part]]
        counts[part] = {earlier: sum(digest in known for digest in digests) for earlier, known in seen.items()}
        seen[part] = set(digests)
    del counts[PARTS[0]]  # nothing comes before it
    return counts


def _check_disjoint(split: ThreeWaySplit) -> None:
    for name, count in split.samples.items():
        taken = np.concatenate([split.indices[part] for part in PARTS if split.sources[part] == name])
        if taken.size and (taken.min() < 0 or taken.max() >= count):
            raise ValueError(f"an index is outside the {count} samples of {name!r}")
        if len(np.unique(taken)) < len(taken):
            raise ValueError(f"parts overlap in {name!r}")
    unknown = set(split.sources.values()) - set(split.samples)
    if unknown:
        raise ValueError(f"unknown sources {sorted(unknown)}")
