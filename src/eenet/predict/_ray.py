"""`predict_on_ray`: the same pieces by Ray Data, on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eenet._extras import require
from eenet.bundle import LoadedBundle, load
from eenet.errors import InvalidInputError
from eenet.predict._inputs import Items
from eenet.predict._predict import PIECE, Summary, columns_of, predict_pieces, write_piece

_MOST_BLOCKS = 1000  # more tasks in a plan only cost time


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
    """Do what `predict` does, by Ray Data: a pool of processes, each with the bundle, makes the pieces.

    All machines must see the bundle, the inputs and the folder of the results under the same paths, which must be
    absolute where they do not start in one folder. A stopped run continues with the missing pieces, on Ray or without.

    Parameters
    ----------
    bundle, items, out, batch_size, piece, restart, progress
        As for `predict`.
    address : str
        The address of the cluster. Without it one is started here and ended, unless this process has one already.
    replicas : int
        Processes; by default as many as fit in the CPUs of the cluster.
    cpus : float
        CPUs that a process reserves.
    threads : int
        Threads of a run of a stage.
    allow : sequence of str
        Import paths that a bundle of weights may call; see `eenet.bundle.load`.

    Returns
    -------
    Summary

    Raises
    ------
    InvalidInputError
        As `predict`.
    MissingExtraError
        Without the extra "ray".

    Examples
    --------
    >>> from eenet.predict import predict_on_ray
    >>> predict_on_ray(bundle, items, "answers.parquet", replicas=4)  # doctest: +SKIP
    """
    ray, data = require("ray", "ray", "predicting on Ray"), require("ray.data", "ray", "predicting on Ray")
    if replicas is not None and replicas < 1:
        raise InvalidInputError(f"replicas is {replicas}, expected 1 or more")

    def on_ray(missing: Sequence[int], work: Path, report: Callable[[int], None]) -> None:
        started, ends = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
        if started:
            here = {} if address is not None else {"include_dashboard": False}
            ray.init(address=address, log_to_driver=False, **here)
        # Its progress is not that of the files.
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
                # Read once: every machine predicts the same items.
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
                report(int(row["items"]))
        finally:
            if started:
                ray.shutdown()
                # Ray sets a handler of its own where it can, and leaves it.
                if ends is not None and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, ends)

    return predict_pieces(
        bundle, items, out, on_ray, batch_size=batch_size, piece=piece, restart=restart, progress=progress
    )


class _Pieces:
    """A process of the pool: makes pieces by their numbers."""

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
        names, inputs = next(self._items.batches(self._piece, number * self._piece))
        write_piece(self._work, number, columns_of(self._bundle, names, inputs, self._batch_size, lambda _: None))
        return len(names)
