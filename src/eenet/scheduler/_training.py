"""How EENet's exit scores and exit assignment are learned (EENet, section 3.3), in turns, with torch."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from eenet.costs import ExitCosts
from eenet.records import ExitRecords
from eenet.scheduler._learned import NUM_CONFIDENCES, TIE_WEIGHT, LearnedScore, LearningOptions, confidences
from eenet.scheduler._policy import Floats
from eenet.scheduler._thresholds import ScoreTable, tilted_shares


class _Evidence:
    """The records as tensors: probabilities (K, N, C), confidences (K, N, 3), what each exit is worth (K, N)."""

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
        self.class_weights = torch.zeros(k, c, requires_grad=True)
        self.evidence_weights = [torch.zeros(NUM_CONFIDENCES + j, requires_grad=True) for j in range(k)]
        self.biases = torch.zeros(k, requires_grad=True)
        with torch.no_grad():
            for weights in self.evidence_weights:
                weights[:NUM_CONFIDENCES] = torch.tensor([2.0, 1.0, 1.0])
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
            first = (torch.rand(width, hidden, generator=generator) * 2 - 1).mul_(scale).requires_grad_()
            bias = (torch.rand(hidden, generator=generator) * 2 - 1).mul_(scale).requires_grad_()
            second = (torch.rand(hidden, generator=generator) * 2 - 1).div_(math.sqrt(hidden)).requires_grad_()
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
    data = _Evidence(records)
    best: LearnedScore | None = None
    best_value = -math.inf
    for restart in range(options.restarts):
        for scores, shares in _turns(data, costs, budget, options, seed + restart):
            candidate = scores.frozen(shares)
            value = _value(candidate, records, costs, budget)
            if value > best_value:
                best, best_value = candidate, value
    assert best is not None, "options.epochs and options.restarts are at least 1"
    return best


def train_shares(
    table: ScoreTable, records: ExitRecords, costs: ExitCosts, budget: float, options: LearningOptions, seed: int
) -> Floats:
    """Learn the assignment alone for given scores: the shares p_k = mean_n r_nk, (K,)."""
    data = _Evidence(records)
    # Any score becomes a target in [0, 1] by its rank; the last exit, which needs no score, counts as sure.
    ranks = table.scores.argsort(axis=1).argsort(axis=1) / max(1, table.samples - 1)
    q = torch.from_numpy(np.concatenate([ranks, np.ones((1, table.samples))])).float()
    assignment = _Assignment(data, options.hidden_factor, _start(costs, budget), _generator(seed))
    optimiser = torch.optim.Adam(assignment.parameters(), lr=options.assignment_rate)
    for _ in range(max(1, options.epochs // 2)):
        _step(optimiser, _assignment_loss(assignment(data, q), q, costs, budget, options))
    return _mean_shares(assignment(data, q))


def _turns(  # type: ignore[no-untyped-def]
    data: _Evidence, costs: ExitCosts, budget: float, options: LearningOptions, seed: int
):
    scores = _Scores(data)
    assignment = _Assignment(data, options.hidden_factor, _start(costs, budget), _generator(seed))
    score_optimiser = torch.optim.AdamW(
        scores.parameters(), lr=options.score_rate, weight_decay=options.weight_decay
    )
    assignment_optimiser = torch.optim.Adam(assignment.parameters(), lr=options.assignment_rate)
    for turn in range(max(1, options.epochs // (2 * options.turn))):
        with torch.no_grad():
            r = assignment(data, torch.sigmoid(scores(data)))
        for _ in range(options.turn):
            losses = F.binary_cross_entropy_with_logits(scores(data), data.worth, reduction="none")
            _step(score_optimiser, (losses * r).sum() / data.samples)
        with torch.no_grad():
            q = torch.sigmoid(scores(data))
        for _ in range(options.turn):
            _step(assignment_optimiser, _assignment_loss(assignment(data, q), q, costs, budget, options))
        if turn % 3 == 2 or turn == options.epochs // (2 * options.turn) - 1:
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
    return shares / shares.sum()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
