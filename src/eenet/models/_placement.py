"""Exits that nothing was said about: where they go, and which of them would not pay."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from eenet._timing import in_turns, timed, waiting_for
from eenet._warn import warn
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.models._exits import is_mask
from eenet.models._io import inferring
from eenet.stages import Dynamic, Example, SplitPoint, StagedModel, seen_at_exits, split_points

# What a boundary costs against a place that is off by one whole share of a stage: twice the values, one more tensor.
_DOUBLED, _ANOTHER_TENSOR = 0.15, 0.25

_log = logging.getLogger("eenet.models")

# An exit pays where its head costs at most this share of what a sample saves that exits there and not at the next one:
# then it is worth it if one sample in four does.
_WORTH = 0.25

# What an exit must have seen, as a share of the values of a sample: more than one of two inputs of the same size.
_SEES = 0.5

# The exits of "auto" before those that do not pay are left out.
_MOST = 4

_ROUNDS, _MOST_ROUNDS, _SECONDS = 20, 200, 0.3


@dataclass(frozen=True)
class Placed:
    """An exit that `attach` placed: its module, the share of the network's time before it, and that of its head."""

    name: str
    share: float
    head: float

    def __str__(self) -> str:
        return f"{self.name!r} at {self.share:.0%} of the network's time (its head costs {self.head:.1%})"


@dataclass(frozen=True)
class Placement:
    """The exits that `attach` placed by measured time, and those that it left out, since they would not pay."""

    kept: tuple[Placed, ...]
    dropped: tuple[Placed, ...] = ()

    def __str__(self) -> str:
        text = "placed by measured time: " + ", ".join(map(str, self.kept))
        if self.dropped:
            text += f"; left out, since they would not pay: {', '.join(map(str, self.dropped))}"
        return text


def place_exits(
    backbone: nn.Module, asked: str, example: Example, *, dynamic: Dynamic | None = None
) -> list[SplitPoint]:
    """The places for `exits="auto:K"`, K exits in all, the last one included; "auto:K:flops" counts instead of timing.

    The k-th early exit is near k/K of the network's time, or of its FLOPs, at the end of a module that few values have
    to cross. Raises InvalidInputError where there are too few places.
    """
    match = re.fullmatch(r"auto(?::(\d+)(?::(flops|ms))?)?", asked)
    if match is None or (match[1] and int(match[1]) < 2):
        raise InvalidInputError(
            f"exits is {asked!r}, expected a list of module names such as ['layer1', 'layer2'], 'auto', or 'auto:3' "
            "for three exits, the network's own included ('auto:3:flops' places them by counted FLOPs instead of time)"
        )
    places = split_points(backbone, example, dynamic=dynamic, cost=match[2] or "ms")
    # An exit that has not seen most of the inputs, such as the end of one embedding of many, cannot say much. Inputs
    # that come in late and are small, such as a mask, do not count against it.
    candidates = [place for place in places if place.sees > _SEES] or places
    if match[1]:
        return choose(candidates, int(match[1]))
    return choose(candidates, min(_MOST, len({place.share for place in candidates}) + 1))


def warn_of_unseen(staged: StagedModel) -> None:
    """Warn of named exits at places that have seen too little of the inputs; a mask, which says no more, is none."""
    args, kwargs = staged.example
    inputs = staged.flatten_inputs(*args, **kwargs)
    sizes = [tensor[0].numel() if tensor.ndim and not is_mask(tensor) else 0 for tensor in inputs]
    for name, sees in zip(staged.at, seen_at_exits(staged.inference_stages, sizes), strict=True):
        if sees <= _SEES:
            warn(
                f"the exit at {name!r} has seen {sees:.0%} of the values that the network takes: it stands before the "
                f"inputs meet, and cannot say much. Place it where more than {_SEES:.0%} have come in, as exits='auto' "
                "does, or give the head that reads it in heads=[...]",
                ReliabilityWarning,
            )


def by_time(asked: str) -> bool:
    """Whether exits are placed by measured time, so that those that do not pay can be left out."""
    return not asked.endswith(":flops")


def choose(candidates: Sequence[SplitPoint], exits: int) -> list[SplitPoint]:
    """The `exits` - 1 best places, in order."""
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
    return [candidates[index] for index in min(best)[1]]


def paying(heads: Sequence[nn.Module], features: Sequence[Tensor], places: Sequence[SplitPoint]) -> Placement:
    """Measure the heads, and leave out exits that would not pay; says so in a warning.

    Raises InvalidInputError where none would.
    """
    rest = [
        Placed(place.name, place.share, head)
        for place, head in zip(places, _head_shares(heads, features, places), strict=True)
    ]
    kept = _most_that_pay(rest)
    dropped = [place for place in rest if place not in kept]
    if not kept:
        raise InvalidInputError(
            f"no exit pays in this network: {', '.join(map(str, dropped))}, where a head may cost {_WORTH:.0%} of the "
            "time until the next exit; name the modules to have exits there all the same, or run larger inputs"
        )
    found = Placement(tuple(kept), tuple(dropped))
    _log.info("exits %s", found)
    if dropped:
        warn(f"exits were {found}; name the modules to have them all the same", ReliabilityWarning)
    return found


def _most_that_pay(places: Sequence[Placed]) -> list[Placed]:
    """The largest set of these exits in which each pays; of several the one whose heads are the cheapest for that.

    Whether an exit pays depends on the next one that is kept: leaving out the worst first can leave out all of them.
    """
    # For each place the best set that begins with it, worked out from the last: its size, its price, its places.
    found: list[tuple[int, float, list[Placed]]] = []
    for place in reversed(places):
        best: tuple[int, float, list[Placed]] | None = None
        for size, price, after in [(0, 0.0, []), *found]:
            own = place.head / ((after[0].share if after else 1.0) - place.share)
            if own <= _WORTH and (best is None or (size + 1, -price - own) > (best[0], -best[1])):
                best = size + 1, price + own, [place, *after]
        if best is not None:
            found.append(best)
    return max(found, key=lambda one: (one[0], -one[1]), default=(0, 0.0, []))[2]


def _head_shares(heads: Sequence[nn.Module], features: Sequence[Tensor], places: Sequence[SplitPoint]) -> list[float]:
    """What each head takes for the example, as a share of what the network takes."""
    wait = waiting_for(features[0].device)
    with inferring(nn.ModuleList(heads)):
        steps = [partial(timed, head, feature, wait=wait) for head, feature in zip(heads, features, strict=True)]
        timing = in_turns(steps, seconds=_SECONDS, least=_ROUNDS, most=_MOST_ROUNDS)
    taken = (timing.cpu if wait is None else timing.wall).min(axis=0)
    return [float(seconds * place.share / place.cost) for seconds, place in zip(taken, places, strict=True)]
