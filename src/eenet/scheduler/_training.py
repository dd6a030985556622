"""How EENet's exit scores and exit assignment are learned (EENet, section 3.3), in turns, with torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from eenet.costs import ExitCosts
from eenet.records import ExitRecords
from eenet.scheduler._learned import NUM_CONFIDENCES, TIE_WEIGHT, LearnedScore, LearningOptions, confidences
from eenet.scheduler._policy import Floats
from eenet.scheduler._thresholds import ScoreTable, tilted_shares


class _Evidence:
    """The records as tensors: probabilities (K, N, C), confidences (K, N, 4), what each exit is worth (K, N)."""

    def __init__(self, records: ExitRecords) -> None:
        trail = records.all_evidence()
        self.probabilities = torch.from_numpy(np.stack([e.probabilities for e in trail]))
        self.confidences = torch.from_numpy(np.stack([confidences(e) for e in trail]).astype(np.float32))
        self.log_odds = torch.from_numpy(np.stack([e.log_odds for e in trail]).astype(np.float32))
        self.worth = torch.from_numpy(np.ascontiguousarray(records.require_utility()))
        self.exits, self.samples, self.classes = self.probabilities.shape


class _Scores:
    """The exit scores being trained; the last exit has one too, as evidence for the assignment only."""

    def __init__(self, data: _Evidence) -> None:
        k, c = data.exits, data.classes
        self.class_weights = _zeros(k, c)
        self.evidence_weights = [_zeros(NUM_CONFIDENCES + j) for j in range(k)]
        self.biases = _zeros(k)
        with torch.no_grad():
            for weights in self.evidence_weights:
                weights[:NUM_CONFIDENCES] = torch.tensor([2.0, 1.0, 1.0, 1.0])
            self.biases -= 2.0

    def parameters(self) -> list[Tensor]:
        return [self.class_weights, *self.evidence_weights, self.biases]

    def __call__(self, data: _Evidence) -> Tensor:
        """The arguments of the sigmoids, (K, N): the same numbers as `LearnedScore` gives."""
        scores: list[Tensor] = []
        for k in range(data.exits):
            scalars = torch.cat([data.confidences[k], *(torch.sigmoid(s)[:, None] for s in scores)], dim=1)
            linear = data.probabilities[k] @ self.class_weights[k] + scalars @ self.evidence_weights[k]
            scores.append(linear + self.biases[k] + TIE_WEIGHT * data.log_odds[k])
        return torch.stack(scores)

    def frozen(self, shares: Floats) -> LearnedScore:
        def array(tensor: Tensor) -> Floats:
            return tensor.detach().numpy().astype(np.float64)

        return LearnedScore(
            array(self.class_weights[:-1]),
            [array(w) for w in self.evidence_weights[:-1]],
            array(self.biases[:-1]),
            shares,
        )


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
        logits = []
        for k, (first, bias, second) in enumerate(self._layers):
            evidence = torch.cat([data.probabilities[k], data.confidences[k], q[:k].T], dim=1)
            logits.append(torch.relu(evidence @ first + bias) @ second + self.offsets[k])
        return torch.softmax(torch.stack(logits), dim=0)


def train_scores(
    records: ExitRecords, costs: ExitCosts, budget: float, options: LearningOptions, seed: int
) -> LearnedScore:
    """Learn scores and assignment together; of all turns of all restarts, the best on the records is kept."""
    best: LearnedScore | None = None
    best_value = -math.inf
    with _learning():
        data = _Evidence(records)
        for restart in range(options.restarts):
            for scores, shares in _turns(data, costs, budget, options, seed + restart):
                candidate = scores.frozen(shares)
                value = _value(candidate, records, costs, budget)
                if value > best_value:
                    best, best_value = candidate, value
    assert best is not None, "there is at least one restart, and one turn in it"
    return best


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


def _turns(
    data: _Evidence, costs: ExitCosts, budget: float, options: LearningOptions, seed: int
) -> Iterator[tuple[_Scores, Floats]]:
    """Scores and shares after every third turn and the last."""
    scores = _Scores(data)
    assignment = _Assignment(data, options.hidden_factor, _start(costs, budget), _generator(seed))
    score_optimiser = torch.optim.AdamW(scores.parameters(), lr=options.score_rate, weight_decay=options.weight_decay)
    assignment_optimiser = torch.optim.Adam(assignment.parameters(), lr=options.assignment_rate)
    turns = max(1, options.epochs // (2 * options.turn))
    for turn in range(turns):
        with torch.no_grad():
            r = assignment(data, torch.sigmoid(scores(data)))
        for _ in range(options.turn):
            losses = functional.binary_cross_entropy_with_logits(scores(data), data.worth, reduction="none")
            _step(score_optimiser, (losses * r).sum() / data.samples)
        with torch.no_grad():
            q = torch.sigmoid(scores(data))
        for _ in range(options.turn):
            _step(assignment_optimiser, _assignment_loss(assignment(data, q), q, costs, budget, options))
        if turn % 3 == 2 or turn == turns - 1:
            yield scores, _mean_shares(assignment(data, q))


def _assignment_loss(r: Tensor, q: Tensor, costs: ExitCosts, budget: float, options: LearningOptions) -> Tensor:
    target = q / q.sum(dim=0)
    divergence = (r * (torch.log(r.clamp(min=1e-12)) - torch.log(target.clamp(min=1e-12)))).sum(dim=0).mean()
    c = torch.from_numpy(np.array(costs.values)).float()
    overspend = (r.mean(dim=1) @ c - min(budget, costs[-1])).abs() / budget
    return options.kl_weight * divergence + options.cost_weight * overspend


def _value(score: LearnedScore, records: ExitRecords, costs: ExitCosts, budget: float) -> float:
    table = ScoreTable.of(score, records, costs)
    assert score.shares is not None
    exits = table.exits(table.meet(budget, tilted_shares(score.shares, costs.values)))
    return float(records.require_utility()[exits, np.arange(len(exits))].mean())


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


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu", requires_grad=True)


def _uniform(shape: tuple[int, ...], limit: float, generator: torch.Generator) -> Tensor:
    values = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return ((values * 2 - 1) * limit).requires_grad_()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
