"""Reading the data that the command line is given: class names, how inputs are made of files, batches with labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eenet._files import existing_file
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.models import MultiExitModel
    from eenet.preprocessing import Preprocessing

_LABELS = ("labels", "label")


def names_in(path: Path) -> list[str]:
    return [line.strip() for line in existing_file(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def preprocessing_as(
    model: MultiExitModel,
    image_size: str | None,
    resize: int | None,
    mean: str,
    std: str,
    tokenizers: Sequence[str],
    max_length: int | None,
) -> Preprocessing | None:
    from eenet.preprocessing import ImagePreprocessing

    inputs = model.staged.inference_stages[0].inputs
    if tokenizers:
        return _texts(tokenizers, max_length)
    if image_size is None:
        return None
    try:
        sides = [int(word) for word in image_size.lower().split("x")]
        means, deviations = ([float(word) for word in text.split(",")] for text in (mean, std))
    except ValueError as error:
        raise InvalidInputError(
            f"--image-size {image_size!r}, --mean {mean!r} or --std {std!r} cannot be read; give 224 or 512x1024, and "
            "numbers with commas"
        ) from error
    if len(sides) not in (1, 2):
        raise InvalidInputError(f"--image-size {image_size!r} has {len(sides)} sides; give 224, or 512x1024")
    return ImagePreprocessing(
        (sides[0], sides[-1]), resize=resize, mean=tuple(means), std=tuple(deviations), input=inputs[0].name
    )


def _texts(tokenizers: Sequence[str], max_length: int | None) -> Preprocessing:
    """What --tokenizer says: one folder, or several with prefixes."""
    from eenet.preprocessing import CascadePreprocessing, TextPreprocessing

    members: dict[str, TextPreprocessing] = {}
    for given in tokenizers:
        prefix, equals, folder = given.partition("=")
        if not equals or Path(given).exists():
            if len(tokenizers) == 1:
                return TextPreprocessing.from_pretrained(given, max_length=max_length)
            raise InvalidInputError(
                f"--tokenizer {given!r} is one of {len(tokenizers)} and has no prefix; give each as PREFIX=FOLDER, "
                "such as small=FOLDER for the inputs small_input_ids and small_attention_mask"
            )
        if prefix in members:
            raise InvalidInputError(f"--tokenizer gives the prefix {prefix!r} twice; give each member its own")
        members[prefix] = TextPreprocessing.from_pretrained(folder, max_length=max_length)
    return CascadePreprocessing(members)


def preprocessing_of(work: Path) -> Preprocessing | None:
    """What a training run kept of how its inputs are made; None where its data could not say."""
    from eenet.preprocessing import preprocessing_from

    if not (work / "preprocessing.json").is_file():
        return None
    description = json.loads((work / "preprocessing.json").read_text(encoding="utf-8"))
    return preprocessing_from(description, read=lambda name: existing_file(work / name).read_bytes())


_Batches = Callable[[], Iterator[tuple[dict[str, NDArray[Any]], int]]]
_Known = Callable[[list[str] | None, str | None], Any]


def opened(
    model: MultiExitModel, data: Path, preprocessing: Any, size: int, column: str | None
) -> tuple[int, _Batches, _Known]:
    """How many samples there are, what gives batches of arrays by name, and what gives the labels in the data."""
    if data.suffix in (".npy", ".npz"):
        return _arrays(model, data, size)
    inputs = model.staged.inference_stages[0].inputs
    if preprocessing is None:
        raise InvalidInputError(
            f"{str(data)!r} is neither .npz nor .npy, and nothing says how files become inputs; give --image-size for "
            "images, or --tokenizer for texts"
        )
    from eenet.predict import open_items

    fitted = preprocessing.fitted(inputs)
    items = open_items(data, fitted.kind, column=column)

    def batches() -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        for names, values in items.batches(size, 0):
            yield fitted(values), len(names)

    def known(classes: list[str] | None, label_column: str | None) -> Any:
        if data.suffix == ".parquet":
            return _parquet_labels(data, classes, label_column)
        return _folder_labels(data, [name for some, _ in items.batches(1024, 0) for name in some], classes)

    return len(items), batches, known


def _arrays(model: MultiExitModel, data: Path, size: int) -> tuple[int, _Batches, _Known]:
    from eenet.predict._inputs import read_arrays_file

    arrays = read_arrays_file(existing_file(data))
    held = next((arrays.pop(key) for key in _LABELS if key in arrays and len(arrays) > 1), None)
    names = [one.name for one in model.staged.inference_stages[0].inputs]
    arguments = model.staged.arguments
    if set(arrays) == set(arguments) and len(arguments) == len(names):  # tracing renames some, such as "input"
        arrays = {name: arrays[argument] for name, argument in zip(names, arguments, strict=True)}
    if len(arrays) == len(names) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    if set(arrays) != set(names):
        taken = list(arguments) if len(arguments) == len(names) else names
        raise InvalidInputError(
            f"{str(data)!r} holds {sorted(arrays)}, the network takes {taken}; name them so, and the labels 'labels'"
        )
    sizes = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise InvalidInputError(f"{str(data)!r} holds {sorted(sizes)} samples; expected as many in each array")
    count = sizes.pop()

    def batches() -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        for first in range(0, count, size):
            part = {name: array[first : first + size] for name, array in arrays.items()}
            yield part, min(size, count - first)

    return count, batches, lambda _classes, _column: held


def call_of(model: MultiExitModel, arrays: dict[str, NDArray[Any]], data: Path) -> Any:
    """The arguments of a call of the model, as a batch of `eenet.collect` gives them."""
    import torch

    try:
        tensors = tuple(torch.from_numpy(arrays[one.name]) for one in model.staged.inference_stages[0].inputs)
    except TypeError as error:
        raise InvalidInputError(f"{str(data)!r} holds what is no numbers ({error}); write plain arrays") from error
    args, kwargs = model.staged.call_of(tensors)
    return kwargs if kwargs and not args else args


def _folder_labels(data: Path, ids: list[str], classes: list[str] | None) -> NDArray[np.intp] | None:
    """The classes of files by the folders that they are in; None where they are in none."""
    if not data.is_dir() or not all("/" in one for one in ids):
        return None
    folders = [one.partition("/")[0] for one in ids]
    names = sorted(set(folders)) if classes is None else classes
    unknown = sorted(set(folders) - set(names))
    if unknown:
        raise InvalidInputError(
            f"{str(data)!r} has the folder {unknown[0]!r}, which is no class; there are {', '.join(names[:10])}"
        )
    number = {name: k for k, name in enumerate(names)}
    return np.array([number[folder] for folder in folders])


def _parquet_labels(data: Path, classes: list[str] | None, column: str | None) -> NDArray[Any] | None:
    """The labels of a parquet file: class numbers, or names of classes; None where there is no such column."""
    from eenet._extras import require

    parquet = require("pyarrow.parquet", "predict")
    names = parquet.read_schema(data).names
    found = next((name for name in ([column] if column else _LABELS) if name in names), None)
    if found is None and column is not None:
        raise InvalidInputError(f"{str(data)!r} has the columns {names}, and no {column!r}")
    if found is None:
        return None
    values = parquet.read_table(data, columns=[found]).column(found).to_pylist()
    if all(isinstance(value, str) for value in values):
        order = sorted(set(values)) if classes is None else classes
        if not set(values) <= set(order):
            raise InvalidInputError(f"the label {sorted(set(values) - set(order))[0]!r} is no class of --classes")
        return np.array([order.index(value) for value in values])
    if not all(isinstance(value, int) for value in values):
        raise InvalidInputError(f"the column {found!r} of {str(data)!r} holds no class number in some row")
    return np.array(values)
