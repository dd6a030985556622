"""Schedulers as scikit-learn's estimators are: parameters, clones, equality, pickles, and files that keep them."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

import eenet
from eenet.errors import FileFormatError, InvalidInputError
from eenet.scheduler import (
    EERO,
    SCHEDULERS,
    ZTW,
    Ensemble,
    ExitHistory,
    Scheduler,
    Score,
    Static,
    ThresholdPolicy,
    replay,
)
from eenet.testing import toy_costs, toy_records

# Toy records often give nothing to learn, and then a scheduler says what it does in place of it.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")

QUICK: dict[str, Any] = {"turns": 1, "target": "right", "weight_decay": 1e-4}
CHANGED: dict[str, Scheduler] = {
    "eenet": eenet.EENet(seed=3, **QUICK),
    "stopping": eenet.OptimalStopping(seed=2, prices=20),
    "searched": eenet.SearchedThresholds("entropy"),
    "eero": EERO((0.1, 1.0)),
    "static": Static(1),
    "max_prob": eenet.MaxProbability(),
    "ztw": ZTW(),
    "base": Scheduler("patience", "shared"),
}
EACH = pytest.mark.parametrize("scheduler", CHANGED.values(), ids=list(CHANGED))


def test_schedulers_are_instances_of_their_classes() -> None:
    assert isinstance(eenet.EENet(), eenet.EENet)
    assert isinstance(eenet.EENet(), Scheduler)
    assert not isinstance(eenet.MaxProbability(), eenet.EENet)
    for make in SCHEDULERS.values():
        assert type(make()) is make


def test_repr_shows_parameters_that_are_not_the_defaults_and_the_budget() -> None:
    assert repr(eenet.EENet()) == "EENet()"
    assert repr(eenet.EENet(seed=3)) == "EENet(seed=3)"
    assert repr(Static(1)) == "Static(exit_index=1)"
    fitted = eenet.MaxProbability().fit(toy_records(100), toy_costs(), "60%")
    assert repr(fitted) == "<MaxProbability() fitted: budget=1.8 ms, 3 exits>"
    assert repr(eenet.MaxProbability().fit(toy_records(100), toy_costs())).startswith(
        "<MaxProbability() fitted: any budget"
    )


@EACH
def test_parameters_go_out_and_in(scheduler: Scheduler) -> None:
    parameters = scheduler.get_params()
    assert type(scheduler)(**parameters) == scheduler
    assert type(scheduler)(**parameters).get_params() == parameters


def test_set_params_changes_all_or_nothing() -> None:
    scheduler = eenet.EENet()
    assert scheduler.set_params(seed=4, turns=2) is scheduler
    assert scheduler == eenet.EENet(seed=4, turns=2)
    with pytest.raises(InvalidInputError, match=r"EENet has no parameter 'epochs'; it has \['cost_weight'"):
        scheduler.set_params(seed=5, epochs=3)
    with pytest.raises(InvalidInputError, match=r"EENet\(turns=0\)"):
        scheduler.set_params(seed=5, turns=0)
    with pytest.raises(InvalidInputError, match="seed is 'a', expected a whole number from 0 on"):
        scheduler.set_params(seed="a")
    assert scheduler == eenet.EENet(seed=4, turns=2)
    searched = eenet.SearchedThresholds().set_params(score="entropy")
    assert searched.name == "SearchedThresholds(entropy)"
    records = toy_records(100)
    expected = eenet.SearchedThresholds("entropy").fit(records, toy_costs(), 2.0)
    assert searched.fit(records, toy_costs(), 2.0) == expected


@EACH
def test_scikit_learn_can_clone_it(scheduler: Scheduler) -> None:
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    fitted = type(scheduler)(**scheduler.get_params()).fit(toy_records(100), toy_costs(), 2.0)
    copy = base.clone(fitted)
    assert copy is not fitted
    assert copy == scheduler
    assert "fitted" not in repr(copy)


@EACH
def test_equal_fits_are_equal_and_others_are_not(scheduler: Scheduler) -> None:
    make, parameters = type(scheduler), scheduler.get_params()
    records, costs = toy_records(120), toy_costs()
    one, same = (make(**parameters).fit(records, costs, 2.0) for _ in range(2))
    assert one == same
    assert one != make(**parameters)
    assert one != Scheduler("margin")
    assert one.at(2.5) != one
    assert one.at(2.0) == one
    every = make(**parameters).fit(records, costs)
    assert every == make(**parameters).fit(records, costs)
    assert one.policy == same.policy
    assert hash(one.policy) == hash(same.policy)
    assert one.table == same.table
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


@pytest.mark.parametrize("scheduler", [*CHANGED.values(), eenet.EENet(turns=1)], ids=[*CHANGED, "eenet, several ways"])
def test_pickles_decide_the_same_and_can_be_asked_for_other_budgets(scheduler: Scheduler) -> None:
    # As many samples as any of them needs to learn: from fewer it is a simple rule that is pickled.
    fitted = type(scheduler)(**scheduler.get_params()).fit(toy_records(220), toy_costs(), 2.0)
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    assert again == fitted
    assert again.at(2.5) == fitted.at(2.5)
    assert pickle.loads(pickle.dumps(scheduler)) == scheduler  # noqa: S301


@EACH
def test_a_file_keeps_class_and_parameters_and_the_loaded_one_can_be_fitted_again(
    scheduler: Scheduler, tmp_path: Path
) -> None:
    fitted = type(scheduler)(**scheduler.get_params()).fit(toy_records(120), toy_costs(), 2.0)
    fitted.save(tmp_path / "s.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
    assert type(loaded) is type(scheduler)
    assert loaded == fitted
    assert repr(loaded) == repr(fitted)
    others = toy_records(150, seed=5)
    again = loaded.fit(others, toy_costs(), 2.2)
    assert again == type(scheduler)(**scheduler.get_params()).fit(others, toy_costs(), 2.2)


def test_a_parameter_may_be_a_number_of_numpy(tmp_path: Path) -> None:
    records = toy_records(120)
    fitted = Static(records.accuracies[:2].argmax()).fit(records, toy_costs())  # type: ignore[arg-type]
    fitted.save(tmp_path / "s.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
    assert loaded == fitted
    assert type(loaded.get_params()["exit_index"]) is int


def test_a_given_score_is_kept_too(tmp_path: Path) -> None:
    records = toy_records(200)
    score = eenet.EENet(**QUICK).fit(records, toy_costs(), 2.0).policy.score
    fitted = Scheduler(score, "searched").fit(records, toy_costs(), 2.0)
    fitted.save(tmp_path / "s.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
    assert loaded == fitted
    assert loaded.fit(records, toy_costs(), 2.4) == Scheduler(score, "searched").fit(records, toy_costs(), 2.4)


def _rewritten(path: Path, change: dict[str, Any], *drop: str) -> None:

    with safe_open(path, "np") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    header = {n: v for n, v in json.loads(metadata["header"]).items() if n not in drop} | change
    save_file(arrays, path, metadata | {"header": json.dumps(header)})


def test_a_file_without_parameters_loads_and_says_why_it_cannot_be_fitted_again(tmp_path: Path) -> None:
    records, path = toy_records(100), tmp_path / "s.safetensors"
    for scheduler, kind in ((eenet.SearchedThresholds("entropy"), eenet.SearchedThresholds), (Static(1), Static)):
        fitted = scheduler.fit(records, toy_costs(), 2.0)
        fitted.save(path)
        _rewritten(path, {}, "class", "parameters")
        loaded = eenet.load_scheduler(path)
        assert type(loaded) is kind
        assert loaded.policy == fitted.policy
        for refused in (loaded, loaded.at(2.5)):
            with pytest.raises(
                InvalidInputError, match="without its parameters and cannot be fitted again; make a new"
            ):
                refused.fit(records, toy_costs(), 2.0)
    fitted.save(path)
    _rewritten(path, {"name": "mine"}, "class", "parameters")
    assert eenet.load_scheduler(path).name == "mine"
    assert eenet.load_scheduler(path).policy == fitted.policy


def test_a_class_that_is_not_imported_can_still_decide(tmp_path: Path) -> None:
    fitted = eenet.MaxProbability().fit(toy_records(100), toy_costs(), 2.0)
    fitted.save(tmp_path / "s.safetensors")
    _rewritten(tmp_path / "s.safetensors", {"class": "Elsewhere", "name": "Elsewhere"})
    loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
    assert loaded.policy == fitted.policy
    assert loaded.name == "Elsewhere"
    with pytest.raises(InvalidInputError, match="of a class 'Elsewhere' that is not imported here"):
        loaded.fit(toy_records(100), toy_costs(), 2.0)
    _rewritten(tmp_path / "s.safetensors", {"class": "EENet", "parameters": {"epochs": 3}})
    with pytest.raises(FileFormatError, match="has parameters that EENet does not take"):
        eenet.load_scheduler(tmp_path / "s.safetensors")


def test_a_new_method_is_one_class_for_the_score_and_one_for_the_scheduler(tmp_path: Path) -> None:
    class SecondProbability(Score):
        name = "second_probability"
        whole_samples = True

        def __call__(self, history: ExitHistory) -> Any:
            return -np.sort(history.evidence[-1].probabilities, axis=1)[:, -2].astype(np.float64)

    class Second(Scheduler):
        def __init__(self, *, seed: int = 0) -> None:
            super().__init__("second_probability", "geometric", seed=seed)

    fitted = Second(seed=1).fit(toy_records(200), toy_costs(), 2.0)
    assert fitted.calibration_cost <= 2.0
    assert repr(Second(seed=1)) == "Second(seed=1)"
    fitted.save(tmp_path / "s.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "s.safetensors")
    assert loaded.replay(toy_records(50)) == fitted.replay(toy_records(50))
    assert isinstance(loaded.policy.score, SecondProbability)
    assert eenet.SearchedThresholds("second_probability").fit(toy_records(100), toy_costs(), 2.0).policy


def test_what_is_printed_is_short_and_readable() -> None:
    records = toy_records(5000)
    fitted = eenet.MaxProbability().fit(records, toy_costs(), "60%")
    assert len(repr(fitted.replay(records))) < 150
    assert repr(fitted.replay(records)).startswith("Decisions(5000 samples, accuracy=0.")
    assert len(repr(fitted.table)) < 100
    inner = fitted.policy.thresholds
    shown = ", ".join(f"{1 / (1 + np.exp(-t)):.4g}" for t in inner)
    assert repr(fitted.policy) == f"ThresholdPolicy('max_prob', [{shown}], 5 classes)"
    assert "[off, off]" in repr(fitted.at(3.0).policy)
    one = fitted.replay(records)
    assert one == fitted.replay(records)
    assert hash(one) == hash(fitted.replay(records))
    assert one != fitted.at(2.5).replay(records)


def test_neither_fitting_nor_deciding_imports_torch(tmp_path: Path) -> None:
    program = (
        "import sys, warnings, eenet\n"
        "warnings.simplefilter('ignore')\n"
        "from eenet.testing import toy_costs, toy_records\n"
        "for make in eenet.scheduler.SCHEDULERS.values():\n"
        "    scheduler = make().fit(toy_records(samples=80), toy_costs(), '60%')\n"
        f"    scheduler.save({str(tmp_path / 's')!r})\n"
        f"    eenet.BudgetController(eenet.load_scheduler({str(tmp_path / 's')!r})).observe([0, 1])\n"
        "assert 'torch' not in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith(('eenet.models', 'eenet.stages'))]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_parameter_given_as_a_list_is_equal_after_loading(tmp_path: Path) -> None:
    betas: Any = [0.1, 1.0]
    scheduler = EERO(betas=betas).fit(toy_records(200), toy_costs(), budget="70%")
    scheduler.save(tmp_path / "s.safetensors")
    assert eenet.load_scheduler(tmp_path / "s.safetensors") == scheduler


@pytest.mark.parametrize("seed", ["a", -1, 1.5, None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"seed is {seed!r}, expected a whole number from 0 on"):
        eenet.OptimalStopping(seed=seed)
    assert eenet.EENet(seed=np.int64(3)) == eenet.EENet(seed=3)


class TestAbstractScores:
    def test_a_score_must_score(self) -> None:
        class Nothing(Score):
            pass

        with pytest.raises(TypeError, match="abstract method"):
            Nothing()  # type: ignore[abstract]

    def test_an_ensemble_answers_only_for_samples_that_exit(self) -> None:
        asked = []

        class Last(Ensemble):
            def __call__(self, history: ExitHistory) -> NDArray[np.float64]:
                return history.evidence[-1].max_probability

            def answers(self, history: ExitHistory) -> NDArray[np.float32]:
                asked.append(len(history.evidence[-1]))
                return history.evidence[-1].probabilities.astype(np.float32)

        records = toy_records(40, exits=3, classes=4)
        policy = ThresholdPolicy(Last(), np.array([2.0, 0.6]), np.ones(2, dtype=np.bool_), 4)
        decisions = replay(policy, records, toy_costs(3))
        counts = np.bincount(decisions.exits, minlength=3)
        assert counts[0] == 0
        assert min(counts[1:]) > 0
        assert asked == counts[1:].tolist()
        best = np.stack([records.evidence(k, np.arange(40)).probabilities.argmax(axis=1) for k in range(3)])
        np.testing.assert_array_equal(decisions.predictions, best[decisions.exits, np.arange(40)])
