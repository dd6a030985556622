"""CallCascade: models that are called, such as an API or scikit-learn's, asked one after another; needs no torch."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eenet._cascades import require_several
from eenet._warn import warn
from eenet.control import BudgetController
from eenet.errors import InvalidInputError, MemberError, ReliabilityWarning, kind_of
from eenet.records._checks import are_probabilities
from eenet.runtime._backend import Ints, Live, StageBackend
from eenet.runtime._loop import NUMPY, AdaptiveOutput, Arrays, require_scheduler, run
from eenet.scheduler import DecisionState, Scheduler, ThresholdPolicy
from eenet.tasks import Classification, Evidence, Task, softmax

_OUTPUTS = ("probabilities", "logits")
_SUM_TOLERANCE = 1e-3  # as for records


class CallCascade:
    """Asks models that are called, one after another, until the scheduler says that an answer is sure enough.

    A member is any callable: a method such as `predict_proba` of scikit-learn or LightGBM, or a function that asks a
    service. It is given the samples that are still open, and answers with an array (n, C). A bundle is a member too,
    whose exits count one by one. What decides is the loop of all runtimes, so that the exits are those of the replay of
    the records. PyTorch is not needed.

    Parameters
    ----------
    members : sequence of callables and bundles, or mapping of str to them
        In the order in which they are asked, the cheapest first. With `call_async` some may be coroutine functions. A
        bundle takes its inputs by their names where samples are a mapping, and a list by its preprocessing; its own
        scheduler is not asked. The names of a mapping are those of errors and of the printed cascade.
    scheduler : Scheduler or BudgetController
        Fitted to records with one exit for each callable, and the exits of each bundle: see `ExitRecords.cascade` and
        `ExitCosts.cascade`.
    outputs : {"probabilities", "logits"}
        What the callables answer with, and the cascade. Bundles need not be told.
    keep_on : exception class, or tuple of them
        Where a member after the first raises one of these, such as `(TimeoutError, ConnectionError)`, the samples that
        it was asked about keep the last answer that they have. The output's `kept` says which, `exits` whose answer it
        is, and a `ReliabilityWarning` how many. By default no exception: the batch stops with a `MemberError`.

    Raises
    ------
    InvalidInputError
        If the members are not callables, the scheduler is of another number of exits, or `keep_on` is no exception.

    Notes
    -----
    Exits of samples that are not `kept` are those of the replay. A replay knows no failures: it says nothing of kept
    answers, and what the scheduler promises (accuracy, `max_error`, `abstain`) does not hold for them. None of them is
    handed back.

    Retries, timeouts and requests in parallel are a member's own matter. One that raises, or answers with other rows
    than it was asked about or with NaN, stops the batch with a `MemberError`, which has what was answered until then;
    `keep_on` changes that for what is raised. A member that is to be passed over instead answers 1/C for each class:
    then its samples go on. A member at whose exit the scheduler lets no sample leave is not asked.

    A budget in time counts on the costs for each sample. Where a call takes a fixed time, few open samples take as long
    as many: give `ExitCosts.cascade` what a call takes over the samples that reach the member in your batches.
    `eenet.benchmark` shows measured over planned.

    Examples
    --------
    >>> import eenet, numpy as np
    >>> def small(x):  # sure of large numbers
    ...     p = 1 / (1 + np.exp(-x[:, 0]))
    ...     return np.stack([1 - p, p], axis=1)
    >>> def big(x):
    ...     return small(10 * x)
    >>> x = np.random.default_rng(0).normal(size=(400, 1))
    >>> y = (x[:, 0] > 0).astype(int)
    >>> members = [eenet.ExitRecords.from_probabilities(f(x), y) for f in (small, big)]
    >>> costs = eenet.ExitCosts.cascade([1.0, 9.0], "cents")
    >>> scheduler = eenet.SearchedThresholds().fit(eenet.ExitRecords.cascade(members), costs, "60%", fallback=False)
    >>> cascade = eenet.CallCascade([small, big], scheduler)
    >>> out = cascade(x)
    >>> out.logits.shape, set(out.exits.tolist()) <= {0, 1}
    ((400, 2), True)
    """

    def __init__(
        self,
        members: Sequence[Callable[[Any], Any]] | Mapping[str, Callable[[Any], Any]],
        scheduler: Scheduler | BudgetController,
        *,
        outputs: str = "probabilities",
        keep_on: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        several, names = require_several(members)
        for number, member in enumerate(several):
            if not callable(member) and _backend(member) is None:
                hint = "; give its method, such as model.predict_proba" if hasattr(member, "predict_proba") else ""
                raise InvalidInputError(f"member {number} is {kind_of(member)}, expected a callable or a bundle{hint}")
        if outputs not in _OUTPUTS:
            raise InvalidInputError(f"outputs is {outputs!r}, expected one of {list(_OUTPUTS)}")
        self.keep_on = keep_on if isinstance(keep_on, tuple) else (keep_on,)
        if not all(isinstance(one, type) and issubclass(one, Exception) for one in self.keep_on):
            raise InvalidInputError(
                f"keep_on is {keep_on!r}, expected exception classes such as (TimeoutError, ConnectionError)"
            )
        self.members = tuple(several)
        self._names = names or tuple(_name(member) for member in several)
        self.outputs = outputs
        self.scheduler: Scheduler | BudgetController = require_scheduler(scheduler, BudgetController)
        self._current_policy()

    def __repr__(self) -> str:
        keep_on = f", keep_on=({', '.join(one.__name__ for one in self.keep_on)},)" if self.keep_on else ""
        return f"CallCascade([{', '.join(self._names)}], {self.scheduler!r}, outputs={self.outputs!r}{keep_on})"

    def __call__(self, samples: Any) -> AdaptiveOutput[NDArray[Any]]:
        """Answers and exits of samples, in their order.

        Parameters
        ----------
        samples
            An array or a table whose rows are the samples, a list of texts or of anything else, or a mapping of such
            arrays. Members are given the same, of some of the samples.

        Returns
        -------
        AdaptiveOutput
            Its `logits` (N, C) are the class probabilities, or the logits, of the member that answered each sample.
            With `keep_on` its `kept` (N,) says which answers are of a member before the one that failed.

        Raises
        ------
        MemberError
            If a member fails, and `keep_on` does not have what it raises, or there is no answer to keep. It has what
            was answered.
        InvalidInputError
            If samples cannot be counted, or a member is a coroutine function, which `call_async` awaits.
        """
        return self._answer(samples)

    async def call_async(self, samples: Any) -> AdaptiveOutput[NDArray[Any]]:
        """As calling it, with members that may be coroutine functions, which run in the caller's event loop.

        Other members run in a thread, so that the event loop goes on. Each call has a thread of its own, and takes none
        of those of the event loop, which members may need.
        """
        loop = asyncio.get_running_loop()
        waiting: list[Future[Any]] = []
        stopped = Event()

        def wait(answer: Awaitable[Any]) -> Any:
            waiting.append(asyncio.run_coroutine_threadsafe(_awaited(answer), loop))
            if stopped.is_set():
                waiting[-1].cancel()
            return waiting[-1].result()

        thread = ThreadPoolExecutor(1, thread_name_prefix="eenet-cascade")
        try:
            context = contextvars.copy_context()
            return await loop.run_in_executor(thread, context.run, self._answer, samples, wait, stopped)
        except asyncio.CancelledError:
            stopped.set()
            for future in waiting:
                future.cancel()
            raise
        finally:
            thread.shutdown(wait=False)

    def _current_policy(self) -> ThresholdPolicy:
        policy = self.scheduler.policy
        policy.require(len(_steps(self.members)), policy.num_classes, "the cascade has")
        for number, member in enumerate(self.members):
            backend = _backend(member)
            if backend is not None and backend.num_classes != policy.num_classes:
                raise InvalidInputError(
                    f"member {number}, a bundle, has {backend.num_classes} classes, the scheduler has "
                    f"{policy.num_classes}; give every member an output for each class of the task"
                )
        return policy

    def _answer(
        self, samples: Any, wait: Callable[[Awaitable[Any]], Any] | None = None, stopped: Event | None = None
    ) -> AdaptiveOutput[NDArray[Any]]:
        policy = self._current_policy()
        count = _count(samples)
        if count == 0:
            empty = np.empty((0, policy.num_classes), dtype=np.float32)
            return AdaptiveOutput(empty, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_))
        of_probabilities = self.outputs == "probabilities"
        state = DecisionState(policy, count)
        calls = _Calls(self.members, self._names, samples, policy.num_classes, of_probabilities, wait, stopped)
        task: Task = _Probabilities() if of_probabilities else Classification()
        arrays = _PROBABILITIES if of_probabilities else NUMPY
        parts: list[tuple[Ints, Any]] = []
        try:
            answers = run(calls, state, task, _Open(np.arange(count)), arrays=arrays, parts=parts)
        except (MemberError, asyncio.CancelledError) as error:
            if isinstance(self.scheduler, BudgetController):
                reached = np.where(state.exits < 0, calls.asked, state.exits)
                self.scheduler.observe_costs(self.scheduler.costs.values[reached[reached >= 0]], policy)
            if not isinstance(error, MemberError):
                raise
            done = np.full((count, policy.num_classes), np.nan, dtype=np.float32)
            for rows, logits in parts:
                done[rows] = logits
            if self._keeps(error) and calls.answers is not None:
                return self._kept(error, done, state, calls.answers, arrays)
            error.output = AdaptiveOutput(done, state.exits.astype(np.int64), state.abstained)
            raise
        kept = np.zeros(count, dtype=np.bool_) if self.keep_on else None
        if isinstance(self.scheduler, BudgetController):
            self.scheduler.observe(state.exits, policy)
        return AdaptiveOutput(answers, state.exits.astype(np.int64), state.abstained, kept)

    def _keeps(self, error: MemberError) -> bool:
        """Whether the member itself raised, and one of the exceptions on which answers are kept."""
        return error.returned is None and isinstance(error.__cause__, self.keep_on)

    def _kept(
        self, error: MemberError, done: NDArray[Any], state: DecisionState, last: _Answers, arrays: Arrays
    ) -> AdaptiveOutput[NDArray[Any]]:
        """The output in which the samples that are open have the last answer that was given to them."""
        rows = state.running
        ensemble = state.policy.ensemble
        of_rows = last.shown[np.searchsorted(last.rows, rows)]
        done[rows] = of_rows if ensemble is None else arrays.from_host(ensemble.answers(state.history), of_rows)
        exits = state.exits.astype(np.int64)
        exits[rows] = last.exit_index
        kept = np.zeros(len(exits), dtype=np.bool_)
        kept[rows] = True
        warn(
            f"{len(rows)} of {len(exits)} samples keep the answers of exit {last.exit_index} (`kept` of the output): "
            f"member {error.member} of the cascade, {self._names[error.member]}, raises {error.__cause__!r}",
            ReliabilityWarning,
        )
        return AdaptiveOutput(done, exits, state.abstained, kept)


class _Open(NamedTuple):
    """The samples that are open: their numbers, and of a bundle that has begun the stages done and live tensors."""

    rows: Ints
    member: int = -1
    done: int = 0
    tensors: Live = ()


class _Answers(NamedTuple):
    """What the samples `rows`, which ascend, were answered at an exit."""

    exit_index: int
    rows: Ints
    shown: NDArray[np.float32]


class _Calls:
    """The members as the stages of a network; a bundle's stages run when an answer of theirs is looked at."""

    def __init__(
        self,
        members: Sequence[Callable[[Any], Any]],
        names: Sequence[str],
        samples: Any,
        num_classes: int,
        of_probabilities: bool,
        wait: Callable[[Awaitable[Any]], Any] | None,
        stopped: Event | None,
    ) -> None:
        self._members, self._names = members, names
        self._steps = _steps(members)
        self.num_exits = len(self._steps)
        self._samples = samples
        self._classes = num_classes
        self._of_probabilities = of_probabilities
        self._wait = wait
        self._stopped = stopped
        self.asked = -1
        """The last exit whose answers were asked for."""
        self.answers: _Answers | None = None
        """The last answers that were given."""

    def run(self, k: int, live: _Open, *, observe: bool) -> tuple[_Open, NDArray[np.float32] | None]:
        """Ask for the answers of exit k about the samples in `live`; if nothing depends on them nothing is run."""
        if not observe:
            return live, None
        number, stage = self._steps[k]
        if self._stopped is not None and self._stopped.is_set():
            raise asyncio.CancelledError
        rows = live.rows
        self.asked = k
        try:
            if stage is not None:
                live, returned = self._run_stages(number, stage, live)
            else:
                returned = self._members[number](self._part(rows))
            has_to_wait = inspect.isawaitable(returned)
            if has_to_wait and self._wait is not None:
                returned = self._wait(returned)
        except Exception as error:
            asked = f"on {len(rows)} samples, {_listed(rows)}"
            why = None if stage is None else self._not_taken(number, rows, error)
            reason = f": {why or error}" if why or str(error) else ""
            raised = type(error) if why is None else InvalidInputError
            raise self._error(number, rows, None, f"raises {raised.__name__} {asked}{reason}") from error
        if has_to_wait and self._wait is None:
            _refuse_awaitable(returned)
        shown = self._checked(number, rows, returned)
        self.answers = _Answers(k, rows, shown)
        return live, shown

    def take(self, k: int, live: _Open, rows: Ints) -> _Open:  # noqa: ARG002 - of the protocol
        """Some of the open samples."""
        backend = _backend(self._members[live.member]) if live.member >= 0 else None
        if backend is None or live.done == backend.num_exits:
            return _Open(live.rows[rows])
        return live._replace(rows=live.rows[rows], tensors=backend.take(live.done, live.tensors, rows))

    def _part(self, rows: Ints) -> Any:
        return self._samples if len(rows) == _count(self._samples) else _rows(self._samples, rows)

    def _run_stages(self, number: int, stage: int, live: _Open) -> tuple[_Open, Any]:
        """A bundle's stages up to one, from where it has come to."""
        bundle: Any = self._members[number]
        backend: StageBackend = bundle.backend
        done, tensors = (live.done, live.tensors) if live.member == number else (0, ())
        if done == 0:
            tensors = backend.enter(_inputs(self._part(live.rows), bundle))
        logits = None
        for k in range(done, stage + 1):
            tensors, logits = backend.run(k, tensors, observe=k == stage)
        shown = softmax(logits) if self._of_probabilities and logits is not None else logits
        return _Open(live.rows, number, stage + 1, tensors), shown

    def _not_taken(self, number: int, rows: Ints, error: Exception) -> str | None:
        """What a bundle says of inputs whose sizes its network fails on, as where it is called by itself."""
        bundle: Any = self._members[number]
        if isinstance(error, InvalidInputError) or not hasattr(bundle, "_not_taken"):
            return None
        why: str | None = bundle._not_taken(_inputs(self._part(rows), bundle))
        return why

    def _error(self, k: int, rows: Ints, returned: Any, what: str) -> MemberError:
        error = MemberError(
            f"member {k} of the cascade, {self._names[k]}, {what}; the error's output has what the members "
            "before answered, and its rows are open",
            member=k,
            rows=rows,
        )
        error.returned = returned
        return error

    def _checked(self, k: int, live: Ints, returned: Any) -> NDArray[np.float32]:
        """A member's answers as float32, probabilities with a sum of 1 as those of records."""
        try:
            answers = np.asarray(returned)
        except (ValueError, TypeError, RuntimeError) as error:
            raise self._error(k, live, returned, f"returns what is no array: {error}") from error
        expected = (len(live), self._classes)
        if answers.shape != expected or answers.dtype.kind not in "fiu":
            raise self._error(
                k,
                live,
                returned,
                f"returns {answers.dtype} of shape {answers.shape} for samples {_listed(live)}, expected numbers "
                f"of shape {expected}: {self._kind} of {self._classes} classes for each sample",
            )
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            exact = answers.astype(np.float64)
            shown = answers.astype(np.float32)
            if self._of_probabilities:
                sums = exact.sum(axis=1)
                shown = (exact / sums[:, None]).astype(np.float32)
                bad = ~((np.abs(sums - 1) <= _SUM_TOLERANCE) & (exact >= 0).all(axis=1))
            else:
                bad = ~np.isfinite(softmax(shown)).all(axis=1)
                if are_probabilities(exact):
                    warn(
                        f"the answers of member {k} of the cascade, {self._names[k]}, look like probabilities: none is "
                        "negative, and those of each sample sum to 1. Softmax is applied to logits, so applied twice, "
                        "and no sample looks sure; leave out outputs='logits'",
                        ReliabilityWarning,
                    )
        if bad.any():
            first = int(bad.argmax())
            hint = "" if not np.isfinite(exact).all() or not self._of_probabilities else "; are they logits?"
            raise self._error(
                k,
                live[bad],
                returned,
                f"returns no {self._kind} for {int(bad.sum())} of {len(live)} samples, {_listed(live[bad])}: "
                f"{exact[first].tolist()[:5]} for the first{hint}",
            )
        return shown

    @property
    def _kind(self) -> str:
        return _OUTPUTS[0] if self._of_probabilities else _OUTPUTS[1]


