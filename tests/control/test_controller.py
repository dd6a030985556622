"""The budget controller: what it holds whatever the traffic does, and what it never does."""

from __future__ import annotations

import json
import pickle
import re
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

import eenet
from eenet.control import Alternation, Pacer
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError, InfeasibleBudgetError, InvalidInputError, NotFittedError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler import Scheduler, ThresholdPolicy, replay
from eenet.testing import toy_costs, toy_logits, toy_records
from networks import table_model

ROOT = Path(__file__).resolve().parents[2]
Ints = NDArray[np.intp]


@cache
def toy(exits: int = 3, seed: int = 0) -> Scheduler:
    """A scheduler for all budgets; costs are 1, 2, ..., K ms."""
    return eenet.MaxProbability().fit(
        toy_records(1500, exits=exits, classes=4, seed=seed), toy_costs(exits), fallback=False
    )


class Stream:
    """Where samples drawn from records exit under each policy of a scheduler, also under those that quotas derive."""

    def __init__(self, records: ExitRecords) -> None:
        self.records = records
        self._taken: dict[int, tuple[ThresholdPolicy, Ints]] = {}

    def exits(self, policy: ThresholdPolicy, samples: Ints) -> Ints:
        """Exits of these samples."""
        if id(policy) not in self._taken:
            self._taken[id(policy)] = policy, replay(policy, self.records, toy_costs(policy.num_exits)).exits
        taken: Ints = self._taken[id(policy)][1][samples]
        return taken

    def follow(self, controller: eenet.BudgetController, samples: Ints, batch: int) -> Ints:
        """Send samples through in batches; all exits, in order."""
        taken = []
        for start in range(0, len(samples), batch):
            taken.append(self.exits(controller.policy, samples[start : start + batch]))
            controller.observe(taken[-1])
        return np.concatenate(taken)


def running_error(costs: NDArray[np.float64], budget: float, start: int) -> float:
    """The largest distance of the running mean from the budget, relative, from some sample on."""
    running = np.cumsum(costs) / np.arange(1, len(costs) + 1)
    return float(np.abs(running[start - 1 :] / budget - 1).max())


