"""Scores and schedulers of one's own: what a score must give is checked at fit, with messages that say what came."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eenet.errors import InvalidInputError
from eenet.evaluation import compare
from eenet.records import ExitRecords
from eenet.scheduler import SCHEDULERS, Ensemble, ExitHistory, Scheduler, Score
from eenet.testing import toy_costs, toy_records

MODULE = """
from eenet.scheduler import Scheduler, Score

class MyScore(Score):
    name = "my_score"

    def __call__(self, history):
        return history.evidence[-1].log_odds

class Mine(Scheduler, method="mine"):
    def __init__(self):
        super().__init__("my_score", "geometric")
"""
SAVE = """
from my_policy import Mine
from eenet.testing import toy_costs, toy_records
Mine().fit(toy_records(), toy_costs(), 2.0, fallback=False).save("mine.safetensors")
"""
LOAD = """
import eenet
from eenet.testing import toy_records
loaded = eenet.load_scheduler("mine.safetensors")
print(type(loaded).__name__, loaded.replay(toy_records()).mean_cost <= 2.0)
"""

Probabilities = NDArray[np.float32]
RANDOM = np.random.default_rng(0)


class Own(Score):
    """What a function of the probabilities (n, C) gives."""

    def __init__(self, of: Callable[[Probabilities], Any]) -> None:
        self.of = of

    def __call__(self, history: ExitHistory) -> Any:
        return self.of(history.evidence[-1].probabilities)


def top(p: Probabilities) -> NDArray[np.float64]:
    largest: NDArray[np.float64] = p.max(axis=1).astype(np.float64)
    return largest


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize(
    ("of", "said"),
    [
        (lambda p: np.where(top(p) > 0.6, np.nan, top(p)), "is nan for 217 of 600 samples whose outputs are finite"),
        (lambda p: top(p) * np.nan, "is nan for 600 of 600 samples"),
        (lambda p: np.where(top(p) > 0.6, np.inf, top(p)), "is inf for 217 of 600 samples"),
        (lambda p: top(p)[:, None], "is an array of shape (600, 1) for 600 samples, expected a numpy array of real"),
        (lambda p: top(p)[:-1], "is an array of shape (599,) for 600 samples"),
        (lambda p: top(p).tolist(), "is a list for 600 samples"),
        (lambda p: top(p).astype(str), "is an array of <U32 for 600 samples"),
        (lambda p: top(p) + 1j, "is an array of complex128 for 600 samples"),
        (lambda p: RANDOM.random(len(p)), "among 16 of them; expected the same"),
        (lambda p: top(p).argsort().argsort().astype(float), "among 16 of them; expected the same"),
        (lambda p: top(p) - top(p).mean(), "among 16 of them; expected the same"),
        (lambda p: top(p).squeeze() if len(p) > 1 else top(p)[0], "is a float64 for 1 samples"),
    ],
    ids=[
        "nan",
        "all-nan",
        "inf",
        "shape",
        "short",
        "list",
        "text",
        "complex",
        "random",
        "ranks",
        "centered",
        "squeezed",
    ],
)
def test_a_score_that_is_not_what_it_must_be_is_refused_with_what_came(
    of: Callable[[Probabilities], Any], said: str, fallback: bool
) -> None:
    with pytest.raises(InvalidInputError, match=f"score 'Own' at exit 0 .*{re.escape(said)}"):
        Scheduler(Own(of)).fit(toy_records(600), toy_costs(), budget=2.0, fallback=fallback)


class OwnEnsemble(Ensemble):
    """What a function of the mean log probabilities (n, C) of the exits so far gives."""

    uses_history = True

    def __init__(self, of: Callable[[NDArray[np.float64]], Any]) -> None:
        self.of = of

    def answers(self, history: ExitHistory) -> Any:
        logs = [np.log(np.maximum(e.probabilities.astype(np.float64), 1e-30)) for e in history.evidence]
        return self.of(np.mean(logs, axis=0))

    def __call__(self, history: ExitHistory) -> NDArray[np.float64]:
        return history.evidence[-1].log_odds


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(
    ("of", "said"),
    [
        (lambda z: z.tolist(), "a list for 600 samples, expected a numpy array of real numbers of shape (600, 5)"),
        (lambda z: z.argmax(axis=1), "an array of shape (600,) for 600 samples"),
        (lambda z: z[:-1], "an array of shape (599, 5) for 600 samples"),
        (lambda z: z[:, :-1], "an array of shape (600, 4) for 600 samples"),
        (lambda z: z.astype(str), "an array of <U32 for 600 samples"),
        (lambda z: z + 1j, "an array of complex128 for 600 samples"),
        (lambda z: z * np.nan, "nan for 600 of 600 samples, expected finite logits"),
        (lambda z: np.where(z > -0.5, np.inf, z), "inf for 214 of 600 samples"),
        (lambda z: z * 1e300, "-inf for 600 of 600 samples"),
        (lambda z: z - z.mean(axis=0), "among 16 of them; expected the same"),
        (lambda z: RANDOM.random(z.shape), "among 16 of them; expected the same"),
        (lambda z: z if len(z) > 1 else z[0], "an array of shape (5,) for 1 samples"),
    ],
    ids=["list", "classes", "short", "narrow", "text", "complex", "nan", "inf", "large", "centered", "random", "one"],
)
def test_answers_that_are_not_what_they_must_be_are_refused_with_what_came(
    of: Callable[[NDArray[np.float64]], Any], said: str, labels: bool
) -> None:
    records = toy_records(600)
    if not labels:
        records = ExitRecords.from_probabilities(records.probabilities)
    with pytest.raises(InvalidInputError, match=f"score 'OwnEnsemble' answers at exit 0 with .*{re.escape(said)}"):
        Scheduler(OwnEnsemble(of)).fit(records, toy_costs(), budget=2.0)
    with pytest.raises(InvalidInputError, match="score 'OwnEnsemble' answers at exit 0 with"):
        Scheduler(OwnEnsemble(of)).fit(records, toy_costs(), guarantee=0.9)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_answers_may_be_of_any_real_numbers(kind: type) -> None:
    scheduler = Scheduler(OwnEnsemble(lambda z: (1000 * z).astype(kind)))
    fitted = scheduler.fit(toy_records(), toy_costs(), 2.0, fallback=False)
    again = fitted.replay(toy_records())
    assert (again.accuracy, again.mean_cost) == (fitted.calibration_accuracy, fitted.calibration_cost)


def test_an_ensemble_sees_the_same_scores_at_fit_and_in_a_replay() -> None:
    class Weighted(Ensemble):
        """The exits so far, each with what its score said."""

        uses_history = True

        def answers(self, history: ExitHistory) -> Any:
            scores = [*history.scores, history.evidence[-1].log_odds][: len(history.evidence)]
            parts = [e.probabilities * s[:, None] for e, s in zip(history.evidence, scores, strict=True)]
            return np.sum(parts, axis=0)

        def __call__(self, history: ExitHistory) -> NDArray[np.float64]:
            return history.evidence[-1].log_odds

    fitted = Scheduler(Weighted()).fit(toy_records(), toy_costs(), 2.0, fallback=False)
    assert fitted.replay(toy_records()).accuracy == fitted.calibration_accuracy


class Several(OwnEnsemble):
    """Two ensembles, of which the second is the better one."""

    name = "several"

    @classmethod
    def fit(cls, records: ExitRecords, costs: Any, seed: int) -> list[Several]:
        return [cls(lambda z: -z), cls(lambda z: z)]


def test_of_several_ensembles_the_one_whose_own_answers_are_right_is_taken() -> None:
    fitted = Scheduler("several").fit(toy_records(), toy_costs(), 2.0, fallback=False)
    again = fitted.replay(toy_records())
    assert again.accuracy == fitted.calibration_accuracy
    assert again.accuracy > 0.7


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_scores_may_be_of_any_real_numbers(kind: type) -> None:
    scheduler = Scheduler(Own(lambda p: (1000 * top(p)).astype(kind)))
    fitted = scheduler.fit(toy_records(), toy_costs(), 2.0, fallback=False)
    assert fitted.replay(toy_records()).mean_cost == fitted.calibration_cost <= 2.0


def test_of_samples_that_are_not_finite_a_score_may_say_anything() -> None:
    known = toy_records(200)
    logits = np.log(known.probabilities)
    logits[1, 7] = np.nan
    records = ExitRecords.from_logits(logits, known.labels)
    fitted = Scheduler(Own(top)).fit(records, toy_costs(), 2.0, fallback=False)
    assert fitted.replay(records).mean_cost == fitted.calibration_cost <= 2.0


def test_a_score_of_ones_own_is_loaded_where_its_module_is_imported_and_the_message_says_so(tmp_path: Path) -> None:
    (tmp_path / "my_policy.py").write_text(MODULE)
    path = tmp_path / "mine.safetensors"

    def run(code: str) -> subprocess.CompletedProcess[str]:
        code = f"import sys; sys.path.append({str(tmp_path)!r})\n" + code.replace("mine.safetensors", str(path))
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert run(SAVE).returncode == 0
    refused = run(LOAD)
    assert refused.returncode == 1
    assert "score 'my_score' is not known to this eenet" in refused.stderr
    assert "where the score is your own, import the module that defines it before loading" in refused.stderr
    assert run("import my_policy" + LOAD).stdout.split() == ["Mine", "True"]


def test_a_method_of_ones_own_that_is_not_imported_is_refused_with_the_way() -> None:
    with pytest.raises(InvalidInputError, match=r"'unseen' is not known; .* where it is your own, import the module"):
        compare(toy_records(60), toy_costs(), ["max_prob", "unseen"], [2.0])
    with pytest.raises(InvalidInputError, match=r"'unseen' is not known; .* where it is your own, import the module"):
        Scheduler("unseen")


def test_names_of_eenet_are_not_taken_by_classes_of_ones_own() -> None:
    with pytest.raises(InvalidInputError, match=r"score 'margin' of .*: eenet has one of this name"):
        type("Mine", (Own,), {"name": "margin"})
    with pytest.raises(InvalidInputError, match=r"method 'max_prob' of .*: eenet has one of this name"):
        type("Mine", (Scheduler,), {}, method="max_prob")
    for _ in range(2):  # a cell of a notebook that is run again
        type("Again", (Scheduler,), {}, method="defined_again")
    SCHEDULERS.pop("defined_again")


def test_a_score_that_its_name_does_not_find_is_not_saved(tmp_path: Path) -> None:
    """Loaded, it would be another score, or none."""
    fitted = Scheduler(Own(top)).fit(toy_records(), toy_costs(), 2.0, fallback=False)
    with pytest.raises(InvalidInputError, match=r"the score .*Own has the name '', by which a file would find none"):
        fitted.save(tmp_path / "own.safetensors")
    assert not list(tmp_path.iterdir())
