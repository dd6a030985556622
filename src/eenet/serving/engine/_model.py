"""What can be served, what runs it and what holds its budget: the protocols, a model in PyTorch, and policies."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet._sizes import Sizes
from eenet.costs import Budget, ExitCosts
from eenet.errors import InvalidInputError
from eenet.scheduler import ExitHistory, Scheduler, Score, ThresholdPolicy
from eenet.serving.engine._metrics import Metrics
from eenet.serving.engine._request import Request
from eenet.tasks import Task

if TYPE_CHECKING:
    from eenet.models import MultiExitModel
    from eenet.runtime import ExitView, StageBackend


class InputSpec(Protocol):
    """One input of a network: its name, dtype by numpy's name, and shape, the batch first, symbols by name."""

    @property
    def name(self) -> str:
        """What the network calls it."""
        ...

    @property
    def dtype(self) -> Any:
        """Its name in numpy, such as "float32"."""
        ...

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Sizes; a name stands for a size that may change."""
        ...


class Preprocessing(Protocol):
    """Turns raw inputs into a network's arrays; `kind` is "array", "image" (bytes of a file) or "text" (strings)."""

    @property
    def kind(self) -> str:
        """What an item is."""
        ...

    def __call__(self, items: Sequence[Any]) -> Mapping[str, Any]:
        """The network's inputs by name; raises `InvalidInputError` naming the item that cannot be used."""
        ...


class Model(Protocol):
    """What can be served; a loaded bundle is one, and so is a `ServedModel`."""

    @property
    def backend(self) -> StageBackend:
        """Runs the stages."""
        ...

    @property
    def scheduler(self) -> Scheduler:
        """Decides which samples exit where."""
        ...

    @property
    def costs(self) -> ExitCosts:
        """What the exits cost."""
        ...

    @property
    def task(self) -> Task:
        """What the logits mean."""
        ...

    @property
    def inputs(self) -> Sequence[InputSpec]:
        """The network's inputs."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """From raw inputs to arrays."""
        ...

    @property
    def class_names(self) -> Sequence[str] | None:
        """What the C classes are called."""
        ...

    @property
    def info(self) -> Mapping[str, Any]:
        """A JSON-ready description."""
        ...


class _ArraysOnly:
    """The preprocessing of a model that takes arrays as they are."""

    kind = "array"

    def __call__(self, items: Sequence[Any]) -> Mapping[str, Any]:
        """Raises `InvalidInputError`: arrays are not preprocessed."""
        raise InvalidInputError(f"{len(items)} items to preprocess, but the model takes arrays as they are: send those")


@dataclass(frozen=True)
class _Input:
    """An `InputSpec`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Controller(Protocol):
    """Holds the policy in force, learns which exits were taken and what was spent, and changes the budget."""

    @property
    def policy(self) -> ThresholdPolicy:
        """The policy for the requests that come now."""
        ...

    @property
    def budget(self) -> float:
        """The budget per sample, in the unit of the costs."""
        ...

    def observe(self, exits: Any, policy: ThresholdPolicy | None = None) -> None:
        """Samples that went by a policy, by default the one in force, have left at these exits (n,)."""
        ...

    def observe_costs(self, costs: Any, policy: ThresholdPolicy | None = None) -> None:
        """Samples that went by a policy have cost this much each, (n,), and were not answered."""
        ...

    def set_budget(self, budget: Any) -> None:
        """Keep to another budget from now on; raises `InvalidInputError` for one that cannot be met."""
        ...


class Service(Protocol):
    """Answers requests: a `LocalService` runs stages in this process, a `RemoteService` calls deployments."""

    @property
    def metrics(self) -> Metrics:
        """What was counted."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it works; if not, it must be started again."""
        ...

    @property
    def accepting(self) -> bool:
        """Whether requests are taken in."""
        ...

    @property
    def waiting(self) -> Sequence[int]:
        """Samples before each stage, K numbers."""
        ...

    def start(self) -> None:
        """Begin; called from the event loop."""
        ...

    async def answer(self, inputs: Any, *, timeout: float, full: bool = False) -> Request:
        """Answer some samples; `full` switches the early exits off: all are answered, or handed back, at the last.

        Raises `InvalidInputError` for inputs that do not fit, `OverloadedError` or `DrainingError` where no
        more are accepted, `RefusedError` where it cannot be done now.
        """
        ...

    def view(self, inputs: Any) -> list[ExitView] | Awaitable[list[ExitView] | None] | None:
        """Run one sample to the end, beside the requests, and say what each exit thinks of it.

        None where that cannot be done. May be called from any thread, or is awaited where it is a coroutine.
        """
        ...

    async def set_budget(self, budget: Budget) -> float:
        """Keep to another budget, returned in the unit of the costs; raises `InvalidInputError` where there is none."""
        ...

    async def drain(self) -> None:
        """Take no more requests and end when those inside are answered."""
        ...