def odds_stream(hard: NDArray[np.bool_], samples: int, odds: tuple[float, ...], rng: np.random.Generator) -> Ints:
    """A stream in equal phases; in each the hard samples are `odds` times as likely as the others."""
    phases = []
    for ratio in odds:
        weights = np.where(hard, ratio, 1.0)
        phases.append(rng.choice(len(hard), samples // len(odds), p=weights / weights.sum()))
    return np.concatenate(phases)


@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("odds", [(1.0,), (1.0, 3.0), (3.0, 1 / 3)], ids=["random", "harder", "switched"])
def test_the_running_mean_cost_keeps_to_the_budget(batch: int, odds: tuple[float, ...]) -> None:
    records = toy_records(2000, classes=4, seed=1)
    stream, rng = Stream(records), np.random.default_rng(0)
    for budget in ("50%", "75%"):
        controller = eenet.BudgetController(toy(), budget)
        samples = odds_stream(records.require_utility().sum(axis=0) < 3, 6000, odds, rng)
        exits = stream.follow(controller, samples, batch)
        costs = toy_costs().values[exits]
        assert running_error(costs, controller.budget, 2000) < 0.01
        assert controller.samples == 6000
        assert controller.mean_cost == pytest.approx(costs.mean())


REAL = ["agnews-minilm", "sst2-minilm"]


def real_halves(name: str, shared: Path | None) -> Iterator[tuple[ExitRecords, ExitRecords, eenet.ExitCosts]]:
    if shared is None:
        folder = ROOT / "results" / name
        costs = json.loads((folder / "costs.json").read_text(encoding="utf-8"))["costs"]["cpu_ms"][0]
        calibration, fresh = (ExitRecords.load(folder / f"{part}.safetensors") for part in ("calibration", "test"))
        yield calibration, fresh, eenet.ExitCosts(costs)
        return
    with np.load(shared / "predictions" / f"{name}.npz", allow_pickle=False) as data:
        records = ExitRecords.from_probabilities(data["val_probs"], data["val_labels"])
        yield (*records.split(0.5, seed=0), eenet.ExitCosts(data["costs"]))


@pytest.mark.parametrize("name", [*REAL, "cifar10_resnet56_3", "sst2_minilm_3"])
def test_real_traffic_costs_the_budget_at_the_accuracy_of_hindsight(name: str, request: pytest.FixtureRequest) -> None:
    shared = None if name in REAL else request.getfixturevalue("shared")
    if shared is not None and not (shared / "predictions" / f"{name}.npz").is_file():
        pytest.skip(f"needs predictions/{name}.npz of the shared material, which is not there")
    for calibration, fresh, costs in real_halves(name, shared):
        scheduler = eenet.MaxProbability().fit(calibration, costs, fallback=False)
        utility = fresh.require_utility()
        taken = np.stack([replay(policy, fresh, costs).exits for policy in scheduler.table.policies])
        row = {id(policy): i for i, policy in enumerate(scheduler.table.policies)}
        hard = utility.sum(axis=0) < fresh.num_exits
        behind = []
        for seed, odds in enumerate([(1.0, 1.0), (1.0, 1.0), (3.0, 1 / 3), (3.0, 1 / 3)]):
            samples = odds_stream(hard, 8000, odds, np.random.default_rng(seed))
            controller = eenet.BudgetController(scheduler, "60%")
            exits = np.empty(8000, dtype=np.intp)
            for start in range(0, 8000, 8):
                now = slice(start, start + 8)
                exits[now] = taken[row[id(controller.policy)], samples[now]]
                controller.observe(exits[now])
            assert running_error(costs.values[exits], controller.budget, 2000) < 0.01
            best = []  # the fixed policies that cost the budget in each half of the stream
            for half in (samples[:4000], samples[4000:]):
                spent = costs.values[taken[:, half]].mean(axis=1)
                right = utility[taken[:, half], half].mean(axis=1)
                order = np.argsort(spent)
                best.append(np.interp(controller.budget, spent[order], right[order]))
            behind.append(np.mean(best) - utility[exits, samples].mean())
        assert np.mean(behind) < 0.003


@pytest.mark.filterwarnings("ignore:all 60 samples are of class:eenet.errors.ReliabilityWarning")
def test_any_mean_cost_can_be_held_where_there_are_only_two_policies() -> None:
    one = toy_records(1)
    scheduler = eenet.MaxProbability().fit(one.subset(np.zeros(60, dtype=int)), toy_costs(), fallback=False)
    assert len(np.unique(scheduler.table.planned_costs)) <= 3
    for budget in (1.1, 1.5, 2.3, 2.9):
        controller = eenet.BudgetController(scheduler, budget)
        Stream(one).follow(controller, np.zeros(3000, dtype=int), 4)
        assert controller.mean_cost == pytest.approx(budget, rel=0.002)


@given(
    batches=st.lists(
        st.tuples(st.integers(1, 400), st.integers(0, 2**31 - 1), st.sampled_from(["first", "last", "any", "costs"])),
        min_size=1,
        max_size=60,
    ),
    budget=st.floats(1.0, 3.0),
    limits=st.booleans(),
)
@settings(max_examples=50)
def test_whatever_is_observed_policies_stay_within_the_table_and_state_is_finite(
    batches: list[tuple[int, int, str]], budget: float, limits: bool
) -> None:
    quotas: dict[str, Any] = {"floor": [0.05, 0.0, 0.0], "ceiling": [1.0, 1.0, 0.9]} if limits else {}
    controller = eenet.BudgetController(toy(), budget, **quotas)
    total = 0
    for size, seed, kind in batches:
        rng = np.random.default_rng(seed)
        if kind == "costs":
            controller.observe_costs(rng.random(size) * 1e6)
        else:
            low, high = {"first": (0, 1), "last": (2, 3), "any": (0, 3)}[kind]
            controller.observe(rng.integers(low, high, size))
        total += size
        policy = controller.policy
        assert limits or any(policy is known for known in toy().table.policies)
        assert policy.score is toy().table.policies[0].score
    assert controller.samples == total
    state = controller.state()
    json.dumps(state, allow_nan=False)
    assert 1.0 <= controller.mean_cost <= 1e6
    assert controller.drift().p_value <= 1


@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=80),
    cut=st.floats(0, 1),
    seed=st.integers(0, 2**31 - 1),
    limits=st.booleans(),
    pickled=st.booleans(),
)
@settings(max_examples=40)
def test_a_restored_controller_goes_on_as_if_it_had_never_stopped(
    sizes: list[int], cut: float, seed: int, limits: bool, pickled: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    quotas: dict[str, Any] = {"floor": [0.0, 0.0, 0.1], "ceiling": [1.0, 0.3, 1.0]} if limits else {}
    folder = tmp_path_factory.mktemp("controller")
    scheduler = toy()
    scheduler.save(folder / "s.safetensors")
    loaded = eenet.load_scheduler(folder / "s.safetensors")
    stream, rng = Stream(toy_records(500, classes=4, seed=2)), np.random.default_rng(seed)
    whole = eenet.BudgetController(scheduler, "55%", horizon=50, **quotas)
    parted = eenet.BudgetController(scheduler, "55%", horizon=50, **quotas)
    for i, size in enumerate(sizes):
        if i == int(cut * len(sizes)):
            if pickled:
                parted = pickle.loads(pickle.dumps(parted))  # noqa: S301
            else:
                parted.save(folder / "c.json")
                parted = eenet.BudgetController.load(loaded, folder / "c.json")
            assert parted.state() == whole.state()
        assert parted.policy.thresholds.tolist() == whole.policy.thresholds.tolist()
        assert parted.policy.enabled.tolist() == whole.policy.enabled.tolist()
        exits = stream.exits(whole.policy, rng.integers(0, 500, size))
        whole.observe(exits)
        parted.observe(exits)
    assert parted.state() == whole.state()
    assert parted.drift() == whole.drift()
    assert repr(parted) == repr(whole)


def test_threads_lose_no_sample() -> None:
    controller = eenet.BudgetController(toy(), "60%", floor=[0.1, 0.0, 0.1])
    stream = Stream(toy_records(500, classes=4, seed=3))
    for policy in toy().table.policies:
        stream.exits(policy, np.arange(1))
    spent, failed = [0.0] * 8, []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            for _ in range(400):
                policy = controller.policy
                exits = stream.exits(policy, rng.integers(0, 500, 8))
                controller.observe(exits, policy)
                spent[number] += toy_costs().values[exits].sum()
                assert 1 <= controller.mean_cost <= 3
                controller.drift()
                if number == 0:
                    json.dumps(controller.state())
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert controller.samples == 8 * 400 * 8
    assert controller.mean_cost == pytest.approx(sum(spent) / controller.samples, rel=1e-12)
    assert controller.mean_cost == pytest.approx(controller.budget, rel=0.01)


@given(
    exits=st.integers(2, 4),
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 30),
    where=st.floats(0.0, 1.0),
    tight=st.floats(0.0, 1.0),
)
@settings(max_examples=40)
def test_floors_and_ceilings_hold_on_the_running_counts(
    exits: int, seed: int, batch: int, where: float, tight: float
) -> None:
    rng = np.random.default_rng(seed)
    center = rng.dirichlet(np.ones(exits))
    floor, ceiling = tight * center, 1 - tight * (1 - center)
    smallest = floor.copy()
    for k in range(exits):
        smallest[k] += min(1 - smallest.sum(), ceiling[k] - floor[k])
    lowest = float(smallest @ toy_costs(exits).values)
    budget = lowest + where * (exits - lowest) + 1e-6
    horizon = 40.0
    controller = eenet.BudgetController(
        toy(exits), min(budget, exits), horizon=horizon, floor=floor.tolist(), ceiling=ceiling.tolist()
    )
    stream = Stream(toy_records(300, exits=exits, classes=4, seed=4))
    taken = stream.follow(controller, rng.integers(0, 300, 900), batch)
    one_hot = np.eye(exits)[taken]
    counts = np.vstack([np.zeros(exits), np.cumsum(one_hot, axis=0)])[::batch]
    seen = np.arange(0, len(taken) + 1)[::batch, None]
    slack = exits * batch + 1e-6
    assert (counts >= floor * seen - slack).all()
    assert (counts <= ceiling * seen + slack).all()
    # And in any stretch, since nothing is saved up beyond the horizon.
    length = 300 // batch
    within = counts[length:] - counts[:-length]
    assert (within >= floor * (length * batch) - horizon - 2 * slack).all()
    assert (within <= ceiling * (length * batch) + horizon + 2 * slack).all()


