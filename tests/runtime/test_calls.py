"""CallCascade: what it answers is the replay of its members' predictions, and what fails is named and loses nothing."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from waiting import PATIENCE, until

import eenet
from eenet import CallCascade, ExitCosts, ExitRecords
from eenet.errors import InvalidInputError, MemberError, ReliabilityWarning
from eenet.preprocessing import ArrayPreprocessing
from eenet.runtime import Boundaries, TensorSpec
from eenet.scheduler import SCHEDULERS, replay
from eenet.tasks import softmax
from eenet.testing import toy_logits

Array = NDArray[Any]

N = 300
LOGITS, LABELS = toy_logits(samples=N, exits=3, duplicates=0.2)
COSTS = ExitCosts.cascade([1.0, 2.0, 4.0])


def table(k: int, outputs: str, asked: list[int] | None = None) -> Callable[[Any], Any]:
    """A member that looks up what it says of samples, which are their numbers."""

    def member(samples: Any) -> Any:
        rows = np.asarray(samples, dtype=int).reshape(-1)
        if asked is not None:
            asked.append(len(rows))
        return LOGITS[k, rows] if outputs == "logits" else softmax(LOGITS[k, rows].astype(np.float32))

    return member


def records(outputs: str) -> ExitRecords:
    if outputs == "logits":
        return ExitRecords.from_logits(LOGITS, LABELS)
    return ExitRecords.from_probabilities(np.stack([table(k, outputs)(np.arange(N)) for k in range(3)]), LABELS)


def fitted(outputs: str = "probabilities", method: str = "max_prob", budget: str = "60%", **options: Any) -> Any:
    return SCHEDULERS[method]().fit(records(outputs), COSTS, budget, fallback=False, **options)


@pytest.mark.parametrize("outputs", ["probabilities", "logits"])
@pytest.mark.parametrize("method", ["max_prob", "patience", "eenet", "stopping", "ztw"])
def test_it_answers_as_the_replay_says(outputs: str, method: str) -> None:
    scheduler = fitted(outputs, method)
    out = CallCascade([table(k, outputs) for k in range(3)], scheduler, outputs=outputs)(np.arange(N)[:, None])
    replayed = scheduler.replay(records(outputs))
    np.testing.assert_array_equal(out.exits, replayed.exits)
    np.testing.assert_array_equal(out.predictions, replayed.predictions)
    if method != "ztw":
        whole = records(outputs).probabilities if outputs == "probabilities" else LOGITS
        np.testing.assert_array_equal(out.logits, whole[out.exits, np.arange(N)].astype(np.float32))
    elif outputs == "probabilities":
        np.testing.assert_allclose(out.logits.sum(axis=1), 1, atol=1e-5)


@settings(max_examples=20)
@given(st.lists(st.integers(0, N - 1), max_size=40), st.sampled_from(["60%", "90%"]))
def test_a_sample_s_answer_does_not_depend_on_the_others(numbers: list[int], budget: str) -> None:
    scheduler = fitted(budget=budget)
    cascade = CallCascade([table(k, "probabilities") for k in range(3)], scheduler)
    exits = scheduler.replay(records("probabilities")).exits
    out = cascade(numbers)
    assert out.exits.tolist() == exits[numbers].tolist()
    assert out.logits.shape == (len(numbers), 5)


def test_samples_of_every_kind() -> None:
    cascade = CallCascade([table(k, "probabilities") for k in range(3)], fitted())
    expected = cascade(np.arange(N)).exits.tolist()
    texts = [str(n) for n in range(N)]
    assert cascade(texts).exits.tolist() == cascade(tuple(texts)).exits.tolist() == expected
    named = [lambda x, k=k: table(k, "probabilities")(x["number"]) for k in range(3)]
    given = {"number": np.arange(N), "other": np.zeros((N, 2))}
    assert CallCascade(named, fitted())(given).exits.tolist() == expected
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"number": np.arange(N)}, index=np.arange(N)[::-1])
    assert CallCascade(named, fitted())(frame).exits.tolist() == expected


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ("a text", r"samples are a str, .*give a list of texts"),
        (3, r"samples are an int, expected an array"),
        ({"a": [1, 2], "b": [1]}, r"a mapping with \{'a': 2, 'b': 1\} rows"),
    ],
)
def test_samples_that_cannot_be_counted_are_refused(samples: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CallCascade([table(k, "probabilities") for k in range(3)], fitted())(samples)


def test_a_member_at_whose_exit_no_sample_leaves_is_not_asked() -> None:
    asked: list[list[int]] = [[], [], []]
    scheduler = eenet.Static(1).fit(records("probabilities"), COSTS)
    cascade = CallCascade([table(k, "probabilities", asked[k]) for k in range(3)], scheduler)
    assert (cascade(np.arange(N)).exits == 1).all()
    assert asked == [[], [N], []]


def test_samples_that_no_member_is_sure_of_are_handed_back() -> None:
    scheduler = fitted(abstain=0.1)
    out = CallCascade([table(k, "probabilities") for k in range(3)], scheduler)(np.arange(N))
    np.testing.assert_array_equal(out.abstained, scheduler.replay(records("probabilities")).abstained)
    assert (out.predictions[out.abstained] == -1).all()


def test_a_controller_is_given_the_exits() -> None:
    scheduler = eenet.MaxProbability().fit(records("probabilities"), COSTS)
    controller = eenet.BudgetController(scheduler, "60%")
    before = controller.policy
    out = CallCascade([table(k, "probabilities") for k in range(3)], controller)(np.arange(N))
    np.testing.assert_array_equal(out.exits, replay(before, records("probabilities"), COSTS).exits)


class TestAsync:
    def test_coroutine_functions_and_others_answer_as_the_replay_says(self) -> None:
        loops = []

        async def service(samples: Any) -> Any:
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return table(1, "probabilities")(samples)

        members = [table(0, "probabilities"), service, table(2, "probabilities")]

        async def main() -> Any:
            cascade = CallCascade(members, fitted())
            answers = await asyncio.gather(*[cascade.call_async(np.arange(N)) for _ in range(2)])
            assert loops == [asyncio.get_running_loop()] * 2, "they run in the caller's loop"
            return answers

        for out in asyncio.run(main()):
            np.testing.assert_array_equal(out.exits, fitted().replay(records("probabilities")).exits)

    def test_members_have_the_threads_of_the_event_loop_to_themselves(self) -> None:
        """Looking up a host's name takes one; calls that wait for their members must not hold all of them."""
        answer = table(0, "probabilities")

        async def service(samples: Any) -> Any:
            return await asyncio.to_thread(answer, samples)

        async def main() -> Any:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            cascade = CallCascade([service, *[table(k, "probabilities") for k in (1, 2)]], fitted())
            return await asyncio.wait_for(
                asyncio.gather(*[cascade.call_async(np.arange(N)) for _ in range(3)]), PATIENCE
            )

        for out in asyncio.run(main()):
            np.testing.assert_array_equal(out.exits, fitted().replay(records("probabilities")).exits)

    def test_a_plain_call_says_how_to_await(self) -> None:
        async def service(samples: Any) -> Any:
            return samples

        with pytest.raises(InvalidInputError, match=r"has to be awaited: await cascade\.call_async\(samples\)"):
            CallCascade([service, *[table(k, "probabilities") for k in (1, 2)]], fitted())(np.arange(N))

    def test_a_batch_that_is_cancelled_asks_no_further_member(self) -> None:
        asked: list[int] = []
        ended = threading.Event()

        async def main() -> None:
            begun = asyncio.Event()

            async def service(samples: Any) -> Any:
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

            cascade = CallCascade([service, *[table(k, "probabilities", asked) for k in (1, 2)]], fitted())
            batch = asyncio.create_task(cascade.call_async(np.arange(N)))
            await begun.wait()
            batch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await batch

        asyncio.run(main())
        assert ended.is_set()
        assert asked == []


