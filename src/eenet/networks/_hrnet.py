"""The high-resolution networks of Wang et al. (TPAMI 2020) for semantic segmentation (HRNetV2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.errors import InvalidInputError
from eenet.networks._resnet import BasicBlock, Bottleneck
from eenet.networks._weights import initialize

_STRIDE = 4

# Feature maps of all branches, the highest resolution first.
Maps = tuple[Tensor, ...]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _side_by_side(maps: Maps) -> Tensor:
    """All branches at the highest resolution."""
    return torch.cat([maps[0], *[_resized(x, maps[0]) for x in maps[1:]]], 1)


class _Sum(nn.Module):
    """Branch `target` after an exchange: the sum of all branches, brought to its channels and its size."""

    def __init__(self, widths: Sequence[int], target: int) -> None:
        super().__init__()
        self.target = target
        self.paths = nn.ModuleList([_path(widths, source, target) for source in range(len(widths))])

    def forward(self, maps: Maps) -> Tensor:
        total = maps[self.target]
        for source, (path, x) in enumerate(zip(self.paths, maps, strict=True)):
            if source != self.target:
                y = path(x)
                total = total + (_resized(y, total) if source > self.target else y)
        return F.relu(total)


class _Exchange(nn.Module):
    """Basic blocks on every branch, and then each branch takes up the others."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(*(BasicBlock(w, w) for _ in range(blocks))) for w in widths])
        self.sums = nn.ModuleList([_Sum(widths, target) for target in range(len(widths))])

    def forward(self, maps: Maps) -> Maps:
        maps = tuple([branch(x) for branch, x in zip(self.branches, maps, strict=True)])
        return tuple([total(maps) for total in self.sums])


def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """What brings branch `source` to the channels of branch `target` and, where that is coarser, to its size."""
    if source == target:
        return nn.Identity()
    if source > target:
        return _conv(widths[source], widths[target], 1, relu=False)
    steps = [_conv(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, _conv(widths[source], widths[target], 3, 2, relu=False))


class _Stage(nn.Module):
    """A stage of several branches: brings what comes in to its branches, then exchanges between them."""

    def __init__(self, inputs: Sequence[int], widths: Sequence[int], modules: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.ModuleList()
        for index, width in enumerate(widths):
            if index >= len(inputs):
                self.enter.append(_conv(inputs[-1], width, 3, 2))
            else:
                self.enter.append(nn.Identity() if inputs[index] == width else _conv(inputs[index], width, 3))
        self.exchanges = nn.Sequential(*(_Exchange(widths, blocks) for _ in range(modules)))

    def forward(self, maps: Maps) -> Maps:
        # The branch that is new is made from the coarsest there was.
        sources = (*maps, maps[-1])
        entered = tuple([enter(x) for enter, x in zip(self.enter, sources, strict=True)])
        fused: Maps = self.exchanges(entered)
        return fused

    @staticmethod
    def exit_feature(maps: Maps) -> Tensor:
        """What an exit head sees of the branches: all of them, as the last head does.

        The branch of the highest resolution alone is narrow, and knows little of what is around a pixel.
        """
        return _side_by_side(maps)


class _FusedHead(nn.Module):
    """The last head: all branches at the highest resolution, side by side, and two 1x1 convolutions."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)
        self.bn = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Maps) -> Tensor:
        x = self.classify(F.relu(self.bn(self.conv(_side_by_side(maps)))))
        return F.interpolate(x, scale_factor=_STRIDE, mode="bilinear", align_corners=False)


class HRNet(nn.Module):
    """HRNetV2 for images (N, channels, H, W), whose height and width are multiples of 4.

    `widths` are the channels of the four branches; `first` are the number and the width of the bottlenecks of stage 1,
    `modules` the exchange modules of stages 2, 3 and 4, `blocks` the basic blocks of a branch in each module. Exits
    stand at the ends of "stage1", "stage2" and "stage3"; each stage returns its branches, the highest resolution first,
    and exit heads look at all of them, brought to its H / 4 x W / 4. Raises `InvalidInputError` for images of another
    size.
    """

    def __init__(
        self,
        widths: Sequence[int] = (18, 36, 72, 144),
        *,
        first: tuple[int, int] = (4, 64),
        modules: tuple[int, int, int] = (1, 4, 3),
        blocks: int = 4,
        num_classes: int = 19,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stride = _STRIDE
        self.stem = nn.Sequential(_conv(channels, 64, 3, 2), _conv(64, 64, 3, 2))
        count, width = first
        entry = Bottleneck.expansion * width
        self.stage1 = nn.Sequential(*(Bottleneck(entry if k else 64, width) for k in range(count)))
        self.stage2 = _Stage((entry,), widths[:2], modules[0], blocks)
        self.stage3 = _Stage(widths[:2], widths[:3], modules[1], blocks)
        self.stage4 = _Stage(widths[:3], widths, modules[2], blocks)
        self.head = _FusedHead(sum(widths), num_classes)
        self.exit_widths = (entry, sum(widths[:2]), sum(widths[:3]))
        initialize(self)

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The modules where early exits stand: the first three stages."""
        return ("stage1", "stage2", "stage3")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes, H, W)."""
        height, width = x.shape[-2:]
        if height % _STRIDE or width % _STRIDE:
            raise InvalidInputError(
                f"images of {height} x {width}, expected multiples of {_STRIDE}: resize, crop or pad them to "
                f"{height - height % -_STRIDE} x {width - width % -_STRIDE}"
            )
        y = self.stage1(self.stem(x))
        logits: Tensor = self.head(self.stage4(self.stage3(self.stage2((y,)))))
        return logits


_VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, int], tuple[int, int, int], int]] = {
    "w18-small-v1": ((16, 32, 64, 128), (1, 32), (1, 1, 1), 2),
    "w18-small-v2": ((18, 36, 72, 144), (2, 64), (1, 3, 2), 2),
    "w18": ((18, 36, 72, 144), (4, 64), (1, 4, 3), 4),
    "w32": ((32, 64, 128, 256), (4, 64), (1, 4, 3), 4),
    "w48": ((48, 96, 192, 384), (4, 64), (1, 4, 3), 4),
}


def hrnet(variant: str = "w18-small-v2", num_classes: int = 19) -> HRNet:
    """A published HRNetV2: "w18-small-v1", "w18-small-v2", "w18", "w32" or "w48", by default for Cityscapes.

    Parameters
    ----------
    variant : str
        The width and version, such as "w18-small-v1", "w18-small-v2" or "w48".
    num_classes : int
        C, the classes.

    Examples
    --------
    >>> import torch
    >>> from eenet.networks import hrnet
    >>> hrnet("w18-small-v1", 5).eval()(torch.randn(1, 3, 64, 64)).shape[:2]
    torch.Size([1, 5])
    """
    if variant not in _VARIANTS:
        raise InvalidInputError(f"there is no HRNet {variant!r}; choose one of {', '.join(_VARIANTS)}")
    widths, first, modules, blocks = _VARIANTS[variant]
    return HRNet(widths, first=first, modules=modules, blocks=blocks, num_classes=num_classes)
