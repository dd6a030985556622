"""Stages in processes of their own, without Ray: the same exits as replay, and what happens when replicas die."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import awkward_logits
from serving_toys import TableBackend, ToyModel, fitted, flat, scripted_logits
from waiting import PATIENCE

import eenet
from eenet.errors import DrainingError, InvalidInputError, OverloadedError
from eenet.runtime import run_arrays
from eenet.scheduler import BEEM, MaxProbability, Patience, Voting
from eenet.serving.engine import Engine, EngineOptions, FixedBudget, LocalService, Outcome, RefusedError

pytest.importorskip("prometheus_client", reason="needs the extra that serves")

from eenet.serving.ray import LostObjectError, ObjectReference, RemoteService, StageServer

MAKERS = [MaxProbability, Patience, Voting, BEEM]


class Lost(Exception):  # noqa: N818 - stands for the death of a replica
    pass


class Sent:
    """A call under way, through pickle there and back as between processes."""

    def __init__(self, server: StageServer, call: Any, *, dies: bool = False) -> None:
        self._server, self._call, self._dies = server, call, dies

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        found = pickle.loads(pickle.dumps(await self._server(pickle.loads(pickle.dumps(self._call)))))  # noqa: S301
        if self._dies:
            raise Lost
        return found

    def cancel(self) -> None:
        pass


class Process:
    """A model as another process has it: a copy, so that no object is the same."""

    def __init__(self, model: Any) -> None:
        self.backend, self.task = model.backend, model.task
        self.scheduler = pickle.loads(pickle.dumps(model.scheduler))  # noqa: S301
        self.costs, self.inputs = model.costs, model.inputs
        self.preprocessing, self.class_names = model.preprocessing, model.class_names
        self.info: dict[str, Any] = {}


class MemoryStore:
    """A store in this process, which may lose what was left there."""

    def __init__(self, loses: Callable[[int], bool]) -> None:
        self._loses, self._left, self.fetched = loses, iter(range(10**6)), 0
        self._held: dict[int, Any] = {}

    async def put(self, live: Any) -> ObjectReference:
        number = next(self._left)
        if not self._loses(number):
            self._held[number] = live
        return ObjectReference(number)

    async def get(self, reference: ObjectReference) -> Any:
        if reference.key not in self._held:
            raise LostObjectError("its owner died")
        self.fetched += 1
        return self._held[reference.key]


async def through_stages(
    model: Any,
    inputs: Sequence[Any],
    *,
    options: EngineOptions | None = None,
    deaths: Callable[[int], bool] = lambda _: False,
    full: bool = False,
    retries: int = 3,
    store: MemoryStore | None = None,
    controller: Any = None,
) -> list[Any]:
    """The requests that came of these inputs, all sent at once, or what was raised instead."""
    options = options or EngineOptions(max_wait=0.0)
    exits = model.backend.num_exits
    servers = [StageServer(Process(model), k, options, store=store) for k in range(exits)]
    calls = iter(range(10**6))

    def sender(k: int) -> Callable[[Any], Sent]:
        return lambda call: Sent(servers[k], call, dies=deaths(next(calls)))

    controller = controller or FixedBudget(model.scheduler)
    handles = [sender(k) for k in range(exits)]
    service = RemoteService(model, controller, handles, options, lost=(Lost,), retries=retries)
    found = await asyncio.gather(
        *(service.answer(x, timeout=PATIENCE, full=full) for x in inputs), return_exceptions=True
    )
    await service.drain()
    with pytest.raises(DrainingError):
        await service.answer(inputs[0], timeout=1.0)
    assert list(service.waiting) == [0] * exits
    for server in servers:
        server.check_health()
        await server.drain()
    return found


class Table(ToyModel):
    """A model whose inputs are logits, with a scheduler fitted on some."""

    def __init__(self, scheduler: Any, exits: int, classes: int) -> None:
        super().__init__(backend=TableBackend(exits, classes))
        self.scheduler, self.costs = scheduler, scheduler.costs


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")  # of records made by chance
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    maker=st.sampled_from(MAKERS),
    exits=st.integers(2, 4),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    max_batch=st.integers(1, 8),
    share=st.floats(0.2, 0.8),
)
def test_stages_in_separate_processes_give_the_exits_of_replay(
    seed: int, maker: Any, exits: int, sizes: list[int], max_batch: int, share: float
) -> None:
    rng, classes = np.random.default_rng(seed), 3
    logits = rng.normal(0, 2, (exits, 60, classes)).astype(np.float32)
    scheduler, _ = fitted(maker, logits, rng.integers(0, classes, 60), share)
    fresh = rng.normal(0, 2, (exits, sum(sizes), classes)).astype(np.float32)
    expected = scheduler.replay(eenet.ExitRecords.from_logits(fresh, None))
    inputs = np.split(flat(fresh), np.cumsum(sizes)[:-1])
    options = EngineOptions(max_batch=max_batch, max_wait=0.001)
    found = asyncio.run(through_stages(Table(scheduler, exits, classes), inputs, options=options))
    assert [request.outcome for request in found] == [Outcome.ANSWERED] * len(sizes)
    np.testing.assert_array_equal(np.concatenate([request.exits for request in found]), expected.exits)
    answers = np.concatenate([request.logits for request in found]).argmax(axis=1)
    np.testing.assert_array_equal(answers, expected.predictions)


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")  # of records made by chance
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    maker=st.sampled_from(MAKERS),
    exits=st.integers(2, 4),
    share=st.floats(0.2, 0.8),
)
def test_what_each_exit_says_of_a_sample_agrees_with_the_replay(
    seed: int, maker: Any, exits: int, share: float
) -> None:
    rng, classes = np.random.default_rng(seed), 3
    logits = rng.normal(0, 2, (exits, 60, classes)).astype(np.float32)
    scheduler, _ = fitted(maker, logits, rng.integers(0, classes, 60), share)
    fresh = awkward_logits(rng, exits, 6, classes)
    expected = scheduler.replay(eenet.ExitRecords.from_logits(fresh, None))
    service = LocalService(Table(scheduler, exits, classes), FixedBudget(scheduler))
    for n, x in enumerate(flat(fresh)):
        views = service.view({"x": x[None]})
        assert views is not None
        assert [view.leaves for view in views].index(True) == expected.exits[n]
        assert [view.score is None for view in views] == [False] * (exits - 1) + [True]
        left = views[expected.exits[n]].logits
        if np.isfinite(left).all():
            assert left.argmax() == expected.predictions[n]


def test_metrics_read_the_queues_while_no_worker_can_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scheduler, _ = fitted(MaxProbability, rng.normal(0, 2, (3, 60, 3)).astype(np.float32), rng.integers(0, 3, 60), 0.5)
    service = LocalService(Table(scheduler, 3, 3), FixedBudget(scheduler))
    other = threading.Thread(target=lambda: asyncio.run(service.drain()))  # takes its turn with the workers
    waited: list[object] = []

    def waiting(_: Engine) -> list[int]:
        if not waited:
            other.start()
            other.join(0.2)  # it cannot end before the turn is given back
            waited.append(other.is_alive())
        return [0, 0, 0]

    monkeypatch.setattr(Engine, "waiting", property(waiting))
    assert b"eenet_queue_samples" in service.metrics.exposition(2.0)
    other.join(PATIENCE)
    assert waited == [True]
    assert not other.is_alive()


def test_a_call_whose_replica_died_is_sent_again_and_nothing_is_lost_or_doubled() -> None:
    leave_at = [0, 1, 2, 2, 1, 0] * 5
    inputs = [scripted_logits([k], 3) for k in leave_at]
    found = asyncio.run(through_stages(ToyModel(), inputs, deaths=lambda n: n % 3 == 0, retries=100))
    assert [request.exits.tolist() for request in found] == [[k] for k in leave_at]


def test_live_tensors_wait_in_a_store_and_samples_start_again_where_it_lost_them() -> None:
    leave_at = [[0, 2, 1], [1], [2, 2], [0, 1, 2, 0]] * 5
    inputs = [scripted_logits(exits, 3) for exits in leave_at]
    for loses in (lambda _: False, lambda n: n % 3 == 0):
        store = MemoryStore(loses)
        found = asyncio.run(through_stages(ToyModel(), inputs, deaths=lambda n: n % 5 == 0, retries=100, store=store))
        assert [request.exits.tolist() for request in found] == leave_at
        assert store.fetched > 0
    (lost,) = asyncio.run(
        through_stages(ToyModel(), [scripted_logits([2], 3)], retries=2, store=MemoryStore(lambda _: True))
    )
    assert isinstance(lost, RefusedError)
    assert lost.status == 503
    assert "lost before stage 1 3 times" in str(lost)


def test_where_replicas_die_again_and_again_the_request_is_refused_with_503() -> None:
    (found,) = asyncio.run(through_stages(ToyModel(), [scripted_logits([2], 3)], deaths=lambda _: True, retries=2))
    assert isinstance(found, RefusedError)
    assert found.status == 503
    assert "3 replicas of stage 0 died under the request; try again later" in str(found)


def test_a_stage_that_fails_on_a_sample_fails_its_request_alone() -> None:
    poison = np.full((1, 6), TableBackend.poison, dtype=np.float32)
    inputs = [scripted_logits([2], 3), poison, scripted_logits([1], 3)]
    options = EngineOptions(max_batch=8, max_wait=0.05)
    found = asyncio.run(through_stages(ToyModel(), inputs, options=options))
    assert [request.outcome for request in found] == [Outcome.ANSWERED, Outcome.FAILED, Outcome.ANSWERED]
    assert [str(request.error) for request in found] == ["None", "a poisonous sample", "None"]


def test_early_exits_can_be_switched_off_and_inputs_are_limited() -> None:
    inputs = [scripted_logits([0, 1, 2], 3)]
    (whole,) = asyncio.run(through_stages(ToyModel(), inputs, full=True))
    assert whole.exits.tolist() == [2, 2, 2]
    options = EngineOptions(max_samples=4, max_batch=2)
    many = [scripted_logits([0] * 3, 3), scripted_logits([0] * 3, 3), scripted_logits([0] * 5, 3)]
    first, second, third = asyncio.run(through_stages(ToyModel(), many, options=options))
    assert first.exits.tolist() == [0, 0, 0]
    assert isinstance(second, OverloadedError)
    assert isinstance(third, InvalidInputError)


@pytest.mark.parametrize("maker", [MaxProbability, Patience, BEEM])
def test_with_the_exits_off_samples_are_answered_and_handed_back_as_at_the_last_exit(maker: Any) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3, 200, 3)).astype(np.float32)
    labels, fresh = logits[2].argmax(axis=1), rng.normal(0, 2, (3, 50, 3)).astype(np.float32)
    costs = eenet.ExitCosts([1.0, 2.0, 3.0])
    records = eenet.ExitRecords.from_logits(logits, labels)
    scheduler = maker().fit(records, costs, 3.0, abstain=0.3, fallback=False)
    model = Table(scheduler, 3, 3)
    off = replace(scheduler.policy, enabled=np.zeros(2, dtype=np.bool_))
    expected = run_arrays(model.backend, off, model.task, flat(fresh))
    assert expected is not None
    assert 0 < expected.abstained.sum() < 50

    async def locally() -> Any:
        service = LocalService(model, FixedBudget(scheduler), EngineOptions(max_wait=0.0))
        service.start()
        found = await service.answer(flat(fresh), timeout=PATIENCE, full=True)
        await service.drain()
        return found

    (remote,) = asyncio.run(through_stages(model, [flat(fresh)], full=True))
    for found in (asyncio.run(locally()), remote):
        np.testing.assert_array_equal(found.logits, expected.logits)
        assert found.abstained.tolist() == expected.abstained.tolist()
        assert set(found.exits.tolist()) == {2}
    if scheduler.policy.ensemble is None:
        np.testing.assert_array_equal(expected.logits, fresh[2])


class Spending(FixedBudget):
    """Keeps what it is told: the exits of answered samples, and the costs of others."""

    def __init__(self, scheduler: eenet.Scheduler) -> None:
        super().__init__(scheduler)
        self.exits: list[int] = []
        self.costs: list[float] = []

    def observe(self, exits: Any, policy: Any = None) -> None:
        self.exits += exits.tolist()

    def observe_costs(self, costs: Any, policy: Any = None) -> None:
        self.costs += costs.tolist()


class Stuck(TableBackend):
    """Its last stage waits until it is freed, and fails where it is told to."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__(3, 2)
        self.fails, self.begun, self.free = fails, threading.Event(), threading.Event()

    def run(self, k: int, live: Any, *, observe: bool) -> Any:
        if k == 2:
            if self.fails:
                raise RuntimeError("it fails")
            self.begun.set()
            assert self.free.wait(PATIENCE)
        return super().run(k, live, observe=observe)


