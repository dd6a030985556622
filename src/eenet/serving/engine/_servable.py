"""What can be served: a loaded bundle, or a model in PyTorch with its scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.scheduler import Scheduler, ThresholdPolicy
from eenet.tasks import Task

if TYPE_CHECKING:
    from eenet.models import MultiExitModel
    from eenet.runtime import StageBackend


class InputSpec(Protocol):
    """One input of a network: its name, dtype by numpy's name, and shape, the batch first, symbols by name."""

    @property
    def name(self) -> str:
        """What the network calls it."""
        ...

    @property
    def dtype(self) -> Any:
        """Such as "float32"."""
        ...

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Sizes; those that may change are names."""
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


class Servable(Protocol):
    """What the server needs to know of a model; a loaded bundle is one."""

    @property
    def backend(self) -> StageBackend:
        """Runs the stages."""
        ...

    @property
    def scheduler(self) -> Scheduler:
        """Decides who leaves where."""
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


class ArraysOnly:
    """The preprocessing of a model that takes arrays as they are."""

    kind = "array"

    def __call__(self, items: Sequence[Any]) -> Mapping[str, Any]:
        """Raises `InvalidInputError`: arrays are not preprocessed."""
        raise InvalidInputError(f"{len(items)} items to preprocess, but the model takes arrays as they are: send those")


class Spec:
    """An input of a network; see `InputSpec`."""

    def __init__(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape


class ServedModel:
    """A model in eager PyTorch, to be served without a bundle; a `Servable`.

    `preprocessing` is None for a model that takes arrays as they are. Raises `InvalidInputError` where the scheduler
    was fitted for other exits or classes.
    """

    def __init__(
        self,
        model: MultiExitModel,
        scheduler: Scheduler,
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        from eenet.runtime import TorchBackend  # brings in torch, which serving a bundle does not need

        backend = TorchBackend(model)
        scheduler.policy.require(model.num_exits, model.num_classes, "the model has")
        self.backend: StageBackend = backend
        self.scheduler = scheduler
        self.costs = scheduler.costs
        self.task = model.task
        self.inputs = [Spec(spec.name, str(spec.dtype).removeprefix("torch."), spec.shape) for spec in backend.inputs]
        self.preprocessing: Preprocessing = preprocessing or ArraysOnly()
        self.class_names = None if class_names is None else list(class_names)
        self.info: dict[str, Any] = {"backend": "torch", "exits": list(model.exit_names)}


class Controller(Protocol):
    """Holds the policy in force, hears which exits were taken, and changes the budget."""

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

    def set_budget(self, budget: Any) -> None:
        """Keep to another budget from now on; raises `InvalidInputError` for one that cannot be met."""
        ...
