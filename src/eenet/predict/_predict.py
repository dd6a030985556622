"""`predict`: a bundle over all items, in pieces that are kept, so that a stopped run can be continued."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._files import atomic_path, write_json
from eenet._progress import require_progress
from eenet._sizes import dynamic_sizes
from eenet.bundle import LoadedBundle
from eenet.bundle._measure import failures_of
from eenet.errors import InvalidInputError
from eenet.predict._inputs import Items
from eenet.runtime import AdaptiveOutput
from eenet.tasks import softmax

_log = logging.getLogger("eenet.predict")

Columns = dict[str, list[Any]]
Answers = AdaptiveOutput[NDArray[Any]]
Flags = dict[str, NDArray[np.bool_]]

PIECE = 1024
"""Items whose results are written together: what a run that is killed repeats at most."""

RunPieces = Callable[[Sequence[int], Path, Callable[[int], None]], None]
"""Makes the pieces with these numbers in a folder, and reports each time how many more items are done."""

_STATE = "state.json"

_FLAGS = ("truncated", "empty")
"""The columns of texts that say of each what `Preprocessing.with_flags` does."""

# What is noted of a run: a mean cost above the budget by this factor and by this many standard errors, of at least this
# many items, and a measured time above the planned one by this factor.
_ENOUGH, _OVER, _ERRORS, _SLOWER = 20, 1.02, 2.0, 2.0


class Call(NamedTuple):
    """A call of the network: its items, its time, and the sizes of its inputs that may change."""

    items: int
    seconds: float
    cpu_seconds: float
    sizes: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes
    ----------
    items, resumed, failed : int
        All items, those that an earlier run had done, and those that could not be read.
    exit_shares : tuple of float (K,)
        The share of the answered items that left at each exit.
    mean_cost : float or None
        Of the answered items, by the bundle's costs, in their unit.
    measured_ms : float or None
        Wall time of the network per item, as measured in this run; None where other processes ran it, or nothing ran.
    measured_cpu_ms : float or None
        The same in CPU time of all threads, which costs in cpu_ms are compared with.
    first_error : str or None
        Why the first of the items that could not be read could not.
    notes : tuple of str
        Where the mean cost is above the budget, or the measured time far above the planned cost: what that may come
        from, and what to do. How many texts were cut, and how many are empty.

    Examples
    --------
    >>> from eenet.predict import Summary
    >>> Summary(items=40, resumed=0, failed=0, exit_shares=(0.5, 0.5), mean_cost=1.5).items
    40
    """

    items: int
    resumed: int
    failed: int
    exit_shares: tuple[float, ...]
    mean_cost: float | None
    measured_ms: float | None = None
    measured_cpu_ms: float | None = None
    first_error: str | None = None
    notes: tuple[str, ...] = ()