@pytest.mark.parametrize("ends", [Outcome.LATE, Outcome.CANCELLED, Outcome.FAILED])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_what_was_computed_for_samples_without_an_answer_is_spent(
    ends: Outcome, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, now = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + passed[0])  # also the clock of the event loop
    model = ToyModel(backend=Stuck(fails=ends is Outcome.FAILED))
    controller, options = Spending(model.scheduler), EngineOptions(max_wait=0.0)

    async def asked() -> Any:
        servers: list[StageServer] = []
        service: Any
        if where == "here":
            service = LocalService(model, controller, options)
        else:
            servers = [StageServer(Process(model), k, options) for k in range(3)]
            handles: list[Any] = [lambda call, server=server: Sent(server, call) for server in servers]
            service = RemoteService(model, controller, handles, options)
        service.start()
        await service.answer(scripted_logits([0, 1], 3), timeout=PATIENCE)
        asking = asyncio.ensure_future(service.answer(scripted_logits([0, 2], 3), timeout=PATIENCE))
        if ends is not Outcome.FAILED:
            assert await asyncio.to_thread(model.backend.begun.wait, PATIENCE)
        if ends is Outcome.LATE:
            passed[0] = 2 * PATIENCE
        if ends is Outcome.CANCELLED:
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        else:
            assert (await asking).outcome is ends
        if ends is Outcome.FAILED:  # what runs with the exits off is not counted
            await service.answer(scripted_logits([0, 2], 3), timeout=PATIENCE, full=True)
        counted = service.metrics.mean_cost, service.metrics.exit_shares, service.metrics.exposition(2.0)
        model.backend.free.set()
        for one in [service, *servers]:
            await one.drain()
        return counted

    mean, shares, text = asyncio.run(asked())
    assert controller.exits == [0, 1]
    assert controller.costs == [1.0, 3.0]
    assert mean == (1 + 2 + 1 + 3) / 4
    assert shares == [0.5, 0.5, 0.0]
    assert b"eenet_cost_total 7.0" in text
    assert b'eenet_unanswered_samples_total{stage="2"} 1.0' in text


