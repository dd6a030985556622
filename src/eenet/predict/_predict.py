"""`predict`: a bundle over all items, in pieces that are kept, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eenet._extras import require
from eenet._files import atomic_path, write_json
from eenet.bundle import LoadedBundle
from eenet.errors import InvalidInputError
from eenet.predict._inputs import Items
from eenet.predict._rows import Columns, rows_of

PIECE = 1024
"""Items whose results are written together; a run that was killed repeats at most so many."""

RunPieces = Callable[[Sequence[int], Path, Callable[[int], None]], None]
"""Makes the pieces with these numbers in a folder, and says each time how many more items are done."""

_STATE = "state.json"


@dataclass(frozen=True)
class Summary:
    """What a run did: items in all, of which `resumed` were there already and `failed` could not be read."""

    items: int
    resumed: int
    failed: int
    exit_shares: tuple[float, ...]
    mean_cost: float | None


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
    """Run a bundle over all items and write a parquet file: a row for each, in their order (see `rows_of`).

    Results are kept in pieces in the folder OUT.partial until they are all there; a run that was stopped goes on from
    the last whole piece, and `restart` begins anew. `progress` is told how many items are done. Raises
    `InvalidInputError` where the folder is of a run over other items, or with another bundle or budget.
    """

    def here(missing: Sequence[int], work: Path, told: Callable[[int], None]) -> None:
        for first, stretch in _stretches(missing):
            for number, (names, found) in zip(stretch, items.batches(piece, first * piece), strict=False):
                write_piece(work, number, columns_of(bundle, names, found, batch_size, told))

    return predict_pieces(
        bundle, items, out, here, batch_size=batch_size, piece=piece, restart=restart, progress=progress
    )


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
    if batch_size < 1 or piece < 1:
        raise InvalidInputError(f"batch_size is {batch_size} and piece {piece}, expected 1 or more")
    target = Path(out)
    if target.is_dir():
        raise InvalidInputError(f"cannot write {str(target)!r}: it is a folder; name a file that ends in .parquet")
    work = target.with_name(target.name + ".partial")
    state = _state(bundle, items, piece)
    if restart and work.exists():
        shutil.rmtree(work)
    _begin(work, state)
    pieces = -(-len(items) // piece)
    missing = [number for number in range(pieces) if not (work / _name(number)).is_file()]
    resumed = len(items) - sum(min(piece, len(items) - number * piece) for number in missing)
    done = resumed

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done)

    told(0)
    if missing:
        run(missing, work, told)
    summary = _joined(bundle, work, pieces, target, resumed)
    shutil.rmtree(work)
    return summary


def _state(bundle: LoadedBundle, items: Items, piece: int) -> dict[str, Any]:
    return {
        "schema": 1,
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
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != state:
        differs = [key for key in state if not isinstance(found, dict) or found.get(key) != state[key]]
        raise InvalidInputError(
            f"{str(work)!r} holds the results of another run (it differs in {', '.join(differs)}); begin anew with "
            "--restart, or write to another file"
        )


def _name(number: int) -> str:
    return f"piece-{number:06d}.parquet"


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
    """Numbers that follow each other, so that what is read in order is read once; and the first of them."""
    begun = 0
    for n in range(1, len(numbers) + 1):
        if n == len(numbers) or numbers[n] != numbers[n - 1] + 1:
            yield numbers[begun], numbers[begun:n]
            begun = n


def columns_of(
    bundle: LoadedBundle, names: Sequence[str], found: Sequence[Any], batch_size: int, told: Callable[[int], None]
) -> Columns:
    """The rows of a piece."""
    columns: Columns = {}
    for first in range(0, len(found), batch_size):
        rows = rows_of(bundle, names[first : first + batch_size], found[first : first + batch_size])
        for name, values in rows.items():
            columns.setdefault(name, []).extend(values)
        told(len(rows["id"]))
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
        "confidence": arrow.float32(),
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
        finally:
            if writer is not None:
                writer.close()
    answered = int(counts.sum())
    shares = tuple((counts / max(answered, 1)).tolist())
    cost = float(np.dot(counts, bundle.costs.values) / answered) if answered else None
    return Summary(items, resumed, failed, shares, cost)
