"""Reading the data that the command line is given: class names, how inputs are made of files, batches with labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._files import existing_file, lines_of, read_json
from eenet.cli._console import side
from eenet.errors import FileFormatError, InvalidInputError

if TYPE_CHECKING:
    from eenet.models import MultiExitModel
    from eenet.preprocessing import Preprocessing

LABELS = ("labels", "label")
TABLES = (".parquet", ".csv", ".tsv", ".jsonl")
_CLASSES = "give --classes FILE with the names of the network's classes in order, one on each line"
_SHOWN = 12  # names of classes in a message


def refuse_columns(data: Path, option: str, column: str | None) -> None:
    """Raise `InvalidInputError` where a column is named of data that have none."""
    if column is None or data.suffix in TABLES or not data.exists():
        return
    arrays = "; arrays are found by their names: those of the network's inputs, and 'labels'"
    raise InvalidInputError(
        f"{str(data)!r} has no columns, which {', '.join(TABLES)} have: leave {option} {column} out"
        f"{arrays if data.suffix in ('.npy', '.npz') else ''}"
    )


def names_in(path: Path) -> list[str]:
    lines = lines_of(existing_file(path).read_text(encoding="utf-8-sig"))
    return [line.strip() for line in lines if line.strip()]


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
    description = read_json(work / "preprocessing.json", "get the folder again")
    return preprocessing_from(description, read=lambda name: existing_file(work / name).read_bytes())


_Batches = Callable[[], Iterator[tuple[dict[str, NDArray[Any]], int]]]
_Known = Callable[[list[str] | None, str | None], tuple[Any, list[str] | None]]


def opened(
    model: MultiExitModel, data: Path, preprocessing: Any, size: int, column: str | None
) -> tuple[int, _Batches, _Known]:
    """How many samples there are, what gives batches of arrays by name, and what gives the labels in the data.

    The last also gives the names of the classes that it numbered them by, where there are any.
    """
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

    def known(classes: list[str] | None, label_column: str | None) -> tuple[Any, list[str] | None]:
        listed = class_names(model) if classes is None else classes
        if data.suffix in TABLES:
            return table_labels(data, listed, label_column), listed
        ids = [name for some, _ in items.batches(1024, 0) for name in some]
        return _folder_labels(data, ids, listed, model.num_classes)

    return len(items), batches, known


def _arrays(model: MultiExitModel, data: Path, size: int) -> tuple[int, _Batches, _Known]:
    arrays, held = _read(model, data)
    count = samples_in(arrays, data)

    def batches() -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        for first in range(0, count, size):
            part = {name: array[first : first + size] for name, array in arrays.items()}
            yield part, min(size, count - first)

    def known(classes: list[str] | None, _column: str | None) -> tuple[Any, list[str] | None]:
        listed = class_names(model) if classes is None else classes
        return None if held is None else class_numbers(held, listed, f"'labels' of {str(data)!r}"), listed

    return count, batches, known


def arrays_in(path: Path, inputs: Sequence[str] = ()) -> tuple[dict[str, NDArray[Any]], Any]:
    """The arrays of an .npz or .npy file, and the labels beside them, which are none of the inputs; None without."""
    from eenet.predict._inputs import read_arrays_file

    arrays = read_arrays_file(existing_file(path))
    beside = (key for key in LABELS if key in arrays and key not in inputs and len(arrays) > 1)
    return arrays, next((arrays.pop(key) for key in beside), None)


def samples_in(arrays: Mapping[str, NDArray[Any]], data: Path) -> int:
    """How many samples the arrays hold; raises `InvalidInputError` where that is none, or not the same of each."""
    sizes = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise InvalidInputError(f"{str(data)!r} holds {sorted(sizes) or 'no'} samples; expected as many in each array")
    return sizes.pop()


def read_inputs(model: MultiExitModel, path: Path) -> Any:
    """The inputs in an .npz or .npy file, as the arguments of a call of the model."""
    return call_of(model, _read(model, path)[0], path)


def _read(model: MultiExitModel, data: Path) -> tuple[dict[str, NDArray[Any]], Any]:
    """The arrays of a file by the names of the network's inputs, and the labels beside them."""
    names = [one.name for one in model.staged.inference_stages[0].inputs]
    arguments = model.staged.arguments
    arrays, held = arrays_in(data, (*names, *arguments))
    if set(arrays) == set(arguments) and len(arguments) == len(names):  # tracing renames some, such as "input"
        arrays = {name: arrays[argument] for name, argument in zip(names, arguments, strict=True)}
    if len(arrays) == len(names) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    if set(arrays) != set(names):
        taken = list(arguments) if len(arguments) == len(names) else names
        raise InvalidInputError(
            f"{str(data)!r} holds {sorted(arrays)}, the network takes {taken}; name them so, and the labels 'labels'"
        )
    return arrays, held