def predict(
    bundle: LoadedBundle,
    items: Items,
    out: str | Path,
    *,
    batch_size: int = 32,
    piece: int = PIECE,
    restart: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Run a bundle over all items and write a parquet file with a row for each, in their order.

    The columns are `id`, `exit` (from 0), `prediction` (the class), `class_name` where the bundle has names,
    `abstained` (whether the item is handed back, since no exit is sure of it: then `prediction` is -1), `confidence`
    (the probability of the most probable class) and `error`: why an item could not be read, which then has no answer.
    Where each pixel has a class, `label_map` (height x width) is in place of `prediction`. Texts also have `truncated`
    (whether the text had more tokens than the bundle takes, so that not all of it was read) and `empty`.

    Results are kept in pieces in the folder OUT.partial until all are there. A run that was stopped continues after its
    last piece when it is called again.

    Parameters
    ----------
    bundle : LoadedBundle
        What `eenet.bundle.load` gives.
    items : Items
        What `open_items` gives.
    out : path
        The parquet file.
    batch_size : int
        Samples that enter the network together.
    piece : int
        Items whose results are kept together.
    restart : bool
        Do not continue a stopped run.
    progress : callable
        Called with the number of items that are done.

    Returns
    -------
    Summary

    Raises
    ------
    InvalidInputError
        Where `out` does not end in .parquet, or the folder is of a run over other items, or with another bundle or
        budget.
    MissingExtraError
        Without the extra "predict".

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> from eenet.predict import open_items, predict
    >>> x = torch.randn(40, 4)
    >>> model = eenet.attach(network, ["1"], example=x[:2])
    >>> scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0]), budget=1.5)
    >>> bundle = eenet.export(model, scheduler, "answering", example=x, measure=False)
    >>> np.save("inputs.npy", x.numpy())
    >>> predict(bundle, open_items("inputs.npy", "array"), "answers.parquet").items
    40
    """

    took: list[Call] = []

    def here(missing: Sequence[int], work: Path, report: Callable[[int], None]) -> None:
        for first, run_of in _consecutive(missing):
            for number, (names, inputs) in zip(run_of, items.batches(piece, first * piece), strict=False):
                write_piece(work, number, columns_of(bundle, names, inputs, batch_size, report, took))

    summary = predict_pieces(
        bundle, items, out, here, batch_size=batch_size, piece=piece, restart=restart, progress=progress
    )
    counted = took[1:] or took  # in the first a runtime warms up
    count = sum(call.items for call in counted)
    if not count:
        return summary
    summary = replace(
        summary,
        measured_ms=sum(call.seconds for call in counted) / count * 1e3,
        measured_cpu_ms=sum(call.cpu_seconds for call in counted) / count * 1e3,
    )
    sizes = {name: sum(call.items * call.sizes[name] for call in counted) / count for name in counted[0].sizes}
    slower = _slower(bundle, summary, sizes, batch_size)
    return summary if slower is None else replace(summary, notes=(*summary.notes, slower))


def _over_budget(bundle: LoadedBundle, counts: NDArray[np.int64], mean: float) -> str | None:
    """That the items cost more than the budget, where it is no matter of chance."""
    costs, budget, items = bundle.costs.values, bundle.scheduler.budget, int(counts.sum())
    variance = float(np.dot(counts, (costs - mean) ** 2)) / items
    if items < _ENOUGH or mean < _OVER * budget or mean - budget < _ERRORS * (variance / items) ** 0.5:
        return None
    return (
        f"the mean cost is {mean / budget - 1:.0%} over the budget: these inputs take later exits than the calibration "
        "data. Calibrate on data like these, or give a smaller budget; eenet serve and eenet.BudgetController adapt to "
        "what was spent"
    )


def _cut(bundle: LoadedBundle, count: int, answered: int) -> str | None:
    """That texts were cut to what the bundle takes."""
    if not count:
        return None
    description = bundle.preprocessing.describe()
    members = description.get("members", {"": description})
    limits = " and ".join(str(limit) for limit in dict.fromkeys(one["max_length"] for one in members.values()))
    return (
        f"{count} of {answered} texts have more than {limits} tokens and were cut there (the column truncated): the "
        "rest of them was not read. Export a bundle with a larger max_length, or split them"
    )


def _empty(count: int, answered: int) -> str | None:
    """That texts without a word were answered."""
    if not count:
        return None
    return f"{count} of {answered} texts are empty (the column empty): their answers say nothing"


def _slower(bundle: LoadedBundle, summary: Summary, sizes: dict[str, float], batch_size: int) -> str | None:
    """That the items took far longer than planned, and what may be the reason."""
    planned, costs = summary.mean_cost, bundle.costs
    took = {"ms": summary.measured_ms, "cpu_ms": summary.measured_cpu_ms}.get(costs.unit)
    if planned is None or took is None or took <= _SLOWER * planned:
        return None
    measured_at = costs.device.get("sizes", {})
    again = f"eenet profile {bundle.manifest.root} --update"
    reasons = [
        f"these inputs are of length {size:.0f} ({name}) on average, the costs of {measured_at[name]}: measure and "
        f"plan again with {again} --length {size:.0f}"
        for name, size in sizes.items()
        if size > measured_at.get(name, size)
    ]
    if costs.batch_size is not None and costs.batch_size > batch_size:
        reasons.append(f"the costs are of batches of {costs.batch_size}, these are of {batch_size}")
    if bundle.measured_elsewhere is not None:
        reasons.append(bundle.measured_elsewhere)
    why = "; ".join(reasons) or "the machine may be busy, or the costs may be of another one"
    cost = f"{took:.4g} {costs.unit}, planned {planned:.4g} {costs.unit}"
    return f"an item took {took / planned:.1f} times its planned cost ({cost}): {why}"


def predict_pieces(
    bundle: LoadedBundle,
    items: Items,
    out: str | Path,
    run: RunPieces,
    *,
    batch_size: int,
    piece: int,
    restart: bool,
    progress: Callable[[int], None] | None,
) -> Summary:
    """What `predict` does, with `run` for the pieces that are not there yet."""
    require_progress(progress)
    if batch_size < 1 or piece < 1:
        raise InvalidInputError(f"batch_size is {batch_size} and piece {piece}, expected 1 or more")
    target = Path(out)
    if target.is_dir():
        raise InvalidInputError(f"cannot write {str(target)!r}: it is a folder; name a file that ends in .parquet")
    if target.suffix != ".parquet":
        raise InvalidInputError(
            f"{str(target)!r} ends in {target.suffix or 'nothing'!r}, and results are written as parquet: name a file "
            "that ends in .parquet"
        )
    work = target.with_name(target.name + ".partial")
    state = _state(bundle, items, piece)
    if restart and work.exists():
        shutil.rmtree(work)
    _begin(work, state)
    pieces = -(-len(items) // piece)
    missing = [number for number in range(pieces) if not (work / _name(number)).is_file()]
    resumed = len(items) - sum(min(piece, len(items) - number * piece) for number in missing)
    done = resumed
    if resumed:
        _log.info("%d of %d items are kept in %s", resumed, len(items), work)

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done)

    report(0)
    if missing:
        run(missing, work, report)
    summary = _joined(bundle, work, pieces, target, resumed)
    shutil.rmtree(work)
    return summary


def _state(bundle: LoadedBundle, items: Items, piece: int) -> dict[str, Any]:
    return {
        "schema": 4,
        "bundle": bundle.manifest.data["files"],
        "budget": bundle.scheduler.budget,
        "items": len(items),
        "fingerprint": items.fingerprint,
        "piece": piece,
    }


def _begin(work: Path, state: dict[str, Any]) -> None:
    path = work / _STATE
    if not work.exists():
        write_json(path, state)
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        saved = None
    if saved != state:
        differs = [key for key in state if not isinstance(saved, dict) or saved.get(key) != state[key]]
        raise InvalidInputError(
            f"{str(work)!r} holds the results of another run (it differs in {', '.join(differs)}); start again with "
            "--restart, or write to another file"
        )


def _name(number: int) -> str:
    return f"piece-{number:06d}.parquet"


def _consecutive(numbers: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
    """Runs of consecutive numbers, each with its first: items in order are read once."""
    start = 0
    for n in range(1, len(numbers) + 1):
        if n == len(numbers) or numbers[n] != numbers[n - 1] + 1:
            yield numbers[start], numbers[start:n]
            start = n


def columns_of(
    bundle: LoadedBundle,
    names: Sequence[str],
    inputs: Sequence[Any],
    batch_size: int,
    report: Callable[[int], None],
    took: list[Call] | None = None,
) -> Columns:
    """The rows of a piece; into `took` go the calls of the network."""
    columns: Columns = {}
    for first in range(0, len(inputs), batch_size):
        rows = _rows_of(bundle, names[first : first + batch_size], inputs[first : first + batch_size], took)
        for name, values in rows.items():
            columns.setdefault(name, []).extend(values)
        report(len(rows["id"]))
    return columns


def write_piece(work: Path, number: int, columns: Columns) -> None:
    """Keep the results of a piece."""
    arrow, parquet = require("pyarrow", "predict"), require("pyarrow.parquet", "predict")
    types = {
        "id": arrow.string(),
        "exit": arrow.int16(),
        "prediction": arrow.int32(),
        "class_name": arrow.string(),
        "label_map": arrow.list_(arrow.list_(arrow.int16())),
        "abstained": arrow.bool_(),
        "confidence": arrow.float32(),
        **dict.fromkeys(_FLAGS, arrow.bool_()),
        "error": arrow.string(),
    }
    table = arrow.table({name: arrow.array(values, type=types[name]) for name, values in columns.items()})
    with atomic_path(work / _name(number)) as temporary:
        parquet.write_table(table, temporary)


def _joined(bundle: LoadedBundle, work: Path, pieces: int, target: Path, resumed: int) -> Summary:
    """All pieces as one file, read one at a time."""
    parquet = require("pyarrow.parquet", "predict")
    counts = np.zeros(bundle.backend.num_exits, dtype=np.int64)
    items = failed = 0
    error: str | None = None
    flagged = dict.fromkeys(_FLAGS, 0)
    with atomic_path(target) as temporary:
        writer = None
        try:
            for number in range(pieces):
                table = parquet.read_table(work / _name(number))
                writer = writer or parquet.ParquetWriter(temporary, table.schema)
                writer.write_table(table)
                exits = table.column("exit").drop_null().to_numpy()
                counts += np.bincount(exits, minlength=len(counts))
                items, failed = items + table.num_rows, failed + table.num_rows - len(exits)
                said = table.column("error").drop_null()
                error = said[0].as_py() if error is None and len(said) else error
                for name in set(_FLAGS) & set(table.column_names):
                    flagged[name] += int(np.sum(table.column(name).drop_null().to_numpy()))
        finally:
            if writer is not None:
                writer.close()
    answered = int(counts.sum())
    shares = tuple((counts / max(answered, 1)).tolist())
    cost = float(np.dot(counts, bundle.costs.values) / answered) if answered else None
    notes = [] if cost is None else [_over_budget(bundle, counts, cost)]
    notes += [_cut(bundle, flagged["truncated"], answered), _empty(flagged["empty"], answered)]
    said_notes = tuple(note for note in notes if note is not None)
    return Summary(items, resumed, failed, shares, cost, first_error=error, notes=said_notes)


def _rows_of(bundle: LoadedBundle, names: Sequence[str], items: Sequence[Any], took: list[Call] | None) -> Columns:
    """The answers to some raw inputs as columns, in their order; see `predict`."""
    dense = bundle.task.name == "segmentation"
    named = not dense and bundle.class_names is not None
    columns: Columns = {"id": list(names), "exit": [None] * len(items)}
    columns["label_map" if dense else "prediction"] = [None] * len(items)
    if named:
        columns["class_name"] = [None] * len(items)
    flagged = _FLAGS if bundle.preprocessing.kind == "text" else ()
    columns |= {name: [None] * len(items) for name in ("abstained", "confidence", *flagged, "error")}
    for rows, answers, flags in _groups(bundle, items, columns["error"], took):
        for name, values in flags.items():
            for row, value in zip(rows, values.tolist(), strict=True):
                columns[name][row] = value
        predictions = answers.logits.argmax(axis=1)
        likely = softmax(np.moveaxis(answers.logits, 1, -1)).max(axis=-1).reshape(len(rows), -1).mean(axis=1)
        for n, row in enumerate(rows):
            columns["exit"][row] = int(answers.exits[n])
            columns["abstained"][row] = bool(answers.abstained[n])
            columns["confidence"][row] = float(likely[n]) if np.isfinite(likely[n]) else None
            if answers.abstained[n]:  # no class, and no map of them
                if not dense:
                    columns["prediction"][row] = -1
                continue
            if dense:
                columns["label_map"][row] = predictions[n].tolist()
            else:
                columns["prediction"][row] = int(predictions[n])
            if named and bundle.class_names is not None:
                columns["class_name"][row] = bundle.class_names[int(predictions[n])]
    return columns


def _groups(
    bundle: LoadedBundle, items: Sequence[Any], errors: list[str | None], took: list[Call] | None
) -> Iterator[tuple[list[int], Answers, Flags]]:
    """The answers to items and what to know of them, in batches: all in one where that is possible, else each alone.

    What is wrong with the others goes into `errors`.
    """
    together = _answered(bundle, items, took)
    if not isinstance(together, str):
        yield list(range(len(items))), *together
        return
    for row, item in enumerate(items):
        made = together if len(items) == 1 else _answered(bundle, [item], took)
        if isinstance(made, str):
            errors[row] = made
        else:
            yield [row], *made


def _answered(bundle: LoadedBundle, items: Sequence[Any], took: list[Call] | None) -> tuple[Answers, Flags] | str:
    """The answers to some items and what to know of them, or what is wrong with one of them."""
    try:
        inputs, flags = bundle.preprocessing.with_flags(items)
        began, cpu_began = time.perf_counter(), time.process_time()
        answers = bundle(inputs)
    except InvalidInputError as error:
        return str(error)
    except failures_of(bundle.manifest.backend) as error:
        return f"the network fails on it: {' '.join(str(error).split())}"
    if took is not None:
        seconds, cpu, specs = time.perf_counter() - began, time.process_time() - cpu_began, bundle.inputs
        took.append(Call(len(items), seconds, cpu, dynamic_sizes(specs, [inputs[spec.name].shape for spec in specs])))
    return answers, flags
