"""Exit heads: small classifiers on a feature part-way through a network.

A head adds to the cost of every sample that passes it, so the defaults shrink the feature before they work on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from eenet.errors import InvalidInputError


class ConvHead(nn.Module):
    """Classify a feature map (N, D, H, W): pool to at most `grid` x `grid`, 3x3 convolution, pool, linear layer."""

    def __init__(self, channels: int, num_classes: int, *, hidden: int | None = None, grid: int = 7) -> None:
        super().__init__()
        hidden = hidden or min(max(channels, 32), 128)
        self.grid = grid
        self.shrink = nn.AdaptiveAvgPool2d(grid)
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        if feature.shape[-1] > self.grid or feature.shape[-2] > self.grid:
            feature = self.shrink(feature)
        logits: Tensor = self.fc(self.pool(self.act(self.norm(self.conv(feature)))).flatten(1))
        return logits


class TokenHead(nn.Module):
    """Classify a token sequence (N, T, D) by its first token, as BERT's pooler does: padding never reaches it."""

    def __init__(self, width: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.act = nn.Tanh()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.fc(self.dropout(self.act(self.dense(feature[:, 0]))))
        return logits


class VectorHead(nn.Module):
    """Classify a feature vector (N, D): one hidden layer."""

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


def head_for(name: str, shape: Sequence[int | str], num_classes: int) -> nn.Module:
    """The default head for the feature at the end of module `name`; `shape` has "batch" and other symbols by name."""
    width = {2: shape[-1], 3: shape[-1], 4: shape[1] if len(shape) == 4 else None}.get(len(shape))
    if not isinstance(width, int):
        raise InvalidInputError(
            f"module {name!r} gives a feature of shape {tuple(shape)}; default heads know (batch, features), (batch, "
            "tokens, features) and (batch, channels, height, width): pass heads=[...] with modules of your own"
        )
    if len(shape) == 4:
        return ConvHead(width, num_classes)
    return TokenHead(width, num_classes) if len(shape) == 3 else VectorHead(width, num_classes)