def call_of(model: MultiExitModel, arrays: dict[str, NDArray[Any]], data: Path) -> Any:
    """The arguments of a call of the model, as a batch of `eenet.collect` gives them."""
    import torch

    try:
        tensors = tuple(torch.from_numpy(arrays[one.name]) for one in model.staged.inference_stages[0].inputs)
    except TypeError as error:
        raise FileFormatError(f"{str(data)!r} holds what is no numbers ({error}); write plain arrays") from error
    args, kwargs = model.staged.call_of(tensors)
    return kwargs if kwargs and not args else args


def class_names(model: Any) -> list[str] | None:
    """What the network's own description calls its classes, as Hugging Face's configurations do; or None."""
    network = getattr(model, "backbone", model)
    names = getattr(getattr(network, "config", None), "id2label", None)
    if not isinstance(names, dict) or sorted(names) != list(range(len(names))):
        return None
    listed = [str(names[k]) for k in range(len(names))]
    return None if listed == [f"LABEL_{k}" for k in range(len(names))] else listed  # which stands for no names


def class_numbers(labels: Any, names: Sequence[str] | None, what: str, way_out: str = _CLASSES) -> NDArray[Any]:
    """Labels as class numbers: texts by the names of the network's classes, whole numbers as they are.

    `what` holds the labels and `way_out` is what to do where texts cannot be looked up; both are for the errors. Texts
    are never numbered by their own order: it need not be that of the network's classes.
    """
    array = np.asarray(labels)
    if array.ndim == 1:
        _require_labeled(array, what)
    if array.dtype.kind in "iu":
        return array
    values = (array.astype(str) if array.dtype.kind == "S" else array).reshape(-1).tolist()
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values) or array.ndim != 1:
        wrong = next((value for value in values if isinstance(value, str) != bool(texts)), values[:1])
        raise InvalidInputError(
            f"{what} holds {wrong!r}; expected a whole number, or the name of a class, in every row"
        )
    found = sorted(set(texts))
    if names is None:
        raise InvalidInputError(
            f"{what} holds names such as {', '.join(map(repr, found[:3]))}, and which number each has in the network "
            f"is not known; {way_out}, or write class numbers from 0 in place of the names"
        )
    unknown = next((value for value in found if value not in names), None)
    if unknown is not None:
        raise InvalidInputError(
            f"{what} holds {unknown!r}, which is no class of the network; its classes are {_listed(names)}; correct "
            f"the labels, or {way_out}"
        )
    number = {name: k for k, name in reversed(list(enumerate(names)))}
    return np.array([number[value] for value in texts], dtype=np.intp)


def _require_labeled(labels: NDArray[Any], what: str) -> None:
    """Raise `InvalidInputError` where rows have no label."""
    from eenet.records import missing_labels

    missing = missing_labels(labels)
    if missing.any():
        count, first = int(missing.sum()), int(missing.argmax())
        raise InvalidInputError(
            f"{what} has no label in {count} of {len(labels)} rows (row {first + 1} holds {labels.tolist()[first]!r}); "
            "expected a class number from 0, or the name of a class, in each: leave these rows out, or take the data "
            "without labels, which eenet fit --judged-by-last takes"
        )


