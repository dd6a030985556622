"""What a run of the demo is made of: sizes, network, training, budgets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class NetworkSettings:
    """A `CifarResNet` for digits, with an exit after every group of blocks."""

    blocks: tuple[int, ...] = (1, 1, 3)
    widths: tuple[int, ...] = (16, 64, 128)
    head_width: int = 32
    head_grid: int = 4

    @property
    def exits(self) -> list[str]:
        """The modules the early exits stand at: all groups but the last, at whose end the network's own exit is."""
        return [f"layers.{group}" for group in range(len(self.blocks) - 1)]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NetworkSettings:
        """What `asdict` and JSON made of it."""
        return cls(tuple(data["blocks"]), tuple(data["widths"]), int(data["head_width"]), int(data["head_grid"]))


@dataclass(frozen=True)
class TrainingSettings:
    """All that the trained weights depend on, besides the machine."""

    seed: int = 0
    network: NetworkSettings = field(default_factory=NetworkSettings)
    train: int = 3000
    calibration: int = 1000
    test: int = 1000
    epochs: int = 7
    batch_size: int = 64
    learning_rate: float = 4e-3

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: lists where there are tuples."""
        data = asdict(self)
        data["network"] |= {"blocks": list(self.network.blocks), "widths": list(self.network.widths)}
        return data


@dataclass(frozen=True)
class DemoSettings:
    """A whole run.

    `batch_size` is the batch the budget is meant for, `survivors` a smaller one: costs are measured at both, and at 1.
    """

    training: TrainingSettings = field(default_factory=TrainingSettings)
    budgets: tuple[int, ...] = (40, 60, 80)
    batch_size: int = 32
    survivors: int = 16
    profile_seconds: float = 2.0
    rounds: int = 3
    single_samples: int = 100


def standard(seed: int = 0) -> DemoSettings:
    """The demo as documented: all 5,000 digits."""
    return DemoSettings(TrainingSettings(seed=seed))


def quick(seed: int = 0) -> DemoSettings:
    """A few seconds on a few hundred digits: shows that everything works, not that early exit pays."""
    network = NetworkSettings((1, 1, 1), (8, 16, 32), 8)
    return DemoSettings(
        TrainingSettings(seed, network, train=400, calibration=200, test=100, epochs=2, batch_size=50),
        budgets=(5, 80, 95),  # one of them cannot be met
        profile_seconds=0.2,
        rounds=2,
        single_samples=10,
    )
