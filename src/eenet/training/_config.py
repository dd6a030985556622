"""The options of training, and the optimizer and learning rates that they say.

The learning rate is a function of the step and of nothing else, so that a resumed run has it right by construction. The
schedulers of torch keep a state instead, and warn where mixed precision leaves out a step.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel
from eenet.training._loss import SCALINGS, WEIGHTINGS

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "multistep", "cosine", "linear")
PRECISIONS = ("32", "bf16", "16")
CACHE_DTYPES = ("float32", "float16")

_HEADS = 10**6  # the number of their part, after all stages

_RENAMED = {"optimiser": "optimizer"}

# What may differ when a run is resumed: it changes what is shown, not what is computed.
_PRESENTATION = ("progress", "tensorboard")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training run.

    Parameters
    ----------
    epochs
        Passes over the training data, at least 1.
    optimizer
        "sgd" (with `momentum`, `nesterov`) or "adamw" (with `betas`).
    learning_rate
        Of the backbone, the network's own last layers included; above 0.
    head_learning_rate
        Of the early exit heads; None for that of the backbone.
    layer_decay
        What multiplies the learning rate from each stage to the one before it, above 0 and at most 1: for fine-tuning.
        The last stage has `learning_rate`.
    momentum, nesterov
        Of SGD: at least 0 and below 1, and whether it looks ahead.
    betas
        Of AdamW: two numbers between 0 and 1.
    weight_decay
        L2 (SGD) or decoupled (AdamW), at least 0.
    decay_vectors
        False exempts biases and the weights of norms from weight decay.
    schedule
        "constant"; "multistep": times `decay` at each of `milestones`; "cosine" and "linear": down to 0 at the end.
    milestones
        Shares of the training, between 0 and 1, in ascending order.
    decay
        What multiplies the learning rate at each milestone, above 0 and at most 1.
    warmup_epochs
        Epochs of linear warm-up from 0 before the schedule, fewer than `epochs`.
    loss_weights
        Of the K exits: "linear", "uniform", "pabee", "shallow_deep", "adaptive", or K numbers.
    distillation_weight
        Of the KL divergence of each early exit from the last one at `temperature`; 0 is off.
    distillation_part
        The share of the training, its end, in which the early exits are distilled, 0 to 1.
    temperature
        Of both distillations, above 0.
    teacher_weight
        Of the KL divergence of every exit from a teacher, throughout; needs `train(..., teacher=)`.
    ensemble_weight
        Of the KL divergence of every exit from the mean of all exits' probabilities at `temperature`, in the part of
        the training that `distillation_part` says; 0 is off.
    label_smoothing
        The share of each label that is spread over all classes, at least 0 and below 1.
    mixup, cutmix
        For images: the alpha of torchvision's `MixUp` and `CutMix`, which mix each batch; 0 is off. With both above 0,
        each batch is mixed by one of them, drawn at random.
    gradient_scaling
        Between exits and backbone: "none", "equilibrium", or a number from 0 to 1 that multiplies what early exit heads
        send into the backbone.
    precision
        "32", "bf16" or "16": the latter two are mixed, weights stay in float32.
    accumulate
        Batches whose gradients make one optimizer step, at least 1.
    gradient_clip
        The largest norm of the gradient; None is off.
    ema_decay
        Of the exponential moving average of the weights, between 0 and 1, such as 0.999: the averaged weights and
        batch norm statistics are evaluated and saved. After n steps it is at most (1 + n) / (10 + n). None is off.
    accelerator, devices, strategy
        As for `lightning.fabric.Fabric`.
    patience
        Epochs without a better mean accuracy over the exits before stopping; None is off.
    budgets
        How many budgets the frontier is measured at, at least 1.
    freeze_backbone
        Cache the features at the exits and train the early exit heads alone.
    head_epochs
        Epochs of the early exit heads alone, before the `epochs` of everything: on cached features, or where inputs
        have several sizes without a cache; 0 is off.
    cache_dtype
        "float32" or "float16", in which features are cached.
    cache_crops
        How often the training data is read for the cache, at least 1: each time with other augmentation. The epochs
        take turns.
    seed
        Of everything random, at least 0.
    tensorboard, progress
        Whether to write TensorBoard logs, and to show a progress bar.

    Raises
    ------
    InvalidInputError
        For a value out of range, by the name of the field.

    Examples
    --------
    >>> from eenet.training import TrainConfig
    >>> TrainConfig(epochs=3, schedule="cosine", optimizer="adamw", learning_rate=1e-3).epochs
    3
    """

    epochs: int = 10
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    head_learning_rate: float | None = None
    layer_decay: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay_vectors: bool = True
    schedule: str = "multistep"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    warmup_epochs: float = 0.0
    loss_weights: str | tuple[float, ...] = "linear"
    distillation_weight: float = 0.01
    distillation_part: float = 0.25
    temperature: float = 3.0
    teacher_weight: float = 0.0
    ensemble_weight: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    gradient_scaling: str | float = "none"
    precision: str = "32"
    accumulate: int = 1
    gradient_clip: float | None = None
    ema_decay: float | None = None
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    patience: int | None = None
    budgets: int = 3
    freeze_backbone: bool = False
    head_epochs: int = 0
    cache_dtype: str = "float32"
    cache_crops: int = 1
    seed: int = 0
    tensorboard: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("nesterov", "decay_vectors", "freeze_backbone", "tensorboard", "progress"):
            self._boolean(name)
        for name, least in (
            ("epochs", 1),
            ("accumulate", 1),
            ("budgets", 1),
            ("seed", 0),
            ("head_epochs", 0),
            ("cache_crops", 1),
        ):
            self._whole(name, least)
        if self.patience is not None:
            self._whole("patience", 1)
        for name, among in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("cache_dtype", CACHE_DTYPES),
        ):
            self._choice(name, among)
        for name in ("learning_rate", "temperature"):
            self._number(name, 0, math.inf, low_open=True)
        for name in ("head_learning_rate", "gradient_clip"):
            if getattr(self, name) is not None:
                self._number(name, 0, math.inf, low_open=True)
        for name in ("weight_decay", "distillation_weight", "teacher_weight", "ensemble_weight", "mixup", "cutmix"):
            self._number(name, 0, math.inf)
        self._number("momentum", 0, 1, high_open=True)
        self._number("label_smoothing", 0, 1, high_open=True)
        for name in ("decay", "layer_decay"):
            self._number(name, 0, 1, low_open=True)
        if self.ema_decay is not None:
            self._number("ema_decay", 0, 1, low_open=True, high_open=True)
        self._number("distillation_part", 0, 1)
        self._number("warmup_epochs", 0, self.epochs, high_open=True)
        self._numbers("betas", 0, 1, count=2)
        self._numbers("milestones", 0, 1)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise self._wrong("milestones", "shares of the training in ascending order, such as (0.5, 0.75)")
        self._check_loss_weights()
        if isinstance(self.gradient_scaling, str):
            self._choice("gradient_scaling", SCALINGS, "or a number from 0 to 1")
        else:
            self._number("gradient_scaling", 0, 1)
        if self.freeze_backbone:
            for name in ("mixup", "cutmix"):
                if getattr(self, name):
                    raise self._wrong(name, "0 with freeze_backbone, which keeps features and no images")
            if self.head_epochs:
                raise self._wrong("head_epochs", "0 with freeze_backbone, which trains the heads alone anyway")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise self._wrong("nesterov", "False unless optimizer is 'sgd' with a momentum above 0")
        if not isinstance(self.devices, (int, str)) or isinstance(self.devices, bool) or self.devices in (0, ""):
            raise self._wrong("devices", "a number of devices, 'auto', or a list in text such as '0,1'")
        for name in ("accelerator", "strategy"):
            if not isinstance(getattr(self, name), str):
                raise self._wrong(name, "a word that Lightning Fabric knows, such as 'auto'")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A config from a mapping such as a YAML file gives; raises `InvalidInputError` for an unknown key.

        Files written before version 0.2 spell `optimizer` as "optimiser"; they are read too.
        """
        values = {_RENAMED.get(key, key): value for key, value in values.items()}
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else f"known are {known}"
                raise InvalidInputError(f"training settings have no {key!r}; {hint}")
        # JSON and YAML have lists for tuples.
        options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping, read back by `from_dict`."""
        options = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}

    def differences(self, other: TrainConfig) -> list[str]:
        """Where two configs would compute differently, as "name: this instead of other"."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{name}: {mine[name]!r} instead of {theirs[name]!r}"
            for name in mine
            if name not in _PRESENTATION and mine[name] != theirs[name]
        ]

    def _wrong(self, name: str, expected: str) -> InvalidInputError:
        return InvalidInputError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    def _boolean(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            raise self._wrong(name, "True or False")

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise self._wrong(name, f"a whole number of at least {least}")

    def _choice(self, name: str, among: Sequence[str], otherwise: str = "") -> None:
        value = getattr(self, name)
        if value not in among:
            near = difflib.get_close_matches(str(value), among, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise self._wrong(name, f"one of {list(among)}{' ' + otherwise if otherwise else ''}{hint}")

    def _number(self, name: str, low: float, high: float, *, low_open: bool = False, high_open: bool = False) -> None:
        if not _within(getattr(self, name), low, high, low_open=low_open, high_open=high_open):
            top = "" if high == math.inf else f" and {'below' if high_open else 'at most'} {high:g}"
            raise self._wrong(name, f"a number {'above' if low_open else 'of at least'} {low:g}{top}")

    def _numbers(self, name: str, low: float, high: float, *, count: int | None = None) -> None:
        values = getattr(self, name)
        fits = isinstance(values, tuple) and (count is None or len(values) == count)
        if not fits or not all(_within(value, low, high, low_open=True, high_open=True) for value in values):
            many = "a tuple of numbers" if count is None else f"{count} numbers"
            raise self._wrong(name, f"{many} between {low:g} and {high:g}")

    def _check_loss_weights(self) -> None:
        if isinstance(self.loss_weights, str):
            self._choice("loss_weights", tuple(WEIGHTINGS), "or one number for each exit")
            return
        values = self.loss_weights
        if (
            not isinstance(values, tuple)
            or not all(_within(value, 0, math.inf) for value in values)
            or not any(value > 0 for value in values)
        ):
            raise self._wrong("loss_weights", f"one of {list(WEIGHTINGS)}, or a number of at least 0 for each exit")


def _within(value: Any, low: float, high: float, *, low_open: bool = False, high_open: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    number = float(value)
    above = number > low if low_open else number >= low
    below = number < high if high_open or high == math.inf else number <= high
    return above and below


def make_optimizer(model: MultiExitModel, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that learn, early exit heads and backbone in groups of their own.

    With a `layer_decay` each stage is a group of its own, the last one first. Each group keeps its full learning rate
    as "base_lr".
    """
    head_rate = config.learning_rate if config.head_learning_rate is None else config.head_learning_rate
    rates = {0: config.learning_rate, _HEADS: head_rate}
    part_of = {id(parameter): _HEADS for parameter in model.heads.parameters()}
    if config.layer_decay < 1:
        stages = model.staged.inference_stages
        for before_last, stage in enumerate(reversed(stages)):
            rates[before_last] = config.learning_rate * config.layer_decay**before_last
            # What several stages use is in the group of the first of them.
            part_of |= {id(parameter): before_last for parameter in stage.module.parameters()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for part, rate in sorted(rates.items()):
        members = [p for p in learning if part_of.get(id(p), 0) == part]
        for decayed in (True, False):
            chosen = [p for p in members if (config.decay_vectors or p.ndim > 1) == decayed]
            if chosen:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay})
    if not groups:
        raise InvalidInputError("no parameter requires a gradient, so nothing can be trained; unfreeze some")
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.learning_rate, momentum=config.momentum, nesterov=config.nesterov)
    # One pass over the weights in place of eight. Lightning clips no gradients of it in float16.
    fused = config.precision != "16" and all(parameter.device.type in ("cpu", "cuda") for parameter in learning)
    return torch.optim.AdamW(groups, config.learning_rate, betas=config.betas, fused=fused)


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
