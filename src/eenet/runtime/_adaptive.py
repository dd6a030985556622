"""AdaptiveModel: per-sample early exit inside a batch, in eager PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel, feature_of
from eenet.scheduler import Route, Scheduler
from eenet.tasks import Evidence


@dataclass(frozen=True)
class AdaptiveOutput:
    """Answers in the order of the input: `logits` (N, C) of the exit each sample left at; `exits` (N,) from 0."""

    logits: Tensor
    exits: Tensor


class AdaptiveModel:
    """Runs a multi-exit model under a fitted scheduler.

    Calling it takes what the model takes and gives an `AdaptiveOutput`. The model is put in inference mode. Raises
    `InvalidInputError` when the scheduler was fitted for other exits or classes.
    """

    def __init__(self, model: MultiExitModel, scheduler: Scheduler) -> None:
        policy = scheduler.policy
        if policy.num_exits != model.num_exits or policy.num_classes != model.num_classes:
            raise InvalidInputError(
                f"the scheduler was fitted for {policy.num_exits} exits and {policy.num_classes} classes, the model has "
                f"{model.num_exits} exits and {model.num_classes} classes; fit it on records of this model"
            )
        self.model = model.eval()
        self.scheduler = scheduler
        self._policy = policy
        self._observed = [policy.observes(k) for k in range(policy.num_exits)]

    @torch.inference_mode()
    def __call__(self, *args: Any, **kwargs: Any) -> AdaptiveOutput:
        """Logits and exits of a batch, in its order; an empty batch gives empty answers."""
        model = self.model
        if model.training:
            model.eval()
        live = model.staged.flatten_inputs(*args, **kwargs)
        samples = model.staged.batch_size_of(live)
        if samples == 0:
            return AdaptiveOutput(live[0].new_empty((0, model.num_classes), dtype=torch.float32), torch.empty(0).long())
        route = Route(self._policy, samples)
        answers: Tensor | None = None
        stages = model.staged.inference_stages
        for k, stage in enumerate(stages):
            outputs = stage(*live)
            last = k == model.num_exits - 1
            if not last and not self._observed[k]:
                route.skip()
                live = tuple([outputs[i] for i in stage.passed])
                continue
            logits = model.final_logits(outputs) if last else model.heads[k](feature_of(stage, outputs))
            before = route.running
            if last:
                route.finish()
                leaving, staying = None, None
            else:
                # The one synchronisation of an exit: its logits come to the host, where the decision is made.
                leaving, staying = route.observe(Evidence.from_logits(to_numpy(logits), route.earlier))
                if staying is None:
                    live = tuple([outputs[i] for i in stage.passed])
                    continue
            if answers is None and len(before) == samples and not len(route.running):
                answers = logits  # everybody left at one exit: nothing to put in order
                break
            if answers is None:
                answers = logits.new_empty((samples, model.num_classes))
            if leaving is None:
                answers.index_copy_(0, _index(before, logits), logits)
            else:
                gone = logits.index_select(0, _index(leaving, logits))
                answers.index_copy_(0, _index(before[leaving], logits), gone)
            if not len(route.running):
                break
            assert staying is not None
            passed = tuple([outputs[i] for i in stage.passed])
            live = model.staged.compact(passed, _index(staying, logits), k + 1)
        assert answers is not None
        return AdaptiveOutput(answers, torch.from_numpy(route.exits))


def to_numpy(logits: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits on the host, as float32."""
    return logits.float().cpu().numpy()


def _index(rows: np.ndarray[Any, np.dtype[np.intp]], like: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(like.device, non_blocking=True)
