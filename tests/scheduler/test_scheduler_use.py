"""Schedulers in use: fitted once, the same for a seed, saved and loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eenet
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError, NotFittedError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler import (
    SCHEDULERS,
    SCORES,
    DecisionState,
    Scheduler,
    Static,
)
from eenet.tasks import Evidence
from eenet.testing import toy_costs, toy_logits, toy_records

# Where toy records give nothing to learn, optimal stopping says that it falls back on the simple rule.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")

QUICK: dict[str, Any] = {"turns": 1, "target": "right", "weight_decay": 1e-4}
MAKERS: dict[str, Callable[[], Scheduler]] = {
    "EENet": lambda: eenet.EENet(**QUICK),
    "MaxProbability": eenet.MaxProbability,
    "Entropy": eenet.Entropy,
    "Patience": eenet.Patience,
    "SearchedThresholds": eenet.SearchedThresholds,
    "Static": lambda: Static(1),
    "OptimalStopping": eenet.OptimalStopping,
    "learned score, geometric": lambda: Scheduler("learned", "geometric"),
    "learned score, searched": lambda: Scheduler("learned", "searched"),
    "entropy, learned shares": lambda: Scheduler("entropy", "learned"),
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))


@EACH
def test_the_same_seed_gives_the_same_thresholds(make: Callable[[], Scheduler]) -> None:
    records = toy_records(samples=300)
    first, second = make().fit(records, toy_costs(), 2.0), make().fit(records, toy_costs(), 2.0)
    np.testing.assert_array_equal(first.policy.thresholds, second.policy.thresholds)
    np.testing.assert_array_equal(first.policy.enabled, second.policy.enabled)
    assert (first.planned_cost, first.calibration_cost) == (second.planned_cost, second.calibration_cost)


@EACH
def test_a_loaded_scheduler_decides_the_same(make: Callable[[], Scheduler], tmp_path: Path) -> None:
    calibration, fresh = toy_records(samples=300), toy_records(samples=500, seed=1, nonfinite=0.05)
    costs = ExitCosts([1.0, 2.0, 3.0], "cpu_ms", batch_size=4, device={"cpu": "toy"}, includes=("heads",))
    scheduler = make().fit(calibration, costs, 2.0)
    path = tmp_path / "scheduler.safetensors"
    scheduler.save(path)
    loaded = eenet.load_scheduler(path)
    np.testing.assert_array_equal(loaded.replay(fresh).exits, scheduler.replay(fresh).exits)
    np.testing.assert_array_equal(loaded.policy.thresholds, scheduler.policy.thresholds)
    assert loaded.costs == costs
    assert (loaded.budget, loaded.planned_cost, loaded.calibration_cost) == (
        scheduler.budget,
        scheduler.planned_cost,
        scheduler.calibration_cost,
    )
    assert repr(loaded) == repr(scheduler)
    loaded.save(path)
    np.testing.assert_array_equal(eenet.load_scheduler(path).replay(fresh).exits, scheduler.replay(fresh).exits)
    assert type(loaded) is type(scheduler)
    assert loaded == scheduler
    again = loaded.fit(calibration, costs, 2.0)
    np.testing.assert_array_equal(again.policy.thresholds, scheduler.policy.thresholds)


def test_importing_eenet_is_quick_and_brings_nothing_along() -> None:
    program = (
        "import sys, time\n"
        "start = time.process_time()\n"
        "import eenet\n"
        "print(time.process_time() - start)\n"
        "heavy = {'torch', 'torchvision', 'timm', 'transformers', 'typer', 'rich', 'matplotlib', 'onnxruntime',\n"
        "         'ray', 'lightning', 'mlxtend', 'sklearn', 'scipy', 'pandas', 'hypothesis', 'pytest'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


@EACH
def test_before_fit_there_is_nothing_to_use(make: Callable[[], Scheduler], tmp_path: Path) -> None:
    scheduler = make()
    assert "fitted" not in repr(scheduler)
    uses: list[Callable[[], object]] = [
        lambda: scheduler.policy,
        lambda: scheduler.costs,
        lambda: scheduler.budget,
        lambda: scheduler.calibration_cost,
        lambda: scheduler.replay(toy_records(samples=5)),
        lambda: scheduler.save(tmp_path / "x"),
    ]
    for use in uses:
        with pytest.raises(NotFittedError, match=r"is not fitted: call fit"):
            use()
    assert not list(tmp_path.iterdir())


def test_a_failed_fit_leaves_the_fitted_scheduler_as_it_was() -> None:
    records = toy_records(samples=100)
    scheduler = eenet.MaxProbability().fit(records, toy_costs(), 2.0)
    before = scheduler.policy
    with pytest.raises(InvalidInputError):
        scheduler.fit(records, toy_costs(), 0.5)
    assert scheduler.policy is before
    assert scheduler.budget == 2.0


@EACH
def test_records_of_other_exits_or_classes_are_refused(make: Callable[[], Scheduler]) -> None:
    scheduler = make().fit(toy_records(samples=60), toy_costs(), 2.0)
    with pytest.raises(InvalidInputError, match=r"fitted for 3 exits and 5 classes, the records have 4 exits and 5"):
        scheduler.replay(toy_records(samples=10, exits=4))
    with pytest.raises(InvalidInputError, match=r"the records have 3 exits and 7 classes; fit it on"):
        scheduler.replay(toy_records(samples=10, classes=7))


def test_a_route_refuses_evidence_of_another_number_of_samples() -> None:
    policy = eenet.MaxProbability().fit(toy_records(samples=60), toy_costs(), 2.0).policy
    with pytest.raises(InvalidInputError, match=r"evidence of 3 samples, 4 are running"):
        DecisionState(policy, 4).observe(Evidence.from_logits(toy_logits(samples=3)[0][0]))


def test_without_labels_costs_are_known_and_accuracy_is_not() -> None:
    logits, labels = toy_logits(samples=80)
    labeled, unlabeled = ExitRecords.from_logits(logits, labels), ExitRecords.from_logits(logits)
    scheduler = eenet.MaxProbability().fit(unlabeled, toy_costs(), 2.0)
    np.testing.assert_array_equal(scheduler.replay(unlabeled).exits, scheduler.replay(labeled).exits)
    with pytest.raises(InvalidInputError, match=r"have no labels, so there is no accuracy; costs and"):
        _ = scheduler.replay(unlabeled).accuracy
    with pytest.raises(InvalidInputError, match=r"have no labels: pass labels=\.\.\. when making them"):
        eenet.EENet(**QUICK).fit(unlabeled, toy_costs(), 2.0)


def test_the_last_exit_is_always_on_and_exits_are_off_by_a_flag() -> None:
    records = toy_records(samples=100)
    scheduler = eenet.MaxProbability().fit(records, toy_costs(), 3.0)
    assert not scheduler.policy.enabled.any()
    assert np.isfinite(scheduler.policy.thresholds).all()
    sure = np.zeros((3, 4, 5), dtype=np.float32)
    sure[:, :, 0] = 1e30
    assert (scheduler.replay(ExitRecords.from_logits(sure)).exits == 2).all()
    assert [scheduler.policy.observes(k) for k in range(3)] == [False, False, True]


def test_the_registry_holds_the_schedulers_that_take_a_budget() -> None:
    known = "beem eenet eero entropy gate margin max_prob patience searched stopping temperature voting ztw"
    assert sorted(SCHEDULERS) == known.split()
    assert all(isinstance(make(), Scheduler) for make in SCHEDULERS.values())


def test_a_fitted_score_can_be_used_with_another_assignment() -> None:
    records = toy_records(samples=300)
    score = eenet.EENet(**QUICK).fit(records, toy_costs(), 2.0, fallback=False).policy.score
    assert isinstance(score, SCORES["learned"])
    for assignment in ("geometric", "searched", "learned"):
        scheduler = Scheduler(score, assignment).fit(records, toy_costs(), 1.7, fallback=False)
        assert scheduler.calibration_cost <= 1.7
        assert scheduler.policy.score is score


def test_calibration_records_of_one_class_are_said_to_be() -> None:
    records = toy_records(samples=200)
    assert records.labels is not None
    rows = np.flatnonzero(records.labels == 3)
    with pytest.warns(ReliabilityWarning, match=rf"all {len(rows)} samples are of class 3: .* other 4 classes"):
        eenet.MaxProbability().fit(records.subset(rows), toy_costs(), 2.0)
    few = records.subset(rows[:5])  # by chance
    assert eenet.MaxProbability().fit(few, toy_costs(), 2.0).planned_cost <= 2.0


def test_records_and_costs_of_another_type_are_refused_with_the_way_out() -> None:
    records = toy_records()
    with pytest.raises(InvalidInputError, match=r"costs are a list, expected ExitCosts: write ExitCosts"):
        eenet.MaxProbability().fit(records, [1.0, 2.0, 3.0], budget=2.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="records are an ndarray, expected ExitRecords"):
        eenet.MaxProbability().fit(records.probabilities, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0)  # type: ignore[arg-type]
