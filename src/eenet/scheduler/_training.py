"""How EENet's exit scores and exit assignment are learned (EENet, section 3.3), in turns, with torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from eenet.costs import ExitCosts
from eenet.records import ExitRecords
from eenet.scheduler._folds import fold_numbers
from eenet.scheduler._learned import (
    NUM_CONFIDENCES,
    TARGETS,
    TIE_WEIGHT,
    WEIGHT_DECAYS,
    LearnedScore,
    LearningOptions,
    confidences,
)
from eenet.scheduler._policy import Floats
from eenet.scheduler._thresholds import ScoreTable, tilted_shares

_ITERATIONS = 40


class _Evidence:
    """The records as tensors: probabilities (K, N, C), confidences (K, N, 4), what each exit is worth (K, N)."""

    def __init__(self, records: ExitRecords) -> None:
        trail = records.all_evidence()
        self.probabilities = torch.from_numpy(np.stack([e.probabilities for e in trail]))
        self.confidences = torch.from_numpy(np.stack([confidences(e) for e in trail]).astype(np.float32))
        self.log_odds = torch.from_numpy(np.stack([e.log_odds for e in trail]).astype(np.float32))
        self.worth = torch.from_numpy(np.ascontiguousarray(records.require_utility()))
        self.exits, self.samples, self.classes = self.probabilities.shape

    def evidence(self, k: int, q: Sequence[Tensor]) -> Tensor:
        """What exit k goes by, (N, C + 4 + k): probabilities, confidences, the exit scores before."""
        return torch.cat([self.probabilities[k], self.confidences[k], *(s[:, None] for s in q[:k])], dim=1)

    def targets(self, name: str) -> Tensor:
        """What the exit scores should be, (K, N)."""
        if name == "right":
            return self.worth
        later = torch.flip(torch.cummax(torch.flip(self.worth, [0]), dim=0).values, [0])
        return (self.worth >= later).float()


class _Scores:
    """The exit scores being trained; the last exit has one too, as evidence for the assignment only."""

    def __init__(self, data: _Evidence, weight_decay: float) -> None:
        self._decay = weight_decay
        # By exit: class weights, evidence weights and the bias, in one vector.
        self._vectors = [
            torch.zeros(data.classes + NUM_CONFIDENCES + k + 1, dtype=torch.float32) for k in range(data.exits)
        ]

    def learn(self, data: _Evidence, targets: Tensor, r: Tensor) -> Tensor:
        """Fit each exit's score in turn to its targets (K, N), weighted by the assignment r (K, N); gives q (K, N)."""
        q: list[Tensor] = []
        for k, vector in enumerate(self._vectors):
            self._vectors[k] = self._fit(vector, data.evidence(k, q), data.log_odds[k], targets[k], r[k])
            q.append(torch.sigmoid(_linear(self._vectors[k], data.evidence(k, q), data.log_odds[k])))
        return torch.stack(q)

    def _fit(self, start: Tensor, evidence: Tensor, log_odds: Tensor, targets: Tensor, r: Tensor) -> Tensor:
        vector = start.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [vector], max_iter=_ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-8, line_search_fn="strong_wolfe"
        )

        def loss() -> float:
            optimiser.zero_grad()
            z = _linear(vector, evidence, log_odds)
            fit = (functional.binary_cross_entropy_with_logits(z, targets, reduction="none") * r).sum() / r.sum()
            value: Tensor = fit + self._decay * vector[:-1].square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return float(value.detach())

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        found = vector.detach()
        return found if bool(torch.isfinite(found).all()) else start

    def __call__(self, data: _Evidence) -> Tensor:
        """The arguments of the sigmoids, (K, N): the same numbers as `LearnedScore` gives."""
        scores: list[Tensor] = []
        for k, vector in enumerate(self._vectors):
            q = [torch.sigmoid(s) for s in scores]
            scores.append(_linear(vector, data.evidence(k, q), data.log_odds[k]))
        return torch.stack(scores)

    def frozen(self, classes: int, shares: Floats) -> LearnedScore:
        """The scores as they are used."""
        vectors = [vector.numpy().astype(np.float64) for vector in self._vectors[:-1]]
        return LearnedScore(
            np.stack([v[:classes] for v in vectors]),
            [v[classes:-1] for v in vectors],
            np.array([v[-1] for v in vectors]),
            shares,
        )