def labels_in(path: Path, names: Sequence[str] | None, way_out: str = _CLASSES) -> NDArray[Any]:
    """The labels in a file of their own: arrays, or a text file with a class on each line."""
    from eenet.predict._inputs import read_arrays_file

    if path.suffix != ".txt":
        arrays = read_arrays_file(existing_file(path))
        if len(arrays) != 1 and not set(LABELS) & set(arrays):
            raise InvalidInputError(f"{str(path)!r} holds {sorted(arrays)}, expected one array, or 'labels'")
        found = next((arrays[key] for key in LABELS if key in arrays), next(iter(arrays.values())))
        return class_numbers(found, names, repr(str(path)), way_out)
    try:
        given: Any = np.array([int(word) for word in existing_file(path).read_text(encoding="utf-8-sig").split()])
    except ValueError:
        given = names_in(path)
    return class_numbers(given, names, repr(str(path)), way_out)


def table_labels(
    data: Path, names: Sequence[str] | None, column: str | None = None, way_out: str = _CLASSES
) -> NDArray[Any] | None:
    """The labels in a table: class numbers, or names of classes; None where there is no such column."""
    from eenet.predict._tables import TextTable

    table = None if data.suffix == ".parquet" else TextTable(data)
    columns = require("pyarrow.parquet", "predict").read_schema(data).names if table is None else table.columns
    found = next((name for name in ([column] if column else LABELS) if name in columns), None)
    if found is None and column is not None:
        raise InvalidInputError(f"{str(data)!r} has the columns {columns}, and no {column!r}")
    if found is None:
        return None
    if columns.count(found) > 1:
        raise InvalidInputError(
            f"{str(data)!r} has {columns.count(found)} columns {found!r}; rename all but the one with the labels"
        )
    if table is None:
        parquet = require("pyarrow.parquet", "predict")
        values = parquet.read_table(data, columns=[found]).column(found).to_pylist()
    else:
        values = list(table.values(found))
        if all(
            isinstance(value, str) and re.fullmatch(r"\s*-?\d+\s*", value) for value in values
        ):  # no numbers in .csv
            values = [int(value) for value in values]
    return class_numbers(values, names, f"the column {found!r} of {str(data)!r}", way_out)


def _folder_labels(
    data: Path, ids: list[str], names: list[str] | None, num_classes: int
) -> tuple[NDArray[np.intp] | None, list[str] | None]:
    """The classes of files by the folders that they are in, None where they are in none; and the names of the classes.

    Where the network's classes have no names, the folders are its classes in the order of their names, as most loaders
    of such folders number them. The user is shown which number each has.
    """
    if not data.is_dir() or not all("/" in one for one in ids):
        return None, names
    folders = [one.partition("/")[0] for one in ids]
    found = sorted(set(folders))
    unknown = next((one for one in found if names is not None and one not in names), None)
    if names is not None and unknown is not None:
        raise InvalidInputError(
            f"{str(data)!r} has the folder {unknown!r}, which is no class of the network; its classes are "
            f"{_listed(names)}; rename the folder, or {_CLASSES}"
        )
    if names is None and len(found) != num_classes:
        raise InvalidInputError(
            f"{str(data)!r} has {len(found)} folders and the network {num_classes} classes, so the folders by name are "
            f"not its classes in order; {_CLASSES}"
        )
    if names is None:
        shown = [f"{k} = {name}" for k, name in enumerate(found)]
        shown = shown if len(shown) <= _SHOWN else [*shown[: _SHOWN - 2], "...", shown[-1]]
        side().print(
            f"the folders by name are taken as the network's classes: {', '.join(shown)}; for another order give "
            "--classes",
            soft_wrap=True,
        )
    order = found if names is None else names
    number = {name: k for k, name in reversed(list(enumerate(order)))}
    return np.array([number[folder] for folder in folders], dtype=np.intp), order


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