def test_a_floor_is_kept_where_no_policy_would_and_the_budget_with_it() -> None:
    stream, rng = Stream(toy_records(1000, classes=4, seed=5)), np.random.default_rng(0)
    plain = eenet.BudgetController(toy(), "45%")
    shares = np.bincount(stream.follow(plain, rng.integers(0, 1000, 4000), 8), minlength=3) / 4000
    assert shares[2] < 0.12
    floored = eenet.BudgetController(toy(), "50%", floor=[0, 0, 0.2], ceiling=[1, 0.05, 1])
    shares = np.bincount(stream.follow(floored, rng.integers(0, 1000, 4000), 8), minlength=3) / 4000
    assert shares[2] > 0.195
    assert shares[1] < 0.055
    assert floored.mean_cost == pytest.approx(1.5, rel=0.01)


def test_what_could_not_be_spent_for_long_is_not_paid_back_for_long() -> None:
    controller = eenet.BudgetController(toy(), 2.0, horizon=100)
    for _ in range(2000):
        controller.observe([0] * 10)  # nothing the controller does makes this traffic cost more
    stream, rng = Stream(toy_records(1000, classes=4, seed=6)), np.random.default_rng(0)
    exits = stream.follow(controller, rng.integers(0, 1000, 6000), 10)
    costs = toy_costs().values[exits]
    assert costs[:1000].mean() > 2.1
    assert costs[3000:].mean() == pytest.approx(2.0, rel=0.02)