def failing(what: str) -> Callable[[Any], Any]:
    def member(samples: Any) -> Any:
        answers = table(1, "probabilities")(samples)
        if what == "raises":
            raise TimeoutError("no answer within 3 s")
        if what == "raises without a word":
            raise TimeoutError
        if what == "rows":
            return answers[1:]
        if what == "classes":
            return answers[:, 1:]
        if what == "texts":
            return [str(row) for row in answers]
        if what == "logits":
            return answers * 7
        answers[3] = np.nan
        return answers

    return member


class TestFailures:
    @pytest.mark.parametrize(
        ("what", "message", "unanswered"),
        [
            ("raises", r"member 1 of the cascade, member, raises TimeoutError on \d+ samples, \[.*\]: no answer", None),
            ("raises without a word", r"raises TimeoutError on \d+ samples, \[[^:]*\]; the error's output has", None),
            ("rows", r"member 1 .* returns float32 of shape \(\d+, 5\) for samples .*expected numbers of shape", None),
            ("classes", r"returns float32 of shape \(\d+, 4\) .*probabilities of 5 classes for each sample", None),
            ("texts", r"returns <U\d+ of shape", None),
            ("logits", r"returns no probabilities for \d+ of \d+ samples, .*; are they logits\?", None),
            ("nan", r"returns no probabilities for 1 of \d+ samples, \[\d+\]: \[nan", 3),
        ],
    )
    def test_the_member_and_the_rows_are_named_and_nothing_is_lost(
        self, what: str, message: str, unanswered: int | None
    ) -> None:
        members = [table(0, "probabilities"), failing(what), table(2, "probabilities")]
        scheduler = fitted()
        expected = scheduler.replay(records("probabilities"))
        with pytest.raises(MemberError, match=message) as caught:
            CallCascade(members, scheduler)(np.arange(N))
        error = caught.value
        assert error.member == 1
        open_rows = np.flatnonzero(expected.exits > 0)
        np.testing.assert_array_equal(error.rows, open_rows if unanswered is None else open_rows[[unanswered]])
        out = error.output
        np.testing.assert_array_equal(out.exits, np.where(expected.exits == 0, 0, -1))
        np.testing.assert_array_equal(np.isnan(out.logits).any(axis=1), out.exits < 0)
        answered = np.where(expected.exits == 0, expected.predictions, -1)
        np.testing.assert_array_equal(out.predictions, answered)
        assert (error.returned is None) == what.startswith("raises")
        again = CallCascade([table(k, "probabilities") for k in range(3)], scheduler)(np.arange(N)[out.exits < 0])
        np.testing.assert_array_equal(again.exits, expected.exits[open_rows])
        restored = pickle.loads(pickle.dumps(MemberError("what", member=1, rows=[3])))  # noqa: S301
        assert (str(restored), restored.member, restored.rows) == ("what", 1, [3])

    @pytest.mark.parametrize("outputs", ["probabilities", "logits"])
    @pytest.mark.parametrize(("method", "down"), [("max_prob", 1), ("max_prob", 2), ("patience", 2), ("ztw", 2)])
    def test_the_answers_of_the_members_before_are_kept_on_the_exceptions_that_are_named(
        self, outputs: str, method: str, down: int
    ) -> None:
        members = [table(k, outputs) for k in range(3)]
        members[down] = failing("raises")
        scheduler = fitted(outputs, method)
        expected = scheduler.replay(records(outputs))
        cascade = CallCascade(members, scheduler, outputs=outputs, keep_on=(ConnectionError, TimeoutError))
        kept = expected.exits >= down
        said = rf"{kept.sum()} of {N} samples keep the answers of exit {down - 1} .* raises TimeoutError\('no answer"
        with pytest.warns(ReliabilityWarning, match=said):
            out = cascade(np.arange(N))
        assert 0 < kept.sum() < N
        np.testing.assert_array_equal(out.kept, kept)
        np.testing.assert_array_equal(out.exits, np.where(kept, down - 1, expected.exits))
        np.testing.assert_array_equal(out.predictions[~kept], expected.predictions[~kept])
        if scheduler.policy.ensemble is None:
            np.testing.assert_array_equal(out.predictions[kept], records(outputs).predictions[down - 1][kept])
            np.testing.assert_allclose(out.logits[kept], table(down - 1, outputs)(np.flatnonzero(kept)), rtol=1e-6)
        else:  # the answers of the ensemble at that exit, as where all samples leave there
            alone = np.arange(2) == down - 1
            all_there = replace(scheduler.policy, thresholds=np.full(2, -np.inf), enabled=alone)
            there = replay(all_there, records(outputs), COSTS)
            assert set(there.exits) == {down - 1}
            np.testing.assert_array_equal(out.predictions[kept], there.predictions[kept])
        assert not out.abstained.any()

        async def ask() -> Any:
            return await cascade.call_async(np.arange(N))

        with pytest.warns(ReliabilityWarning, match="keep the answers"):
            assert asyncio.run(ask()) == out

    def test_nothing_is_kept_without_a_failure_on_other_exceptions_and_of_the_first_member(self) -> None:
        scheduler, members = fitted(), [table(k, "probabilities") for k in range(3)]
        out = CallCascade(members, scheduler, keep_on=Exception)(np.arange(N))
        assert not out.kept.any()
        assert CallCascade(members, scheduler)(np.arange(N)).kept is None
        cases: list[tuple[str, int, Any]] = [
            ("raises", 1, ()),
            ("raises", 1, ConnectionError),
            ("raises", 0, Exception),  # there is no answer to keep
            ("rows", 1, Exception),  # what is returned is wrong: that is no failure to answer
            ("nan", 1, Exception),
        ]
        for what, number, keep_on in cases:
            some = [failing(what) if k == number else member for k, member in enumerate(members)]
            with pytest.raises(MemberError, match=f"member {number} of the cascade"):
                CallCascade(some, scheduler, keep_on=keep_on)(np.arange(N))
        for wrong in ("TimeoutError", (TimeoutError, 3), KeyboardInterrupt):
            with pytest.raises(InvalidInputError, match="expected exception classes"):
                CallCascade(members, scheduler, keep_on=wrong)  # type: ignore[arg-type]
        assert "keep_on=(TimeoutError,)" in repr(CallCascade(members, scheduler, keep_on=TimeoutError))

    def test_what_was_asked_for_kept_answers_is_spent(self) -> None:
        controller = eenet.BudgetController(fitted(), 2.4)
        members = [table(0, "probabilities"), failing("raises"), table(2, "probabilities")]
        left = int((replay(controller.policy, records("probabilities"), controller.costs).exits == 0).sum())
        with pytest.warns(ReliabilityWarning, match="keep the answers of exit 0"):
            CallCascade(members, controller, keep_on=TimeoutError)(np.arange(N))
        assert controller.samples == N
        assert controller.mean_cost == pytest.approx((left * 1.0 + (N - left) * 3.0) / N)

    def test_logits_that_are_nan_are_refused_and_minus_infinity_is_not(self) -> None:
        scheduler = fitted("logits")
        members = [table(k, "logits") for k in range(3)]
        members[0] = lambda samples: np.where(np.arange(5) == 0, -np.inf, table(0, "logits")(samples))
        assert CallCascade(members, scheduler, outputs="logits")(np.arange(N)).exits.min() >= 0
        members[2] = lambda samples: table(2, "logits")(samples) * np.nan
        with pytest.raises(MemberError, match=r"member 2 .*returns no logits") as caught:
            CallCascade(members, scheduler, outputs="logits")(np.arange(N))
        assert caught.value.member == 2

    def test_probabilities_that_are_given_as_logits_are_warned_of(self) -> None:
        members = [table(k, "probabilities") for k in range(3)]
        with pytest.warns(
            ReliabilityWarning, match=r"the answers of member \d of .* look like probabilities.*leave out"
        ):
            CallCascade(members, fitted("logits"), outputs="logits")(np.arange(N))

    def test_members_that_are_named_are_called_by_their_names(self) -> None:
        members = dict(zip(("cheap", "better", "best"), (table(k, "probabilities") for k in range(3)), strict=True))
        cascade = CallCascade(members, fitted())
        assert repr(cascade).startswith("CallCascade([cheap, better, best], ")
        assert (cascade(np.arange(N)).exits == CallCascade(list(members.values()), fitted())(np.arange(N)).exits).all()
        members["best"] = lambda samples: np.zeros((len(samples), 1))
        with pytest.raises(MemberError, match=r"member 2 of the cascade, best, returns"):
            CallCascade(members, fitted())(np.arange(N))

    def test_what_is_no_cascade_is_refused(self) -> None:
        member = table(0, "probabilities")
        with pytest.raises(InvalidInputError, match=r"members are a list of 1"):
            CallCascade([member], fitted())
        with pytest.raises(InvalidInputError, match=r"fitted for 3 exits .* the cascade has 2"):
            CallCascade([member, member], fitted())
        with pytest.raises(InvalidInputError, match=r"outputs is 'labels', expected one of"):
            CallCascade([member] * 3, fitted(), outputs="labels")
        other: Any = "no scheduler"
        with pytest.raises(InvalidInputError, match=r"scheduler is a str, expected a fitted scheduler"):
            CallCascade([member] * 3, other)
        model: Any = type("Model", (), {"predict_proba": None})()
        with pytest.raises(InvalidInputError, match=r"member 0 is a Model, expected a callable .*; give its method"):
            CallCascade([model, member, member], fitted())


