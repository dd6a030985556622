"""The optimizer and the learning rate.

The learning rate is a function of the step and of nothing else, so that a resumed run has it right by construction. The
schedulers of torch keep a state instead, and warn where mixed precision leaves out a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel
from eenet.training._config import TrainConfig


def make_optimizer(model: MultiExitModel, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that learn, early exit heads and backbone in groups of their own.

    Each group keeps its full learning rate as "base_lr".
    """
    heads = {id(parameter) for parameter in model.heads.parameters()}
    head_rate = config.learning_rate if config.head_learning_rate is None else config.head_learning_rate
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for part, rate in ((False, config.learning_rate), (True, head_rate)):
        members = [p for p in learning if (id(p) in heads) == part]
        for decayed in (True, False):
            chosen = [p for p in members if (config.decay_vectors or p.ndim > 1) == decayed]
            if chosen:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay})
    if not groups:
        raise InvalidInputError("no parameter requires a gradient, so nothing can be trained; unfreeze some")
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.AdamW(groups, config.learning_rate, betas=config.betas)


def rate_factor(config: TrainConfig, step: int, steps: int) -> float:
    """What multiplies the full learning rates at optimizer step `step` of `steps`, both counted from 0."""
    warmup = round(config.warmup_epochs / config.epochs * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "multistep":
        passed = sum(step >= round(milestone * steps) for milestone in config.milestones)
        return float(config.decay**passed)
    done = (step - warmup) / max(steps - warmup, 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if config.schedule == "linear" else 1.0


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's learning rate to `factor` of its full one; returns that of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def frozen(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Stop gradients to these parameters; gives those that had them, so that they can be put back."""
    stopped = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in stopped:
        parameter.requires_grad = False
    return stopped
