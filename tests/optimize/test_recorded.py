"""Stages recorded at a few batch sizes: the same answers whatever the size, whatever ran before, and their limits.

What a GPU does is stood in for: a recording here is a call that writes its results to the same tensors each time, as a
replayed CUDA graph does. The last tests need a GPU.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from bundles import CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import eenet
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.optimize import Optimization, StageTimes, Variant, buckets, eager, example_of, frozen, recorded, stage_times

Tensors = tuple[Tensor, ...]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def stand_in(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
    outputs = tuple(tensor.clone() for tensor in function())

    def replay() -> None:
        for held, tensor in zip(outputs, function(), strict=True):
            held.copy_(tensor)

    return replay, outputs


@torch.inference_mode()
def recording(case: Case, largest: int, variant: Variant | None = None, capture: Any = stand_in) -> Variant:
    return recorded(variant or eager(case.model), partial(example_of, case.model), largest, capture)


def running(case: Case, variant: Variant, times: StageTimes | None = None) -> eenet.AdaptiveModel:
    """An AdaptiveModel that runs this variant at every batch size."""
    fast = eenet.AdaptiveModel(case.model, case.scheduler)
    times = times or stage_times(case.model, variant, max(variant.buckets or (4,)), 0.0)
    fast.optimized = Optimization((1,), (variant.name,), {}, (times,), (), (variant,))
    return fast


def same(case: Case, fast: eenet.AdaptiveModel, inputs: dict[str, Tensor]) -> None:
    plain = eenet.AdaptiveModel(case.model, case.scheduler)
    got, expected = (model(**inputs) if len(inputs) > 1 else model(inputs["x"]) for model in (fast, plain))
    assert torch.equal(got.exits, expected.exits)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4, equal_nan=True)


@given(largest=st.integers(1, 300))
def test_buckets_hold_every_number_with_little_room_to_spare(largest: int) -> None:
    found = buckets(largest)
    assert found == tuple(sorted(set(found)))
    assert found[0] == 1
    assert found[-1] == largest
    for samples in range(1, largest + 1):
        bucket = min(size for size in found if size >= samples)
        assert bucket - samples <= max(samples / 2 - 0.5, 0)


@pytest.mark.parametrize("name", ["convolutions", "segmentation", "bert", "digits"])
def test_recorded_stages_answer_as_the_model_does_in_any_order_of_sizes(name: str) -> None:
    case = CASES[name]()
    fast = running(case, recording(case, 12))
    for size in (40, 1, 7, 12, 2, 11, 5, 13):
        for start in range(0, 40, size):
            same(case, fast, {key: tensor[start : start + size] for key, tensor in case.fresh.items()})


def test_every_frozen_variant_can_be_recorded() -> None:
    case = CASES["convolutions"]()
    for variant in frozen(case.model):
        made = recording(case, 8, variant)
        assert made.name == f"{variant.name}, recorded"
        assert made.channels_last is variant.channels_last
        for size in (8, 3):
            fast = running(case, made)
            x = case.fresh["x"][:size]
            assert torch.equal(fast(x).exits, eenet.AdaptiveModel(case.model, case.scheduler)(x).exits)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 14), min_size=1, max_size=4), compacts=st.sampled_from(["always", "never", "odd"]))
def test_what_was_in_a_bucket_before_changes_no_answer(sizes: list[int], compacts: str) -> None:
    case = CASES["convolutions"]()
    variant = recording(case, 8)
    fast = running(case, variant, Times(compacts))
    fast(torch.full((8, 3, 8, 8), torch.nan))  # every row of the buckets holds NaN now
    for start, size in enumerate(sizes):
        same(case, fast, {"x": case.fresh["x"][start : start + size]})


class Times(StageTimes):
    """Decides on compaction by a rule instead of by a measurement."""

    def __init__(self, rule: str) -> None:
        object.__setattr__(self, "_rule", rule)

    def compacts(self, k: int, samples: int, remaining: int) -> bool:
        rule = getattr(self, "_rule")  # noqa: B009 - a frozen dataclass
        return rule == "always" or (rule == "odd" and remaining % 2 == 1)


def test_answers_are_the_callers_to_keep() -> None:
    case = CASES["convolutions"]()
    fast = running(case, recording(case, 8))
    first = [fast(case.fresh["x"][n : n + 1]).logits for n in range(8)]
    kept = [logits.clone() for logits in first]
    fast(case.fresh["x"][8:16])
    for logits, before in zip(first, kept, strict=True):
        assert torch.equal(logits, before)


def test_texts_of_another_length_run_unrecorded() -> None:
    case = CASES["bert"]()
    replays = []

    def counting(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        replay, outputs = stand_in(function)
        return (lambda: (replays.append(1), replay())[1]), outputs  # type: ignore[func-returns-value]

    fast = running(case, recording(case, 4, capture=counting))
    replays.clear()
    same(case, fast, {key: tensor[:3, :9] for key, tensor in case.fresh.items()})
    assert not replays
    same(case, fast, {key: tensor[:3] for key, tensor in case.fresh.items()})
    assert replays


def test_a_recording_that_does_nothing_is_found_out() -> None:
    case = CASES["convolutions"]()

    def empty(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        return (lambda: None), tuple(tensor.clone() for tensor in function())

    variant, inputs = recording(case, 4, capture=empty), example_of(case.model, 4)
    with torch.inference_mode():
        expected = eager(case.model).all_logits(inputs)
        assert not torch.allclose(torch.stack(expected), torch.stack(variant.all_logits(inputs)), atol=1e-3)
        again = recording(case, 4)
        torch.testing.assert_close(again.all_logits(inputs), expected, rtol=0, atol=1e-3)


def test_results_of_another_recording_are_not_relied_upon() -> None:
    """In a pool of CUDA graphs what one uses while it runs may be where those that were recorded later have results."""
    case = CASES["convolutions"]()
    left: list[Tensors] = []

    def sharing(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        replay, outputs = stand_in(function)
        left.append(outputs)
        number = len(left)

        def destroying() -> None:
            for later in left[number:]:
                for tensor in later:
                    tensor.fill_(float("nan"))
            replay()

        return destroying, outputs

    variant = recording(case, 12, capture=sharing)
    fast = running(case, variant)
    for size in (40, 12, 7, 1):
        same(case, fast, {"x": case.fresh["x"][:size]})


def test_a_batch_of_another_dtype_runs_unrecorded() -> None:
    case = CASES["convolutions"]()
    stage = recording(case, 4).stages[0]
    with torch.inference_mode(), pytest.raises(RuntimeError, match="type"):
        stage(torch.randn(2, 3, 8, 8, dtype=torch.float64))


def test_in_half_precision_nothing_that_computes_otherwise_is_tried() -> None:
    case = CASES["convolutions"]()
    model = copy.deepcopy(case.model).bfloat16()
    x = case.fresh["x"].bfloat16()
    scheduler = eenet.MaxProbability().fit(eenet.collect(model, [x]), case.scheduler.costs, budget="60%")
    with pytest.warns(ReliabilityWarning, match=r"nothing that was tried is faster .*\(half precision\)"):
        fast = eenet.AdaptiveModel(model, scheduler, optimize="auto", seconds=0.0)
    assert fast.optimized is not None
    assert set(fast.optimized.ratios) == {"eager"}
    assert (fast(x).exits.numpy() == scheduler.replay(eenet.collect(model, [x])).exits).all()


def test_threads_take_turns() -> None:
    case = CASES["convolutions"]()
    fast = running(case, recording(case, 8))
    expected = eenet.AdaptiveModel(case.model, case.scheduler)(case.fresh["x"])
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            for start in range(0, 40, 8):
                got = fast(case.fresh["x"][start : start + 8])
                if not torch.equal(got.exits, expected.exits[start : start + 8]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_in_buckets_the_next_bucket_decides_whether_compaction_pays() -> None:
    times = StageTimes((1, 4, 8), np.array([[1.0] * 2, [4.0] * 2, [8.0] * 2]), np.zeros((3, 2)) + 0.1, in_buckets=True)
    assert not times.compacts(1, 8, 5)  # five run as eight
    assert times.compacts(1, 8, 4)
    assert not times.compacts(1, 4, 2)
    assert times.compacts(1, 4, 1)


def test_a_device_that_nothing_is_measured_on_is_refused() -> None:
    case = CASES["convolutions"]()
    model = copy.deepcopy(case.model).to("meta")
    with pytest.raises(InvalidInputError, match="the model is on meta; optimize measures on a CPU or a CUDA GPU"):
        eenet.AdaptiveModel(model, case.scheduler, optimize="auto")


@needs_gpu
def test_cuda_graphs_take_the_exits_that_replay_does() -> None:
    case = CASES["convolutions"]()
    model = copy.deepcopy(case.model).cuda()
    x = case.fresh["x"].cuda()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # of a network this small nothing may be faster
        fast = eenet.AdaptiveModel(model, case.scheduler, optimize="auto", batch_sizes=(1, 8), seconds=0.1)
    assert any(name.endswith("recorded") for name in fast.optimized.ratios)  # type: ignore[union-attr]
    with torch.inference_mode():
        graphs = recorded(eager(model), partial(example_of, model), 8)
    fast = running(replace(case, model=model), graphs)
    plain = eenet.AdaptiveModel(model, case.scheduler)
    for size in (8, 5, 1, 13):
        with torch.backends.cudnn.flags(allow_tf32=False):
            got, expected = fast(x[:size]), plain(x[:size])
        assert torch.equal(got.exits, expected.exits)
        torch.testing.assert_close(got.logits, expected.logits, rtol=1e-2, atol=1e-2)


@needs_gpu
def test_half_precision_on_a_gpu_takes_the_exits_that_replay_does() -> None:
    case = CASES["convolutions"]()
    model = copy.deepcopy(case.model).cuda().half()
    x = case.fresh["x"].cuda().half()
    records = eenet.collect(model, [x])
    scheduler = eenet.MaxProbability().fit(records, case.scheduler.costs, budget="60%")
    assert (eenet.AdaptiveModel(model, scheduler)(x).exits.numpy() == scheduler.replay(records).exits).all()