def test_requests_that_switch_exits_off_have_one_policy_whatever_the_budget() -> None:
    async def whole() -> list[Any]:
        model = ToyModel()
        service = LocalService(model, FixedBudget(model.scheduler), EngineOptions(max_wait=0.0))
        service.start()
        found = []
        for budget in ("100%", "60%"):
            await service.set_budget(budget)
            found.append(await service.answer(scripted_logits([0, 1], 3), timeout=PATIENCE, full=True))
        await service.drain()
        return found

    first, second = asyncio.run(whole())
    assert first.exits.tolist() == second.exits.tolist() == [2, 2]
    assert first.policy is second.policy


@pytest.mark.filterwarnings("ignore::eenet.errors.FallbackWarning")  # of a rule in its place at another budget
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), maker=st.sampled_from(MAKERS))
def test_every_policy_of_a_scheduler_is_known_to_processes_that_loaded_a_copy(seed: int, maker: Any) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (3, 60, 3)).astype(np.float32)
    scheduler, costs = fitted(maker, logits, rng.integers(0, 3, 60), 0.5)
    fresh = rng.normal(0, 2, (3, 20, 3)).astype(np.float32)
    for budget in np.quantile(costs.values, [0.2, 0.6, 1.0]):
        try:
            other = scheduler.at(float(budget))
        except eenet.InfeasibleBudgetError:
            continue
        controller = FixedBudget(scheduler)
        controller.policy = other.policy
        (found,) = asyncio.run(through_stages(Table(scheduler, 3, 3), [flat(fresh)], controller=controller))
        expected = other.replay(eenet.ExitRecords.from_logits(fresh, None))
        np.testing.assert_array_equal(found.exits, expected.exits)


