"""`search`: what it promises holds on fresh samples, and what it chooses is what is best."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eenet
from eenet.errors import InfeasibleBudgetError, InvalidInputError
from eenet.evaluation import SearchResult
from eenet.testing import toy_costs, toy_logits, toy_records

Candidates = dict[str, eenet.ExitRecords]


def network(labels: np.ndarray, rng: np.random.Generator, signal: float, classes: int = 4) -> eenet.ExitRecords:
    """A plain network whose errors are its own."""
    logits = rng.normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += signal
    return eenet.ExitRecords.from_logits((signal * logits).astype(np.float32), labels)


def both(seed: int, signals: dict[str, float], samples: int, fresh: int = 4000) -> tuple[Candidates, Candidates]:
    """Candidates on calibration samples and on fresh ones."""
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 4, samples), rng.integers(0, 4, fresh)]
    first, second = ({name: network(y, rng, s) for name, s in signals.items()} for y in parts)
    return first, second


def members(seed: int = 0, samples: int = 900) -> Candidates:
    """A network of two exits, a plain one that is better, a copy of that, and one that is worse than the first."""
    logits, labels = toy_logits(samples=samples, seed=seed)
    small = eenet.ExitRecords.from_logits(logits[:2], labels)
    big, copy, bad = (eenet.ExitRecords.from_logits(logits[k]) for k in (2, 2, 0))
    return {"small": small, "big": big, "copy": copy, "bad": bad}


COSTS: dict[str, eenet.ExitCosts | float] = {"small": eenet.ExitCosts([1.0, 2.0]), "big": 9.0, "copy": 9.5, "bad": 3.0}


@pytest.fixture(scope="module")
def found() -> SearchResult:
    return eenet.search(members(), COSTS, ["15%", "60%", "100%"])


def test_searching_many_equal_candidates_gains_nothing() -> None:
    promised, gains, naive = [], [], []
    for seed in range(80):
        known, fresh = both(seed, dict.fromkeys("abcdefgh", 1.0), samples=240)
        costs: dict[str, eenet.ExitCosts | float] = {name: 1 + 0.01 * number for number, name in enumerate(known)}
        best = eenet.search(known, costs, [1.2], max_members=1).at(1.2)
        real = best.replay(fresh).accuracy
        promised.append(best.accuracy - real)
        naive.append(max(one.accuracies[0] for one in known.values()) - real)
        gains.append(best.gains["runner_up"].mean)
    assert np.mean(naive) > 0.03, "the best of eight on the samples that chose it looks much better than it is"
    for values in (promised, gains):
        assert np.mean(values) < 2.5 * np.std(values) / math.sqrt(len(values)), "beyond chance"
    assert abs(np.mean(promised)) < 0.01


def test_cascades_are_promised_what_fresh_samples_give() -> None:
    promised, spent = [], []
    for seed in range(12):
        known, fresh = both(seed, {"a": 1.0, "b": 1.0, "c": 1.8}, samples=300)
        result = eenet.search(
            known, {"a": 1.0, "b": 1.1, "c": 4.0}, [1.5, 3.0], scheduler=eenet.MaxProbability(), max_members=3
        )
        decided = [(system, system.replay(fresh)) for system in result.frontier]
        promised.append(np.mean([system.accuracy - decisions.accuracy for system, decisions in decided]))
        spent += [decisions.mean_cost / system.budget for system, decisions in decided]
        assert all(system.cost <= system.budget * 1.000001 for system in result.frontier)
    assert np.mean(promised) < 2.5 * np.std(promised) / math.sqrt(len(promised)), "beyond chance"
    assert abs(np.mean(promised)) < 0.03
    assert np.mean(spent) < 1.02


def test_the_best_system_of_each_budget(found: SearchResult) -> None:
    low, middle, high = found.frontier
    assert (low.kind, low.members) == ("exits", ("small",)), "too little for the big one"
    assert (middle.kind, middle.members) == ("cascade", ("small", "big"))
    assert middle.certain
    assert high.accuracy >= 0.925, "the big one has 0.936"
    assert found.plain == "big"
    assert middle.gains["plain"].other_cost == 9
    assert middle.gains["static"].other == "small, exit 1"
    assert middle.gains["static"].mean > 5 * middle.gains["static"].standard_error > 0


def test_its_scheduler_is_that_of_a_fit_to_the_cascade(found: SearchResult) -> None:
    best, known = found.at("60%"), members()
    records = eenet.ExitRecords.cascade([known["small"], known["big"]])
    costs = eenet.ExitCosts.cascade([eenet.ExitCosts([1.0, 2.0]), 9.0])
    fitted = eenet.OptimalStopping().fit(records, costs, 5.4)
    assert best.costs == costs
    assert np.array_equal(best.replay(known).exits, fitted.replay(records).exits)
    fresh = best.replay(members(seed=1))
    assert abs(fresh.accuracy - best.accuracy) < 4 * best.accuracy_error
    assert fresh.mean_cost == pytest.approx(5.4, rel=0.1)


def test_a_scheduler_is_saved_and_a_plain_network_has_none(found: SearchResult, tmp_path: Path) -> None:
    best = found.at("60%")
    best.save(tmp_path / "best.safetensors")
    loaded = eenet.load_scheduler(tmp_path / "best.safetensors")
    fresh = members(seed=1)
    assert np.array_equal(loaded.replay(best.records(fresh)).exits, best.replay(fresh).exits)
    plain = eenet.search({"big": members()["big"]} | {"small": members()["small"]}, {"big": 0.5, "small": toy_costs(2)})
    only = plain.at("100%")
    assert (only.kind, only.scheduler) == ("plain network", None)
    decisions = only.replay(fresh)
    assert decisions.accuracy == pytest.approx(float((fresh["big"].predictions[0] == fresh["small"].labels).mean()))
    assert decisions.mean_cost == 0.5
    with pytest.raises(InvalidInputError, match="plain network 'big': there is no scheduler"):
        only.save(tmp_path / "none.safetensors")


def test_candidates_that_others_make_useless_are_dropped_and_told(found: SearchResult) -> None:
    notes = " ".join(found.notes)
    assert "bad is dropped: less accurate at no lower cost" in notes
    assert "copy is dropped: the same answers at no lower cost" in notes
    assert {one["name"] for one in found.to_dict()["dropped"]} == {"bad", "copy"}
    known, _ = both(0, dict.fromkeys("ab", 1.0), samples=300)
    assert not eenet.search(known, {"a": 1.0, "b": 1.1}).notes, "that one is worse by chance is no reason"


def test_a_network_without_its_exits_is_a_member_of_its_own() -> None:
    logits, labels = toy_logits(samples=600)
    candidates = {
        "small": eenet.ExitRecords.from_logits(logits[:2], labels),
        "plain": eenet.ExitRecords.from_logits(logits[1]),
        "big": eenet.ExitRecords.from_logits(logits[2]),
    }
    costs: dict[str, eenet.ExitCosts | float] = {
        "small": eenet.ExitCosts([1.0, 4.0], plain=2.0),
        "plain": 2.0,
        "big": 9.0,
    }
    found = eenet.search(candidates, costs, [5.0])
    assert not found.to_dict()["dropped"]  # the same answers as the small network's for as much, but not in a cascade
    assert "plain + big" in {one["name"] for one in found.to_dict()["systems"]}
    costs["plain"] = 4.5
    assert "plain" in {one["name"] for one in eenet.search(candidates, costs, [5.0]).to_dict()["dropped"]}


def test_one_candidate_is_allowed_and_told() -> None:
    result = eenet.search({"net": toy_records()}, {"net": toy_costs()}, ["50%"])
    assert result.notes == ("There is one candidate: the search is among its exits alone.",)
    assert result.frontier[0].kind == "exits"
    alone = eenet.search({"net": members()["small"].first_exits(1)}, {"net": 3.0})
    assert [system.kind for system in alone.frontier] == ["plain network"]
    assert "runner_up" not in alone.frontier[0].gains


def test_neither_the_order_of_candidates_nor_repeated_labels_matter(found: SearchResult) -> None:
    known = members()
    labels = known["small"].labels
    turned = {
        name: eenet.ExitRecords(known[name].probabilities, known[name].predictions, labels)
        for name in ("small", "bad", "copy", "big")
    }
    again = eenet.search(turned, COSTS, ["15%", "60%", "100%"])
    assert [system.to_dict() for system in again.frontier] == [system.to_dict() for system in found.frontier]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.5, 20), min_size=2, max_size=5), st.integers(0, 99), st.floats(1.0, 3.0))
def test_no_system_is_above_its_budget(costs: list[float], seed: int, share: float) -> None:
    known, _ = both(seed, {str(n): 0.5 + n / 2 for n in range(len(costs))}, samples=40, fresh=4)
    of_each: dict[str, eenet.ExitCosts | float] = dict(zip(known, costs, strict=True))
    result = eenet.search(known, of_each, [min(costs) * share], max_members=1)
    best = result.frontier[0]
    assert best.cost <= best.budget * 1.000001
    assert best.costs[0] <= best.budget * 1.000001
    assert best.gains["static"].mean == 0, "all are static"


def test_any_budget_can_be_asked_for(found: SearchResult) -> None:
    assert found.at("100%") is found.frontier[-1]
    assert found.at(4.0).cost == pytest.approx(4.0)
    assert found.at(4.0).scheduler is not None
    assert found.at(100.0).accuracy >= found.at(1.0).accuracy
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible budget is 1 ms") as caught:
        found.at(0.5)
    assert caught.value.smallest == 1


def test_the_table_and_json(found: SearchResult, tmp_path: Path) -> None:
    text = str(found)
    assert max(map(len, text.splitlines())) <= 100
    plain = found.to_dict()["plain"]
    said = " ".join(text.split())
    assert f"most accurate candidate by itself, big: {100 * plain['accuracy']:.2f} % at 9 ms" in said
    assert "4 candidates: small, big, copy, bad." in said
    assert "Runner-up: the best system of other members." in said
    assert "small + big" in text
    assert max(map(len, found.to_text(width=80).split("\n\n")[0].splitlines()[1:])) <= 80
    found.save(tmp_path / "found.json")
    read = json.loads((tmp_path / "found.json").read_text())
    assert read == json.loads(json.dumps(found.to_dict(), allow_nan=False))
    curve = next(one for one in read["systems"] if one["members"] == ["small", "big"])
    assert curve["costs"] == sorted(curve["costs"])
    assert len(curve["accuracies"]) == len(curve["costs"])
    assert repr(found) == "SearchResult(small, big, copy, bad; 3 budgets, 900 samples)"


def test_what_to_run_is_said_where_a_gain_may_be_chance(found: SearchResult) -> None:
    said = " ".join(found.to_text().split())
    for system in found.frontier:
        static, second, at = system.gains["static"], system.gains.get("runner_up"), f"{system.budget:.4g}"
        scheduled = system.kind in ("exits", "cascade")
        by_chance = scheduled and static.mean <= 1.64 * static.standard_error
        enough = re.search(
            rf"At ([\d., ]*) ms the gain over {static.other} for all samples may be chance: run that", said
        )
        assert by_chance == (enough is not None and at in enough[1].split(", "))
        unsure = re.search(r"At ([\d., ]*) ms the gain over the runner-up may be chance: take the simpler", said)
        listed = unsure is not None and at in unsure[1].split(", ")
        assert listed == (not by_chance and second is not None and not system.certain)
    records = {"small": toy_records(60).keep_exits([0, 1]), "big": toy_records(50).keep_exits([2])}
    with pytest.raises(InvalidInputError, match=r"candidate 'big' has records of 50 samples, candidate 'small' of 60"):
        found.at("60%").replay(records)
    lone = eenet.search({"big": toy_records(100).keep_exits([2])}, {"big": 9.0})
    assert lone.notes == ("There is one candidate, a plain network: there is nothing to choose.",)
    with pytest.raises(InfeasibleBudgetError, match=r"below what the cheapest system costs, big: the smallest .* 9 ms"):
        lone.at("50%")
    with pytest.raises(InfeasibleBudgetError, match=r"below what the cheapest system costs, small, exit 0: .* 1 ms"):
        found.at("1%")


def test_progress_counts_systems() -> None:
    seen: list[tuple[int, int]] = []
    eenet.search({"net": toy_records()}, {"net": toy_costs()}, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": {}}, "candidates are empty"),
        ({"candidates": [toy_records()]}, "candidates are a list, expected a mapping"),
        ({"costs": {"small": toy_costs(2)}}, "costs are of .'small'.; give the costs of each"),
        ({"costs": {"small": toy_costs(3), "big": 9.0}}, "'small' has 2 exits and costs"),
        ({"costs": {"small": toy_costs(2), "big": -1.0}}, "'big' has 1 exit and costs -1.0"),
        ({"costs": {"small": toy_costs(2), "big": "9"}}, "'big' has 1 exit and costs '9'"),
        ({"costs": {"small": eenet.ExitCosts([1, 2], "flops"), "big": 9.0}, "unit": "ms"}, "give all in one unit"),
        ({"budgets": "60%"}, "budgets are '60%', expected a list"),
        ({"budgets": []}, "budgets are .., expected a list"),
        ({"budgets": [0.5]}, "smallest feasible budget is 1 ms"),
        ({"max_members": 0}, "max_members is 0"),
        (
            {"candidates": {"small": toy_records(exits=2), "big": toy_records(samples=500)}},
            "candidate 'big' has records",
        ),
        ({"candidates": {"small": 1, "big": 2}}, "candidate 'small' is an int, expected ExitRecords"),
    ],
)
def test_what_cannot_be_searched_is_named(change: dict[str, object], message: str) -> None:
    known = members(samples=100)
    arguments: dict[str, object] = {
        "candidates": {name: known[name] for name in ("small", "big")},
        "costs": {"small": toy_costs(2), "big": 9.0},
    }
    with pytest.raises(InvalidInputError, match=message):
        eenet.search(**(arguments | change))  # type: ignore[arg-type]


def test_records_without_labels_or_of_few_samples_are_refused() -> None:
    logits, labels = toy_logits(samples=29)
    with pytest.raises(InvalidInputError, match="no candidate has labels"):
        eenet.search({"net": eenet.ExitRecords.from_logits(logits)}, {"net": toy_costs()})
    with pytest.raises(InvalidInputError, match="29 samples, expected at least 30"):
        eenet.search({"net": eenet.ExitRecords.from_logits(logits, labels)}, {"net": toy_costs()})