class ServedModel:
    """A model in eager PyTorch, served without a bundle.

    Parameters
    ----------
    model : MultiExitModel
        The network with its exits.
    scheduler : Scheduler
        Decides which samples exit where.
    preprocessing : Preprocessing
        From raw inputs to arrays; None where clients send arrays.
    class_names : sequence of str (C,)
        What the classes are called.

    Raises
    ------
    InvalidInputError
        Where the scheduler was fitted for other exits or classes, or to records of other weights.
    CutError
        Where the network was changed after it was cut; the message names the module.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> from eenet.serving.engine import ServedModel
    >>> x = torch.randn(40, 4)
    >>> model = eenet.attach(network, ["1"], example=x[:2])
    >>> scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0]), budget=1.5)
    >>> ServedModel(model, scheduler, class_names=["a", "b", "c"]).class_names
    ['a', 'b', 'c']
    """

    def __init__(
        self,
        model: MultiExitModel,
        scheduler: Scheduler,
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        from eenet.models._collect import require_same_weights  # brings in torch, which a bundle does not need
        from eenet.runtime import TorchBackend

        model.staged.check_current()
        backend = TorchBackend(model)
        scheduler.policy.require(model.num_exits, model.num_classes, "the model has")
        require_same_weights(model, scheduler.network)
        self.backend: StageBackend = backend
        self.scheduler = scheduler
        self.costs = scheduler.costs
        self.task = model.task
        self.inputs = [_Input(spec.name, str(spec.dtype).removeprefix("torch."), spec.shape) for spec in backend.inputs]
        self.preprocessing: Preprocessing = preprocessing or _ArraysOnly()
        self.class_names = None if class_names is None else list(class_names)
        self.info: dict[str, Any] = {"backend": "torch", "exits": list(model.exit_names)}
        self._model = model

    @cached_property
    def _sizes(self) -> Sizes:
        from eenet.models._sizes import sizes_of

        return sizes_of(self._model)

    def _not_taken(self, inputs: Mapping[str, Any]) -> str | None:
        """What to say of inputs that fit and on which the network failed; None where their sizes are not the reason."""
        return self._sizes.refusal(inputs)


class FixedBudget:
    """A controller that keeps to the policy of a scheduler, whatever the traffic.

    Parameters
    ----------
    scheduler : Scheduler
        Gives the policy of its own budget, and of those that are set later.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> from eenet.serving.engine import FixedBudget
    >>> controller = FixedBudget(eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=2.0))
    >>> controller.budget
    2.0
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.policy: ThresholdPolicy = scheduler.policy

    @property
    def budget(self) -> float:
        """The budget per sample, in the unit of the costs."""
        return self._scheduler.budget

    def observe(self, exits: Any, policy: ThresholdPolicy | None = None) -> None:
        """Do nothing: this controller learns nothing from traffic."""

    def observe_costs(self, costs: Any, policy: ThresholdPolicy | None = None) -> None:
        """Do nothing, as `observe`."""

    def set_budget(self, budget: Budget) -> None:
        """Take the scheduler's policy for another budget; raises `InfeasibleBudgetError` where there is none."""
        self._scheduler = self._scheduler.at(budget)
        self.policy = self._scheduler.policy


class _NoScore(Score):
    """The score of a policy whose early exits are off: no exit but the last is observed."""

    def __call__(self, history: ExitHistory) -> NDArray[np.float64]:
        return np.zeros(len(history.evidence[-1]))


_NO_SCORE = _NoScore()


class WholeNetwork:
    """The policies without early exits of one network, which answer and hand back as others do at the last exit.

    There is one object for all policies that do so alike, since only requests of one policy object are decided
    together: a controller changes its policy with every few batches, and thresholds of exits that are off are not read.
    """

    def __init__(self) -> None:
        self._policies: dict[tuple[int, float | None], ThresholdPolicy] = {}

    def of(self, policy: ThresholdPolicy) -> ThresholdPolicy:
        """The policy without early exits that answers and hands back as `policy` does at the last exit."""
        score: Score = policy.ensemble or _NO_SCORE
        key = id(score), policy.abstains_below
        found = self._policies.get(key)
        if found is None:
            found = self._policies[key] = replace(
                policy, score=score, thresholds=np.zeros_like(policy.thresholds), enabled=np.zeros_like(policy.enabled)
            )
        return found


@dataclass(frozen=True)
class PolicyName:
    """A policy as its thresholds and the number of its score among those of its scheduler; -1 for none."""

    score: int
    thresholds: tuple[float, ...]
    enabled: tuple[bool, ...]
    abstains_below: float | None = None


class PolicyBook:
    """Policies to names and back. Processes that loaded one bundle agree on the names.

    The same policy object always gets the same name, and the same name gives the same policy object.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        policies = (*scheduler.table.policies, scheduler.policy)
        self._scores: list[Score] = list({id(policy.score): policy.score for policy in policies}.values())
        self._num_classes = scheduler.policy.num_classes
        # A policy is kept with its name, so that no other gets its id.
        self._names: dict[int, tuple[ThresholdPolicy, PolicyName]] = {}
        self._policies: dict[PolicyName, ThresholdPolicy] = {}

    def name(self, policy: ThresholdPolicy) -> PolicyName:
        """The name of a policy; raises `InvalidInputError` for one whose score is not of this scheduler."""
        known = self._names.get(id(policy))
        if known is not None:
            return known[1]
        numbers = [number for number, score in enumerate(self._scores) if score is policy.score]
        if policy.score is _NO_SCORE:
            numbers = [-1]
        if not numbers:
            raise InvalidInputError(
                f"the score {policy.score.name!r} is not of the served scheduler; make the controller from that one"
            )
        name = PolicyName(
            numbers[0], tuple(policy.thresholds.tolist()), tuple(policy.enabled.tolist()), policy.abstains_below
        )
        self._names[id(policy)] = policy, name
        return name

    def policy(self, name: PolicyName) -> ThresholdPolicy:
        """The policy of a name."""
        kept = self._policies.get(name)
        if kept is None:
            kept = ThresholdPolicy(
                _NO_SCORE if name.score < 0 else self._scores[name.score],
                np.array(name.thresholds, dtype=np.float64),
                np.array(name.enabled, dtype=np.bool_),
                self._num_classes,
                name.abstains_below,
            )
            self._policies[name] = kept
        return kept
