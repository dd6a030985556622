"""Choosing how a model runs by measuring: its own stages or frozen ones, and whether compaction pays at a boundary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet._timing import in_turns, timed
from eenet._values import array_value
from eenet._warn import warn
from eenet.errors import ReliabilityWarning
from eenet.models import MultiExitModel
from eenet.optimize._compiled import compiled
from eenet.optimize._frozen import batch_of, eager, frozen
from eenet.optimize._recorded import recorded
from eenet.stages import Variant

_log = logging.getLogger("eenet.optimize")

TOLERANCE = 1e-3
"""How far the logits of a variant may be from the model's own, times the largest where that is above 1."""

WORTH = 0.98
"""A variant is taken where it needs at most this share of the model's own time: less could be the measurement."""

Floats = NDArray[np.float64]


@array_value
@dataclass(frozen=True)
class StageTimes:
    """Seconds of each stage with its head, and of the compaction before it, at several numbers of samples.

    `stages` (sizes, K); `compaction` (sizes, K), zero for stage 0. Where stages run in buckets of `sizes`, n samples
    cost what the smallest size that holds them costs.
    """

    sizes: tuple[int, ...]
    stages: Floats
    compaction: Floats
    in_buckets: bool = False

    def compacts(self, k: int, samples: int, remaining: int) -> bool:
        """Whether it pays to select the remaining samples before stage k, rather than to run it on all the samples."""
        saved = self._of_stage(k, samples) - self._of_stage(k, remaining)
        return saved > self._at(self.compaction[:, k], remaining)

    def _of_stage(self, k: int, samples: int) -> float:
        if self.in_buckets and samples <= self.sizes[-1]:
            return float(self.stages[np.searchsorted(self.sizes, samples), k])
        return self._at(self.stages[:, k], samples)

    def _at(self, values: Floats, samples: int) -> float:
        """Between two measured sizes on the line between them; above the largest in proportion."""
        largest = self.sizes[-1]
        if samples > largest:
            return float(values[-1] * samples / largest)
        return float(np.interp(samples, self.sizes, values))


@dataclass(frozen=True)
class Optimization:
    """What was measured and chosen, at each measured batch size.

    `ratios` says of every variant that was tried what share of the model's own time it needs; `dropped` those that did
    not give the model's logits; `times` what the stages of the chosen one cost.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> x = torch.randn(40, 4)
    >>> model = eenet.attach(network, ["1"], example=x[:2])
    >>> scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), eenet.ExitCosts([1.0, 2.0]), budget=1.5)
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # nothing may be faster for a network this small
    ...     fast = eenet.AdaptiveModel(model, scheduler, optimize="auto", batch_sizes=(4,), seconds=0.05)
    >>> fast.optimized.sizes
    (4,)
    """

    sizes: tuple[int, ...]
    chosen: tuple[str, ...]
    ratios: dict[str, tuple[float, ...]]
    times: tuple[StageTimes, ...]
    dropped: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = field(default=(), repr=False)

    def at(self, samples: int) -> tuple[Variant, StageTimes]:
        """The fastest at the largest measured batch size that is not above `samples`, and what its stages cost."""
        index = max(int(np.searchsorted(self.sizes, samples, side="right")) - 1, 0)
        return self.variants[index], self.times[index]

    def __str__(self) -> str:
        parts = []
        for size, name, number in zip(self.sizes, self.chosen, range(len(self.sizes)), strict=True):
            ratio = "" if name == "eager" else f" ({self.ratios[name][number]:.2f} of eager)"
            parts.append(f"batch {size}: {name}{ratio}")
        return "; ".join(parts)


