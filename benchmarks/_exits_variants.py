"""What `exits.py` compares: head designs and ways of joint training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from eenet.models import ConvHead, DownsamplingHead, GridHead, StackedConvHead

BASE = "downsampling-3"
"""The heads that joint training starts from: those of the recipe."""

MakeHead = Callable[[int, int], nn.Module]


class PooledLinear(nn.Module):
    """The least a head can be: mean over the map, linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        logits: Tensor = self.fc(feature.mean((2, 3)))
        return logits


class SeparableHead(nn.Module):
    """`DownsamplingHead`, cheaper: each 3x3 convolution is one per channel and then a 1x1 one to more channels."""

    def __init__(self, channels: int, num_classes: int, widths: Sequence[int] = (4, 8, 8)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for index, factor in enumerate(widths):
            outputs, stride = factor * channels, 2 if index < 2 else 1
            layers += [nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False)]
            layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.convs = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.convs(feature).mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Variant:
    """One row: `heads` trained on a frozen backbone, or without them joint training from those of `BASE`."""

    name: str
    what: str
    heads: MakeHead | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: float = 1.0
    """Times the epochs of the others."""

    @property
    def stage(self) -> str:
        """Which of the two comparisons it is in."""
        return "joint" if self.heads is None else "heads"


def downsampling(depth: int) -> MakeHead:
    """Make `DownsamplingHead`s of a depth."""
    return lambda channels, classes: DownsamplingHead(channels, classes, depth=depth)


def grid(narrow: int) -> MakeHead:
    """Make `GridHead`s of a width, with the grid that `attach` takes for this network's maps."""
    return lambda channels, classes: GridHead(channels, classes, grid=(8, 8), narrow=narrow)


def stacked(channels: int, classes: int) -> nn.Module:
    """The paper's head for basic blocks."""
    return StackedConvHead(channels, classes, reduction=1)


VARIANTS = [
    Variant("conv", "ConvHead: pool to 7 x 7, one convolution", ConvHead),
    Variant("linear", "mean over the map, linear layer", PooledLinear),
    Variant("downsampling-1", "DownsamplingHead, one convolution", downsampling(1)),
    Variant("downsampling-2", "DownsamplingHead, two convolutions", downsampling(2)),
    Variant(BASE, "DownsamplingHead, three convolutions: the recipe's", downsampling(3)),
    Variant("separable", "three depthwise-separable convolutions, downsampling", SeparableHead),
    Variant("grid", "GridHead, the default: pool to 8 x 8, hidden layer on all of it", grid(32)),
    Variant("grid-64", "GridHead, 64 channels instead of 32", grid(64)),
    Variant("stacked", "StackedConvHead: the paper's code, map not shrunk", stacked),
    Variant("downsampling-3-short", "three convolutions, a third of the epochs", downsampling(3), epochs=1 / 3),
    Variant("downsampling-3-long", "three convolutions, three times the epochs", downsampling(3), epochs=3),
    Variant(
        "downsampling-3-distilled",
        "three convolutions, distilled from the last exit throughout, weight 1",
        downsampling(3),
        {"distillation_weight": 1.0, "distillation_part": 1.0},
    ),
    Variant("uniform", "all exits weigh 1"),
    Variant("linear-weights", "weight k / K: the paper's", settings={"loss_weights": "linear"}),
    Variant("pabee", "weight k / (1 + .. + K)", settings={"loss_weights": "pabee"}),
    Variant("shallow-deep", "early weights grow from 0.01", settings={"loss_weights": "shallow_deep"}),
    Variant("adaptive", "weight inverse to the exit's loss", settings={"loss_weights": "adaptive"}),
    Variant(
        "distilled-paper",
        "uniform, distilled from the last exit in the last quarter, weight 0.01: the paper's",
        settings={"distillation_weight": 0.01, "distillation_part": 0.25},
    ),
    Variant(
        "distilled",
        "uniform, distilled from the last exit throughout, weight 1",
        settings={"distillation_weight": 1.0, "distillation_part": 1.0},
    ),
    Variant("teacher", "uniform, distilled from the published network, weight 1", settings={"teacher_weight": 1.0}),
    Variant("equilibrium", "uniform, gradient equilibrium", settings={"gradient_scaling": "equilibrium"}),
    Variant("scaled-half", "uniform, half of the heads' gradient to the backbone", settings={"gradient_scaling": 0.5}),
    Variant("detached", "uniform, none of the heads' gradient to the backbone", settings={"gradient_scaling": 0.0}),
]
