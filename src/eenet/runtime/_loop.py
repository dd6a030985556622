"""The decision loop: the one way from logits to exits, for PyTorch, numpy and the server.

`run` takes a batch through the stages of a backend. At each exit it calls `decide`, which the server calls too, on
batches that it puts together itself. Tensors are opaque here: `Arrays` is all that is asked of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.errors import InvalidInputError, kind_of, with_article
from eenet.runtime._backend import Array, Ints, StageBackend
from eenet.scheduler import DecisionState, ExitHistory, Scheduler, ThresholdPolicy
from eenet.tasks import Evidence, Task

T = TypeVar("T")

_NO_ROWS: Ints = np.empty(0, dtype=np.intp)


@array_value
@dataclass(frozen=True)
class AdaptiveOutput(Generic[T]):
    """Answers in the order of the input; unpacks to `logits, exits`.

    Attributes
    ----------
    logits
        (N, C), or (N, C, H, W) where each pixel has a class: of the exit that each sample took, or of the ensemble
        where the scheduler changes predictions. From `AdaptiveModel` an inference tensor: `clone()` it before changing
        it in place or using it with gradients. From a bundle a numpy array.
    exits
        (N,) int64, counted from 0, on the CPU.
    abstained
        (N,) bool, on the CPU: the samples that are handed back, since no exit is sure of them. Their logits are those
        of the last exit. None where it is not known.
    kept
        (N,) bool: the samples with the answer of an earlier member, since the one that they were to be asked of failed.
        Only of a `CallCascade` with `keep_on`; None otherwise.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> x = torch.randn(40, 4)
    >>> model = eenet.attach(network, ["1"], example=x[:2])
    >>> scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0]), budget=1.5)
    >>> out = eenet.AdaptiveModel(model, scheduler)(x)
    >>> out.logits.shape, out.exits.shape, out.predictions.shape
    (torch.Size([40, 3]), torch.Size([40]), torch.Size([40]))
    """

    logits: T
    exits: T
    abstained: T = None  # type: ignore[assignment]
    kept: T = None  # type: ignore[assignment]

    @property
    def predictions(self) -> T:
        """The classes (N,), or (N, H, W) of the pixels; -1 for samples that are handed back or have no answer."""
        logits: Any = self.logits
        found = logits.argmax(1)
        exits: Any = self.exits
        without = exits < 0  # what a `MemberError` has of samples that are open
        found[without if self.abstained is None else without | self.abstained] = -1
        answers: T = found
        return answers

    def __iter__(self) -> Iterator[T]:
        yield self.logits
        yield self.exits


class Backend(Protocol):
    """What `run` needs of a backend; live tensors and logits are of whatever kind the backend has."""

    @property
    def num_exits(self) -> int: ...

    def run(self, k: int, live: Any, *, observe: bool) -> tuple[Any, Any]: ...

    def take(self, k: int, live: Any, rows: Ints) -> Any: ...


class Arrays:
    """What the loop does with logits: here with numpy arrays, in a subclass with tensors."""

    def to_host(self, logits: Any) -> NDArray[np.float32]:
        """Logits as a numpy array."""
        array: NDArray[np.float32] = logits
        return array

    def from_host(self, array: NDArray[np.float32], like: Any) -> Any:  # noqa: ARG002
        """A numpy array as logits, on the device of `like`."""
        return array

    def take(self, logits: Any, rows: Ints) -> Any:
        """The rows of some samples."""
        return logits[rows]

    def in_order(self, parts: list[tuple[Ints, Any]]) -> Any:
        """The logits of parts as one array, in which those of part i are the rows `parts[i][0]`."""
        answers = np.empty((sum(len(rows) for rows, _ in parts), *parts[0][1].shape[1:]), dtype=parts[0][1].dtype)
        for rows, logits in parts:
            answers[rows] = logits
        return answers


NUMPY = Arrays()


class Exit(NamedTuple):
    """What happens at an exit: positions, among the samples that ran until there, of those that exit and that go on.

    `staying` is None where no sample exits, so that nothing need be copied. `answers` are the logits of those that
    exit, None where none does. `abstained` says which of them are handed back; None where the policy never does that.
    """

    leaving: Ints
    staying: Ints | None
    answers: Any
    abstained: NDArray[np.bool_] | None = None


_NO_EXIT = Exit(_NO_ROWS, None, None)


def decide(state: DecisionState, task: Task, logits: Any, rows: Ints | None = None, arrays: Arrays = NUMPY) -> Exit:
    """Let samples exit at the exit that `state` has come to; all do at the last.

    `logits` are those of the exit, looked at only where the policy observes it; `rows` says which of them belong to the
    running samples, by default all. This is the one place where logits come to the host.
    """
    policy = state.policy
    k = state.exit_index
    last = k == policy.num_exits - 1
    if not last and not policy.observes(k):
        state.skip()
        return _NO_EXIT

    def evidence() -> Evidence:
        shown = arrays.to_host(task.shown(logits))
        return task.evidence(shown if rows is None else shown[rows], state.earlier)

    leaving: Ints
    staying: Ints | None
    abstained = None
    if last:
        running = state.running
        leaving, staying = np.arange(len(running)), _NO_ROWS
        state.finish(evidence)
        abstained = None if policy.abstains_below is None else state.abstained[running]
    else:
        leaving, staying = state.observe(evidence())
        if staying is None:
            return _NO_EXIT
    if state.left is not None:
        return Exit(leaving, staying, arrays.from_host(state.left, logits), abstained)
    chosen = leaving if rows is None else rows[leaving]
    return Exit(leaving, staying, logits if len(chosen) == len(logits) else arrays.take(logits, chosen), abstained)


def run(
    backend: Backend,
    state: DecisionState,
    task: Task,
    live: Any,
    *,
    arrays: Arrays = NUMPY,
    compacts: Callable[[int, int, int], bool] | None = None,
    parts: list[tuple[Ints, Any]] | None = None,
) -> Any:
    """Take a batch through the stages; returns the logits in its order; `state` then has the exits.

    `live` are the live tensors before the first stage. Only heads that the policy observes run. The samples that go on
    are selected where `compacts(k, samples, remaining)` says that it pays before stage k, by default everywhere;
    otherwise the next stage runs on all samples, and the results of those that have exited are not read. `parts` is
    given the samples that have exited and their logits, exit by exit, so that they are known where a stage fails.
    """
    observes = state.policy.observes
    samples = len(state.running)
    batch, rows = samples, None  # the samples that the stages run on, and which of them are still running
    parts = [] if parts is None else parts
    for k in range(backend.num_exits):
        live, logits = backend.run(k, live, observe=observes(k))
        running = state.running
        leaving, staying, answers, _ = decide(state, task, logits, rows, arrays)
        if staying is None:
            continue
        if len(leaving) == samples:  # all at one exit: nothing to put in order
            return answers
        parts.append((running[leaving], answers))
        if len(staying) == 0:
            break
        left = staying if rows is None else rows[staying]
        if compacts is None or compacts(k + 1, batch, len(left)):
            live = backend.take(k + 1, live, left)
            batch, rows = len(left), None
        else:
            rows = left
    return arrays.in_order(parts)


def run_arrays(
    backend: StageBackend, policy: ThresholdPolicy, task: Task, inputs: Mapping[str, Array] | Array
) -> AdaptiveOutput[NDArray[Any]] | None:
    """Run a batch of numpy arrays under a policy; None for an empty batch, on which no stage is run."""
    live = backend.enter(inputs)
    samples = backend.size(0, live)
    if samples == 0:
        return None
    state = DecisionState(policy, samples)
    logits = run(backend, state, task, live)
    return AdaptiveOutput(logits, state.exits.astype(np.int64), state.abstained)


def require_scheduler(value: Any, *others: type) -> Any:
    """A scheduler, or one of other classes, as it was given; raises `InvalidInputError` for anything else."""
    if not isinstance(value, (Scheduler, *others)):
        also = "".join(f" or {with_article(other.__name__)}" for other in others)
        raise InvalidInputError(
            f"scheduler is {kind_of(value)}, expected a fitted scheduler{also}; make one with "
            "eenet.EENet().fit(records, costs, budget)"
        )
    return value


class ExitView(NamedTuple):
    """What one exit says of a sample, whether the sample left there or not.

    `logits` are what it would be answered with there, (1, C, ...). `score` and `threshold` are on the scale that
    messages use; None at the last exit, and `threshold` at an exit that is off. `leaves` is whether it would leave, and
    `abstained` whether it would be handed back.
    """

    logits: NDArray[np.float32]
    score: float | None
    threshold: float | None
    leaves: bool
    abstained: bool


class _EveryExit:
    """A backend whose heads all run, and that keeps their logits."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.num_exits = backend.num_exits
        self.logits: list[NDArray[np.float32]] = []

    def run(self, k: int, live: Any, *, observe: bool) -> tuple[Any, Any]:  # noqa: ARG002
        live, logits = self._backend.run(k, live, observe=True)
        self.logits.append(logits)
        return live, logits

    def take(self, k: int, live: Any, rows: Ints) -> Any:
        return self._backend.take(k, live, rows)