def _linear(vector: Tensor, evidence: Tensor, log_odds: Tensor) -> Tensor:
    return evidence @ vector[:-1] + vector[-1] + TIE_WEIGHT * log_odds


class _Assignment:
    """The exit assignment r (K, N): a softmax over one number per exit, from an MLP of that exit's evidence.

    The published code squeezes each number through a sigmoid first, which keeps every share between 0.16 and 0.58
    for three exits; here the numbers are free.
    """

    def __init__(self, data: _Evidence, hidden_factor: float, start: Floats, generator: torch.Generator) -> None:
        self._layers: list[tuple[Tensor, Tensor, Tensor]] = []
        # A learned offset per exit lets the assignment start at shares that spend the budget.
        self.offsets = torch.log(torch.from_numpy(start).float().clamp(min=1e-4)).requires_grad_()
        for k in range(data.exits):
            width = data.classes + NUM_CONFIDENCES + k
            hidden = max(1, round(hidden_factor * width))
            scale = 1 / math.sqrt(width)
            first = _uniform((width, hidden), scale, generator)
            bias = _uniform((hidden,), scale, generator)
            second = _uniform((hidden,), 1 / math.sqrt(hidden), generator)
            self._layers.append((first, bias, second))

    def parameters(self) -> list[Tensor]:
        return [self.offsets, *(tensor for layer in self._layers for tensor in layer)]

    def __call__(self, data: _Evidence, q: Tensor) -> Tensor:
        """r (K, N)."""
        logits = []
        for k, (first, bias, second) in enumerate(self._layers):
            evidence = data.evidence(k, list(q))
            logits.append(torch.relu(evidence @ first + bias) @ second + self.offsets[k])
        return torch.softmax(torch.stack(logits), dim=0)


def train_scores(
    records: ExitRecords, costs: ExitCosts, budgets: Sequence[float], options: LearningOptions, seed: int
) -> list[LearnedScore]:
    """Learn scores and assignment together for each budget, in the way that does best on held-out folds."""
    with _learning():
        way = _best_way(records, costs, budgets, options, seed)
        data = _Evidence(records)
        return [_train(data, costs, budget, options, way) for budget in budgets]


@dataclass(frozen=True)
class _Way:
    """What is left to the data: the target, the weight decay and the beginning."""

    target: str
    weight_decay: float
    seed: int


