"""Evidence and scores: right, finite, and the same for a sample whoever shares its batch."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import eenet
from eenet.scheduler import SCORES, ExitHistory, Score
from eenet.tasks import LOG_ODDS_LIMIT, Classification, Evidence, Segmentation, Task, softmax
from eenet.testing import toy_logits

Logits = NDArray[np.float32]
PLAIN = ("max_prob", "entropy", "patience", "voting", "margin", "constant")
NUMBERS = ("max_probability", "log_odds", "entropy", "vote_share", "streak", "finite", "probabilities")


def learned(exits: int, classes: int, seed: int = 0) -> Score:
    rng = np.random.default_rng(seed)
    return SCORES["learned"](  # type: ignore[call-arg]
        rng.normal(size=(exits - 1, classes)),
        [rng.normal(size=4 + k) for k in range(exits - 1)],
        rng.normal(size=exits - 1),
    )


def history_of(logits: Logits) -> list[Evidence]:
    history: list[Evidence] = []
    for z in logits:
        history.append(Evidence.from_logits(z, tuple(history)))
    return history


def scores_of(score: Score, logits: Logits) -> list[NDArray[np.float64]]:
    history = ExitHistory()
    for evidence in history_of(logits)[:-1]:
        history.evidence.append(evidence)
        history.scores.append(score(history))
    return history.scores


def bits(array: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@st.composite
def odd_logits(draw: st.DrawFn) -> Logits:
    """Logits (K, N, C) with every oddity there is: saturated, exactly 0 or 1, equal, NaN, infinite."""
    classes = draw(st.sampled_from([2, 3, 4, 7, 8, 9, 10, 16, 17, 100, 129, 1000]))
    exits = draw(st.integers(2, 5))
    samples = draw(st.integers(1, 40))
    sharpness = draw(st.sampled_from([0.01, 1.0, 8.0, 1e3, 1e30]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits = (rng.normal(size=(exits, samples, classes)) * sharpness).astype(np.float32)
    for n in range(0, samples, 3):
        k, c = rng.integers(0, exits), rng.integers(0, classes)
        odd: list[Callable[[Logits], None]] = [
            lambda z: z.fill(0),
            lambda z: z.fill(np.nan),
            lambda z: z.fill(-np.inf),
            lambda z, c=c: z.__setitem__(c, np.nan),  # type: ignore[misc]
            lambda z, c=c: z.__setitem__(c, np.inf),  # type: ignore[misc]
            lambda z, c=c: z.__setitem__(c, -np.inf),  # type: ignore[misc]
            lambda z, c=c: z.__setitem__(np.arange(len(z)) != c, -np.inf),  # type: ignore[misc]
        ]
        odd[rng.integers(0, len(odd))](logits[k, n])
    return logits


@given(logits=odd_logits(), data=st.data())
@settings(max_examples=150)
def test_a_row_is_the_same_to_the_last_bit_in_any_batch(logits: Logits, data: st.DataObject) -> None:
    exits, samples, classes = logits.shape
    rows = np.array(data.draw(st.lists(st.integers(0, samples - 1), min_size=1, max_size=samples)))
    whole, part = history_of(logits), history_of(np.ascontiguousarray(logits[:, rows]))
    taken = ExitHistory(whole).take(rows).evidence
    for together, alone, kept in zip(whole, part, taken, strict=True):
        for name in NUMBERS:
            expected = bits(getattr(together, name)[rows])
            assert bits(getattr(alone, name)) == expected, name
            assert bits(getattr(kept, name)) == expected, name
    for score in (*(SCORES[name]() for name in PLAIN), learned(exits, classes)):
        alone_scores = scores_of(score, np.ascontiguousarray(logits[:, rows]))
        for all_scores, some in zip(scores_of(score, logits), alone_scores, strict=True):
            assert bits(some) == bits(all_scores[rows]), score.name
            assert np.isfinite(all_scores).all(), score.name


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_the_memory_layout_makes_no_difference(classes: int) -> None:
    p = softmax(np.random.default_rng(0).normal(size=(64, classes)).astype(np.float32))
    expected = Evidence(p, p.argmax(axis=-1))
    for layout in (np.asfortranarray(p), np.repeat(p, 2, axis=0)[::2], np.repeat(p, 2, axis=1)[:, ::2]):
        evidence = Evidence(layout, p.argmax(axis=-1))
        for name in NUMBERS:
            assert bits(getattr(evidence, name)) == bits(getattr(expected, name)), name


@given(logits=odd_logits())
@settings(max_examples=60)
def test_evidence_is_never_nan_and_stays_in_its_range(logits: Logits) -> None:
    for z, evidence in zip(logits, history_of(logits), strict=True):
        # A row is usable when softmax is defined: no NaN, no +inf, and not -inf everywhere.
        usable = ~(np.isnan(z).any(axis=1) | np.isposinf(z).any(axis=1) | np.isneginf(z).all(axis=1))
        np.testing.assert_array_equal(evidence.finite, usable)
        assert ((evidence.entropy >= 0) & (evidence.entropy <= 1)).all()
        assert ((evidence.max_probability > 0) & (evidence.max_probability <= 1)).all()
        assert (np.abs(evidence.log_odds) <= LOG_ODDS_LIMIT).all()
        assert ((evidence.vote_share > 0) & (evidence.vote_share <= 1)).all()


def test_probabilities_of_exactly_0_and_1() -> None:
    p = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]], dtype=np.float32)
    evidence = Evidence(p, p.argmax(axis=1))
    np.testing.assert_array_equal(evidence.entropy[[0, 2]], 0.0)
    np.testing.assert_allclose(evidence.entropy[1], np.log(2) / np.log(3), rtol=1e-12)
    np.testing.assert_allclose(evidence.log_odds, [LOG_ODDS_LIMIT, 0, LOG_ODDS_LIMIT], rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 5, 10, 300])
def test_entropy_and_log_odds_are_those_of_the_textbook(classes: int) -> None:
    z = np.random.default_rng(1).normal(size=(500, classes)).astype(np.float32) * 2
    exact = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    evidence = Evidence.from_logits(z)
    entropy = -(exact * np.log(exact)).sum(axis=1) / np.log(classes)
    odds = np.log(exact.max(axis=1) / (1 - exact.max(axis=1)))
    np.testing.assert_allclose(evidence.entropy, entropy, atol=2e-6)
    np.testing.assert_allclose(evidence.log_odds, odds, atol=2e-5)
    for ours, theirs in ((evidence.entropy, entropy), (evidence.log_odds, odds)):
        order = np.argsort(theirs)
        assert (np.diff(ours[order]) > -2e-5).all()


def test_order_is_kept_where_the_largest_probability_rounds_to_1() -> None:
    margins = np.arange(17, 60, 0.5)  # 1 - p is below half a unit in the last place of float32
    logits = np.stack([margins, np.zeros_like(margins), np.zeros_like(margins)], axis=1).astype(np.float32)
    evidence = Evidence.from_logits(logits)
    assert (evidence.max_probability[5:] == 1).all()
    np.testing.assert_allclose(evidence.log_odds, margins - np.log(2), atol=1e-4)
    assert (np.diff(evidence.log_odds) > 0.4).all()
    assert (np.diff(evidence.entropy) < 0).all()


def test_votes_and_streaks_are_counted() -> None:
    predictions = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2], [1, 0, 1, 2]])  # exits x samples
    p = np.full((4, 3), 1 / 3, dtype=np.float32)
    history: list[Evidence] = []
    for row in predictions:
        history.append(Evidence(p, row, tuple(history)))
    np.testing.assert_array_equal([e.streak for e in history], [[1, 1, 1, 1], [2, 1, 1, 2], [3, 1, 2, 1], [1, 2, 3, 2]])
    np.testing.assert_allclose(history[2].vote_share, [1, 2 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(history[3].vote_share, [3 / 4, 3 / 4, 3 / 4, 1 / 2])


def test_softmax_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    z, _ = toy_logits(sharpness=3.0)
    np.testing.assert_allclose(softmax(z), torch.from_numpy(z).softmax(dim=-1).numpy(), atol=1e-6)


def test_logits_that_overflow_float32_are_infinite_without_a_warning() -> None:
    assert np.isnan(softmax(np.array([[1e39, 0.0]]))).all()
    np.testing.assert_array_equal(softmax(np.array([[0.0, -1e39]])), [[1, 0]])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(1, 29), max_size=4),
    dense=st.booleans(),
    asked=st.booleans(),
)
def test_evidence_joined_is_the_evidence_of_all_to_the_last_bit(
    seed: int, cuts: list[int], dense: bool, asked: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 30, 4, 6, 6) if dense else (3, 30, 4)
    logits = (rng.standard_normal(shape) * rng.choice([1.0, 100.0])).astype(np.float32)
    logits[rng.random(logits.shape) < 0.001] = np.nan
    task: Task = Segmentation(stride=2) if dense else Classification()

    def history_of(rows: slice) -> ExitHistory:
        history = ExitHistory()
        for k in range(3):
            history.evidence.append(task.evidence(task.shown(logits[k, rows]), history.evidence))
            history.scores.append(history.evidence[-1].log_odds)
        return history

    edges = sorted({0, *cuts, 30})
    parts = [history_of(slice(a, b)) for a, b in itertools.pairwise(edges)]
    if asked:  # one part has been asked for more than the others
        _ = parts[0].evidence[-1].entropy
    joined, whole = ExitHistory.join(parts), history_of(slice(None))
    for k in range(3):
        np.testing.assert_array_equal(joined.scores[k], whole.scores[k])
        for name in ("finite", "probabilities", "predictions", "entropy", "vote_share", "streak", "label_map"):
            np.testing.assert_array_equal(getattr(joined.evidence[k], name), getattr(whole.evidence[k], name))


@pytest.mark.parametrize("copies", [1, 3])
def test_logits_in_double_precision_predict_what_their_records_do(copies: int) -> None:
    logits = np.repeat(np.array([[1.0, 1.0 + 1e-12, 1e300], [1.0, 1.0 + 1e-12, 0.0]]), copies, axis=0)
    records = eenet.ExitRecords.from_logits(np.stack([logits, logits]))
    for rows in (np.arange(2 * copies), *np.arange(2 * copies)[:, None]):
        evidence = Evidence.from_logits(logits[rows])
        assert evidence.predictions.tolist() == records.predictions[0, rows].tolist()
        assert evidence == records.evidence(0, rows)
    image = np.array([1.0, 1.0 + 1e-12]).reshape(1, 2, 1, 1)
    history = [Segmentation().evidence(of, []) for of in (image, image.astype(np.float32))]
    assert history[0] == history[1]


def test_evidence_of_one_sample_shares_nothing_that_can_be_written_to() -> None:
    evidence = Evidence.from_logits(np.zeros((1, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="read-only"):
        evidence.finite[0] = False
    assert Evidence.from_logits(np.ones((1, 3), dtype=np.float32)).finite.all()


def test_pickled_evidence_is_little_more_than_its_probabilities() -> None:
    evidence = Evidence.from_logits(toy_logits(50, exits=2, classes=200, seed=0)[0][0])
    numbers = {name: getattr(evidence, name) for name in NUMBERS}
    sent = pickle.dumps(evidence)
    assert len(sent) < 1.1 * evidence.probabilities.nbytes
    again = pickle.loads(sent)  # noqa: S301
    assert again == evidence
    for name, values in numbers.items():
        np.testing.assert_array_equal(getattr(again, name), values)
    np.testing.assert_array_equal(
        SCORES["entropy"]()(ExitHistory([again])),
        SCORES["entropy"]()(ExitHistory([evidence])),
    )
