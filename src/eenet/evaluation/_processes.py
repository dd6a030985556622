"""Filling cells one after the other, or in several processes."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from eenet.errors import InvalidInputError
from eenet.evaluation._cells import Cell, CellFolder, Setting
from eenet.scheduler import Scheduler

Key = tuple[str, int]

_worker: list[tuple[Setting, CellFolder | None]] = []
"""In a worker process: what it was started with."""


def fill_here(
    setting: Setting, keys: Sequence[Key], folder: CellFolder | None, told: Callable[[int], None]
) -> Iterator[Cell]:
    """Fill cells in this process; `told` of every fit."""
    with one_thread():
        for name, resplit in keys:
            cell = setting.fill(name, resplit, lambda: told(1))
            if folder is not None:
                folder.save(cell)
            yield cell


def fill_in_processes(
    setting: Setting, keys: Sequence[Key], folder: CellFolder | None, told: Callable[[int], None], jobs: int
) -> Iterator[Cell]:
    """Fill cells in `jobs` processes, each with one thread, as they are done; `told` of every cell's fits.

    A worker keeps its cell in the folder itself, so that an interruption here loses no finished one. Raises
    `InvalidInputError` for schedulers that other processes cannot be given, and where a process was killed.
    """
    _require_sendable(setting)
    context = multiprocessing.get_context("spawn")  # a fork of a process with running threads can hang
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(jobs, len(keys)), mp_context=context, initializer=_start, initargs=(setting, folder))
    try:
        for future in as_completed([pool.submit(_fill, key) for key in keys]):
            cell = future.result()
            told(len(cell.rows))
            yield cell
        pool.shutdown()
    except BrokenProcessPool as error:
        raise InvalidInputError(
            "a process of the comparison was killed, perhaps for want of memory; run it again with fewer jobs: what is "
            "finished is kept where there is a folder for it"
        ) from error
    finally:
        # After an interruption nobody waits for what is half done; after all is done there is nobody left.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()


def _start(setting: Setting, folder: CellFolder | None) -> None:
    _worker.append((setting, folder))


def _fill(key: Key) -> Cell:
    setting, folder = _worker[0]
    return next(iter(fill_here(setting, [key], folder, lambda _: None)))


def _require_sendable(setting: Setting) -> None:
    for name, make in setting.makers.items():
        _require_one_sendable(name, make)


def _require_one_sendable(name: str, make: Callable[[], Scheduler]) -> None:
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidInputError(
            f"scheduler {name!r} cannot be given to other processes ({error}); use a function of a module, "
            "functools.partial of one, or a name of eenet.scheduler.SCHEDULERS instead of a lambda; or jobs=1"
        ) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Numerical libraries use one thread: sums come out the same in every process, and processes do not crowd."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
