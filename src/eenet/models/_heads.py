"""Exit heads: small classifiers on a feature part-way through a network.

A head adds to the cost of every sample that passes it, so the defaults shrink the feature before they work on it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.errors import InvalidInputError
from eenet.networks import MSDNetHead
from eenet.networks._bert import mean_of_tokens

HeadClass = TypeVar("HeadClass", bound=type[nn.Module])

_POOLS = ("first", "last", "mean", "attention")

HEADS: dict[str, type[nn.Module]] = {}
"""The heads that a saved model can be rebuilt with, by the name of their class."""


def rebuildable(head: HeadClass) -> HeadClass:
    """Class decorator: a head keeps the arguments it was made with as `options`, and can be made again by its name."""
    init: Any = head.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs).arguments
        self.options = {name: value for name, value in bound.items() if name != "self"}

    head.__init__ = keeping  # type: ignore[method-assign]
    HEADS[head.__name__] = head
    return head


@rebuildable
class ConvHead(nn.Module):
    """Classify a feature map (N, D, H, W): pool to at most `grid` x `grid`, convolve, pool, linear layer.

    With `channels_last` the feature is (N, H, W, D), as in Swin transformers.

    Parameters
    ----------
    channels : int
        D of the feature.
    num_classes : int
        C of the logits.
    hidden : int, optional
        The width of the convolution; by default D, at least 32 and at most 128.
    grid : int
        The feature is pooled to at most this size.
    channels_last : bool
        Whether the feature is (N, H, W, D).

    Examples
    --------
    >>> import torch
    >>> from eenet.models import ConvHead
    >>> ConvHead(16, 10).eval()(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        hidden: int | None = None,
        grid: int = 7,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden or min(max(channels, 32), 128)
        self.channels_last = channels_last
        self.grid = grid
        self.shrink = nn.AdaptiveAvgPool2d(grid)
        # From many channels straight into a 3x3 convolution costs several per cent of a ResNet-50; by way of 1x1, less.
        self.narrow: nn.Module = nn.Identity()
        if channels > 2 * hidden:
            self.narrow = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
            channels = hidden
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(hidden, num_classes)

    def reduced(self, feature: Tensor) -> Tensor:
        """The feature after what comes before the weights; the head gives the same for it."""
        if max(feature.shape[1:3] if self.channels_last else feature.shape[2:]) <= self.grid:
            return feature
        if not self.channels_last:
            smaller: Tensor = self.shrink(feature)
            return smaller
        smaller = self.shrink(feature.permute(0, 3, 1, 2))
        return smaller.permute(0, 2, 3, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        if self.channels_last:
            feature = feature.permute(0, 3, 1, 2)
        if feature.shape[-1] > self.grid or feature.shape[-2] > self.grid:
            feature = self.shrink(feature)
        feature = self.act(self.norm(self.conv(self.narrow(feature))))
        logits: Tensor = self.fc(self.pool(feature).flatten(1))
        return logits


@rebuildable
class GridHead(nn.Module):
    """Classify a feature map (N, D, H, W): means over a grid, a 1x1 convolution, and a hidden layer on all of the grid.

    The default for maps. What is where in the image stays known, which the mean over the whole map would lose.

    Parameters
    ----------
    channels
        D, the channels of the feature.
    num_classes
        C, the classes.
    grid
        The rows and columns of the grid.
    size
        H and W, where they are always the same; the means are then faster. Other sizes are read all the same.
    narrow
        The channels after the 1x1 convolution.
    hidden
        The width of the hidden layer.
    channels_last
        Whether the feature is (N, H, W, D), as in Swin transformers.

    Examples
    --------
    >>> import torch
    >>> from eenet.models import GridHead
    >>> GridHead(16, 10).eval()(torch.randn(2, 16, 14, 14)).shape
    torch.Size([2, 10])
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        grid: Sequence[int] = (7, 7),
        size: Sequence[int] | None = None,
        narrow: int = 32,
        hidden: int = 128,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.grid = grid[0], grid[1]
        self.size = None if size is None else tuple(size)
        if self.size is not None:
            # Two products of matrices take half of the time of adaptive pooling on a processor.
            self.register_buffer("rows", _shares(self.grid[0], self.size[0]), persistent=False)
            self.register_buffer("columns", _shares(self.grid[1], self.size[1]).T.contiguous(), persistent=False)
        self.conv = nn.Conv2d(channels, narrow, 1, bias=False)
        self.norm = nn.BatchNorm2d(narrow)
        self.dense = nn.Linear(narrow * self.grid[0] * self.grid[1], hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def reduced(self, feature: Tensor) -> Tensor:
        """The feature after what comes before the weights; the head gives the same for it."""
        if not self.channels_last:
            return self._means(feature)
        return self._means(feature.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _means(self, feature: Tensor) -> Tensor:
        if self.size is not None and feature.shape[2:] == self.size and feature.is_contiguous():
            return feature if self.size == self.grid else self.rows @ feature @ self.columns
        return F.adaptive_avg_pool2d(feature, self.grid)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        if self.channels_last:
            feature = feature.permute(0, 3, 1, 2)
        grid = F.relu(self.norm(self.conv(self._means(feature))))
        logits: Tensor = self.fc(F.relu(self.dense(grid.flatten(1))))
        return logits


def _shares(parts: int, size: int) -> Tensor:
    """What each of `size` values adds to the mean of each part, (parts, size); parts as of adaptive pooling."""
    shares = torch.zeros(parts, size)
    for part in range(parts):
        start, end = part * size // parts, -(-(part + 1) * size // parts)
        shares[part, start:end] = 1 / (end - start)
    return shares


class _PooledConvolutions(nn.Module):
    """3x3 convolutions, each with its channels and stride, then the mean over the map and a linear layer."""

    def __init__(self, channels: int, num_classes: int, convolutions: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, stride in convolutions:
            conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.convs = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.fc(self.pool(self.convs(feature)).flatten(1))
        return logits


@rebuildable
class StackedConvHead(_PooledConvolutions):
    """Classify a feature map (N, D, H, W) as the code of the EENet paper does: `depth` 3x3 convolutions, pool, linear.

    The convolutions are D / reduction wide: reduction 4 for bottlenecks and dense layers, 1 for basic blocks.

    Parameters
    ----------
    channels : int
        D of the feature.
    num_classes : int
        C of the logits.
    reduction : int
        The convolutions are D / reduction wide.
    depth : int
        How many convolutions.

    Examples
    --------
    >>> import torch
    >>> from eenet.models import StackedConvHead
    >>> StackedConvHead(16, 10).eval()(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: int, num_classes: int, *, reduction: int = 4, depth: int = 3) -> None:
        super().__init__(channels, num_classes, [(channels // reduction, 1)] * depth)


@rebuildable
class DownsamplingHead(_PooledConvolutions):
    """Classify a feature map (N, D, H, W) as the rest of a small network would: convolve, pool, linear layer.

    `depth` 3x3 convolutions, of which the first two halve the map and double the channels: for early exits of narrow
    networks, where the feature is large and says little by itself.

    Parameters
    ----------
    channels : int
        D of the feature.
    num_classes : int
        C of the logits.
    depth : int
        How many convolutions.

    Examples
    --------
    >>> import torch
    >>> from eenet.models import DownsamplingHead
    >>> DownsamplingHead(16, 10).eval()(torch.randn(2, 16, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: int, num_classes: int, *, depth: int = 3) -> None:
        widths = [channels * 2 ** min(number + 1, 2) for number in range(depth)]
        super().__init__(channels, num_classes, [(width, 2 if n < 2 else 1) for n, width in enumerate(widths)])


@rebuildable
class SegmentationHead(nn.Module):
    """Classify every pixel of an image from a feature map (N, D, h, w), where the image is `stride` times as large.

    With `size` instead, the image is (height, width), whatever that is of the feature.

    The feature itself says where things are; what is around them is computed at a quarter of its resolution, where it
    costs little, and the mean over the image goes in as well (as in LR-ASPP; Howard et al., ICCV 2019).

    Parameters
    ----------
    channels : int
        D of the feature.
    num_classes : int
        C of the logits.
    stride : int, optional
        How many times as large the image is.
    size : tuple of int, optional
        Height and width of the image, in place of `stride`.
    hidden : int
        The width of the head.

    Examples
    --------
    >>> import torch
    >>> from eenet.models import SegmentationHead
    >>> SegmentationHead(16, 5, size=(32, 32)).eval()(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 5, 32, 32])
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        stride: int | None = None,
        size: tuple[int, int] | None = None,
        hidden: int = 64,
    ) -> None:
        super().__init__()
        if (stride is None) == (size is None):
            raise InvalidInputError(f"stride is {stride} and size is {size}; expected one of the two")
        self.stride = stride
        self.size = None if size is None else tuple(size)
        self.detail = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden))
        self.context = nn.Sequential(
            nn.AvgPool2d(4, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2, bias=False),
            nn.BatchNorm2d(hidden),
        )
        # No batch norm: it has one value per image and channel, too few to normalize.
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1))
        self.classify = nn.Conv2d(hidden, num_classes, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes, stride * h, stride * w), or of `size`."""
        context = F.interpolate(self.context(feature), size=feature.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.classify(F.relu(self.detail(feature) + context + self.image(feature)))
        if self.size is not None:
            return F.interpolate(logits, size=self.size, mode="bilinear", align_corners=False)
        return F.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)


@rebuildable
class SequenceHead(nn.Module):
    """Classify a sequence of channels (N, D, T), as `Conv1d` gives: average, convolve, pool over time, linear layer.

    Parameters
    ----------
    channels
        D, the channels of the feature.
    num_classes
        C, the classes.
    stride
        How many steps are averaged to one before the convolution.
    hidden
        The channels of the convolution, by default D, at least 32 and at most 128.

    Examples
    --------
    >>> import torch
    >>> from eenet.models import SequenceHead
    >>> SequenceHead(16, 10).eval()(torch.randn(2, 16, 20)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: int, num_classes: int, *, stride: int = 1, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or min(max(channels, 32), 128)
        self.shrink: nn.Module = nn.Identity()
        if stride > 1:
            self.shrink = nn.AvgPool1d(stride, ceil_mode=True, count_include_pad=False)
        self.conv = nn.Conv1d(channels, hidden, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.act = nn.ReLU()
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        feature = self.act(self.norm(self.conv(self.shrink(feature))))
        logits: Tensor = self.fc(feature.mean(-1))
        return logits


@rebuildable
class TokenHead(nn.Module):
    """Classify a token sequence (N, T, D) by one vector of it.

    A head does not see the attention mask. Where inputs are padded, use `pool="first"`, which padding does not reach,
    or a network that gives zeros for padding, as `eenet.networks.bert` with `pooling="mean"` does: with that,
    "attention" is better than "mean" by some points. In a recurrent or causal network the first token has seen one step
    only: there use zeros for padding.

    Parameters
    ----------
    width
        D, the width of a token.
    num_classes
        C, the classes.
    dropout
        The probability of dropout before the last layer.
    pool
        The vector: the "first" token, as in BERT's pooler; the "last" one, for recurrent and causal networks, whose
        first token has seen one step only; the "mean" of all tokens that are not zero; or "attention", a weighted mean
        of them, whose weights a linear layer learns.

    Examples
    --------
    >>> import torch
    >>> from eenet.models import TokenHead
    >>> TokenHead(16, 10, pool="mean").eval()(torch.randn(2, 7, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(self, width: int, num_classes: int, *, dropout: float = 0.1, pool: str = "first") -> None:
        super().__init__()
        if pool not in _POOLS:
            raise InvalidInputError(f"pool is {pool!r}, expected one of {list(_POOLS)}")
        self.pool = pool
        if pool == "attention":
            self.score = nn.Linear(width, 1)
        self.dense = nn.Linear(width, width)
        self.act = nn.Tanh()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)

    def extra_repr(self) -> str:
        """What the printed network says of the head."""
        return f"pool={self.pool!r}"

    def pooled(self, feature: Tensor) -> Tensor:
        """The vector (N, D) of the tokens."""
        if self.pool == "mean":
            return mean_of_tokens(feature)
        if self.pool == "attention":
            scores = self.score(feature).squeeze(-1)
            # Not infinity: of tokens that are all zero the weighted mean is zero.
            scores = scores.masked_fill((feature == 0).all(-1), torch.finfo(scores.dtype).min)
            mean: Tensor = (scores.softmax(1).unsqueeze(1) @ feature).squeeze(1)
            return mean
        return feature[:, 0] if self.pool == "first" else feature[:, -1]

    def reduced(self, feature: Tensor) -> Tensor:
        """The feature after what comes before the weights, (N, 1, D); the head gives the same for it."""
        return feature if self.pool == "attention" else self.pooled(feature).unsqueeze(1)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.fc(self.dropout(self.act(self.dense(self.pooled(feature)))))
        return logits


@rebuildable
class VectorHead(nn.Module):
    """Classify a feature vector (N, D): one hidden layer.

    Parameters
    ----------
    width : int
        D of the feature.
    num_classes : int
        C of the logits.
    hidden : int, optional
        The width of the hidden layer.

    Examples
    --------
    >>> import torch
    >>> from eenet.models import VectorHead
    >>> VectorHead(16, 10).eval()(torch.randn(2, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(self, width: int, num_classes: int, *, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or min(max(width, 32), 128)
        self.dense = nn.Linear(width, hidden)
        self.act = nn.ReLU()
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.fc(self.act(self.dense(feature)))
        return logits


@rebuildable
class AnswerHead(nn.Module):
    """No head: what comes is the answer, as at the end of a member of a cascade. It has no weights.

    Examples
    --------
    >>> AnswerHead()(torch.ones(2, 5)).shape
    torch.Size([2, 5])
    """

    def forward(self, logits: Tensor) -> Tensor:
        """The logits as they are."""
        return logits


# It records its options itself, since `rebuildable` cannot be imported where it is defined.
HEADS["MSDNetHead"] = MSDNetHead


def describe_head(head: nn.Module) -> dict[str, Any] | None:
    """How a head is made again, as JSON; None for a module of the caller's own."""
    name, options = type(head).__name__, getattr(head, "options", None)
    if HEADS.get(name) is not type(head) or not isinstance(options, dict):
        return None
    return {"name": name, "options": options}