def test_another_budget_starts_a_new_account() -> None:
    controller = eenet.BudgetController(toy(), "80%")
    assert np.isnan(controller.mean_cost)
    assert repr(controller) == "BudgetController(budget=2.4 ms, nothing observed)"
    stream, rng = Stream(toy_records(1000, classes=4, seed=7)), np.random.default_rng(0)
    stream.follow(controller, rng.integers(0, 1000, 3000), 8)
    controller.set_budget("1.5ms")
    assert (controller.budget, controller.samples) == (1.5, 0)
    stream.follow(controller, rng.integers(0, 1000, 3000), 8)
    assert controller.mean_cost == pytest.approx(1.5, rel=0.01)
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible budget is 1 ms"):
        controller.set_budget(0.2)
    assert controller.budget == 1.5
    assert re.search(r"mean cost 1\.(49|50)\d* of 3000 samples", repr(controller))


@pytest.mark.filterwarnings("ignore::eenet.errors.FallbackWarning")
def test_where_a_simple_rule_is_as_good_for_less_no_more_is_spent() -> None:
    logits, labels = toy_logits(900)
    logits[0] *= 5  # sure of itself
    logits[2] = logits[1]  # as good, for twenty times the cost
    records, costs = ExitRecords.from_logits(logits, labels), ExitCosts([0.1, 0.5, 10.0])
    scheduler = eenet.MaxProbability().fit(records, costs)
    controller = eenet.BudgetController(scheduler, 3.0)
    for _ in range(50):
        controller.observe(replay(controller.policy, records, costs).exits[:20])
    assert controller.mean_cost == pytest.approx(scheduler.at(3.0).planned_cost, rel=0.05)
    assert controller.mean_cost <= 0.55
    assert controller.budget == 3.0
    again = eenet.BudgetController.restore(scheduler, json.loads(json.dumps(controller.state())))
    assert (again.budget, again.policy) == (3.0, controller.policy)
    again.set_budget(0.3)
    assert again.budget == 0.3
    older = {name: value for name, value in controller.state().items() if name != "budget"}
    assert eenet.BudgetController.restore(scheduler, older).policy == controller.policy


def test_costs_that_were_measured_count_in_place_of_those_of_the_exits() -> None:
    # The machine has become slower by a fifth: the same money buys less.
    controller = eenet.BudgetController(toy(), 2.0)
    stream, rng = Stream(toy_records(1000, classes=4, seed=8)), np.random.default_rng(0)
    for _ in range(800):
        exits = stream.exits(controller.policy, rng.integers(0, 1000, 8))
        controller.observe_costs(1.2 * toy_costs().values[exits])
    assert controller.mean_cost == pytest.approx(2.0, rel=0.01)
    assert controller.drift().samples == 0


