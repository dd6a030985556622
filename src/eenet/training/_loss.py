"""The joint loss of all exits (EENet, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eenet.training._task import TrainingTask


@dataclass(frozen=True)
class JointLoss:
    """Weights of everything that is summed: `weights` (K,) of the exits' own losses, and of the distillations."""

    task: TrainingTask
    temperature: float
    teacher_weight: float

    def __call__(
        self,
        logits: Sequence[Tensor],
        targets: Tensor,
        weights: Sequence[float],
        *,
        distillation_weight: float = 0.0,
        teacher: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the plain losses of the exits, (K,), without gradient.

        With a `distillation_weight` each early exit learns from the last, which does not learn from them; with
        `teacher` (logits) every exit learns from the teacher. An exit without gradient adds nothing: it is frozen.
        """
        losses = [self.task.loss(z, targets) for z in logits]
        terms = [weight * loss for weight, loss in zip(weights, losses, strict=True) if loss.requires_grad]
        if distillation_weight > 0:
            last = logits[-1].detach()
            terms += [
                distillation_weight * self.task.divergence(z, last, self.temperature)
                for z in logits[:-1]
                if z.requires_grad
            ]
        if teacher is not None:
            terms += [
                self.teacher_weight * self.task.divergence(z, teacher, self.temperature)
                for z in logits
                if z.requires_grad
            ]
        return torch.stack(terms).sum(), torch.stack([loss.detach() for loss in losses])
