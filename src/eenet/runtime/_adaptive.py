"""In PyTorch: AdaptiveModel, per-sample early exit inside a batch, and TorchBackend, stages with numpy in and out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eenet._sizes import Sizes
from eenet.control import BudgetController
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.models import MultiExitModel, require_exits
from eenet.models._collect import require_same_weights
from eenet.models._multi_exit import saying_precisions
from eenet.models._sizes import sizes_of, sizes_refused
from eenet.optimize import Optimization, StageTimes, Variant, eager
from eenet.optimize import optimize as measured
from eenet.runtime._backend import Array, Boundaries, Ints, Live, TensorSpec
from eenet.runtime._loop import AdaptiveOutput, Arrays, require_scheduler, run
from eenet.scheduler import DecisionState, Scheduler, ThresholdPolicy
from eenet.stages import LiveTensor, StagedModel, cut


class Tensors(Arrays):
    """What the decision loop does with logits that are tensors of one device."""

    def to_host(self, logits: Any) -> NDArray[np.float32]:
        """Logits on the host, as float32: the one synchronization of an exit."""
        array: NDArray[np.float32] = logits.float().cpu().numpy()
        return array

    def from_host(self, array: NDArray[np.float32], like: Any) -> Tensor:
        """A numpy array as logits, on the device of `like`."""
        return torch.from_numpy(array).to(like.device)

    def take(self, logits: Any, rows: Ints) -> Tensor:
        """The rows of some samples."""
        taken: Tensor = logits.index_select(0, _index(rows, logits))
        return taken

    def in_order(self, parts: list[tuple[Ints, Any]]) -> Tensor:
        """The logits of parts as one tensor, in which those of part i are the rows `parts[i][0]`."""
        place = np.empty(sum(len(rows) for rows, _ in parts), dtype=np.intp)
        place[np.concatenate([rows for rows, _ in parts])] = np.arange(len(place))
        return self.take(torch.cat([logits for _, logits in parts]), place)


TENSORS = Tensors()


class AdaptiveModel:
    """Runs a multi-exit model under a fitted scheduler, or a controller that keeps its budget in traffic.

    Calling it takes what the model takes and gives an `AdaptiveOutput`, which unpacks to `logits, exits`. A batch goes
    by the policy in force when it comes, and a controller is given the exits its samples took. The model is put in
    inference mode.

    Parameters
    ----------
    model
        The model; the same object runs here, not a copy.
    scheduler
        A fitted scheduler for this model's exits, or a `BudgetController`.
    optimize
        None runs the model's own stages. "auto" measures frozen stages (folded batch norms, channels last) against them
        and uses the fastest; remaining samples are then selected before a stage only where that saves time.
        "aoti" also tries stages compiled by AOTInductor, on the CPU; compiling takes a while the first time and needs a
        C++ compiler. On a GPU the fastest is also recorded as CUDA graphs, for up to the largest of `batch_sizes`;
        where those are used, calls from several threads wait for each other. In half precision nothing that computes
        otherwise is tried.
    batch_sizes
        The batch sizes to measure at.
    seconds
        About how long to measure at each.

    Attributes
    ----------
    optimized : Optimization or None
        What was measured and chosen. Optimized stages keep the weights that the model had: make a new `AdaptiveModel`
        after changing them.

    Raises
    ------
    InvalidInputError
        Where the scheduler was fitted for other exits or classes, or to records of other weights: the network was
        trained after `collect`. Of records that `collect` did not make, and in half precision, that is not known.
        Where `optimize` cannot be done.
    CutError
        Where the network has been changed since it was cut; the message names the module. It is looked at
        when this is made, not at every call.

    Notes
    -----
    In batches the budget of the scheduler is kept where its costs are of batches of this size of which samples exit on
    the way: `eenet.profile(..., batch_size=32)`. Costs of full batches are too low for the deeper exits.

    It is no `torch.nn.Module`; its `model` is. `torch.compile` leaves it as it is, since which samples go on is decided
    in Python: `optimize` makes its stages faster. Copies, and what comes out of a pickle, are optimized again.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    >>> data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(3, (64,)))
    >>> records = eenet.collect(model, torch.utils.data.DataLoader(data, batch_size=16))
    >>> scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([0.4, 1.0], "ms"), "100%")
    >>> fast = eenet.AdaptiveModel(model, scheduler)
    >>> logits, exits = fast(torch.randn(5, 4))
    >>> logits.shape, exits.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        model: MultiExitModel,
        scheduler: Scheduler | BudgetController,
        *,
        optimize: str | None = None,
        batch_sizes: Sequence[int] = (1, 8),
        seconds: float = 1.0,
    ) -> None:
        self.model = require_exits(model).eval()
        self.scheduler: Scheduler | BudgetController = require_scheduler(scheduler, BudgetController)
        self._checked: ThresholdPolicy | None = None
        self._current_policy()
        if optimize is not None:
            _require_measurable(model, optimize, batch_sizes)
        model.staged.check_current()
        require_same_weights(model, scheduler.network)
        self._own = eager(model)
        self._optimize = (optimize, tuple(batch_sizes), seconds)
        self.optimized: Optimization | None = self._measure()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # which samples go on is decided in Python
    @torch.inference_mode()
    def __call__(self, *args: Any, **kwargs: Any) -> AdaptiveOutput[Tensor]:
        """Logits and exits of a batch, in its order; an empty batch gives empty answers.

        Raises `InvalidInputError` for inputs that do not fit, and on the CPU for those that are longer than the network
        takes, naming the longest.
        """
        if self.model.training:
            self.model.eval()
        with saying_precisions(self.model):
            return self._answer(*args, **kwargs)

    def _answer(self, *args: Any, **kwargs: Any) -> AdaptiveOutput[Tensor]:
        model = self.model
        live = model.staged.flatten_inputs(*args, **kwargs)
        variant, times = self._own, None
        if variant.stages is not model.staged.inference_stages or variant.heads != tuple(model.heads):
            variant = self._own = eager(model)
        samples = variant.size(0, live)
        if samples == 0:
            return AdaptiveOutput(
                variant.no_logits(live[0].device), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool)
            )
        with sizes_refused(model, live, lambda: self._sizes):
            if self.optimized is None:
                return self._run(variant, None, live, samples)
            variant, times = self.optimized.at(samples)
            with _on(live[0].device), variant.lock:
                return self._run(variant, times, live, samples)

    @cached_property
    def _sizes(self) -> Sizes:
        return sizes_of(self.model)

    def _run(
        self, variant: Variant, times: StageTimes | None, live: tuple[Tensor, ...], samples: int
    ) -> AdaptiveOutput[Tensor]:
        """A batch through the stages of a variant; without `times` the remaining samples are always selected."""
        policy = self._current_policy()
        state = DecisionState(policy, samples)
        compacts = None if times is None else times.compacts
        logits = run(variant, state, self.model.task, variant.entered(live), arrays=TENSORS, compacts=compacts)
        if isinstance(self.scheduler, BudgetController):
            self.scheduler.observe(state.exits, policy)
        return AdaptiveOutput(logits, torch.from_numpy(state.exits), torch.from_numpy(state.abstained))

    def to(self, *args: Any, **kwargs: Any) -> AdaptiveModel:
        """Move or convert the model, as `torch.nn.Module.to` does; returns itself.

        The model itself changes. Where it was optimized, it is measured again, which takes as long as it did before.
        Raises `InvalidInputError` for a device that is not there, or a dtype that rounds the weights to others than
        those that the scheduler was fitted for, and then changes nothing.
        """
        _require_device(kwargs.get("device", args[0] if args else None))
        if (dtype := torch.empty((1, 1, 1, 1)).to(*args, **kwargs).dtype) in _ROUNDED:
            require_same_weights(self.model, self.scheduler.network, dtype)
        before = _place(self.model)
        self.model.to(*args, **kwargs)
        if _place(self.model) != before:
            self.optimized = None  # what was made for the old place, should measuring on the new one fail
            self.optimized = self._measure()
        return self

    def eval(self) -> AdaptiveModel:
        """Do nothing, since the model is in inference mode already; returns itself."""
        return self

    def train(self, mode: bool = True) -> AdaptiveModel:
        """As `eval`; raises `InvalidInputError` for training mode, in which samples do not exit."""
        if mode:
            raise InvalidInputError(
                "an AdaptiveModel runs in inference mode only, where samples exit early; train its model: "
                "eenet.train(fast.model, ...), or fast.model.train() in a loop of your own"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        more = ""
        if not name.startswith("_") and hasattr(nn.Module, name):
            more = f": it is no torch.nn.Module; use fast.model.{name}, or fast.to(...) to move or convert it"
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{more}")

    def __getstate__(self) -> dict[str, Any]:
        # What was optimized holds functions, graphs and locks of this process.
        return {"model": self.model, "scheduler": self.scheduler, "optimize": self._optimize}

    def __setstate__(self, state: dict[str, Any]) -> None:
        optimize, batch_sizes, seconds = state.pop("optimize")
        AdaptiveModel.__init__(self, **state, optimize=optimize, batch_sizes=batch_sizes, seconds=seconds)

    def _measure(self) -> Optimization | None:
        optimize, batch_sizes, seconds = self._optimize
        if optimize is None:
            return None
        _require_measurable(self.model, optimize, batch_sizes)
        with _on(_place(self.model)[0]):
            return measured(self.model, batch_sizes, seconds, compile_stages=optimize == "aoti")

    def _current_policy(self) -> ThresholdPolicy:
        policy = self.scheduler.policy
        if policy is not self._checked:  # a scheduler may have been fitted again, a controller changes its policies
            policy.require(self.model.num_exits, self.model.num_classes, "the model has")
            self._checked = policy
        return policy

    def __repr__(self) -> str:
        device, dtype = _place(self.model)
        where = f"{device}, {str(dtype).removeprefix('torch.')}"
        optimized = "" if self.optimized is None else f", optimized={str(self.optimized)!r}"
        exits = ", ".join(self.model.exit_names)
        network = type(self.model.backbone).__name__
        return f"AdaptiveModel({network}, exits=[{exits}], {self.scheduler!r}, {where}{optimized})"


def one_exit(model: MultiExitModel, optimized: Optimization | None, exit_index: int) -> Callable[..., Tensor]:
    """The network up to one exit, for all samples, with no other head; the stages are those that were chosen."""
    own = eager(model)
    return _through(model.staged, lambda n: own if optimized is None else optimized.at(n)[0], exit_index)


def optimized_plain(fast: AdaptiveModel) -> Callable[..., Tensor] | None:
    """The network without exits, made faster in the same way as the stages of `fast`; None where those run as they are.

    Raises `CutError` or `InvalidInputError` for a network that cannot be traced as a whole.
    """
    if fast.optimized is None or all(variant.name == fast._own.name for variant in fast.optimized.variants):
        return None
    model = fast.model
    args, kwargs = model.staged.example
    how, sizes, seconds = fast._optimize
    with torch.no_grad(), torch.inference_mode(mode=False):
        staged = cut(model.plain, [], kwargs if kwargs and not args else args, dynamic=model.staged.dynamic)
    whole = MultiExitModel(staged, [], model.num_classes, task=model.task).eval()
    with warnings.catch_warnings(), _on(_place(model)[0]):
        warnings.simplefilter("ignore", ReliabilityWarning)  # that nothing is faster
        found = measured(whole, sizes, seconds, compile_stages=how == "aoti")
    return _through(staged, lambda n: found.at(n)[0], 0)


def _through(staged: StagedModel, variant_at: Callable[[int], Variant], exit_index: int) -> Callable[..., Tensor]:
    @torch.inference_mode()
    def call(*args: Any, **kwargs: Any) -> Tensor:
        live = staged.flatten_inputs(*args, **kwargs)
        variant, logits = variant_at(staged.batch_size_of(live)), None
        with _on(live[0].device), variant.lock:
            live = variant.entered(live)
            for k in range(exit_index + 1):
                live, logits = variant.run(k, live, observe=k == exit_index)
        assert logits is not None
        return logits

    return call


def _index(rows: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(like.device, non_blocking=True)


def _place(model: MultiExitModel) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters(), torch.empty(0))
    return parameter.device, parameter.dtype


def _require_device(value: Any) -> None:
    """Raise `InvalidInputError` for a device, or the name of one, that nothing can be moved to."""
    if not isinstance(value, (str, int, torch.device)):
        return
    try:
        torch.empty(0, device=value)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        there = ["'cpu'", *(f"'cuda:{number}'" for number in range(torch.cuda.device_count()))]
        reason = str(error).strip().partition("\n")[0]
        raise InvalidInputError(
            f"cannot move to {str(value)!r} ({reason}); expected a device that torch sees here ({', '.join(there)}) or "
            "a dtype such as torch.float64"
        ) from error


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """With this GPU as the current one, which is where CUDA graphs and streams are otherwise sought."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _require_measurable(model: MultiExitModel, optimize: str, batch_sizes: Sequence[int]) -> None:
    if optimize not in ("auto", "aoti"):
        raise InvalidInputError(f"optimize is {optimize!r}, expected 'auto', 'aoti', or None to run the model as it is")
    if not batch_sizes or not all(isinstance(size, int) and size >= 1 for size in batch_sizes):
        raise InvalidInputError(f"batch_sizes are {list(batch_sizes)}, expected whole numbers from 1")
    device = _place(model)[0]
    if device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"the model is on {device}; optimize measures on a CPU or a CUDA GPU: leave it out")
    if device.type != "cpu" and optimize == "aoti":
        raise InvalidInputError(f"the model is on {device}; stages are compiled for the CPU only: optimize='auto'")


class TorchBackend:
    """Runs the stages and exit heads of a model, or a variant of them, on the CPU; a `StageBackend`.

    The model is put in inference mode. Live tensors share their memory with PyTorch's.

    Parameters
    ----------
    model
        The model, on the CPU.
    variant
        How it runs, of `eenet.optimize`; by default its own stages.

    Raises
    ------
    InvalidInputError
        For a model that is not on the CPU, or whose live tensors have a dtype that numpy does not know, such as
        bfloat16.
    """

    def __init__(self, model: MultiExitModel, variant: Variant | None = None) -> None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if device.type != "cpu":
            raise InvalidInputError(
                f"the model is on {device}, expected the CPU: call model.cpu(), or use AdaptiveModel"
            )
        self.model = model.eval()
        self.num_exits = model.num_exits
        self.num_classes = model.num_classes
        self._variant = variant or eager(model)
        stages = self._variant.stages
        self.inputs: tuple[LiveTensor, ...] = stages[0].inputs
        for stage in stages:
            for live in stage.inputs:
                if live.dtype not in _NUMPY:
                    raise InvalidInputError(
                        f"the live tensor {live.name!r} before stage {stage.name!r} is {live.dtype}, which numpy does "
                        "not have: call model.float()"
                    )
        self._boundaries = Boundaries([[tensor_spec(one) for one in stage.inputs] for stage in stages])

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        """The live tensors before stage 0; raises `InvalidInputError`, naming the input, where one does not fit."""
        return self._boundaries.enter(inputs)

    @torch.inference_mode()
    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        """Run stage k and, if asked, its exit head."""
        with saying_precisions(self.model):
            onward, logits = self._variant.run(k, _tensors(live), observe=observe)
        shown = None if logits is None else TENSORS.to_host(logits)
        return tuple([tensor.contiguous().numpy() for tensor in onward]), shown

    @torch.inference_mode()
    def run_plain(self, live: Live) -> None:
        """Run the plain network on its inputs, for measuring: the stages without heads, or a cascade's last member."""
        if self.model.plain is not self.model.backbone:
            args, kwargs = self.model.staged.call_of(_tensors(live))
            self.model.plain(*args, **kwargs)
            return
        for k in range(self.num_exits):
            live, _ = self.run(k, live, observe=False)

    def size(self, k: int, live: Live) -> int:
        """The number of samples in the live tensors before stage k."""
        return self._boundaries.size(k, live)

    @torch.inference_mode()
    def take(self, k: int, live: Live, rows: Ints) -> Live:
        """The samples `rows` of the live tensors before stage k."""
        taken = self._variant.take(k, _tensors(live), np.ascontiguousarray(rows))
        return tuple([tensor.numpy() for tensor in taken])

    @torch.inference_mode()
    def join(self, k: int, parts: Sequence[Live]) -> Live:
        """The live tensors before stage k of several requests as those of one."""
        return tuple([tensor.numpy() for tensor in self._variant.join(k, [_tensors(part) for part in parts])])


def tensor_spec(live: LiveTensor) -> TensorSpec:
    """A live tensor as numpy and a manifest describe it."""
    return TensorSpec(live.name, str(live.dtype).removeprefix("torch."), live.shape, live.batch_dim)


_ROUNDED = (torch.float16, torch.bfloat16)

_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    getattr(torch, name): np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def _tensors(live: Sequence[Array]) -> tuple[Tensor, ...]:
    # An array over a request's bytes cannot be written to, which PyTorch warns of; stages do not write to their inputs,
    # but a network might, so such an array is copied.
    return tuple([torch.from_numpy(array if array.flags.writeable else array.copy()) for array in live])