class _Probabilities(Classification):
    """Classification where exits give class probabilities in place of logits."""

    def evidence(self, shown: NDArray[np.floating], earlier: Sequence[Evidence]) -> Evidence:
        return Evidence(shown.astype(np.float32, copy=False), shown.argmax(axis=1), earlier)


class _ProbabilityArrays(Arrays):
    def from_host(self, array: NDArray[np.float32], like: Any) -> Any:  # noqa: ARG002 - of the protocol
        """The combined answers of an ensemble, which are logits, as probabilities."""
        return softmax(array)


_PROBABILITIES = _ProbabilityArrays()


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


def _refuse_awaitable(answer: Any) -> None:
    if inspect.iscoroutine(answer):
        answer.close()  # it will not run, which Python otherwise warns of
    raise InvalidInputError(
        "a member of the cascade is a coroutine function, which has to be awaited: await cascade.call_async(samples)"
    )


def _backend(member: Any) -> StageBackend | None:
    """What runs the stages of a bundle; None for a callable."""
    found: StageBackend | None = getattr(member, "backend", None)
    return found if hasattr(found, "num_exits") and hasattr(found, "enter") else None


def _steps(members: Sequence[Any]) -> list[tuple[int, int | None]]:
    """For each exit the number of its member, and of a bundle the stage."""
    steps: list[tuple[int, int | None]] = []
    for number, member in enumerate(members):
        backend = _backend(member)
        steps += [(number, None)] if backend is None else [(number, k) for k in range(backend.num_exits)]
    return steps