def test_drift_is_silent_on_traffic_like_calibration_and_hears_of_a_change() -> None:
    pool, costs = toy_records(1000, classes=4, seed=9), toy_costs()
    stream = Stream(pool)
    alarms, draws, level = 0, 20, 0.1
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        scheduler = eenet.MaxProbability().fit(pool.subset(rng.integers(0, 1000, 200)), costs, fallback=False)
        controller = eenet.BudgetController(scheduler, "60%", false_alarms=level)
        stream.follow(controller, rng.integers(0, 1000, 3000), 8)
        alarms += controller.drift().alarm
    # Of 20 draws at 10 %, more than 5 would be seen once in 90 runs of a test whose draws were not fixed.
    assert alarms <= 5

    controller = eenet.BudgetController(toy(), "60%")
    rng = np.random.default_rng(0)
    stream.follow(controller, rng.integers(0, 1000, 4000), 8)
    quiet = controller.drift()
    assert not quiet.alarm
    assert quiet.samples == 4000
    assert quiet.shares == pytest.approx(quiet.planned, abs=0.05)
    hard = pool.require_utility().sum(axis=0) < 3
    stream.follow(controller, odds_stream(hard, 4000, (20.0,), rng), 8)
    loud = controller.drift()
    assert loud.alarm
    assert loud.p_value <= 0.01
    assert loud.alarm_at is not None
    assert 4000 < loud.alarm_at < 7000
    controller.restart_drift()
    fresh = controller.drift()
    assert (fresh.samples, fresh.shares, fresh.alarm, fresh.p_value) == (0, None, False, 1.0)


