"""What a server keeps of recent traffic, with a clock that the tests move."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from serving_toys import scripted_policy

import eenet
from eenet.serving.engine import WIDTH, Recent, Request
from eenet.testing import toy_costs, toy_records

COSTS = eenet.ExitCosts([1.0, 2.0, 4.0])
POLICY = scripted_policy(3)
SHOWN = POLICY.score.readable


def answered(exits: list[int], *, scores: dict[int, Any] | None = None) -> Request:
    request = Request(1, len(exits), 0.0, POLICY)
    request.answer(list(range(len(exits))), 0, np.zeros((len(exits), 2), dtype=np.float32))
    request.exits[:] = exits
    request.scores.update(scores or {})
    return request


@given(st.lists(st.tuples(st.floats(0, 900), st.lists(st.integers(0, 2), min_size=1, max_size=5)), max_size=40))
def test_points_have_all_samples_of_the_last_ten_minutes_of_traffic(steps: list[tuple[float, list[int]]]) -> None:
    now = 1e9
    recent = Recent(COSTS, clock=lambda: now)
    all_exits = []
    for wait, exits in steps:
        now += wait
        recent.add([answered(exits)], 2.5)
        all_exits += exits
    points = recent.to_dict()["points"]
    assert sum(point["samples"] for point in points) == len(all_exits)
    spent = sum(point["samples"] * point["mean_cost"] for point in points)
    assert abs(spent - sum(COSTS.values[all_exits])) < 1e-6
    times = [point["time"] for point in points]
    assert times == sorted(set(times))
    assert all(time % WIDTH == 0 for time in times)
    assert all(abs(sum(point["exit_shares"]) - 1) < 1e-9 for point in points)


def test_samples_without_an_answer_count_in_the_cost_alone() -> None:
    recent = Recent(COSTS, clock=lambda: 0.0)
    recent.add_unanswered(np.array([2, 2]), 2.0)
    (point,) = recent.to_dict()["points"]
    assert (point["samples"], point["exit_shares"], point["mean_cost"]) == (0, [0.0, 0.0, 0.0], 4.0)
    recent.add([answered([0, 1])], 2.0)
    (point,) = recent.to_dict()["points"]
    assert (point["samples"], point["exit_shares"], point["mean_cost"]) == (2, [0.5, 0.5, 0.0], (4 + 4 + 1 + 2) / 4)


def test_a_clock_that_is_set_back_begins_new_points() -> None:
    now = 0.0
    recent = Recent(COSTS, clock=lambda: now)
    for time in (10_000.0, 10_005.0, 10_004.0, 100.0, 105.0, 110.0):
        now = time
        recent.add([answered([0])], 2.0)
    assert [(point["time"], point["samples"]) for point in recent.to_dict()["points"]] == [(100, 1), (105, 1), (110, 1)]
    now = 109.9  # by less than a point: none is lost
    recent.add([answered([0])], 2.0)
    assert [point["samples"] for point in recent.to_dict()["points"]] == [1, 1, 2]


def test_only_so_many_points_and_samples_are_kept() -> None:
    now = 0.0
    recent = Recent(COSTS, clock=lambda: now)
    for number in range(300):
        now = WIDTH * number
        recent.add([answered([0], scores={0: np.array([float(number)])})], 2.0)
    kept = recent.to_dict()
    assert len(kept["points"]) == 120
    assert kept["points"][-1]["time"] == WIDTH * 299
    assert [one["scores"] for one in kept["samples"]] == [[SHOWN(float(299 - n))] for n in range(40)]


def test_scores_that_are_not_finite_or_of_exits_that_are_off_are_left_out() -> None:
    recent = Recent(COSTS)
    recent.add([answered([2, 1], scores={0: np.array([np.nan, 2.0]), 1: np.array([-np.inf, 9.0])})], 2.0)
    assert [one["scores"] for one in recent.to_dict()["samples"]] == [[None, SHOWN(9.0)], [None, SHOWN(2.0)]]
    assert recent.to_dict()["samples"][0]["thresholds"] == [SHOWN(5.0), SHOWN(5.0)]


def test_what_a_network_says_without_a_number_has_no_probability() -> None:
    recent = Recent(COSTS)
    request = answered([2], scores={0: np.array([1.0, 2.0])})
    assert request.logits is not None
    request.logits[:] = np.nan
    recent.add([request], 2.0)
    assert recent.to_dict()["samples"][0]["probability"] is None


def test_scores_are_on_the_scale_that_answers_have() -> None:
    policy = eenet.MaxProbability().fit(toy_records(), toy_costs(), budget=2.0).policy
    request = Request(1, 1, 0.0, policy)
    request.answer([0], 1, np.zeros((1, 3), dtype=np.float32))
    request.scores[0] = np.array([0.3, 1.5])
    recent = Recent(COSTS)
    recent.add([request], 2.0)
    (sample,) = recent.to_dict()["samples"]
    assert sample["scores"] == [policy.score.readable(0.3), policy.score.readable(1.5)]
    assert all(0 <= value <= 1 for value in [*sample["scores"], *sample["thresholds"]]), "probabilities"
