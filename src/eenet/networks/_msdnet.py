"""The multi-scale dense networks of Huang et al. (ICLR 2018), with the scales pruned along the depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from eenet.networks._weights import initialize

# The feature maps of all scales, the coarsest first: it is what classifiers look at, and a cut gives an exit head the
# first tensor that the module at its place returns.
Maps = tuple[Tensor, ...]


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _bottleneck(inputs: int, outputs: int, factor: int, stride: int = 1) -> nn.Sequential:
    inner = min(inputs, factor * outputs)
    return nn.Sequential(_conv(inputs, inner, 1), _conv(inner, outputs, 3, stride))


class MSDNetHead(nn.Module):
    """The classifier of MSDNet, on a feature map (N, D, H, W): two 3x3 convolutions of stride 2, pool, linear layer."""

    def __init__(self, channels: int, num_classes: int, *, hidden: int | None = None) -> None:
        super().__init__()
        self.options = {"channels": channels, "num_classes": num_classes, "hidden": hidden}
        hidden = hidden or channels
        self.convs = nn.Sequential(_conv(channels, hidden, 3, 2), _conv(hidden, hidden, 3, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(hidden, num_classes)
        initialize(self)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.fc(self.pool(self.convs(feature)).flatten(1))
        return logits


class _Stem(nn.Module):
    """The first layer: a map at each scale, each made from the next finer one."""

    def __init__(self, channels: int, widths: Sequence[int], *, large_images: bool) -> None:
        super().__init__()
        first = _conv(channels, widths[0])
        if large_images:
            first = nn.Sequential(_conv(channels, widths[0], 7, 2), nn.MaxPool2d(3, stride=2, padding=1))
        coarser = [_conv(finer, width, 3, 2) for finer, width in pairwise(widths)]
        self.scales = nn.ModuleList([first, *coarser])

    def forward(self, x: Tensor) -> Maps:
        maps: list[Tensor] = []
        for scale in self.scales:
            x = scale(x)
            maps.insert(0, x)
        return tuple(maps)


class _Grow(nn.Module):
    """One scale of one layer: adds channels computed from that scale and, where there is one, from the next finer."""

    def __init__(self, inputs: int, outputs: int, factor: int, finer: tuple[int, int] | None) -> None:
        super().__init__()
        if finer is None:
            self.same = _bottleneck(inputs, outputs, factor)
            self.down = None
        else:
            finer_inputs, finer_factor = finer
            self.same = _bottleneck(inputs, outputs // 2, factor)
            self.down = _bottleneck(finer_inputs, outputs // 2, finer_factor, stride=2)

    def forward(self, x: Tensor, finer: Tensor | None) -> Tensor:
        if self.down is None or finer is None:
            return torch.cat([x, self.same(x)], 1)
        return torch.cat([x, self.down(finer), self.same(x)], 1)


class _Layer(nn.Module):
    """One layer: grows the scales from `first` on; what comes in begins at scale `first_in`, the same or one finer."""

    def __init__(self, width: int, growth: int, factors: Sequence[int], first_in: int, first: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList()
        for scale in reversed(range(first, len(factors))):
            finer = (width * factors[scale - 1], factors[scale - 1]) if scale > first_in else None
            self.scales.append(_Grow(width * factors[scale], growth * factors[scale], factors[scale], finer))

    def forward(self, maps: Maps) -> Maps:
        finer: tuple[Tensor | None, ...] = (*maps[1:], None)
        return tuple([scale(x, y) for scale, x, y in zip(self.scales, maps, finer, strict=False)])


class _Compress(nn.Module):
    """A 1x1 convolution at each scale from `first` on, to fewer channels."""

    def __init__(self, width: int, outputs: int, factors: Sequence[int], first: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList([_conv(width * f, outputs * f, 1) for f in reversed(factors[first:])])

    def forward(self, maps: Maps) -> Maps:
        return tuple([scale(x) for scale, x in zip(self.scales, maps, strict=True)])


class MSDNet(nn.Module):
    """A multi-scale dense network for images (N, channels, H, W), as a plain backbone that ends in its last classifier.

    `steps` are the layers of each block, `width` and `growth` the channels of the first layer and of each further one
    at the finest scale, `factors` how many times as many each scale has, the finest first; bottlenecks are as many
    times as wide. The depth is split evenly into as many parts as there are scales; each part drops the finest scale of
    the part before it and keeps the share `reduction` of the channels (section 4 and appendix A of the paper).

    Module "blocks.k" ends block k and returns the maps of all scales, the coarsest first. `eenet.models.make_heads`
    gives the classifiers in between, for exits at `exit_names`. `hidden` is the width of the classifiers, by default
    that of the coarsest map.
    """

    def __init__(
        self,
        steps: Sequence[int],
        *,
        width: int = 32,
        growth: int = 16,
        factors: Sequence[int] = (1, 2, 4, 4),
        reduction: float = 0.5,
        num_classes: int = 1000,
        channels: int = 3,
        hidden: int | None = None,
        large_images: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.hidden = hidden
        self.exit_widths: list[int] = []
        part = math.ceil(sum(steps) / len(factors))
        modules: list[nn.Module] = [_Stem(channels, [width * f for f in factors], large_images=large_images)]
        self.blocks = nn.ModuleList()
        layer = 0
        for step in steps:
            for _ in range(step):
                first, first_in = layer // part, max(layer - 1, 0) // part
                modules.append(_Layer(width, growth, factors, first_in, first))
                width += growth
                if first > first_in:
                    modules.append(_Compress(width, math.floor(reduction * width), factors, first))
                    width = math.floor(reduction * width)
                layer += 1
            self.blocks.append(nn.Sequential(*modules))
            self.exit_widths.append(width * factors[-1])
            modules = []
        self.head = MSDNetHead(self.exit_widths.pop(), num_classes, hidden=hidden)
        initialize(self)

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The modules where early exits stand: all blocks but the last."""
        return tuple([f"blocks.{index}" for index in range(len(self.blocks) - 1)])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of the last classifier."""
        maps: Maps = self.blocks[0](x)
        for block in self.blocks[1:]:
            maps = block(maps)
        logits: Tensor = self.head(maps[0])
        return logits


def msdnet35(num_classes: int = 1000) -> MSDNet:
    """The MSDNet of 35 layers with 5 exits for ImageNet: base 7, step 7, four scales, growth 16 x (1, 2, 4, 4).

    Parameters
    ----------
    num_classes : int
        C, the classes.

    Examples
    --------
    >>> from eenet.networks import msdnet35
    >>> network = msdnet35(10)
    >>> sum(p.numel() for p in network.parameters()) > 1_000_000
    True
    """
    return MSDNet((7,) * 5, width=32, growth=16, factors=(1, 2, 4, 4), num_classes=num_classes)


def msdnet_cifar(num_classes: int = 100, *, exits: int = 7) -> MSDNet:
    """An MSDNet for CIFAR: base 4, step 2, three scales, growth 6 x (1, 2, 4), classifiers 128 wide.

    `exits` counts the last one; 11 make the 24 layers of the paper's experiments.

    Parameters
    ----------
    num_classes : int
        C, the classes.
    exits : int
        How many classifiers there are.

    Examples
    --------
    >>> import torch
    >>> from eenet.networks import msdnet_cifar
    >>> network = msdnet_cifar(10, exits=3).eval()
    >>> sum(p.numel() for p in network.parameters()) > 100_000
    True
    """
    steps = (4, *[2] * (exits - 1))
    return MSDNet(steps, width=16, growth=6, factors=(1, 2, 4), num_classes=num_classes, hidden=128, large_images=False)