def test_drift_needs_to_know_where_the_calibration_records_left(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    eenet.MaxProbability().fit(toy_records(200), toy_costs(), "60%").save(path)
    with safe_open(path, "np") as file:  # as files of earlier versions are
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    save_file({n: a for n, a in arrays.items() if n not in ("table.shares", "table.samples")}, path, metadata)
    controller = eenet.BudgetController(eenet.load_scheduler(path))
    controller.observe([0, 1, 2])
    assert controller.mean_cost == 2.0
    with pytest.raises(InvalidInputError, match="saved without the exit shares of its policies"):
        controller.drift()


def test_a_table_says_where_the_records_left_and_files_keep_it(tmp_path: Path) -> None:
    records, costs = toy_records(400), toy_costs()
    guaranteed = eenet.MaxProbability().fit(records, costs, guarantee=0.9)
    within = eenet.OptimalStopping().fit(toy_records(1500, classes=4), costs, max_accuracy_drop=0.1)
    for scheduler in (eenet.OptimalStopping().fit(records, costs), guaranteed, within):
        table = scheduler.table
        assert table.shares is not None
        np.testing.assert_allclose(table.shares.sum(axis=1), 1)
        assert 100 < table.samples <= 1500
        assert (table.shares @ costs.values <= table.planned_costs * (1 + 1e-9)).all()
        scheduler.save(tmp_path / "s.safetensors")
        loaded = eenet.load_scheduler(tmp_path / "s.safetensors").table
        assert loaded.samples == table.samples
        np.testing.assert_array_equal(loaded.shares, table.shares)


def test_samples_of_a_policy_of_somebody_else_count_for_the_cost_only() -> None:
    controller = eenet.BudgetController(toy(), 2.0)
    before = controller.policy
    controller.observe([2] * 50, toy(3, seed=1).table.policies[0])
    assert controller.samples == 50
    assert controller.mean_cost == 3.0
    assert controller.drift().samples == 0
    assert controller.policy is not before  # what was spent too much is paid back all the same


def test_a_batch_of_nothing_changes_nothing() -> None:
    controller = eenet.BudgetController(toy(), 2.0)
    state = controller.state()
    controller.observe([])
    controller.observe(torch.empty(0, dtype=torch.int64))
    controller.observe_costs([])
    assert controller.state() == state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 1}, "horizon=1: expected a number of samples, 10 or more"),
        ({"horizon": float("nan")}, "horizon=nan"),
        ({"false_alarms": 0}, "false_alarms=0: expected a probability between 0 and 1"),
        ({"floor": [0.5, 0.5]}, r"floor=\[0.5, 0.5\]: expected 3 shares from 0 to 1"),
        ({"ceiling": [0.5, 0.5, 2]}, "ceiling=.*: expected 3 shares"),
        ({"floor": "many"}, "floor='many'"),
        ({"floor": [0.5, 0.4, 0.3]}, "add up to 1.2, more than all samples"),
        ({"ceiling": [0.5, 0.2, 0.1]}, "add up to 0.8: some samples could not exit"),
        ({"floor": [0, 0.4, 0], "ceiling": [1, 0.3, 1]}, "exit 1 has the floor 0.4 and the ceiling 0.3"),
        ({"floor": [0, 0, 0.6]}, "cannot be kept with these floors and ceilings; the smallest that can is 2.2 ms"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        eenet.BudgetController(toy(), 2.0, **options)


@pytest.mark.parametrize("exits", [[3], [-1], [0.5], [[0, 1]], ["first"], [True]])
def test_exits_that_are_none_are_refused_and_nothing_is_counted(exits: Any) -> None:
    controller = eenet.BudgetController(toy(), 2.0)
    with pytest.raises(InvalidInputError, match="expected a list of whole numbers from 0 to 2"):
        controller.observe(exits)
    with pytest.raises(InvalidInputError, match="expected a list of finite numbers"):
        controller.observe_costs([1.0, float("nan")])
    assert controller.samples == 0


def test_a_scheduler_must_be_fitted_and_brings_its_budget() -> None:
    with pytest.raises(NotFittedError, match=r"call fit\(records, costs"):
        eenet.BudgetController(eenet.MaxProbability(), "60%")
    with pytest.raises(NotFittedError, match=r"choose one with \.at\(budget\)"):
        eenet.BudgetController(toy())
    assert eenet.BudgetController(toy().at("60%")).budget == pytest.approx(1.8)


def test_the_state_of_something_else_is_refused(tmp_path: Path) -> None:
    state = eenet.BudgetController(toy(), 2.0).state()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"format": "eenet.records"}, "of 'eenet.records', expected 'eenet.controller'"),
        ({"schema": 99}, "schema 99, this eenet reads up to 1"),
        ({"scheduler": "0"}, "of another scheduler"),
        ({"pacer": {}}, "lacks 'budget'"),
        ({"owed": [0.0]}, "is damaged"),
        ({"drift": 3}, "is damaged"),
        ({"samples": float("inf")}, "is damaged"),
    ]
    for change, message in wrong:
        with pytest.raises(FileFormatError, match=message):
            eenet.BudgetController.restore(toy(), state | change)
    with pytest.raises(FileFormatError, match="of another scheduler"):
        eenet.BudgetController.restore(toy(3, seed=1), state)
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "expected an object; save the controller"),
    ):
        (tmp_path / "c.json").write_text(text, encoding="utf-8")
        with pytest.raises(FileFormatError, match=message):
            eenet.BudgetController.load(toy(), tmp_path / "c.json")
    with pytest.raises(InvalidInputError, match="it is not there"):
        eenet.BudgetController.load(toy(), tmp_path / "none.json")


@given(batch=st.integers(1, 17), budget=st.floats(1.0, 3.0), seed=st.integers(0, 1000), limits=st.booleans())
@settings(max_examples=25)
def test_the_runtime_goes_by_the_controller_and_tells_it(batch: int, budget: float, seed: int, limits: bool) -> None:
    logits = np.random.default_rng(seed).normal(size=(3, 120, 4)).astype(np.float32) * 2
    records = ExitRecords.from_logits(logits)
    quotas = {"ceiling": [1.0, 0.2, 1.0]} if limits else {}
    controller = eenet.BudgetController(toy(), budget, **quotas)  # type: ignore[arg-type]
    fast = eenet.AdaptiveModel(table_model(3, 4), controller)
    x = torch.from_numpy(logits.transpose(1, 0, 2).reshape(120, -1).copy())
    taken = []
    for start in range(0, 120, batch):
        policy = controller.policy
        rows = np.arange(start, min(start + batch, 120))
        out = fast(x[start : start + batch])
        np.testing.assert_array_equal(out.exits.numpy(), replay(policy, records.subset(rows), toy_costs()).exits)
        taken.append(out.exits.numpy())
    fast(x[:0])
    assert controller.samples == 120
    assert controller.mean_cost == pytest.approx(toy_costs().values[np.concatenate(taken)].mean())
    with pytest.raises(InvalidInputError, match="fitted for 3 exits and 4 classes, the model has 2 exits"):
        eenet.AdaptiveModel(table_model(2, 4), controller)