@torch.inference_mode()
def optimize(
    model: MultiExitModel, sizes: Sequence[int], seconds: float, *, compile_stages: bool = False
) -> Optimization:
    """Measure the variants of a model against its own stages, in turns, and choose at each batch size.

    Never slower: where no variant is faster by the measurement, the model's own stages are chosen, and a
    `ReliabilityWarning` says so if that is everywhere.
    """
    own = eager(model)
    inputs = {size: example_of(model, size) for size in sorted(set(sizes))}
    expected = {size: own.all_logits(live) for size, live in inputs.items()}

    def agrees(variant: Variant) -> bool:
        return all(_equal(expected[size], variant.all_logits(live)) for size, live in inputs.items())

    good: list[Variant] = [own]
    dropped: list[Variant] = []
    # In half precision any other order of computing lets samples leave elsewhere than in the replay.
    exact = all(p.dtype not in (torch.float16, torch.bfloat16) for p in model.parameters())
    if exact:
        for variant in (*frozen(model), *((compiled(model),) if compile_stages else ())):
            (good if agrees(variant) else dropped).append(variant)
    ratios = _ratios(good, inputs.values(), seconds)
    if next(iter(inputs.values()))[0].is_cuda:
        variant = _recorded_if_possible(model, good[int(ratios.mean(0).argmin())], max(inputs))
        if variant is not None:
            (good if agrees(variant) else dropped).append(variant)
        if good[-1] is variant:
            ratios = np.hstack([ratios, _ratios([own, variant], inputs.values(), seconds)[:, 1:]])
    chosen = [good[int(of_own.argmin())] if of_own.min() <= WORTH else own for of_own in ratios]
    if all(variant is own for variant in chosen):
        others = {one.name: ratios[:, n].tolist() for n, one in enumerate(good) if one is not own}
        warn(
            "optimize: nothing that was tried is faster than the model as it is, so that is how it runs ("
            + (
                "; ".join(f"{name} {r}" for name, r in others.items())
                or ("no convolutions" if exact else "half precision")
            )
            + ")",
            ReliabilityWarning,
        )
    for size, variant, of_own in zip(inputs, chosen, ratios, strict=True):
        share = float(of_own[good.index(variant)])
        _log.info(
            "batches of %d: %s, in %.0f %% of the time of the model's own stages", size, variant.name, 100 * share
        )
    for variant in dropped:
        _log.info("left out: %s, whose logits are not the model's", variant.name)
    times = {variant.name: stage_times(model, variant, max(inputs), seconds) for variant in good if variant in chosen}
    return Optimization(
        tuple(inputs),
        tuple(variant.name for variant in chosen),
        {variant.name: tuple(ratios[:, n].tolist()) for n, variant in enumerate(good)},
        tuple(times[variant.name] for variant in chosen),
        tuple(variant.name for variant in dropped),
        tuple(chosen),
    )


def _ratios(variants: Sequence[Variant], inputs: Iterable[tuple[Tensor, ...]], seconds: float) -> Floats:
    """The time of each variant as a share of the first one's where no sample exits early, (sizes, variants)."""
    best = [_time([partial(variant.all_logits, live) for variant in variants], seconds) for live in inputs]
    table = np.array(best)
    return table / table[:, :1]


def _recorded_if_possible(model: MultiExitModel, variant: Variant, largest: int) -> Variant | None:
    try:
        return recorded(variant, partial(example_of, model), largest)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        warn(
            f"optimize: the stages cannot be recorded as CUDA graphs ({text}), so that they run without",
            ReliabilityWarning,
        )
        return None


@torch.inference_mode()
def stage_times(model: MultiExitModel, variant: Variant, largest: int, seconds: float) -> StageTimes:
    """The cost of each stage at n samples, for n a power of two up to `largest`, or one of the variant's buckets."""
    powers = {1, largest, *(2**power for power in range(largest.bit_length()) if 2**power <= largest)}
    sizes = sorted(powers) if variant.buckets is None else variant.buckets
    stages, compaction = [], []
    for size in sizes:
        live = variant.entered(example_of(model, size))
        steps: list[Callable[[], Any]] = []
        rows = torch.arange(size, device=live[0].device)
        for k, stage in enumerate(variant.stages):
            steps += [partial(stage.compact, live, rows), partial(variant.run, k, live, observe=True)]
            live, _ = variant.run(k, live, observe=True)
        best = _time(steps, seconds / len(sizes)).reshape(-1, 2)
        compaction.append(best[:, 0])
        stages.append(best[:, 1])
    table = np.array(compaction)
    table[:, 0] = 0.0
    return StageTimes(tuple(sizes), np.array(stages), table, variant.buckets is not None)


def example_of(model: MultiExitModel, size: int) -> tuple[Tensor, ...]:
    """The example the model was cut with, repeated to a batch of this size."""
    args, kwargs = model.staged.example
    return batch_of(model, model.staged.flatten_inputs(*args, **kwargs), size)


def _equal(expected: Sequence[Tensor], got: Sequence[Tensor]) -> bool:
    return all(
        one.shape == other.shape
        and torch.allclose(one, other, rtol=0, atol=TOLERANCE * max(1.0, float(one.abs().max())), equal_nan=True)
        for one, other in zip(expected, got, strict=True)
    )


def _time(steps: Sequence[Callable[[], Any]], seconds: float) -> Floats:
    """The shortest wall time of each step."""
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    wait = torch.cuda.synchronize if on_gpu else None
    return in_turns([partial(timed, step, wait=wait) for step in steps], seconds=seconds).shortest