class TestBundles:
    """A bundle as a member: its exits count one by one, and its stages run for the samples that are open."""

    def members(self, outputs: str, ran: list[tuple[int, int]] | None = None) -> tuple[Any, Any, Array, ExitRecords]:
        bundle = Toy(ran)
        x = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
        labels = bundle.logits(x)[-1].argmax(axis=1)

        def before(samples: Any) -> Array:
            logits = np.asarray(samples, dtype=np.float32)[:, :3] * 2
            return softmax(logits) if outputs == "probabilities" else logits

        first = before(x)
        own = ExitRecords.from_probabilities(first) if outputs == "probabilities" else ExitRecords.from_logits(first)
        return before, bundle, x, ExitRecords.cascade([own, ExitRecords.from_logits(bundle.logits(x), labels)])

    @pytest.mark.filterwarnings("ignore:the last exit is right on")  # its network is not trained
    @pytest.mark.parametrize("outputs", ["probabilities", "logits"])
    @pytest.mark.parametrize("order", ["bundle last", "bundle first"])
    def test_it_answers_as_the_replay_says(self, outputs: str, order: str) -> None:
        before, bundle, x, whole = self.members(outputs)
        members = [before, bundle]
        if order == "bundle first":
            members.reverse()
            said = whole.probabilities
            whole = ExitRecords.from_probabilities(said[[1, 2, 0]], whole.labels)
        costs = ExitCosts([1.0, 2.0, 4.0])
        for budget in (1.2, 1.6):
            scheduler = eenet.MaxProbability().fit(whole, costs, budget, fallback=False)
            out = CallCascade(members, scheduler, outputs=outputs)(x)
            replayed = scheduler.replay(whole)
            np.testing.assert_array_equal(out.exits, replayed.exits)
            np.testing.assert_array_equal(out.predictions, replayed.predictions)

    def test_stages_run_when_an_answer_is_looked_at_and_for_open_samples_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran: list[tuple[int, int]] = []
        before, bundle, x, whole = self.members("logits", ran)
        scheduler = eenet.MaxProbability().fit(whole, ExitCosts([1.0, 2.0, 4.0]), 1.6, fallback=False)
        off = replace(scheduler.policy, enabled=np.array([True, False]))
        monkeypatch.setattr(type(scheduler), "policy", property(lambda _: off))
        out = CallCascade([before, bundle], scheduler, outputs="logits")(x)
        still = int((out.exits != 0).sum())
        assert 0 < still < N
        assert ran == [(0, still), (1, still)]

    def test_a_mapping_gives_each_member_its_own_inputs(self) -> None:
        before, bundle, x, whole = self.members("logits")
        scheduler = eenet.MaxProbability().fit(whole, ExitCosts([1.0, 2.0, 4.0]), 1.6, fallback=False)
        out = CallCascade([lambda s: before(s["small"]), bundle], scheduler, outputs="logits")({"small": x, "x": x})
        np.testing.assert_array_equal(out.exits, scheduler.replay(whole).exits)

    def test_a_list_goes_through_its_preprocessing(self) -> None:
        before, bundle, x, whole = self.members("logits")
        scheduler = eenet.MaxProbability().fit(whole, ExitCosts([1.0, 2.0, 4.0]), 1.6, fallback=False)
        out = CallCascade([before, bundle], scheduler, outputs="logits")(list(x))
        np.testing.assert_array_equal(out.exits, scheduler.replay(whole).exits)

    def test_other_classes_or_exits_are_refused(self) -> None:
        before, bundle, _, whole = self.members("logits")
        scheduler = eenet.MaxProbability().fit(whole, ExitCosts([1.0, 2.0, 4.0]), 1.6, fallback=False)
        with pytest.raises(InvalidInputError, match=r"fitted for 3 exits .* the cascade has 4"):
            CallCascade([bundle, bundle], scheduler)
        bundle.backend.num_classes = 5
        with pytest.raises(InvalidInputError, match=r"member 1, a bundle, has 5 classes, the scheduler has 3"):
            CallCascade([before, bundle], scheduler)


