"""Gradient scaling between exits and backbone.

The deeper the backbone's parameters, the fewer exits send gradients through them; at the first stage all K sum up.
Gradient Equilibrium (Li et al., "Improved techniques for training adaptive deep networks", ICCV 2019, section 3.1)
divides what exit k sends into the backbone by K - k + 1, and what the later exits send by (K - k + 1) / (K - k): at
every stage the backbone then receives the mean of the later exits' gradients, while the heads keep their own.
A number scales only what the early heads send into the backbone; 0 trains heads on a backbone that does not
notice them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eenet.models import MultiExitModel

SCALINGS = ("none", "equilibrium")


class ScaledExits(nn.Module):
    """A multi-exit model in training: the logits of all exits, with scaled gradients at the boundaries."""

    def __init__(self, model: MultiExitModel, scaling: str | float) -> None:
        super().__init__()
        self.model = model
        self.scaling = scaling

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Logits of every exit, as `MultiExitModel` gives them."""
        model = self.model
        if self.scaling == "none":
            found: list[Tensor] = model(*args, **kwargs)
            return found
        steps = model.staged.walk(model.staged.flatten_inputs(*args, **kwargs))
        logits = []
        for k, head in enumerate(model.heads):
            step = next(steps)
            to_head, onward = self._factors(k)
            logits.append(head(scale_gradient(step.feature, to_head)))
            step.live = tuple([scale_gradient(tensor, onward) for tensor in step.live])
        return [*logits, model.final_logits(next(steps).outputs)]

    def _factors(self, k: int) -> tuple[float, float]:
        """What multiplies the gradient of the head at exit k (from 0), and that of everything after it."""
        if isinstance(self.scaling, str):
            left = self.model.num_exits - k
            return 1 / left, (left - 1) / left
        return float(self.scaling), 1.0


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor` on the way back."""
    if factor == 1 or not x.requires_grad:
        return x
    if factor == 0:
        return x.detach()
    scaled: Tensor = _Scale.apply(x, factor)  # type: ignore[no-untyped-call]
    return scaled


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] * ctx.factor, None
