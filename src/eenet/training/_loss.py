"""What is trained for: the loss of an exit and how good it is, by its task, and the joint loss of all exits.

Training knows logits and targets only through a task: a class per sample, or a class per pixel.

The joint loss is EENet's (section 3.1): weights of the exits, distillation, gradients into the backbone.
The published weightings, by name:

| name | weight of exit k of K | source |
|---|---|---|
| linear | k / K | EENet (Ilhan et al., WACV 2024), section 3.1 |
| uniform | 1 | MSDNet (Huang et al., ICLR 2018), section 4 |
| pabee | k / (1 + ... + K) | PABEE (Zhou et al., NeurIPS 2020), equation 4 |
| shallow_deep | from 0.01 to c_k / c_K, growing through the training; the last 1 | Shallow-Deep Networks (Kaya et al., ICML 2019), section 4.2 |
| adaptive | inversely proportional to the exit's mean loss, K in total | Hu et al., "Learning anytime predictions in neural networks via adaptive loss balancing" (AAAI 2019), section 3 |

`adaptive` takes the mean losses of the epoch before, and weighs all exits alike in the first: so a resumed run needs
nothing but the history.

The deeper the backbone's parameters, the fewer exits send gradients through them; at the first stage all K sum up.
Gradient Equilibrium (Li et al., "Improved techniques for training adaptive deep networks", ICCV 2019, section 3.1)
divides what exit k sends into the backbone by K - k + 1, and what the later exits send by (K - k + 1) / (K - k): at
every stage the backbone then receives the mean of the later exits' gradients, while the heads keep their own.
A number scales only what the early heads send into the backbone; 0 trains heads on a backbone that does not
notice them.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.errors import InvalidInputError
from eenet.models import ImageRecords, MultiExitModel
from eenet.models._io import check_labels, exit_loss
from eenet.models._sizes import sizes_refused
from eenet.records import ExitRecords
from eenet.tasks import Classification, Segmentation

_CLASSES = Classification()


class TrainingTask(Protocol):
    """The meaning of one exit's logits. All tensors have the samples on dimension 0; logits are float32.

    Examples
    --------
    >>> from eenet.training import ClassificationTask, TrainingTask
    >>> task: TrainingTask = ClassificationTask()
    >>> task.name == "classification"
    True
    """

    name: str

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise `InvalidInputError` for targets that do not fit the logits."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar."""
        ...

    def utility(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What each sample's output is worth, (N,) in [0, 1]; NaN where its labels do not tell."""
        ...

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL(teacher || logits) at a temperature, the mean of a batch, a scalar."""
        ...

    def records(self, outputs: Iterable[tuple[Sequence[Tensor], Tensor]]) -> ExitRecords:
        """The records of held-out data: for each batch the logits of the K exits, and the targets."""
        ...


class ClassificationTask:
    """One class for each sample: cross entropy and accuracy. Logits are (N, C), targets (N,) class numbers.

    The loss and the utility also take targets (N, C), the probabilities of the classes, as mixed images have them.

    Parameters
    ----------
    label_smoothing
        The share of each label that is spread over all classes.

    Examples
    --------
    >>> import torch
    >>> from eenet.training import ClassificationTask
    >>> task = ClassificationTask()
    >>> task.loss(torch.zeros(2, 4), torch.tensor([0, 1])).shape
    torch.Size([])
    """

    name = "classification"
    label_smoothing = 0.0  # where a subclass has an `__init__` of its own

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise `InvalidInputError` for labels of another shape, of a float dtype, or outside the classes."""
        check_labels(_CLASSES, logits, targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy."""
        labels = targets if targets.is_floating_point() else targets.long()
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def utility(self, logits: Tensor, targets: Tensor) -> Tensor:
        """1 where the class is right; of probabilities, where it is the most probable one."""
        if targets.is_floating_point():
            targets = targets.argmax(dim=1)
        return (logits.argmax(dim=1) == targets).float()

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL times the square of the temperature, by which the gradient of a softened softmax shrinks.

        Source: Hinton et al., "Distilling the knowledge in a neural network" (2015), section 2.
        """
        student = F.log_softmax(logits / temperature, dim=1)
        target = F.log_softmax(teacher / temperature, dim=1)
        return temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)

    def records(self, outputs: Iterable[tuple[Sequence[Tensor], Tensor]]) -> ExitRecords:
        """Records of the class probabilities and labels."""
        logits, labels = [], []
        for batch, targets in outputs:
            self.check(batch[-1], targets)
            logits.append(torch.stack([z.float() for z in batch]).cpu().numpy())
            labels.append(targets.cpu().numpy())
        if not logits:
            raise InvalidInputError("the validation loader gave no batch; expected at least one")
        return ExitRecords.from_logits(np.concatenate(logits, axis=1), np.concatenate(labels))


class SegmentationTask:
    """One class for each pixel: cross entropy over the labeled pixels. Logits are (N, C, H, W), targets (N, H, W).

    Parameters
    ----------
    task
        Which pixels are looked at for the evidence, which label does not count, and what an image is worth.
    label_smoothing
        The share of each label that is spread over all classes.

    Examples
    --------
    >>> import torch
    >>> from eenet.training import SegmentationTask
    >>> SegmentationTask().loss(torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)).shape
    torch.Size([])
    """

    name = "segmentation"
    label_smoothing = 0.0  # where a subclass has an `__init__` of its own

    def __init__(self, task: Segmentation | None = None, label_smoothing: float = 0.0) -> None:
        self.task = task or Segmentation()
        self.label_smoothing = label_smoothing

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Raise `InvalidInputError` for label maps of another shape, of a float dtype, or outside the classes."""
        check_labels(self.task, logits, targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy, the mean over the labeled pixels of the batch; 0 where there is none."""
        return exit_loss(self.task, logits, targets, self.label_smoothing)

    def utility(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What each image's answer is worth to the task; NaN where no pixel is labeled."""
        n, classes = logits.shape[:2]
        counted = targets != self.task.ignore_index
        image = torch.arange(n, device=targets.device)[:, None, None].expand_as(targets)[counted]
        said, truth = logits.argmax(dim=1)[counted], targets[counted].long()
        right = said == truth
        # As `Segmentation.pixel_counts`, but on the device: label maps of every step would be too much to bring here.
        counts = [
            torch.bincount(where * classes + of, minlength=n * classes).reshape(n, classes)
            for where, of in ((image[right], truth[right]), (image, said), (image, truth))
        ]
        return torch.from_numpy(self.task.utility_of(torch.stack(counts, dim=2).cpu().numpy())).to(logits.device)

    def divergence(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL at a temperature, the mean over all pixels, times the square of the temperature."""
        student = F.log_softmax(logits / temperature, dim=1)
        target = F.log_softmax(teacher / temperature, dim=1)
        return temperature**2 * F.kl_div(student, target, reduction="none", log_target=True).sum(dim=1).mean()

    def records(self, outputs: Iterable[tuple[Sequence[Tensor], Tensor]]) -> ExitRecords:
        """Records of evidence pooled over the pixels, with pixel counts."""
        images = ImageRecords(self.task)
        with torch.no_grad():
            for logits, targets in outputs:
                self.check(logits[-1], targets)
                images.add(logits, targets)
        return images.records()


def task_of(model: MultiExitModel, label_smoothing: float = 0.0) -> TrainingTask:
    """What a model is trained for, by what its logits mean."""
    if isinstance(model.task, Segmentation):
        return SegmentationTask(model.task, label_smoothing)
    return ClassificationTask(label_smoothing)


def targets_of(labels: Any, device: torch.device) -> Tensor:
    """A batch's labels as a tensor on `device`; raises `InvalidInputError` for a batch without any."""
    if labels is None:
        raise InvalidInputError("a batch has no labels; give batches of (inputs, labels), or with 'labels'")
    targets = labels if isinstance(labels, Tensor) else torch.as_tensor(labels)
    return targets.to(device)


_KAYA_START = 0.01


@dataclass(frozen=True)
class Moment:
    """What a weighting may depend on.

    `exits` is K; `progress` the share of the training that is done, 0 to 1; `relative_costs` the cost of each exit
    over that of the last, (K,); `losses` the mean loss of each exit in the epoch before, (K,), empty in the first.
    """

    exits: int
    progress: float
    relative_costs: Sequence[float]
    losses: Sequence[float]


def _linear(moment: Moment) -> list[float]:
    return [(k + 1) / moment.exits for k in range(moment.exits)]


def _uniform(moment: Moment) -> list[float]:
    return [1.0] * moment.exits


def _pabee(moment: Moment) -> list[float]:
    total = moment.exits * (moment.exits + 1) / 2
    return [(k + 1) / total for k in range(moment.exits)]


def _shallow_deep(moment: Moment) -> list[float]:
    early = [_KAYA_START + (c - _KAYA_START) * moment.progress for c in moment.relative_costs[:-1]]
    return [*early, 1.0]


def _adaptive(moment: Moment) -> list[float]:
    if not moment.losses:
        return _uniform(moment)
    inverse = [1 / max(loss, 1e-6) for loss in moment.losses]
    return [moment.exits * value / sum(inverse) for value in inverse]


WEIGHTINGS: dict[str, Callable[[Moment], list[float]]] = {
    "linear": _linear,
    "uniform": _uniform,
    "pabee": _pabee,
    "shallow_deep": _shallow_deep,
    "adaptive": _adaptive,
}
"""The weightings by name."""


def exit_weights(loss_weights: str | Sequence[float], moment: Moment) -> list[float]:
    """The weights of the K exits at a moment of the training; `loss_weights` is a name or K numbers."""
    if isinstance(loss_weights, str):
        return WEIGHTINGS[loss_weights](moment)
    if len(loss_weights) != moment.exits:
        raise InvalidInputError(
            f"loss_weights {list(loss_weights)} has {len(loss_weights)} numbers for {moment.exits} exits; give one for "
            "each exit, the last included"
        )
    return list(loss_weights)


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
        ensemble_weight: float = 0.0,
        teacher: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the plain losses of the exits, (K,), without gradient.

        With a `distillation_weight` each early exit learns from the last, which does not learn from them; with an
        `ensemble_weight` every exit from the mean of all exits' probabilities; with `teacher` (logits) every exit from
        the teacher. No gradient goes into what is learned from. An exit without gradient adds nothing: it is frozen.
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
        if ensemble_weight > 0:
            mean = ensemble_logits(logits, self.temperature)
            terms += [
                ensemble_weight * self.task.divergence(z, mean, self.temperature) for z in logits if z.requires_grad
            ]
        if teacher is not None:
            terms += [
                self.teacher_weight * self.task.divergence(z, teacher, self.temperature)
                for z in logits
                if z.requires_grad
            ]
        return torch.stack(terms).sum(), torch.stack([loss.detach() for loss in losses])


def ensemble_logits(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Logits whose softmax at a temperature is the mean of the exits' softmaxes at it; without gradient."""
    logs = torch.stack([F.log_softmax(z.detach() / temperature, dim=1) for z in logits])
    return temperature * torch.logsumexp(logs, dim=0)  # the division by K changes no softmax


SCALINGS = ("none", "equilibrium")


class ScaledExits(nn.Module):
    """A multi-exit model in training: the logits of all exits, with scaled gradients at the boundaries."""

    def __init__(self, model: MultiExitModel, scaling: str | float) -> None:
        super().__init__()
        self.model = model
        self.scaling = scaling

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Logits of every exit, as `MultiExitModel` gives them."""
        model, live = self.model, self.model.staged.flatten_inputs(*args, **kwargs)
        with sizes_refused(model, live):
            found: list[Tensor] = model(*args, **kwargs) if self.scaling == "none" else self._scaled(live)
        return found

    def _scaled(self, live: tuple[Tensor, ...]) -> list[Tensor]:
        model = self.model
        steps = model.staged.walk(live)
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