class Toy:
    """A bundle of two stages in numpy, which notes which stage ran for how many samples."""

    def __init__(self, ran: list[tuple[int, int]] | None = None) -> None:
        self.ran = [] if ran is None else ran
        rng = np.random.default_rng(1)
        self.weights = [rng.normal(size=(4, 4)).astype(np.float32) for _ in range(2)]
        self.head = rng.normal(size=(4, 3)).astype(np.float32)
        self.inputs = (TensorSpec("x", "float32", ("n", 4), 0),)
        self.backend = self.Backend(self)
        self.preprocessing = ArrayPreprocessing(("x",))

    def logits(self, x: Array) -> Array:
        live, said = x, []
        for k in range(2):
            live = self.step(k, live)
            said.append(self.answer(k, live))
        return np.stack(said)

    def step(self, k: int, live: Array) -> Array:
        return np.stack([np.tanh(row @ self.weights[k]) for row in live]) if len(live) else live

    def answer(self, k: int, live: Array) -> Array:
        return np.stack([(k + 1) * (row @ self.head) for row in live])

    class Backend(Boundaries):
        num_exits, num_classes = 2, 3

        def __init__(self, toy: Toy) -> None:
            super().__init__([toy.inputs, (TensorSpec("h", "float32", ("n", 4), 0),)])
            self.toy = toy

        def run(self, k: int, live: Any, *, observe: bool) -> tuple[Any, Any]:
            self.toy.ran.append((k, len(live[0])))
            after = self.toy.step(k, live[0])
            return (after,) if k == 0 else (), self.toy.answer(k, after) if observe or k == 1 else None


