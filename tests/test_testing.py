"""The toy material is what it says: the same for a seed, better at later exits, calibrated, odd where asked."""

from __future__ import annotations

import numpy as np
import pytest

from eenet.errors import InvalidInputError
from eenet.testing import toy_costs, toy_logits, toy_records


def test_the_same_for_a_seed() -> None:
    np.testing.assert_array_equal(toy_logits(seed=3)[0], toy_logits(seed=3)[0])
    assert not np.array_equal(toy_logits(seed=3)[0], toy_logits(seed=4)[0])


def test_later_exits_are_better_and_all_are_calibrated() -> None:
    records = toy_records(20_000, exits=4)
    assert (np.diff(records.accuracies) > 0.05).all()
    sure = records.probabilities.max(axis=2).mean(axis=1)
    np.testing.assert_allclose(sure, records.accuracies, atol=0.01)
    overconfident = toy_records(20_000, exits=4, sharpness=4.0)
    assert (overconfident.probabilities.max(axis=2).mean(axis=1) > overconfident.accuracies + 0.03).all()


def test_oddities_come_in_the_shares_asked_for() -> None:
    broken = toy_records(200, nonfinite=0.25)
    assert np.isnan(broken.probabilities[-1]).any(axis=1).mean() == 0.25
    saturated = toy_records(200, sharpness=1e4).probabilities
    assert np.isin(saturated, (0, 1)).mean() > 0.95
    copied, _ = toy_logits(200, duplicates=0.5)
    assert 80 < len(np.unique(copied[0], axis=0)) < 180
    with pytest.raises(InvalidInputError, match=r"duplicates is 1.5, expected a share from 0 to 1"):
        toy_logits(duplicates=1.5)


def test_a_deceptive_class_is_taken_for_the_next_one_at_the_first_exit() -> None:
    records = toy_records(2000, classes=5, deceptive_class=4)
    theirs = records.labels == 4
    assert (records.predictions[0, theirs] == 0).mean() > 0.6
    assert (records.predictions[2, theirs] == 4).mean() > 0.6


def test_costs_are_one_millisecond_an_exit() -> None:
    assert toy_costs(4).values.tolist() == [1.0, 2.0, 3.0, 4.0]
