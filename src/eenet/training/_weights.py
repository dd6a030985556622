"""How much each exit counts in the joint loss: the published weightings, by name.

| name | weight of exit k of K | source |
|---|---|---|
| linear | k / K | EENet (Ilhan et al., WACV 2024), section 3.1 |
| uniform | 1 | MSDNet (Huang et al., ICLR 2018), section 4 |
| pabee | k / (1 + ... + K) | PABEE (Zhou et al., NeurIPS 2020), equation 4 |
| shallow_deep | from 0.01 to c_k / c_K, growing through the training; the last 1 | Shallow-Deep Networks (Kaya et al., ICML 2019), section 4.2 |
| adaptive | inversely proportional to the exit's mean loss, K in total | Hu et al., "Learning anytime predictions in neural networks via adaptive loss balancing" (AAAI 2019), section 3 |

`adaptive` takes the mean losses of the epoch before, and weighs all exits alike in the first: so a resumed run needs
nothing but the history.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eenet.errors import InvalidInputError

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