@pytest.mark.parametrize("awaited", [False, True])
def test_a_member_that_was_asked_and_failed_is_paid_for(awaited: bool) -> None:
    logits = LOGITS[:2]
    scheduler = eenet.MaxProbability().fit(
        ExitRecords.from_logits(logits, LABELS), ExitCosts.cascade([1.0, 9.0], "cents"), 5.0, fallback=False
    )
    controller = eenet.BudgetController(scheduler, 5.0)

    def fails(samples: Any) -> Any:
        raise TimeoutError("no answer")

    async def gone(samples: Any) -> Any:
        asking[0].cancel()
        await asyncio.sleep(PATIENCE)

    asking: list[Any] = []
    first = table(0, "logits")
    exits = replay(controller.policy, ExitRecords.from_logits(logits, LABELS), controller.costs).exits
    left = int((exits == 0).sum())
    assert 0 < left < N
    if awaited:

        async def ask() -> None:
            cascade = CallCascade([first, gone], controller, outputs="logits")
            asking.append(asyncio.ensure_future(cascade.call_async(np.arange(N))))
            with pytest.raises(asyncio.CancelledError):
                await asking[0]

        asyncio.run(ask())
        until(lambda: controller.samples > 0)  # the thread of the call hears of it a moment later
    else:
        with pytest.raises(MemberError, match="no answer"):
            CallCascade([first, fails], controller, outputs="logits")(np.arange(N))
    assert controller.samples == N
    assert controller.mean_cost == pytest.approx((left * 1.0 + (N - left) * 10.0) / N)