@pytest.mark.filterwarnings("ignore::eenet.errors.ReliabilityWarning")  # of equal records
def test_a_controller_of_another_scheduler_is_refused() -> None:
    model = ToyModel()
    records = eenet.ExitRecords.from_logits(np.zeros((3, 4, 2), dtype=np.float32), np.zeros(4, dtype=int))
    other = FixedBudget(eenet.Entropy().fit(records, model.costs, budget=2.0))
    (found,) = asyncio.run(through_stages(model, [scripted_logits([1], 3)], controller=other))
    assert isinstance(found, InvalidInputError)
    assert "'entropy' is not of the served scheduler" in str(found)


class _Slow(TableBackend):
    """The deeper stages wait until they are told to go on."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def run(self, k: int, live: Any, *, observe: bool) -> Any:
        if k:
            self.reached.set()
            assert self.goes_on.wait(PATIENCE)
        return super().run(k, live, observe=observe)


def test_answers_of_the_first_member_do_not_wait_for_a_slow_one_that_another_worker_runs() -> None:
    backend = _Slow()
    model = ToyModel(backend=backend)

    async def traffic() -> None:
        service = LocalService(model, FixedBudget(model.scheduler), EngineOptions(max_wait=0.0), workers=2)
        service.start()
        slow = asyncio.ensure_future(service.answer(scripted_logits([2], 3), timeout=PATIENCE))
        assert await asyncio.to_thread(backend.reached.wait, PATIENCE)
        quick = [await service.answer(scripted_logits([0], 3), timeout=PATIENCE) for _ in range(20)]
        assert [request.exits.tolist() for request in quick] == [[0]] * 20
        assert not slow.done(), "the slow member is still at work"
        backend.goes_on.set()
        assert (await slow).exits.tolist() == [2]
        await service.drain()

    asyncio.run(traffic())
