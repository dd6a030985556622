"""Stages recorded as CUDA graphs: a stage's kernels are launched together, since small batches wait for launches.

A recording is of fixed shapes. So each stage is recorded at a few numbers of samples, its buckets, and n samples run in
the smallest bucket that holds them; the rows above n compute on what was there before, and their results are not read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eenet.stages import Step, Variant

Tensors = tuple[Tensor, ...]
Capture = Callable[[Callable[[], Tensors]], tuple[Callable[[], None], Tensors]]
"""Records a function without arguments: how to run it again, and the tensors in which its results then are."""

_WARM_UP = 3


def buckets(largest: int) -> tuple[int, ...]:
    """The numbers of samples to record, up to `largest`: powers of two and what lies half-way, so that at most a third
    of a batch is filled up.
    """
    sizes = {largest}
    power = 1
    while power <= largest:
        sizes |= {size for size in (power, power + power // 2) if size <= largest}
        power *= 2
    return tuple(sorted(sizes))


def recorded(
    variant: Variant,
    inputs: Callable[[int], Tensors],
    largest: int,
    capture: Capture | None = None,
) -> Variant:
    """A variant whose stages and heads are recorded at the `buckets` up to `largest` samples.

    `inputs(n)` gives the live tensors of n samples before stage 0. More samples than `largest`, or live tensors whose
    other sizes are not those of the inputs, such as longer texts, run as in `variant`. What a stage gives is
    overwritten by its next call, so one batch runs at a time. Raises RuntimeError for a stage that cannot be recorded,
    such as one that waits for a result on the host.
    """
    capture = capture or cuda_capture()
    stages = [
        _Recorded(stage, [one.batch_dim for one in stage.inputs], [one.batch_dim for one in stage.outputs])
        for stage in variant.stages
    ]
    heads = [_Recorded(_tuple_of(head), [0], [0], keep=True) for head in variant.heads]
    stages[-1].keep = True
    for size in reversed(buckets(largest)):  # the largest first: the smaller ones fit into the memory that it freed
        live = variant.entered(inputs(size))
        for k, stage in enumerate(variant.stages):
            step = Step(stage, stages[k].record(size, live, capture))
            if k < len(heads):
                heads[k].record(size, (step.feature,), capture)
            live = step.live
    for one in (*stages, *heads):
        one.forget()
    return variant.replaced(
        f"{variant.name}, recorded",
        stages=tuple(stage.replaced(module) for stage, module in zip(variant.stages, stages, strict=True)),
        heads=tuple(_first_of(head) for head in heads),
        buckets=buckets(largest),
        lock=_Turns(),
    )


class _Turns:
    """Held while a batch runs: the next one waits, on the device too, until its work there is done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: Any = None

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)

    def __exit__(self, *_: object) -> None:
        try:
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._done.record()
        finally:
            self._lock.release()


def cuda_capture() -> Capture:
    """Records CUDA graphs of the current device that share one pool of memory.

    Sharing is safe as they are used here: what a graph computes on is copied to it before it runs, and what it gives is
    read before another one runs, but for the head of its stage and size. That was recorded just after it, while the
    results were kept, so it has memory of its own.
    """
    pool: Any = torch.cuda.graph_pool_handle()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def capture(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        current = torch.cuda.current_stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                function()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # A capture that fails does not put the stream back; and what other threads do must not spoil it.
        with torch.cuda.stream(current), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = function()
        graph.replay()
        return graph.replay, outputs

    return capture


class _Recorded(nn.Module):
    """A function of live tensors with its recordings, by number of samples.

    With `keep` results are the caller's to keep; else the next call overwrites them.
    """

    def __init__(
        self,
        function: Callable[..., Tensors],
        dims: Sequence[int | None],
        output_dims: Sequence[int | None],
        *,
        keep: bool = False,
    ) -> None:
        super().__init__()
        self._function = function
        self._dims, self._output_dims = dims, output_dims
        self.keep = keep
        self._recordings: dict[int, tuple[Tensors, Callable[[], None], Tensors]] = {}
        self._shared: Tensors | None = None

    def record(self, size: int, live: Tensors, capture: Capture) -> Tensors:
        """Record `size` samples such as `live`, the largest size first; returns what the function gives for them."""
        if self._shared is None:
            self._shared = tuple([tensor.clone() for tensor in live])
        held = tuple(
            [
                self._part(shared, tensor, dim)
                for shared, tensor, dim in zip(self._shared, live, self._dims, strict=True)
            ]
        )
        replay, outputs = capture(lambda: self._function(*held))
        self._recordings[size] = (held, replay, outputs)
        return outputs

    @staticmethod
    def _part(shared: Tensor, tensor: Tensor, dim: int | None) -> Tensor:
        """Where a recording finds a tensor: in the memory that all sizes share, if that has the layout of a new one."""
        if dim is None:
            return shared
        part = _first(shared, dim, tensor.shape[dim])
        if part.stride() != tensor.clone().stride():
            return tensor.clone()
        return part.copy_(tensor)

    def forget(self) -> None:
        """Spoil all results, so that a recording that does nothing when it is run is not taken for a fast one."""
        for _, _, outputs in self._recordings.values():
            for tensor, dim in zip(outputs, self._output_dims, strict=True):
                if dim is not None:  # what is no sample's own may be the network's
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)

    def forward(self, *live: Tensor) -> Tensors:
        samples = next(tensor.shape[dim] for tensor, dim in zip(live, self._dims, strict=True) if dim is not None)
        size = min((one for one in self._recordings if one >= samples), default=None)
        if size is None:
            return self._function(*live)
        held, replay, outputs = self._recordings[size]
        targets = [_first(tensor, dim, samples) for tensor, dim in zip(held, self._dims, strict=True)]
        if not all(_alike(target, tensor) for target, tensor in zip(targets, live, strict=True)):
            return self._function(*live)
        for target, tensor in zip(targets, live, strict=True):
            target.copy_(tensor)
        replay()
        parts = [_first(tensor, dim, samples) for tensor, dim in zip(outputs, self._output_dims, strict=True)]
        return tuple([tensor.clone() for tensor in parts] if self.keep else parts)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def _first(tensor: Tensor, dim: int | None, samples: int) -> Tensor:
    """The first samples along a dimension; a tensor that is no sample's own as it is."""
    return tensor if dim is None or tensor.shape[dim] == samples else tensor.narrow(dim, 0, samples)


def _tuple_of(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensors]:
    return lambda feature: (head(feature),)


def _first_of(head: _Recorded) -> Callable[[Tensor], Tensor]:
    def call(feature: Tensor) -> Tensor:
        logits: Tensor = head(feature)[0]
        return logits

    return call
