"""AdaptiveModel: per-sample early exit inside a batch, in eager PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet.models import MultiExitModel, feature_of
from eenet.scheduler import BudgetController, Route, Scheduler, ThresholdPolicy
from eenet.stages import Stage

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class AdaptiveOutput:
    """Answers in the order of the input.

    `logits` (N, C), or (N, C, H, W) where each pixel has a class, of the exit each sample left at; `exits` (N,) from 0,
    int64, on the CPU. The logits are an inference tensor: `clone()` it before changing it in place or using it with
    gradients.
    """

    logits: Tensor
    exits: Tensor


class AdaptiveModel:
    """Runs a multi-exit model under a fitted scheduler, or a controller that keeps its budget in traffic.

    Calling it takes what the model takes and gives an `AdaptiveOutput`. A batch goes by the policy in force when it
    comes, and a controller hears where its samples left. The model is put in inference mode. Raises
    `InvalidInputError` when the scheduler was fitted for other exits or classes.
    """

    def __init__(self, model: MultiExitModel, scheduler: Scheduler | BudgetController) -> None:
        self.model = model.eval()
        self.scheduler = scheduler
        self._checked: ThresholdPolicy | None = None
        self._current_policy()

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
        stages = model.staged.inference_stages
        if samples == 0:
            nothing = model.final_logits(_empty_outputs(stages[-1], live[0].device))
            return AdaptiveOutput(nothing, torch.empty(0, dtype=torch.int64))
        policy = self._current_policy()
        route = Route(policy, samples)
        answers = _Answers(samples)
        for k, stage in enumerate(stages[:-1]):
            outputs = stage(*live)
            live = tuple([outputs[i] for i in stage.passed])
            if not policy.observes(k):
                route.skip()
                continue
            logits = model.heads[k](feature_of(stage, outputs))
            running = route.running
            # The one synchronisation of an exit: its logits come to the host, where the decision is made.
            leaving, staying = route.observe(model.task.evidence(to_numpy(model.task.shown(logits)), route.earlier))
            if staying is None:
                continue
            answers.put(running[leaving], logits, leaving)
            if len(staying) == 0:
                break
            live = model.staged.compact(live, _index(staying, logits), k + 1)
        else:
            logits = model.final_logits(stages[-1](*live))
            answers.put(route.running, logits)
            route.finish()
        if isinstance(self.scheduler, BudgetController):
            self.scheduler.observe(route.exits, policy)
        return AdaptiveOutput(answers.logits, torch.from_numpy(route.exits))


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


def _empty_outputs(stage: Stage, device: torch.device) -> tuple[Tensor, ...]:
    """What a stage gives for no samples at all; not run, since not every network can run on an empty batch."""
    shapes = [[size if isinstance(size, int) else 0 for size in live.shape] for live in stage.outputs]
    return tuple(
        torch.empty(shape, dtype=live.dtype, device=device) for shape, live in zip(shapes, stage.outputs, strict=True)
    )


def _index(rows: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(like.device, non_blocking=True)
