"""Values that hold arrays: equality, hashes, pickles, and representations of a line."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import eenet
from eenet import ExitRecords, errors
from eenet.evaluation import Bound, compare
from eenet.scheduler import ExitHistory, Score
from eenet.tasks import Evidence
from eenet.testing import toy_costs, toy_logits, toy_records


def dataclasses_with_arrays() -> Iterator[Any]:
    for module in pkgutil.walk_packages(eenet.__path__, "eenet."):
        if module.name == "eenet.__main__":
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            here = isinstance(cls, type) and cls.__module__ == module.name
            if here and dataclasses.is_dataclass(cls) and any(holds_arrays(hint) for hint in compared_types(cls)):
                yield cls


def compared_types(cls: Any) -> list[Any]:
    """The types of the fields that are compared; as text where a name is known to type checkers only."""
    names = [field.name for field in dataclasses.fields(cls) if field.compare]
    try:
        hints = typing.get_type_hints(cls)
    except NameError:
        hints = {field.name: field.type for field in dataclasses.fields(cls)}
    return [hints[name] for name in names]


def holds_arrays(hint: Any) -> bool:
    if isinstance(hint, str):
        return "NDArray" in hint or "Tensor" in hint
    if typing.get_origin(hint) is np.ndarray or hint is np.ndarray or getattr(hint, "__name__", "") == "Tensor":
        return True
    return any(holds_arrays(part) for part in typing.get_args(hint))


def test_no_dataclass_compares_its_arrays_with_the_methods_that_dataclass_makes() -> None:
    pytest.importorskip("torch")  # all modules are imported
    wrong = [
        f"{cls.__module__}.{cls.__qualname__}"
        for cls in dataclasses_with_arrays()
        if cls.__dataclass_params__.eq and cls.__eq__.__module__ != "eenet._values"
    ]
    assert not wrong, "these need @array_value above @dataclass"


def evidence() -> Evidence:
    logits, _ = toy_logits(samples=20, nonfinite=0.2)
    return Evidence.from_logits(logits[1], [Evidence.from_logits(logits[0])])


@pytest.mark.parametrize(
    "value",
    [
        toy_costs(),
        toy_records(samples=50),
        evidence(),
        Bound(accuracy=0.5, cost=1.0),
        compare(toy_records(60), toy_costs(), ["max_prob"], [2.0], resplits=1),
        eenet.MaxProbability().fit(toy_records(60), toy_costs(), "60%").policy,
        eenet.MaxProbability().fit(toy_records(60), toy_costs(), "60%").replay(toy_records(60)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_equals_its_copies_and_is_shown_in_a_line(value: Any) -> None:
    for again in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):  # noqa: S301
        assert again == value
        assert hash(again) == hash(value)
    assert value != "another type"
    assert value in [value]
    assert "\n" not in repr(value)
    assert len(repr(value)) < 500


def test_evidence_is_equal_where_outputs_are_whatever_was_asked_of_it() -> None:
    one, other = evidence(), evidence()
    assert one.entropy.shape == (20,)
    assert one == other
    assert one.take(np.arange(10), []) != one
    assert repr(one) == "Evidence(20 samples, 5 classes, after 1 exits)"


def test_schedulers_with_a_learned_score_of_one_s_own_are_compared_by_its_arrays() -> None:
    @dataclasses.dataclass(frozen=True)  # whose own == raises for arrays
    class Learned(Score):
        bias: Any

        def __call__(self, history: ExitHistory) -> Any:
            return history.evidence[-1].log_odds + self.bias[history.exit_index]

    one, same, other = (
        eenet.Scheduler(Learned(np.arange(3.0) + n)).fit(toy_records(), toy_costs(), 2.0, fallback=False)
        for n in (0, 0, 1)
    )
    assert one == same
    assert one != other


def test_nan_is_equal_to_nan() -> None:
    logits, labels = toy_logits(samples=50, nonfinite=0.5)
    assert ExitRecords.from_logits(logits, labels) == ExitRecords.from_logits(logits.copy(), labels)


def test_representations_stay_short_however_many_samples_there_are() -> None:
    records = toy_records(samples=5000)
    fitted = eenet.MaxProbability().fit(records, toy_costs(), "60%", fallback=False)
    for value in (records, fitted.policy, fitted.replay(records), records.all_evidence()[0]):
        assert len(repr(value)) < 500
        assert "\n" not in repr(value)


@pytest.mark.parametrize(
    "error",
    [
        errors.InfeasibleBudgetError("too small", smallest=1.5),
        errors.OverloadedError("full", retry_after=0.5),
        *(
            kind("said")
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, errors.EENetError) and "__init__" not in vars(kind)
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_pass_from_process_to_process(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