def _best_way(
    records: ExitRecords, costs: ExitCosts, budgets: Sequence[float], options: LearningOptions, seed: int
) -> _Way:
    """The way whose scores, each given by a training without the sample, choose best."""
    targets = TARGETS if options.target is None else (options.target,)
    decays = WEIGHT_DECAYS if options.weight_decay is None else (options.weight_decay,)
    ways = [_Way(t, d, seed + i) for i in range(options.restarts) for t in targets for d in decays]
    folds = fold_numbers(records, seed, options.folds)
    if len(ways) == 1 or int(folds.max()) + 1 < 2:
        return ways[0]
    brief = replace(options, epochs=options.turn)  # one turn is enough to tell the ways apart
    middle = budgets[len(budgets) // 2]
    held_out = [np.flatnonzero(folds == fold) for fold in range(int(folds.max()) + 1)]
    parts = [_Evidence(records.subset(np.flatnonzero(folds != fold))) for fold in range(len(held_out))]
    values = []
    for way in ways:
        scores, finite, shares = np.zeros((len(costs) - 1, len(records))), [], []
        for rows, part in zip(held_out, parts, strict=True):
            trained = _train(part, costs, middle, brief, way)
            assert trained.shares is not None
            table = ScoreTable.of(trained, records.subset(rows), costs)
            scores[:, rows] = table.scores
            finite.append(table.finite)
            shares.append(trained.shares)
        whole_finite = np.ones_like(scores, dtype=np.bool_)
        for rows, part_finite in zip(held_out, finite, strict=True):
            whole_finite[:, rows] = part_finite
        table = ScoreTable(scores, whole_finite, costs)
        values.append(_value(table, np.mean(shares, axis=0), records, costs, budgets))
    return ways[int(np.argmax(values))]


def _value(
    table: ScoreTable, shares: Floats, records: ExitRecords, costs: ExitCosts, budgets: Sequence[float]
) -> float:
    """Mean accuracy over the budgets that can be met."""
    family = tilted_shares(shares, costs.values)
    smallest = table.mean_cost(table.cheapest())
    found = []
    for budget in budgets:
        exits = table.exits(table.meet(max(budget, smallest), family))
        found.append(float(records.require_utility()[exits, np.arange(len(exits))].mean()))
    return float(np.mean(found))


def train_shares(
    table: ScoreTable, records: ExitRecords, costs: ExitCosts, budget: float, options: LearningOptions, seed: int
) -> Floats:
    """Learn the assignment alone for given scores: the shares p_k = mean_n r_nk, (K,)."""
    # Any score becomes a target in [0, 1] by its rank; the last exit, which needs no score, counts as sure.
    ranks = table.scores.argsort(axis=1).argsort(axis=1) / max(1, table.samples - 1)
    with _learning():
        data = _Evidence(records)
        q = torch.from_numpy(np.concatenate([ranks, np.ones((1, table.samples))])).float()
        assignment = _Assignment(data, options.hidden_factor, _start(costs, budget), _generator(seed))
        optimiser = torch.optim.Adam(assignment.parameters(), lr=options.assignment_rate)
        for _ in range(max(1, options.epochs // 2)):
            _step(optimiser, _assignment_loss(assignment(data, q), q, costs, budget, options))
        return _mean_shares(assignment(data, q))


@contextmanager
def _learning() -> Iterator[None]:
    """Gradients are on, also when the caller has switched them off."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


def _train(data: _Evidence, costs: ExitCosts, budget: float, options: LearningOptions, way: _Way) -> LearnedScore:
    """Scores and assignment in turns: the scores to the end, the assignment a few epochs."""
    scores = _Scores(data, way.weight_decay)
    assignment = _Assignment(data, options.hidden_factor, _start(costs, budget), _generator(way.seed))
    optimiser = torch.optim.Adam(assignment.parameters(), lr=options.assignment_rate)
    targets = data.targets(way.target)
    r = torch.full_like(targets, 1 / data.exits)
    for turn in range(-(-options.epochs // options.turn)):
        q = scores.learn(data, targets, r)
        for _ in range(min(options.turn, options.epochs - turn * options.turn)):
            _step(optimiser, _assignment_loss(assignment(data, q), q, costs, budget, options))
        with torch.no_grad():
            r = assignment(data, q)
    return scores.frozen(data.classes, _mean_shares(r))


def _assignment_loss(r: Tensor, q: Tensor, costs: ExitCosts, budget: float, options: LearningOptions) -> Tensor:
    target = q / q.sum(dim=0)
    divergence = (r * (torch.log(r.clamp(min=1e-12)) - torch.log(target.clamp(min=1e-12)))).sum(dim=0).mean()
    c = torch.from_numpy(np.array(costs.values)).float()
    overspend = (r.mean(dim=1) @ c - min(budget, costs[-1])).abs() / budget
    return options.kl_weight * divergence + options.cost_weight * overspend


def _start(costs: ExitCosts, budget: float) -> Floats:
    """Uniform shares tilted until they spend the budget."""
    family = tilted_shares(np.full(len(costs), 1 / len(costs)), costs.values)
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if family(middle) @ costs.values <= budget else (low, middle)
    return family(low)


def _mean_shares(r: Tensor) -> Floats:
    shares: NDArray[np.float64] = r.detach().double().mean(dim=1).numpy()
    shares /= shares.sum()
    return shares


def _uniform(shape: tuple[int, ...], limit: float, generator: torch.Generator) -> Tensor:
    values = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return ((values * 2 - 1) * limit).requires_grad_()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
