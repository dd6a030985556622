"""Predictions and costs that a command is about, from its arguments; no file can run code."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eenet._files import existing_file, read_header, read_tensors, require_safetensors
from eenet._warn import warn
from eenet.errors import FileFormatError, InvalidInputError, ReliabilityWarning

if TYPE_CHECKING:
    from eenet.costs import ExitCosts
    from eenet.records import ExitRecords


PROBABILITIES = ("probs", "probabilities")
LOGITS = "logits"
LABELS = "labels"
COSTS = "costs"

Array = NDArray[Any]


JUDGED_BY_LAST = "Accuracies are shares of samples with the last exit's answer: no labels were read (--judged-by-last)."


def read_predictions(path: Path, prefix: str = "", *, labeled: bool = True) -> tuple[ExitRecords, Array | None]:
    """Records of a predictions file, and the costs in it if there are any.

    The file is `.npz` or `.safetensors` with `probs`, `probabilities` or `logits` (exits, samples, classes) and
    `labels` (samples,), their names after `prefix`; or what `ExitRecords.save` wrote. Where it need not be `labeled`
    labels among arrays are not read.
    """
    from eenet.records import warn_of_missing_classes

    records, costs = _predictions(path, prefix, labeled=labeled)
    warn_of_missing_classes(records.labels, records.num_classes)
    return records, costs


def _predictions(path: Path, prefix: str, *, labeled: bool) -> tuple[ExitRecords, Array | None]:
    from eenet.records import ExitRecords

    source = existing_file(path)
    if source.suffix == ".npz":
        names, read = _npz(source)
    elif source.suffix == ".safetensors":
        require_safetensors(source, "eenet.records")
        names, metadata = read_header(source)
        form = metadata.get("format", "")
        if form == "eenet.records":
            if prefix:
                raise InvalidInputError(
                    f"{str(source)!r} holds one set of eenet records, whose names have no prefix: leave out --prefix "
                    f"{prefix}"
                )
            return ExitRecords.load(source), None
        if form.startswith("eenet."):
            ExitRecords.load(source)  # says what the file is instead

        def read(name: str) -> Array:
            return read_tensors(source, [name])[name]

    else:
        raise InvalidInputError(
            f"{str(source)!r} ends in {source.suffix or 'nothing'!r}; predictions are read from .npz or .safetensors"
        )
    outputs = [prefix + name for name in (*PROBABILITIES, LOGITS) if prefix + name in names]
    if len(outputs) != 1:
        raise InvalidInputError(_wrong_arrays(source, names, prefix, outputs))
    labels = read(prefix + LABELS) if labeled and prefix + LABELS in names else None
    if labeled and labels is None:
        _note_other_labels(source, prefix, [name for name in names if name != outputs[0]], read, read(outputs[0]))
    make = ExitRecords.from_logits if outputs[0] == prefix + LOGITS else ExitRecords.from_probabilities
    costs = next((read(name) for name in (prefix + COSTS, COSTS) if name in names), None)
    return make(read(outputs[0]), labels), costs


def _note_other_labels(
    source: Path, prefix: str, others: Sequence[str], read: Callable[[str], Array], outputs: Array
) -> None:
    """Warn of arrays that are labels by their values, where none has the name of the labels."""
    samples, classes = outputs.shape[-2:] if outputs.ndim > 1 else (0, 0)
    like = []
    for name in others:
        try:
            array = read(name)
        except FileFormatError:  # such as names of files, pickled: it is not asked for
            continue
        if array.shape == (samples,) and array.dtype.kind in "iu" and samples:
            like += [name] if 0 <= array.min() <= array.max() < classes else []
    if like:
        warn(
            f"{str(source)!r} has no {prefix + LABELS!r}, and {' and '.join(map(repr, like))} with a class number for "
            f"each sample: if these are the labels, name them {prefix + LABELS!r}",
            ReliabilityWarning,
        )


def read_members(
    paths: Sequence[Path], prefix: str = "", *, judged_by_last: bool = False, more_with: str = ""
) -> tuple[ExitRecords, list[Array | None], list[int]]:
    """Records of predictions files, of several as one cascade; the costs in each; and how many exits each has.

    With `judged_by_last` the last exit's answers take the place of labels. `more_with` says how the command takes
    several files as one cascade.
    """
    from eenet.records import ExitRecords

    read = [read_predictions(path, prefix, labeled=not judged_by_last) for path in paths]
    records, counts = [one for one, _ in read], [one.num_exits for one, _ in read]
    try:
        joined = records[0] if len(records) == 1 else ExitRecords.cascade(records)
    except InvalidInputError as error:
        raise InvalidInputError(_named(str(error), paths)) from error
    if joined.num_exits == 1:
        raise InvalidInputError(
            f"{str(paths[0])!r} holds the predictions of a plain network, of shape (samples, classes): there is no "
            f"choice to make; give those of its exits, or {more_with}a second file, of a larger network that is asked "
            "after it"
        )
    return joined.judged_by_last() if judged_by_last else joined, [costs for _, costs in read], counts


def read_candidates(paths: Sequence[Path], prefix: str = "") -> tuple[dict[str, ExitRecords], list[Array | None]]:
    """Records of predictions files by their names, which are those of the files or folders; the costs in each."""
    read = [read_predictions(path, prefix) for path in paths]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):  # such as the calibration.safetensors of two folders
        names = [path.parent.name for path in paths]
    if len(set(names)) < len(names) or not all(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise InvalidInputError(f"a file is given twice: {', '.join(names)}; give each once")
    return {name: records for name, (records, _) in zip(names, read, strict=True)}, [costs for _, costs in read]


def _named(message: str, paths: Sequence[Path]) -> str:
    """A message with the files in place of the numbers of the members."""
    return re.sub(r"\bmember (\d+)", lambda found: repr(str(paths[int(found[1])])), message)


def _wrong_arrays(source: Path, names: list[str], prefix: str, outputs: list[str]) -> str:
    held = ", ".join(repr(name) for name in sorted(names)) or "nothing"
    if outputs:
        return f"{str(source)!r} holds {' and '.join(outputs)}, expected one of them; remove the other"
    prefixes = sorted(
        {n.removesuffix(end) for n in names for end in (*PROBABILITIES, LOGITS) if n.endswith(end) and n != end}
    )
    hint = f"; try --prefix {' or --prefix '.join(prefixes)}" if prefixes else ""
    accepted = ", ".join(repr(prefix + name) for name in PROBABILITIES)
    return f"{str(source)!r} lacks {accepted} or {prefix + LOGITS!r}; it holds {held}{hint}"


def _npz(source: Path) -> tuple[list[str], Callable[[str], Array]]:
    if not zipfile.is_zipfile(source):
        raise FileFormatError(
            f"{str(source)!r} is not a whole .npz file; it may be truncated: write it again with numpy.savez"
        )
    with np.load(source, allow_pickle=False) as archive:
        names = list(archive.files)

    def read(name: str) -> Array:
        try:
            with np.load(source, allow_pickle=False) as archive:
                array: Array = archive[name]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise FileFormatError(
                f"{name!r} in {str(source)!r} cannot be read ({error}); write plain arrays of numbers: eenet reads no "
                "pickled objects, which can run code"
            ) from error
        return array

    return names, read


def read_member_costs(
    texts: Sequence[str] | None,
    unit: str | None,
    batch_size: int | None,
    in_files: Sequence[Array | None],
    counts: Sequence[int],
    plain: float | None = None,
) -> ExitCosts:
    """The costs of predictions from as many files as there are `in_files`; `counts` says how many exits each has.

    Of several files each has its own costs, as measured without the others: `texts` are one for each file, or one list
    for all. A JSON file that has a cost for each exit of all files was measured of the cascade.
    """
    from eenet.costs import ExitCosts

    if len(in_files) == 1:
        if texts is not None and len(texts) > 1:
            raise InvalidInputError(f"--costs was given {len(texts)} times for one file; give it once")
        return read_costs(texts[0] if texts else None, unit, batch_size, in_files[0], plain)
    if texts and len(texts) == 1 and texts[0].endswith(".json"):
        whole = read_costs(texts[0], unit, batch_size, None, plain)
        whole.require_exits(sum(counts))
        return whole
    members = each_costs(texts, unit, batch_size, in_files, counts)
    measured = any(isinstance(member, ExitCosts) for member in members)
    costs = ExitCosts.cascade(members, None if measured else unit)
    return costs if plain is None else ExitCosts.from_dict({**costs.to_dict(), "plain": plain})


def each_costs(
    texts: Sequence[str] | None,
    unit: str | None,
    batch_size: int | None,
    in_files: Sequence[Array | None],
    counts: Sequence[int],
) -> list[ExitCosts | float]:
    """What the network of each file costs by itself: a number for a plain one."""
    if not texts:
        lists: list[Any] = list(in_files)
    elif len(texts) == 1 and not (len(counts) == 1 and texts[0].endswith(".json")):
        lists = _divided(texts[0], counts)
    elif len(texts) == len(counts):
        lists = list(texts)
    else:
        raise InvalidInputError(
            f"--costs was given {len(texts)} times for {len(counts)} files; give it once for each, or once for all"
        )
    return [
        _member_costs(number, one, unit, batch_size, count)
        for number, (one, count) in enumerate(zip(lists, counts, strict=True))
    ]


def _divided(text: str, counts: Sequence[int]) -> list[list[float]]:
    """The numbers of one list, as many for each file as it has exits."""
    values = _numbers(text)
    if len(values) != sum(counts):
        raise InvalidInputError(
            f"--costs {text!r} has {len(values)} numbers, the files have {' + '.join(map(str, counts))} exits; give "
            "one for each exit, those of each file as measured without the others"
        )
    ends = np.cumsum(counts).tolist()
    return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _member_costs(number: int, given: Any, unit: str | None, batch_size: int | None, count: int) -> ExitCosts | float:
    from eenet.costs import ExitCosts, load_costs

    if given is None:
        raise InvalidInputError(
            f"there are no costs of file {number + 1}: it holds no 'costs'; give --costs 2.3,9.1, what each file's "
            "network costs by itself"
        )
    if isinstance(given, str) and given.endswith(".json"):
        costs = load_costs(given, unit, batch_size)
        costs.require_exits(count)
        return costs
    values = _numbers(given) if isinstance(given, str) else np.ravel(given).tolist()
    if len(values) != count:
        raise InvalidInputError(f"file {number + 1} has {count} exits and {len(values)} costs; give one for each exit")
    return float(values[0]) if count == 1 else ExitCosts(values, unit or "ms", batch_size=batch_size)


def read_costs(
    text: str | None, unit: str | None, batch_size: int | None, in_file: Array | None, plain: float | None = None
) -> ExitCosts:
    """Costs from `--costs`, a list of numbers or a JSON file, or else those in the predictions file.

    `plain` is the cost of the plain network, where it is not in the JSON file or another is meant.
    """
    costs = _read_costs(text, unit, batch_size, in_file)
    if plain is None:
        return costs
    return type(costs).from_dict({**costs.to_dict(), "plain": plain, "percentiles": {}})


def _read_costs(text: str | None, unit: str | None, batch_size: int | None, in_file: Array | None) -> ExitCosts:
    from eenet.costs import ExitCosts, load_costs

    if text is None:
        if in_file is None:
            raise InvalidInputError(
                "there are no costs: the predictions file holds no 'costs'; give --costs 2.3,4.1,4.9 (the whole way to "
                "each exit), or --costs FILE with what 'eenet profile --json' printed"
            )
        return ExitCosts(in_file, unit or "ms")
    if text.endswith(".json"):
        return load_costs(text, unit, batch_size)
    return ExitCosts(_numbers(text), unit or "ms", batch_size=batch_size)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(
            f"--costs {text!r} cannot be read ({error}); give numbers with commas such as 2.3,4.1,4.9, or a .json file"
        ) from error


def sizes_of(text: str) -> tuple[int, ...]:
    """The batch sizes in a list such as 1,8,32."""
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise InvalidInputError(f"--batch-sizes {text!r} cannot be read; give numbers such as 1,8,32") from error
    if min(sizes) < 1:
        raise InvalidInputError(f"--batch-sizes {text!r}: a batch has at least 1 sample")
    return tuple(sorted(set(sizes)))
