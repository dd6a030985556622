"""Progress of long work with the time left: bars on a terminal, and where there is none a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from operator import length_hint
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from eenet.errors import InvalidInputError

EVERY = 30.0
"""Seconds between the lines where there is no terminal."""

_REFRESHES = 2.0  # a second: what is measured meanwhile is disturbed by each

_AT_ONCE = 1.0  # seconds: what is done by then was done before, by a run that was stopped


_OFF = ("0", "false", "no", "off")  # what hides all bars, as a value of EENET_PROGRESS


class Update(Protocol):
    """Shows how much of a task is done."""

    def __call__(
        self, done: float, total: float | None = None, *, what: str | None = None, note: str | None = None
    ) -> None:
        """Show that `done` of `total` is done, less than before where it begins again.

        `what` and `note` are kept until they are given again.
        """
        ...


class Bars:
    """A context in which tasks show their progress; none do where the environment variable EENET_PROGRESS is 0.

    Parameters
    ----------
    console : Console
        Where; standard error, in a command. Nothing is shown where it is quiet.
    shown : bool
        Whether anything is shown.
    clock : callable
        Gives the time in seconds.
    """

    def __init__(self, console: Console, *, shown: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        shown = shown and os.environ.get("EENET_PROGRESS", "").lower() not in _OFF
        self._console, self._shown, self._clock = console, shown, clock
        self._said = clock()
        self._live: Any = None
        self._hidden = nothing_by_itself()
        if shown and console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False), BarColumn(), _Amount(),
                TextColumn("{task.fields[note]}", markup=False),
            )  # fmt: skip
            self._live = Progress(
                *columns, console=console, transient=True, get_time=clock, refresh_per_second=_REFRESHES
            )

    def __enter__(self) -> Bars:
        self._hidden.__enter__()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hidden.__exit__(kind, error, trace)
        if self._live is not None:
            self._live.stop()

    def task(self, what: str, total: float | None = None, *, first: float = 0) -> Update:
        """Begin a task of `total` parts, `first` of which were done before; a total of 1 is shown in per cent.

        Call the result with what is done.
        """
        if self._live is not None:
            return self._bar(what, total, first)
        state: dict[str, Any] = {"what": what, "total": total, "note": "", "first": first, "done": first}
        state["begun"] = self._clock()

        def update(
            done: float, total: float | None = None, *, what: str | None = None, note: str | None = None
        ) -> None:
            state.update({k: v for k, v in {"what": what, "total": total, "note": note}.items() if v is not None})
            now = self._clock()
            if done < state["done"]:
                state["begun"] = now
            if now - state["begun"] < _AT_ONCE:
                state["first"] = max(first, done)
            state["done"] = done
            if not self._shown or now - self._said < EVERY or done == state["total"]:
                return
            self._said = now
            words = amount(done, state["total"], now - state["begun"], state["first"])
            self._console.print(f"{state['what']}: {words}  {state['note']}".strip(), markup=False, soft_wrap=True)

        return update

    def _bar(self, what: str, total: float | None, first: float) -> Update:
        live = self._live
        number = live.add_task(what, total=total, completed=first, note="", first=first)

        def update(
            done: float, total: float | None = None, *, what: str | None = None, note: str | None = None
        ) -> None:
            task = live.tasks[live.task_ids.index(number)]
            if done < task.completed:
                live.reset(number, completed=int(done))
            early = (task.elapsed or 0.0) < _AT_ONCE
            changed = {"total": total, "description": what, "note": note, "first": max(first, done) if early else None}
            live.update(number, completed=done, **{k: v for k, v in changed.items() if v is not None})
            live.update(number, visible=not task.finished)

        return update


_hiding = 0


@contextmanager
def nothing_by_itself() -> Iterator[None]:
    """Within the block no call shows its progress by itself: something else does, or nothing is to be shown."""
    global _hiding
    _hiding += 1
    try:
        yield
    finally:
        _hiding -= 1


@contextmanager
def by_itself(what: str, total: float | None = None, *, given: Any = None) -> Iterator[Update]:
    """The progress of a long call in Python: a bar where standard error is a terminal, and nothing elsewhere.

    Nothing either where the caller was `given` another way to report, within a bar of something else, and in commands,
    which show their own.
    """
    require_progress(given)
    if given is not None or _hiding or not _on_terminal():
        with nothing_by_itself() if given is not None else nullcontext():
            yield _unseen
        return
    with Bars(Console(stderr=True)) as bars:
        yield bars.task(what, total)


def require_progress(given: Any) -> None:
    """Raise `InvalidInputError` for a `progress` that cannot be called."""
    if given is not None and not callable(given):
        raise InvalidInputError(
            f"progress is {given!r}, expected a function that is called with what is done, or None: a terminal then "
            "shows a bar, and none where the environment variable EENET_PROGRESS is 0"
        )


def _on_terminal() -> bool:
    """Whether standard error is a terminal; what a program puts in its place need not say so, and may be closed."""
    isatty = getattr(sys.stderr, "isatty", None)
    try:
        return isatty is not None and bool(isatty())
    except ValueError:
        return False


def count_of(items: Iterable[Any]) -> float | None:
    """How many there are to go through; None where that is not known, as of a loader that has no length yet."""
    try:
        return length_hint(items) or None
    except RuntimeError:
        return None


def _unseen(done: float, total: float | None = None, *, what: str | None = None, note: str | None = None) -> None:
    """An `Update` that shows nothing."""


def amount(done: float, total: float | None, seconds: float, first: float = 0) -> str:
    """What is done, of how much, and the time left; all but the `first` took these seconds."""
    if not total:
        return f"{done:,.0f} after {duration(seconds)}" if done else duration(seconds)
    share = min(done / total, 1.0)
    words = f"{share:.0%}" if total == 1 else f"{done:,.0f} of {total:,.0f} ({share:.0%})"
    if not first < done < total:
        return words
    return f"{words}, {duration(seconds * (total - done) / (done - first))} left"


def duration(seconds: float) -> str:
    """Seconds in words, to what matters: 8 s, 3 min, 2 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


class _Amount(ProgressColumn):
    """What `amount` says of a task."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        return Text(amount(task.completed, task.total, task.elapsed or 0.0, task.fields["first"]))
