"""The engine on a fake clock: which stage runs when, exits identical to replay, no request lost or answered twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from policies import MAKERS, awkward_logits
from serving_toys import TableBackend, fitted, flat, scripted_logits, scripted_policy

import eenet
from eenet.errors import DrainingError, InvalidInputError, OverloadedError
from eenet.scheduler import DecisionState
from eenet.serving.engine import Engine, EngineOptions, Outcome, Request
from eenet.tasks import Classification

# OptimalStopping says where it leaves much of a budget unspent.
pytestmark = pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")

TASK = Classification()


def engine_of(exits: int = 3, **options: Any) -> tuple[Engine, TableBackend]:
    return Engine(scripted_policy(exits), EngineOptions(**options)), TableBackend(exits, 2)


def submit(engine: Engine, exits_of: Sequence[int], now: float = 0.0, **more: Any) -> Request:
    inputs = scripted_logits(exits_of, engine.num_exits)
    return engine.submit((inputs,), len(exits_of), now, **more)


def step(engine: Engine, backend: TableBackend, now: float) -> tuple[int, int] | None:
    """Do the next piece of work; its stage and its number of samples."""
    work = engine.next_work(now)
    if work is None:
        return None
    work.execute(backend, TASK)
    engine.complete(work, now)
    return work.stage, work.samples


def test_the_deepest_full_batch_runs_first_and_else_the_oldest_request() -> None:
    engine, backend = engine_of(max_batch=4, max_wait=0.0)
    first = submit(engine, [2, 2, 2, 0])
    second = submit(engine, [2, 0, 1, 0])
    third = submit(engine, [0])
    assert step(engine, backend, 0.0) == (0, 4)  # a full batch, before the only stage with samples waiting
    assert engine.waiting == [5, 3, 0]
    assert step(engine, backend, 0.0) == (0, 4)  # three remaining samples are not a full batch, four new ones are
    assert step(engine, backend, 0.0) == (1, 4)  # the remaining samples of both requests fill one deeper
    assert first.open
    assert second.open
    assert step(engine, backend, 0.0) == (2, 4)
    assert (first.outcome, second.open) == (Outcome.ANSWERED, True)
    assert step(engine, backend, 0.0) == (
        1,
        1,
    )  # no full batch: the oldest request, with all in its queue
    assert second.outcome is Outcome.ANSWERED
    assert step(engine, backend, 0.0) == (0, 1)
    assert third.outcome is Outcome.ANSWERED
    assert engine.idle
    assert [r.exits.tolist() for r in (first, second, third)] == [[2, 2, 2, 0], [2, 0, 1, 0], [0]]


def test_a_batch_waits_for_other_samples_up_to_max_wait() -> None:
    engine, backend = engine_of(max_batch=2, max_wait=0.5)
    submit(engine, [0], now=1.0)
    assert engine.next_work(1.0) is None
    assert engine.wake_at == 1.5
    assert engine.next_work(1.4999) is None
    assert step(engine, backend, 1.5) == (0, 1)
    submit(engine, [0], now=2.0)
    submit(engine, [0], now=2.1)
    assert step(engine, backend, 2.1) == (0, 2)  # the batch is full


def test_samples_that_waited_too_long_at_a_deep_stage_go_first() -> None:
    engine, backend = engine_of(max_batch=2, max_wait=0.0, max_delay=1.0)
    rare = submit(engine, [2, 0], now=0.0)
    assert step(engine, backend, 0.0) == (0, 2)
    stages = []
    for tick in range(1, 8):
        now = tick * 0.25
        submit(engine, [0, 0], now=now)  # the front of the queue never runs dry
        stages.append(step(engine, backend, now))
    assert stages[:3] == [(0, 2)] * 3
    assert stages[3] == (1, 1)
    assert stages[4:6] == [(0, 2)] * 2
    for tick in range(8, 14):
        step(engine, backend, tick * 0.25)
    assert rare.outcome is Outcome.ANSWERED


def test_samples_at_a_deep_stage_wake_an_idle_engine_after_their_delay() -> None:
    engine, backend = engine_of(max_batch=2, max_wait=8.0, max_delay=1.0)
    submit(engine, [1, 0], now=0.0)
    assert step(engine, backend, 0.25) == (0, 2)
    assert engine.next_work(1.0) is None
    assert engine.wake_at == 1.25
    assert step(engine, backend, 1.25) == (1, 1)
    assert engine.idle


def test_without_merging_a_batch_goes_through_its_stages_alone() -> None:
    engine, backend = engine_of(max_batch=4, max_wait=0.0, merge=False)
    submit(engine, [2, 1, 0, 0])
    submit(engine, [2, 2, 2, 1])
    calls = [step(engine, backend, 0.0) for _ in range(6)]
    assert calls == [(0, 4), (1, 2), (2, 1), (0, 4), (1, 4), (2, 3)]
    assert engine.idle


def test_a_large_request_goes_in_batches_and_is_answered_in_its_order() -> None:
    engine, backend = engine_of(max_batch=4, max_wait=0.0)
    exits_of = [2, 0, 1, 0, 2, 1, 0, 0, 1, 2, 0]
    request = submit(engine, exits_of)
    while not engine.idle:
        assert step(engine, backend, 0.0) is not None
    assert request.exits.tolist() == exits_of
    assert request.logits is not None
    assert request.logits.argmax(1).tolist() == [n % 2 for n in range(len(exits_of))]
    assert max(samples for _, samples in backend.calls) == 4


def test_requests_of_different_shapes_do_not_share_a_batch() -> None:
    engine, _ = engine_of(max_batch=8, max_wait=0.0)
    for width in (6, 8, 6):
        engine.submit((np.zeros((2, width), dtype=np.float32),), 2, 0.0)
    sizes = []
    while (work := engine.next_work(0.0)) is not None:
        sizes.append(work.samples)
    assert sizes == [4, 2]


def test_a_full_engine_refuses_and_says_when_to_come_back() -> None:
    engine, backend = engine_of(max_batch=4, max_samples=8, max_wait=0.0)
    submit(engine, [0] * 4, now=0.0)
    submit(engine, [0] * 4, now=0.0)
    with pytest.raises(OverloadedError, match="8 samples are waiting, and the limit is 8") as refused:
        submit(engine, [0], now=0.0)
    assert refused.value.retry_after == 1.0  # nothing is known of its speed yet
    for _ in range(20):  # two seconds for a sample
        work = engine.next_work(0.0)
        assert work is not None
        work.execute(backend, TASK)
        engine.complete(work, engine._measured_at + 8.0)
        submit(engine, [0] * 4, now=engine._measured_at)
    with pytest.raises(OverloadedError) as refused:
        submit(engine, [0], now=0.0)
    assert refused.value.retry_after == pytest.approx(16.0, rel=0.01)
    with pytest.raises(InvalidInputError, match="9 samples, expected 1 to 8; send it in parts"):
        submit(engine, [0] * 9)
    with pytest.raises(InvalidInputError, match="0 samples"):
        engine.submit((np.zeros((0, 6), dtype=np.float32),), 0, 0.0)


def test_time_without_requests_does_not_count_as_slowness() -> None:
    engine, backend = engine_of(max_batch=1, max_samples=1, max_wait=0.0)
    for hour in range(30):
        submit(engine, [0], now=3600.0 * hour)
        work = engine.next_work(3600.0 * hour)
        assert work is not None
        work.execute(backend, TASK)
        engine.complete(work, 3600.0 * hour + 0.01)
    submit(engine, [0], now=200000.0)
    with pytest.raises(OverloadedError) as refused:
        submit(engine, [0], now=200000.0)
    assert refused.value.retry_after == 1.0


def test_cancelled_and_late_requests_leave_the_queues() -> None:
    engine, backend = engine_of(max_batch=4, max_wait=10.0, max_samples=8)
    gone = submit(engine, [2, 2], now=0.0)
    late = submit(engine, [2], now=0.0, deadline=1.0)
    stays = submit(engine, [2], now=0.0, deadline=5.0)
    assert step(engine, backend, 0.0) == (0, 4)
    assert engine.waiting == [0, 4, 0]
    assert engine.cancel(gone, 0.5)
    assert not engine.cancel(gone, 0.5)
    assert engine.waiting == [0, 2, 0]
    assert engine.expire(0.9) == []
    assert engine.wake_at == 1.0
    assert engine.expire(1.0) == [late]
    assert engine.waiting == [0, 1, 0]
    assert engine.inside == 1
    assert step(engine, backend, 10.0) == (1, 1)
    assert step(engine, backend, 10.0) == (2, 1)
    assert [r.outcome for r in (gone, late, stays)] == [Outcome.CANCELLED, Outcome.LATE, Outcome.ANSWERED]
    assert engine.expire(100.0) == []
    assert engine.wake_at is None


def test_a_request_cancelled_while_it_is_at_work_is_not_answered() -> None:
    engine, backend = engine_of(max_batch=4, max_wait=0.0)
    gone, stays = submit(engine, [0, 2]), submit(engine, [2, 0])
    work = engine.next_work(0.0)
    assert work is not None
    work.execute(backend, TASK)
    engine.cancel(gone, 0.0)
    assert engine.complete(work, 0.0) == []
    assert engine.waiting == [0, 1, 0]
    assert (gone.outcome, stays.open) == (Outcome.CANCELLED, True)


def test_draining_refuses_new_requests_and_answers_all_inside_at_once() -> None:
    engine, backend = engine_of(max_batch=8, max_wait=60.0)
    requests = [submit(engine, [k]) for k in (0, 1, 2)]
    assert engine.next_work(0.0) is None
    engine.drain()
    with pytest.raises(DrainingError, match="is stopping"):
        submit(engine, [0])
    while not engine.idle:
        assert step(engine, backend, 0.0) is not None
    assert [r.outcome for r in requests] == [Outcome.ANSWERED] * 3


def test_a_request_that_breaks_its_batch_fails_alone() -> None:
    engine, backend = engine_of(max_batch=8, max_wait=0.0)
    good, other = submit(engine, [2, 0]), submit(engine, [1])
    bad = engine.submit((np.full((1, 6), TableBackend.poison, dtype=np.float32),), 1, 0.0)
    ended: list[Request] = []
    while (work := engine.next_work(0.0)) is not None:
        broken = any((part.live[0] == TableBackend.poison).any() for part in work.parts)
        if broken:
            with pytest.raises(RuntimeError, match="a poisonous sample") as raised:
                work.execute(backend, TASK)
            ended += engine.fail(work, raised.value, 0.0)
        else:
            work.execute(backend, TASK)
            ended += engine.complete(work, 0.0)
    assert bad.outcome is Outcome.FAILED
    assert str(bad.error) == "a poisonous sample"
    assert [good.outcome, other.outcome] == [Outcome.ANSWERED] * 2
    assert good.exits.tolist() == [2, 0]
    assert sorted(r.number for r in ended) == [1, 2, 3]
    assert engine.idle


@pytest.mark.parametrize("value", [0, -1])
def test_options_that_make_no_sense_are_refused_by_name(value: int) -> None:
    with pytest.raises(InvalidInputError, match=f"max_batch is {value}"):
        EngineOptions(max_batch=value)
    with pytest.raises(InvalidInputError, match="max_wait is nan"):
        EngineOptions(max_wait=float("nan"))


def test_routes_join_only_at_one_exit_under_one_policy() -> None:
    policy, other = scripted_policy(3), scripted_policy(3)
    with pytest.raises(InvalidInputError, match="cannot be joined"):
        DecisionState.join([DecisionState(policy, 1), DecisionState(other, 1)])
    ahead = DecisionState(policy, 1)
    ahead.skip()
    with pytest.raises(InvalidInputError, match=r"before exits \[0, 1\]"):
        DecisionState.join([DecisionState(policy, 1), ahead])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    exits=st.integers(2, 4),
    classes=st.sampled_from([2, 5]),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=25),
    shares=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)),
    names=st.tuples(st.sampled_from(sorted(MAKERS)), st.sampled_from(sorted(MAKERS))),
    max_batch=st.integers(1, 12),
    merge=st.booleans(),
)
def test_exits_are_those_of_replay_however_requests_are_merged_and_the_policy_changes(
    seed: int,
    exits: int,
    classes: int,
    sizes: list[int],
    shares: tuple[float, float],
    names: tuple[str, str],
    max_batch: int,
    merge: bool,
) -> None:
    rng = np.random.default_rng(seed)
    calibration, labels = awkward_logits(rng, exits, 60, classes), rng.integers(classes, size=60)
    schedulers = [fitted(MAKERS[n], calibration, labels, share)[0] for n, share in zip(names, shares, strict=True)]
    logits = awkward_logits(rng, exits, sum(sizes), classes)
    expected = [scheduler.replay(eenet.ExitRecords.from_logits(logits)) for scheduler in schedulers]
    inputs, backend = flat(logits), TableBackend(exits, classes)
    engine = Engine(schedulers[0].policy, EngineOptions(max_batch=max_batch, max_wait=0.0, merge=merge))
    ends = np.cumsum(sizes)
    waiting, requests = list(zip(ends - sizes, ends, strict=True)), []
    while waiting or not engine.idle:
        if waiting and rng.random() < 0.5:
            start, end = waiting.pop(0)
            which = int(rng.integers(2))
            engine.policy = schedulers[which].policy
            requests.append((engine.submit((inputs[start:end],), int(end - start), 0.0), start, end, which))
        else:
            step(engine, backend, 0.0)
    for request, start, end, which in requests:
        assert request.outcome is Outcome.ANSWERED
        np.testing.assert_array_equal(request.exits, expected[which].exits[start:end])
        assert request.logits is not None
        np.testing.assert_array_equal(request.logits.argmax(axis=1), expected[which].predictions[start:end])
        if not schedulers[which].changes_predictions:
            np.testing.assert_array_equal(request.logits, logits[request.exits, np.arange(start, end)])


class Traffic(RuleBasedStateMachine):
    """Arrivals, cancellations, deadlines, failures and several workers in any order: each request ends once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.engine, self.backend = engine_of(max_batch=4, max_wait=1.0, max_delay=3.0, max_samples=20)
        self.requests: list[tuple[Request, list[int]]] = []
        self.reported: list[int] = []
        self.at_work: list[Any] = []

    @rule(
        exits_of=st.lists(st.integers(0, 2), min_size=1, max_size=6),
        patience=st.none() | st.floats(0, 5),
    )
    def arrive(self, exits_of: list[int], patience: float | None) -> None:
        deadline = None if patience is None else self.now + patience
        free = 20 - self.engine.inside
        try:
            request = submit(self.engine, exits_of, self.now, deadline=deadline)
        except OverloadedError:
            assert len(exits_of) > free
        except DrainingError:
            assert self.engine.draining
        else:
            assert len(exits_of) <= free
            self.requests.append((request, exits_of))

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.report(self.engine.expire(self.now))

    @rule()
    def begin(self) -> None:
        work = self.engine.next_work(self.now)
        if work is not None:
            assert 1 <= work.samples <= 4
            self.at_work.append(work)

    @precondition(lambda self: self.at_work)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        work = self.at_work.pop(data.draw(st.integers(0, len(self.at_work) - 1)))
        if fails:
            self.report(self.engine.fail(work, RuntimeError("broken"), self.now))
        else:
            work.execute(self.backend, TASK)
            self.report(self.engine.complete(work, self.now))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from([r for r, _ in self.requests]))
        was_open = request.open
        assert self.engine.cancel(request, self.now) == was_open
        if was_open:
            self.report([request])

    @rule()
    def drain(self) -> None:
        self.engine.drain()

    def report(self, requests: list[Request]) -> None:
        assert all(not r.open for r in requests)
        self.reported += [r.number for r in requests]

    @invariant()
    def each_ended_request_is_reported_once(self) -> None:
        assert len(self.reported) == len(set(self.reported))
        assert {r.number for r, _ in self.requests if not r.open} == set(self.reported)

    @invariant()
    def the_counts_are_right(self) -> None:
        assert self.engine.inside == sum(r.samples for r, _ in self.requests if r.open)
        assert sum(self.engine.waiting) <= self.engine.inside <= 20
        assert self.engine.working == len(self.at_work)

    def teardown(self) -> None:
        self.engine.drain()
        for work in self.at_work:
            work.execute(self.backend, TASK)
            self.report(self.engine.complete(work, self.now))
        while (work := self.engine.next_work(self.now)) is not None:
            work.execute(self.backend, TASK)
            self.report(self.engine.complete(work, self.now))
        assert self.engine.idle
        assert sorted(self.reported) == sorted(r.number for r, _ in self.requests)
        for request, exits_of in self.requests:
            if request.outcome is Outcome.ANSWERED:
                assert request.exits.tolist() == exits_of
        assert self.engine.wake_at is None


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
