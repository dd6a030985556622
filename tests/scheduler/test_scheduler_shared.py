"""Schedulers on the predictions of real networks: resplits of the validation half, the test half left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import eenet
from eenet.costs import ExitCosts
from eenet.records import ExitRecords
from eenet.scheduler import SCHEDULERS, Scheduler

# Where toy records give nothing to learn, optimal stopping says that it falls back on the simple rule.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")

SETS = ["cifar10_resnet56_3", "sst2_minilm_3"]
WHERE = (0.3, 0.6)  # of the way from the first exit's cost to the last one's
SPLITS = 2


@pytest.fixture(params=SETS)
def material(request: pytest.FixtureRequest, shared: Path) -> tuple[ExitRecords, ExitCosts]:
    path = shared / "predictions" / f"{request.param}.npz"
    if not path.is_file():
        pytest.skip(f"needs predictions/{path.name} of the shared material, which is not there")
    with np.load(path, allow_pickle=False) as data:
        return ExitRecords.from_probabilities(data["val_probs"], data["val_labels"]), ExitCosts(data["costs"], "cpu_ms")


def best_mixture(records: ExitRecords, costs: ExitCosts, cost: float) -> float:
    """The accuracy of the best random mixture of two exits at a mean cost."""
    accuracy = records.accuracies
    best = 0.0
    for i in range(len(costs)):
        for j in range(i + 1, len(costs)):
            if costs[i] <= cost <= costs[j]:
                share = (cost - costs[i]) / (costs[j] - costs[i])
                best = max(best, float((1 - share) * accuracy[i] + share * accuracy[j]))
    return best


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")  # the rest of a budget may be left
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=list(SCHEDULERS))
def test_budgets_are_kept_and_thresholds_beat_chance(
    make: Callable[[], Scheduler], material: tuple[ExitRecords, ExitCosts]
) -> None:
    records, costs = material
    overspent, gained = [], []
    for split in range(SPLITS):
        calibration, held_out = records.split(0.5, seed=split)
        for where in WHERE:
            budget = costs[0] + where * (costs[-1] - costs[0])
            scheduler = make().fit(calibration, costs, budget, fallback=False)
            assert scheduler.calibration_cost <= budget * (1 + 1e-12)
            decisions = scheduler.replay(held_out)
            if make in (eenet.SearchedThresholds, eenet.OptimalStopping):  # stop spending where it does not pay
                overspent.append(decisions.mean_cost / scheduler.calibration_cost - 1)
            else:
                one_sample = (costs[-1] - costs[0]) / len(calibration)
                assert scheduler.calibration_cost >= budget - max(1e-3 * budget, one_sample)
                overspent.append(decisions.mean_cost / budget - 1)
            gained.append(decisions.accuracy - best_mixture(held_out, costs, decisions.mean_cost))
    assert abs(np.mean(overspent)) < 0.03
    assert np.mean(gained) > 0
    if make in (eenet.MaxProbability, eenet.EENet):
        assert np.reshape(gained, (SPLITS, -1)).mean(axis=0).min() > 0


def test_a_sample_is_decided_alone_as_among_all(material: tuple[ExitRecords, ExitCosts]) -> None:
    records, costs = material
    for make in SCHEDULERS.values():
        scheduler = make().fit(records, costs, "60%", fallback=False)
        exits = scheduler.replay(records).exits
        for n in range(0, len(records), 101):
            assert scheduler.replay(records.subset([n])).exits[0] == exits[n]
