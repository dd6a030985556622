"""The choice of the parts that run in int8: those that are faster so, as long as no exit loses more than it may."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eenet.scheduler._bounds import mean_is_below

FASTER = 0.95
"""A part in int8 must take less than this part of its time in fp32, beyond the error of the measurement."""

WORTH = 0.01
"""What a part must save of the time of all parts: less is not worth other answers, and would be a matter of chance."""

_ERRORS = 2.0  # standard errors beyond which a difference of times is none of chance

Utility = NDArray[np.float64]
"""(K, N): what the answer of each exit to each sample is worth."""

Judged = Callable[[frozenset[str]], tuple[Utility, Utility]]
"""The worth of all exits with some stages in int8: where the heads are in fp32, and where they are in int8."""


@dataclass(frozen=True)
class PartTime:
    """Seconds of a part in fp32 and in int8, and the standard error of their ratio, of runs in turns."""

    fp32: float
    int8: float
    error: float = 0.0

    @property
    def ratio(self) -> float:
        """The part of its time in fp32 that it takes in int8."""
        return self.int8 / self.fp32

    @property
    def saved(self) -> float:
        """Seconds."""
        return self.fp32 - self.int8

    @property
    def faster(self) -> bool:
        """Whether int8 is faster for sure."""
        return self.ratio + _ERRORS * self.error < FASTER

    @property
    def open(self) -> bool:
        """Whether the error leaves it open if int8 is faster."""
        return abs(self.ratio - FASTER) <= _ERRORS * self.error


@dataclass(eq=False)
class Chooser:
    """Finds the parts; `why` says of the others why not."""

    judged: Judged
    max_exit_drop: float
    guarantee: float | None = None
    why: dict[str, str] = field(default_factory=dict)

    def worth(self, chosen: frozenset[str]) -> Utility:
        """The worth of all exits, (K, N), with these parts in int8."""
        plain, heads = self.judged(frozenset(name for name in chosen if name.startswith("stages.")))
        rows = [(heads if f"heads.{k}" in chosen else plain)[k] for k in range(len(plain))]
        return np.stack(rows)

    def chosen(self, times: Mapping[str, PartTime]) -> frozenset[str]:
        """The parts to run in int8, of those whose times are known.

        All at once where that does, and else stage by stage: what saves most first, and of what saves about the same
        the later one, whose answers fewer exits see.
        """
        order, heads = self._faster(times)
        choosing, confirming = self._halves()
        found = self._with_heads(frozenset(order), heads, choosing, self.max_exit_drop)
        steps = [frozenset(order[: n + 1]) for n in range(len(order))] if found is not None else []
        if found is None:
            taken: frozenset[str] = frozenset()
            found = self._with_heads(taken, heads, choosing, self.max_exit_drop) or frozenset()
            for name in order:
                more = None
                if len(order) > 1:
                    more = self._with_heads(taken | {name}, heads, choosing, self.max_exit_drop)
                if more is None:
                    self.why[name] = "an exit would lose more than max_exit_drop"
                    continue
                taken, found = taken | {name}, more
                steps.append(taken)
        if confirming is not None:
            found = self._confirmed(steps or [frozenset()], heads, choosing, confirming)
        lost = "its exit would lose more than max_exit_drop"
        self.why = {name: lost for name in heads if name not in found} | self.why
        return found

    def looser(self, times: Mapping[str, PartTime], most: float, step: float) -> tuple[float, frozenset[str]] | None:
        """The least limit, in steps, with which all faster stages would run in int8, and the parts that then would.

        None where that is above `most`: an exit that loses so much has collapsed.
        """
        order, heads = self._faster(times)
        choosing, _ = self._halves()
        before = self.judged(frozenset())[0][:, choosing].mean(axis=1)
        plain, in_int8 = (before - of[:, choosing].mean(axis=1) for of in self.judged(frozenset(order)))
        with_head = np.array([f"heads.{k}" in heads for k in range(len(before))])
        lost = float(np.where(with_head, np.minimum(plain, in_int8), plain).max())
        limit = step * max(math.ceil(lost / step - 1e-9), 0)
        found = self._with_heads(frozenset(order), heads, choosing, limit) if limit <= most + 1e-12 else None
        return None if found is None else (limit, found)

    def _faster(self, times: Mapping[str, PartTime]) -> tuple[list[str], frozenset[str]]:
        """The stages that are faster in int8, in the order in which they are tried, and the heads that are."""
        whole = sum(time.fp32 for time in times.values())
        faster = {name: time for name, time in times.items() if time.faster}
        saved = {name: time.saved for name, time in faster.items() if time.saved >= WORTH * whole}
        self.why |= {name: "not faster in int8" for name in times if name not in faster}
        little = f"in int8 it saves less than {WORTH:.0%} of the time of all parts"
        self.why |= {name: little for name in faster if name not in saved}
        largest = max(saved.values(), default=0.0)

        def rank(name: str) -> tuple[int, int]:
            return round(math.log2(largest / saved[name])), -int(name.partition(".")[2])

        stages = sorted((name for name in saved if name.startswith("stages.")), key=rank)
        return stages, frozenset(name for name in saved if name.startswith("heads."))

    def _halves(self) -> tuple[NDArray[np.intp], NDArray[np.intp] | None]:
        """The samples that choose and, where the loss is to be shown beyond chance, those that confirm."""
        samples = self.judged(frozenset())[0].shape[1]
        order = np.random.default_rng(1).permutation(samples)
        if self.guarantee is None:
            return order, None
        return order[: samples // 2], order[samples // 2 :]

    def _with_heads(
        self, stages: frozenset[str], heads: frozenset[str], rows: NDArray[np.intp], limit: float
    ) -> frozenset[str] | None:
        """These stages and the heads that can be int8 with them; None where an exit loses more than `limit` anyhow."""
        before = self.judged(frozenset())[0][:, rows].mean(axis=1)
        plain, in_int8 = (of[:, rows].mean(axis=1) for of in self.judged(stages))
        most = before - limit - 1e-12
        taken = set(stages)
        for k in range(len(before)):
            if f"heads.{k}" in heads and in_int8[k] >= most[k]:
                taken.add(f"heads.{k}")
            elif plain[k] < most[k]:
                return None
        return frozenset(taken)

    def _confirmed(
        self,
        steps: list[frozenset[str]],
        heads: frozenset[str],
        choosing: NDArray[np.intp],
        confirming: NDArray[np.intp],
    ) -> frozenset[str]:
        """The last of the steps until one is not shown to keep the limit: a fixed order needs no correction.

        Of a step every exit is tested at the whole error: all tests must pass.
        """
        found: frozenset[str] = frozenset()
        before = self.judged(frozenset())[0][:, confirming]
        assert self.guarantee is not None
        limit, error = (1 + self.max_exit_drop) / 2, 1 - self.guarantee
        for stages in steps:
            candidate = self._with_heads(stages, heads, choosing, self.max_exit_drop)
            lost = None if candidate is None else (1 + before - self.worth(candidate)[:, confirming]) / 2
            if candidate is None or lost is None or not mean_is_below(lost, limit, error).all():
                why = (
                    f"{len(confirming)} samples do not show at {self.guarantee:g} that no exit loses more than "
                    "max_exit_drop"
                )
                # Of all that the later steps would add too: none of them is tested once one has failed.
                self.why |= dict.fromkeys((steps[-1] | heads) - found, why)
                break
            found = candidate
        return found
