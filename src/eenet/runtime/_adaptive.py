"""AdaptiveModel: per-sample early exit inside a batch, in eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet.control import BudgetController
from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel
from eenet.optimize._frozen import Variant, eager
from eenet.optimize._optimize import Optimization, StageTimes
from eenet.optimize._optimize import optimize as measured
from eenet.scheduler import DecisionState, Scheduler, ThresholdPolicy
from eenet.stages import Stage, walk
from eenet.tasks import Evidence

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class AdaptiveOutput:
    """Answers in the order of the input.

    `logits` (N, C), or (N, C, H, W) where each pixel has a class, of the exit each sample left at, or of the ensemble
    where the scheduler changes predictions; `exits` (N,) from 0, int64, on the CPU. The logits are an inference tensor:
    `clone()` it before changing it in place or using it with gradients.
    """

    logits: Tensor
    exits: Tensor


class AdaptiveModel:
    """Runs a multi-exit model under a fitted scheduler, or a controller that keeps its budget in traffic.

    Calling it takes what the model takes and gives an `AdaptiveOutput`. A batch goes by the policy in force when it
    comes, and a controller hears where its samples left. The model is put in inference mode.

    With `optimize="auto"` frozen stages (folded batch norms, channels last) are measured against the model's own at
    each of `batch_sizes`, about `seconds` for each, and the fastest is used; and survivors are selected at a boundary
    only where the measured cost of the stage says that it pays. `optimized` tells what was chosen. Frozen stages keep
    the weights the model had: make a new `AdaptiveModel` after changing them. With "aoti" stages compiled by
    AOTInductor are tried as well, on the CPU; compiling takes a while the first time and needs a C++ compiler. On a GPU
    the fastest is also recorded as CUDA graphs, for up to the largest of `batch_sizes`; where those are used, calls
    from several threads wait for each other. In half precision nothing that computes otherwise is tried.

    Raises `InvalidInputError` when the scheduler was fitted for other exits or classes.
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
        self.model = model.eval()
        self.scheduler = scheduler
        self._checked: ThresholdPolicy | None = None
        self._current_policy()
        self.optimized: Optimization | None = None
        if optimize is not None:
            _require_measurable(model, optimize, batch_sizes)
            with _on(next((p.device for p in model.parameters()), torch.device("cpu"))):
                self.optimized = measured(model, batch_sizes, seconds, compile_stages=optimize == "aoti")

    def _current_policy(self) -> ThresholdPolicy:
        policy = self.scheduler.policy
        if policy is not self._checked:  # a scheduler may have been fitted anew, a controller changes its policies
            policy.require(self.model.num_exits, self.model.num_classes, "the model has")
            self._checked = policy
        return policy

    @torch.inference_mode()
    def __call__(self, *args: Any, **kwargs: Any) -> AdaptiveOutput:
        """Logits and exits of a batch, in its order; an empty batch gives empty answers."""
        model = self.model
        if model.training:
            model.eval()
        live = model.staged.flatten_inputs(*args, **kwargs)
        samples = model.staged.batch_size_of(live)
        if samples == 0:
            nothing = model.final_logits(empty_outputs(model.staged.inference_stages[-1], live[0].device))
            return AdaptiveOutput(nothing, torch.empty(0, dtype=torch.int64))
        if self.optimized is None:
            return self._run(eager(model), None, live, samples)
        variant, times = self.optimized.at(samples)
        with _on(live[0].device), variant.lock:
            return self._run(variant, times, live, samples)

    def _run(
        self, variant: Variant, times: StageTimes | None, live: tuple[Tensor, ...], samples: int
    ) -> AdaptiveOutput:
        """A batch through the stages of a variant; without `times` survivors are always selected."""
        model, stages = self.model, variant.stages
        live = variant.entered(live)
        policy = self._current_policy()
        route = DecisionState(policy, samples)
        answers = _Answers(samples)
        batch, rows = samples, None  # samples the stages run on, and where among them those still running are
        steps = walk(stages, live)
        for k in range(len(stages) - 1):
            step = next(steps)
            if not policy.observes(k):
                route.skip()
                continue
            logits = variant.heads[k](step.feature)
            running = route.running
            # The one synchronisation of an exit: its logits come to the host, where the decision is made.
            shown = to_numpy(model.task.shown(logits))
            evidence = model.task.evidence(shown if rows is None else shown[rows], route.earlier)
            leaving, staying = route.observe(evidence)
            if staying is None:
                continue
            if route.left is None:
                answers.put(running[leaving], logits, leaving if rows is None else rows[leaving])
            else:
                answers.put(running[leaving], torch.from_numpy(route.left).to(logits.device))
            if len(staying) == 0:
                break
            left = staying if rows is None else rows[staying]
            if times is None or times.compacts(k + 1, batch, len(left)):
                step.live = model.staged.compact(step.live, _index(left, logits), k + 1)
                batch, rows = len(left), None
            else:
                rows = left
        else:
            logits = model.final_logits(next(steps).outputs)
            running = route.running

            def evidence_of_last(logits: Tensor = logits, rows: Ints | None = rows) -> Evidence:
                shown = to_numpy(model.task.shown(logits))
                return model.task.evidence(shown if rows is None else shown[rows], route.earlier)

            route.finish(evidence_of_last)
            if route.left is None:
                answers.put(running, logits, rows)
            else:
                answers.put(running, torch.from_numpy(route.left).to(logits.device))
        if isinstance(self.scheduler, BudgetController):
            self.scheduler.observe(route.exits, policy)
        return AdaptiveOutput(answers.logits, torch.from_numpy(route.exits))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """With this GPU as the current one, which is where CUDA graphs and streams are otherwise sought."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _require_measurable(model: MultiExitModel, optimize: str, batch_sizes: Sequence[int]) -> None:
    if optimize not in ("auto", "aoti"):
        raise InvalidInputError(f"optimize is {optimize!r}, expected 'auto', 'aoti', or None to run the model as it is")
    if not batch_sizes or not all(isinstance(size, int) and size >= 1 for size in batch_sizes):
        raise InvalidInputError(f"batch_sizes are {list(batch_sizes)}, expected whole numbers from 1")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"the model is on {device}; optimize measures on a CPU or a CUDA GPU: leave it out")
    if device.type != "cpu" and optimize == "aoti":
        raise InvalidInputError(f"the model is on {device}; stages are compiled for the CPU only: optimize='auto'")


class _Answers:
    """The logits (N, C) of a batch, filled as samples leave."""

    logits: Tensor

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._begun = False

    def put(self, samples: Ints, logits: Tensor, rows: Ints | None = None) -> None:
        """The answers to `samples` are these rows of `logits`, or all of them."""
        if len(samples) == self._samples:  # everybody left at one exit: nothing to put in order
            self.logits = logits
            return
        if not self._begun:
            self.logits = logits.new_empty((self._samples, *logits.shape[1:]))
            self._begun = True
        if rows is not None:
            logits = logits.index_select(0, _index(rows, logits))
        self.logits.index_copy_(0, _index(samples, logits), logits)


def to_numpy(logits: Tensor) -> NDArray[np.float32]:
    """Logits on the host, as float32."""
    return logits.float().cpu().numpy()


def empty_outputs(stage: Stage, device: torch.device) -> tuple[Tensor, ...]:
    """What a stage gives for no samples at all; not run, since not every network can run on an empty batch."""
    shapes = [[size if isinstance(size, int) else 0 for size in live.shape] for live in stage.outputs]
    return tuple(
        torch.empty(shape, dtype=live.dtype, device=device) for shape, live in zip(shapes, stage.outputs, strict=True)
    )


def _index(rows: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(like.device, non_blocking=True)