def view_exits(
    backend: Backend, policy: ThresholdPolicy, task: Task, live: Any, whole: ThresholdPolicy
) -> list[ExitView]:
    """Run one sample to the end, by `whole`, the policy without early exits; what each exit says of it."""
    every = _EveryExit(backend)
    run(every, DecisionState(whole, 1), task, live)
    return exit_views(every.logits, policy, task)


def exit_views(logits_of: Sequence[NDArray[np.float32]], policy: ThresholdPolicy, task: Task) -> list[ExitView]:
    """What each exit says of one sample, from the logits (1, C, ...) that all of them give."""
    history, views = ExitHistory(), []
    for k, logits in enumerate(logits_of):
        history.evidence.append(task.evidence(task.shown(logits), history.evidence))
        leaves = bool(policy.leaves(history)[0])
        score: float | None = None
        threshold: float | None = None
        if k < policy.num_exits - 1:
            score = policy.score.readable(float(history.scores[k][0]))
            threshold = policy.score.readable(float(policy.thresholds[k])) if policy.enabled[k] else None
        answer = logits if policy.ensemble is None else policy.ensemble.answers(history)
        seen = history.evidence[k] if policy.ensemble is None else Evidence.from_logits(answer)
        views.append(ExitView(answer, score, threshold, leaves, score is None and bool(policy.hands_back(seen)[0])))
    return views