@given(
    planned=st.lists(st.floats(1, 10), min_size=1, max_size=8, unique=True).map(sorted),
    where=st.floats(0, 1),
    batch=st.integers(1, 50),
)
def test_alternation_means_what_was_aimed_at(planned: list[float], where: float, batch: int) -> None:
    aim = planned[0] + where * (planned[-1] - planned[0])
    between = Alternation(planned)
    total = 0.0
    for turn in range(1, 200):
        step = between.choose(aim, batch)
        between.served(batch, aim, step)
        total += planned[step]
        assert abs(total - turn * aim) <= np.diff(planned).max(initial=0) / 2 + 1e-6


@given(offset=st.floats(-0.4, 0.4), slope=st.floats(0.5, 1.5), batch=st.sampled_from([1, 10, 100, 1000, 5000]))
def test_pacing_settles_without_swinging_for_any_batch(offset: float, slope: float, batch: int) -> None:
    pacer = Pacer(2.0, 1.0, 3.0, horizon=200)
    debts = []
    for _ in range(max(20, 6000 // batch)):
        planned = pacer.aim
        pacer.observe(batch, 2 + offset + slope * (planned - 2), planned)
        debts.append(pacer.debt)
    assert pacer.aim == pytest.approx(2 - offset / slope, abs=0.02)
    assert abs(debts[-1]) < 0.2 * max(np.abs(debts).max(), 1.0)


def test_observing_takes_microseconds() -> None:
    controller = eenet.BudgetController(toy(), "60%")
    batches = np.random.default_rng(0).integers(0, 3, (2000, 32))
    start = time.process_time()
    for exits in batches:
        controller.observe(exits)
    spent = (time.process_time() - start) / len(batches)
    print(f"observe, a batch of 32: {1e6 * spent:.0f} us of CPU time")
    assert spent < 1e-3


@given(seed=st.integers(0, 60))
@settings(max_examples=10, deadline=None)
@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")
def test_no_row_is_taken_that_a_later_one_beats(seed: int) -> None:
    scheduler = eenet.Patience().fit(toy_records(120, seed=seed, exits=4), ExitCosts([1.0, 1.5, 6.0, 11.0]), "60%")
    rows = scheduler.table.frontier
    accuracies = [row.accuracy or 0.0 for row in rows]
    number = {id(policy): row for row, policy in enumerate(scheduler.table.policies)}
    for budget in scheduler.table.budgets.tolist():
        taken = number[id(eenet.BudgetController(scheduler, budget).policy)]
        beaten = [
            later
            for later in range(taken + 1, len(rows))
            if rows[later].planned_cost < rows[taken].planned_cost * (1 - 1e-6)
            and accuracies[later] >= accuracies[taken]
        ]
        assert not beaten


def test_only_a_scheduler_is_taken() -> None:
    wrong: Any = toy_records()
    with pytest.raises(InvalidInputError, match="scheduler is an ExitRecords, expected a fitted scheduler"):
        eenet.BudgetController(wrong)


def test_a_scheduler_with_a_promise_cannot_be_held_and_says_so() -> None:
    promised = eenet.MaxProbability().fit(
        toy_records(1500), toy_costs(), max_accuracy_drop=0.02, guarantee=0.9, fallback=False
    )
    with pytest.warns(ReliabilityWarning, match=r"has one policy, for which something was promised.*fit again"):
        eenet.BudgetController(promised)
    with pytest.raises(InfeasibleBudgetError, match=r"alone; fit again for another"):
        promised.at(promised.budget * 0.9)
