"""Placing exits without being told where: at about equal cost, where little crosses the boundary."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import nn

from eenet.errors import InvalidInputError
from eenet.stages import Example, Place, places

# What a boundary costs against a place that is off by one whole share of a stage: twice the values, one more tensor.
_DOUBLED, _ANOTHER_TENSOR = 0.15, 0.25


def place_exits(
    backbone: nn.Module, asked: str, example: Example, *, dynamic: Mapping[int, str] | None = None
) -> list[str]:
    """The modules for `exits="auto:K"`, K exits in all, the last one included; "auto:K:ms" measures what is counted.

    The k-th early exit stands near k/K of the network's FLOPs, or of its time, at the end of a module that few values
    have to cross. Raises InvalidInputError where there are too few places.
    """
    match = re.fullmatch(r"auto:(\d+)(?::(flops|ms))?", asked)
    if match is None or int(match[1]) < 2:
        raise InvalidInputError(
            f"exits is {asked!r}, expected a list of module names such as ['layer1', 'layer2'], or 'auto:3' for three "
            "exits, the network's own included ('auto:3:ms' places them by measured time instead of counted FLOPs)"
        )
    return choose(places(backbone, example, dynamic=dynamic, cost=match[2] or "flops"), int(match[1]))


def choose(candidates: Sequence[Place], exits: int) -> list[str]:
    """The names of the `exits` - 1 best places, in order."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for number in range(1, exits):
        target = number / exits
        near = [place.elements for place in candidates if abs(place.share - target) <= 0.5 / exits]
        following: list[tuple[float, tuple[int, ...]]] = []
        for index, place in enumerate(candidates):
            price = abs(place.share - target) * exits + _ANOTHER_TENSOR * (place.tensors - 1)
            narrowest = max(min(near, default=place.elements), 1)
            price += _DOUBLED * math.log2(max(place.elements / narrowest, 1))
            before = [
                (total, chosen)
                for total, chosen in best
                # A stage that costs nothing would be no stage.
                if not chosen or (chosen[-1] < index and candidates[chosen[-1]].share < place.share)
            ]
            if before:
                total, chosen = min(before)
                following.append((total + price, (*chosen, index)))
        best = following
    if not best:
        raise InvalidInputError(
            f"there are only {len({place.share for place in candidates})} places of different cost in this network for "
            f"{exits - 1} early exits; ask for fewer, or name the modules"
        )
    return [candidates[index].name for index in min(best)[1]]
