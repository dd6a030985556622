"""`predict_on_ray`: the same pieces, made by the machines of a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eenet._extras import require
from eenet.bundle import LoadedBundle, load
from eenet.errors import InvalidInputError
from eenet.predict._inputs import Items
from eenet.predict._predict import PIECE, Summary, columns_of, predict_pieces, write_piece

_MOST_BLOCKS = 1000  # of numbers of pieces: more than that many tasks in a plan only cost time


def predict_on_ray(
    bundle: LoadedBundle,
    items: Items,
    out: str | Path,
    *,
    batch_size: int = 32,
    piece: int = PIECE,
    restart: bool = False,
    progress: Callable[[int], None] | None = None,
    address: str | None = None,
    replicas: int | None = None,
    cpus: float = 1.0,
    threads: int | None = 1,
    allow: Sequence[str] = (),
) -> Summary:
    """What `predict` does, by Ray Data: a pool of `replicas` processes, each with the bundle, that make the pieces.

    All machines must see the bundle, the inputs and the folder of the results under the same paths, which must be
    absolute where they do not start in one folder. `address` is that of the cluster; without it one is started here,
    and ended, unless there is one in this process already. `replicas` is by default what fits in the CPUs there are,
    `cpus` for each. A run that was stopped goes on with the pieces that are not there, on Ray or without. Raises as
    `predict`, and `MissingExtraError` without the extra "ray".
    """
    ray, data = require("ray", "ray", "predicting on Ray"), require("ray.data", "ray", "predicting on Ray")
    if replicas is not None and replicas < 1:
        raise InvalidInputError(f"replicas is {replicas}, expected 1 or more")

    def on_ray(missing: Sequence[int], work: Path, told: Callable[[int], None]) -> None:
        begun = not ray.is_initialized()
        if begun:
            here = {} if address is not None else {"include_dashboard": False}
            ray.init(address=address, log_to_driver=False, **here)
        # How Ray Data goes about it is no news to who waits for files.
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        try:
            context = data.DataContext.get_current()
            context.enable_progress_bars = False
            most = replicas or max(1, int(ray.cluster_resources().get("CPU", 1) / max(cpus, 1e-3)))
            numbers = data.from_items(
                [{"piece": number} for number in missing], override_num_blocks=min(len(missing), _MOST_BLOCKS)
            )
            settings = {
                "folder": str(bundle.manifest.root.resolve()),
                "budget": bundle.scheduler.budget,
                # Once for all: what is predicted is what was looked at here, on every machine.
                "items": [ray.put(items)],
                "work": str(work.resolve()),
                "piece": piece,
                "batch_size": batch_size,
                "threads": threads,
                "allow": tuple(allow),
            }
            done = numbers.map_batches(
                _Pieces,
                fn_constructor_kwargs=settings,
                batch_size=1,
                batch_format="numpy",
                num_cpus=cpus,
                compute=data.ActorPoolStrategy(min_size=1, max_size=min(most, len(missing))),
            )
            for row in done.iter_rows():
                told(int(row["items"]))
        finally:
            if begun:
                ray.shutdown()

    return predict_pieces(
        bundle, items, out, on_ray, batch_size=batch_size, piece=piece, restart=restart, progress=progress
    )


class _Pieces:
    """A process of the pool: makes the pieces it is given the numbers of."""

    def __init__(
        self,
        folder: str,
        budget: float,
        items: Sequence[Any],
        work: str,
        piece: int,
        batch_size: int,
        threads: int | None,
        allow: Sequence[str],
    ) -> None:
        bundle = load(folder, threads=threads, allow=allow)
        self._bundle = bundle if bundle.scheduler.budget == budget else bundle.at(budget)
        self._items: Items = require("ray", "ray").get(items[0])
        self._work, self._piece, self._batch_size = Path(work), piece, batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        counts = [self._make(int(number)) for number in batch["piece"]]
        return {"piece": batch["piece"], "items": np.array(counts)}

    def _make(self, number: int) -> int:
        names, found = next(self._items.batches(self._piece, number * self._piece))
        write_piece(self._work, number, columns_of(self._bundle, names, found, self._batch_size, lambda _: None))
        return len(names)
