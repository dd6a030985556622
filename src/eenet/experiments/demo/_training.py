"""Joint training of all exits (EENet, section 3.1), for the demo's small network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eenet.experiments.demo._data import Digits
from eenet.experiments.demo._settings import TrainingSettings
from eenet.models import MultiExitModel

TEMPERATURE = 3.0
DISTILLATION_WEIGHT = 0.01
DISTILLED_PART = 0.25  # of the training, its end

_WEIGHT_DECAY = 0.05
_WARM_UP = 0.25
_SHIFT = 2  # pixels


def joint_loss(logits: Sequence[Tensor], labels: Tensor, *, distil: bool) -> Tensor:
    """sum_k w_k CE(y_k, y) with w_k = k / K, and with `distil` KL to the last exit at temperature 3, weight 0.01.

    `logits` are K tensors (N, C), `labels` (N,). Source: EENet, section 3.1.
    """
    exits = len(logits)
    loss = torch.stack([(k + 1) / exits * F.cross_entropy(z, labels) for k, z in enumerate(logits)]).sum()
    if not distil:
        return loss
    teacher = F.log_softmax(logits[-1].detach() / TEMPERATURE, dim=1)
    for early in logits[:-1]:
        student = F.log_softmax(early / TEMPERATURE, dim=1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        # The gradient of a softened softmax shrinks by the square of the temperature; this gives it back.
        loss = loss + DISTILLATION_WEIGHT * TEMPERATURE**2 * divergence
    return loss


def train(
    model: MultiExitModel,
    digits: Digits,
    settings: TrainingSettings,
    *,
    progress: Callable[[int, list[float]], None],
) -> None:
    """Train all exits together; `progress` gets the steps done and each exit's running accuracy."""
    batches = len(digits) // settings.batch_size
    steps = settings.epochs * batches
    generator = torch.Generator().manual_seed(settings.seed)
    # Convolutions run faster this way on processors; it changes where numbers lie, not what they are.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps, pct_start=_WARM_UP
    )
    running: list[float] = []
    model.train()
    for step in range(steps):
        batch = step % batches
        if batch == 0:
            order = torch.randperm(len(digits), generator=generator)
        rows = order[batch * settings.batch_size : (batch + 1) * settings.batch_size]
        labels = digits.labels[rows]
        logits = model(_shifted(digits.images[rows], generator))
        loss = joint_loss(logits, labels, distil=step >= steps * (1 - DISTILLED_PART))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            now = [float((z.argmax(dim=1) == labels).float().mean()) for z in logits]
        running = [0.95 * old + 0.05 * new for old, new in zip(running, now, strict=True)] if running else now
        progress(step + 1, running)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model.eval()


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch moved by up to two pixels, the border filled with background."""
    height, width = images.shape[-2:]
    down, right = torch.randint(0, 2 * _SHIFT + 1, (2,), generator=generator).tolist()
    background = float(images[0, 0, 0, 0])
    padded = F.pad(images, (_SHIFT, _SHIFT, _SHIFT, _SHIFT), value=background)
    moved = padded[:, :, down : down + height, right : right + width]
    return moved.contiguous(memory_format=torch.channels_last)