def _inputs(part: Any, bundle: Any) -> Any:
    """Samples as a bundle takes them: an array, of a mapping its own inputs, of a list what its preprocessing makes."""
    if isinstance(part, Mapping):
        wanted = [spec.name for spec in bundle.inputs]
        return {name: part[name] for name in wanted if name in part}
    return bundle.preprocessing(part) if isinstance(part, (list, tuple)) else part


def _name(member: Any) -> str:
    owner = getattr(member, "__self__", None)
    name = getattr(member, "__name__", type(member).__name__)
    return name if owner is None or inspect.ismodule(owner) else f"{type(owner).__name__}.{name}"


def _listed(rows: Ints) -> str:
    shown = ", ".join(map(str, rows[:5].tolist()))
    return f"[{shown}, ...]" if len(rows) > 5 else f"[{shown}]"


def _count(samples: Any) -> int:
    """How many samples there are; raises `InvalidInputError` for what has no rows."""
    if isinstance(samples, Mapping) and not hasattr(samples, "iloc"):
        sizes = {name: _count(values) for name, values in samples.items()}
        if len(set(sizes.values())) != 1:
            raise InvalidInputError(f"the samples are a mapping with {sizes} rows; expected as many of each name")
        return next(iter(sizes.values()))
    shape = getattr(samples, "shape", None)
    if shape is not None and len(shape) > 0:
        return int(shape[0])
    if isinstance(samples, (list, tuple)):
        return len(samples)
    hint = "; give a list of texts, [text]" if isinstance(samples, (str, bytes)) else ""
    raise InvalidInputError(
        f"samples are {kind_of(samples)}, expected an array or a table with a row for each, a list, or a "
        f"mapping of arrays{hint}"
    )


def _rows(samples: Any, rows: Ints) -> Any:
    """Some of the samples, of the same kind."""
    if hasattr(samples, "iloc"):
        return samples.iloc[rows]
    if isinstance(samples, Mapping):
        return {name: _rows(values, rows) for name, values in samples.items()}
    if isinstance(samples, (list, tuple)):
        return [samples[row] for row in rows.tolist()]
    return samples[rows]
