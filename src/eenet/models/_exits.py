"""Heads for exits that nothing was said about: which ones fit the features there.

The layout of a feature is not assumed. The network is run on its example at another size, to see which dimensions of
the feature follow the input, and its stages on an example whose steps are exchanged one after the other, to see which
positions of the feature depend on the whole input.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from eenet._compat import buffers_of
from eenet._warn import warn
from eenet.errors import InvalidInputError, ReliabilityWarning, kind_of
from eenet.models._heads import GridHead, SegmentationHead, SequenceHead, TokenHead, VectorHead
from eenet.models._io import inferring, logits_in
from eenet.stages import LiveTensor, StagedModel, feature_at, modes_kept
from eenet.stages._samples import FOLLOW_TRAINING, buffers_kept

# The steps that are left of a long sequence for the convolution of a default head.
_STEPS = 32

# A change is local along a dimension where it reaches this share at most of what it reaches along the other.
_LOCAL = 0.75

# What a network may raise at a size that it was not made for.
_REFUSALS = (RuntimeError, TypeError, ValueError, AssertionError, LookupError, AttributeError)


def default_heads(
    staged: StagedModel, features: Sequence[Tensor], num_classes: int, *, dense: tuple[int, int] | None = None
) -> list[nn.Module]:
    """Heads that fit the features at the early exits of a cut network, as large as those of its example.

    `dense` is the height and width of the network's output, where that has a class for every pixel. Raises
    InvalidInputError for a feature that no default head fits.
    """
    observed = _Observation(staged, features)
    stages = staged.inference_stages[:-1]
    return [_head(stage.name, observed, k, num_classes, dense) for k, stage in enumerate(stages)]


def _head(name: str, observed: _Observation, k: int, num_classes: int, dense: tuple[int, int] | None) -> nn.Module:
    shape, channels = observed.shapes[k], observed.channels(k)
    width = shape[channels]
    if isinstance(width, int):
        if dense is not None:
            if len(shape) == 4 and channels == 1:
                return SegmentationHead(width, num_classes, size=dense)
        elif len(shape) == 4:
            last = channels == 3
            size = list(observed.features[k].shape[1:3] if last else observed.features[k].shape[2:])
            fixed = all(isinstance(side, int) for side in shape[1:])
            return GridHead(
                width,
                num_classes,
                grid=[_grid(side) for side in size],
                size=size if fixed else None,
                channels_last=last,
            )
        elif len(shape) == 3 and channels == 1:
            return SequenceHead(width, num_classes, stride=max(observed.features[k].shape[2] // _STEPS, 1))
        elif len(shape) == 3:
            return TokenHead(width, num_classes, pool=observed.pool(k))
        elif len(shape) == 2:
            return VectorHead(width, num_classes)
    known = (
        "(batch, channels, height, width) for an output that has a class for every pixel"
        if dense is not None
        else "(batch, features), (batch, tokens, features), (batch, channels, steps), (batch, channels, height, width) "
        "and (batch, height, width, channels)"
    )
    raise InvalidInputError(
        f"module {name!r} gives a feature of shape {shape}; default heads know {known}: pass heads=[...] with modules "
        "of your own"
    )


def _grid(side: int) -> int:
    """Into how many parts of one size, if that can be, a default head divides a side of a map."""
    return next((parts for parts in (8, 7, 6, 5) if side % parts == 0), min(side, 7))


@dataclass(frozen=True)
class _Sight:
    """Which positions of a feature see the whole input, as far as observed: the first one, the last one."""

    first: bool
    last: bool


class _Observation:
    """What a network does with its example: what the features at the early exits follow and depend on."""

    def __init__(self, staged: StagedModel, features: Sequence[Tensor]) -> None:
        args, kwargs = staged.example
        self._staged = staged
        self._inputs = staged.flatten_inputs(*args, **kwargs)
        self._generator = torch.Generator().manual_seed(0)
        self._image = next((t.shape[2:] for t in self._inputs if _is_image(t)), None)
        self._masks = [place for place, t in enumerate(self._inputs) if is_mask(t)]
        # Padding in the example hides what the network does with tokens.
        self._unpadded = tuple(torch.ones_like(t) if n in self._masks else t for n, t in enumerate(self._inputs))
        self._text = any(
            not t.is_floating_point() and t.dtype != torch.bool and n not in self._masks
            for n, t in enumerate(self._inputs)
        )
        self.shapes = [_batch_first(stage.outputs[stage.feature_index or 0]) for stage in self._early]
        self.features = list(features)

    def channels(self, k: int) -> int:
        """The dimension of the channels in feature k: the one that follows no size of the input."""
        shape = self.shapes[k]
        follow = {dim for dims in self._following[k].values() for dim in dims}
        follow |= {dim for dim, size in enumerate(shape) if dim and not isinstance(size, int)}
        if len(shape) == 4:
            if (1 in follow) != (3 in follow):
                return 3 if 1 in follow else 1
            return 3 if _is_channels_last(shape, self._image) else 1
        if len(shape) == 3:
            if len(follow) != 1 and not self._normalized(k):
                follow = self._local(k)
            return 1 if follow == {2} else 2
        return len(shape) - 1

    def _normalized(self, k: int) -> bool:
        """Whether a layer norm over the last dimension reads feature k next, which says that the channels are there."""
        stage, following = self._staged.inference_stages[k : k + 2]
        if stage.feature_index not in stage.passed or not isinstance(following.module, fx.GraphModule):
            return False
        inputs = [node for node in following.module.graph.nodes if node.op == "placeholder"]
        readers = inputs[stage.passed.index(stage.feature_index)].users
        return any(
            node.target is torch.ops.aten.layer_norm.default and len(node.args[1]) == 1 and node.args[0] in inputs
            for node in readers
        )

    def pool(self, k: int) -> str:
        """How the tokens (N, T, D) of feature k are pooled, so that the whole input counts."""
        if self._image is not None:
            return "mean"
        if self._zeroes_padding(k):
            return "attention"
        sight = self._sight(k)
        if self._text or self._masks:
            # Padding never reaches the first token; but that of a recurrent or causal network has seen itself alone.
            return "first" if sight.first else "mean" if self._text else "last"
        if sight.first == sight.last:
            return "mean"
        return "first" if sight.first else "last"

    def first_sees_all(self, k: int) -> bool:
        """Whether feature k has tokens (N, T, D) of which the first depends on the whole input."""
        return len(self.shapes[k]) == 3 and self.channels(k) == 2 and self._sight(k).first

    def _zeroes_padding(self, k: int) -> bool:
        """Whether tokens of feature k are zero where a mask among the inputs says that there is padding."""
        if not self._masks or self.features[k].shape[1] != self._inputs[self._masks[0]].shape[1]:
            return False
        start, inputs = self._padded()
        try:
            feature = self._run(inputs)[k]
        except _REFUSALS:
            return False
        return bool((feature[:, start:] == 0).all() and (feature[:, :start] != 0).any(-1).all())

    def _padded(self) -> tuple[int, tuple[Tensor, ...]]:
        """Where padding starts, and the example with its last quarter as padding, by what may be its masks."""
        size = self._inputs[self._masks[0]].shape[1]
        start = size - max(size // 4, 1)
        inputs = tuple(tensor.clone() for tensor in self._inputs)
        for mask in self._masks:
            inputs[mask][:, :start], inputs[mask][:, start:] = 1, 0
        return start, inputs

    def reading_padding(self, heads: Sequence[nn.Module], num_classes: int) -> list[int]:
        """The early exits that change with the tokens at padding, where the network's own answer does not."""
        if not self._masks:
            return []
        start, inputs = self._padded()
        size = inputs[self._masks[0]].shape[1]
        others = tuple(
            self._exchanged(t, 1, start, size) if t.ndim > 1 and t.shape[1] == size and n not in self._masks else t
            for n, t in enumerate(inputs)
        )
        try:
            given, changed = (self._answers(live, heads, num_classes) for live in (inputs, others))
        except _REFUSALS:
            return []
        differ = [not torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(given, changed, strict=True)]
        return [] if differ[-1] else [k for k, one in enumerate(differ) if one]

    def _answers(self, live: tuple[Tensor, ...], heads: Sequence[nn.Module], num_classes: int) -> list[Tensor]:
        """What the heads say, and then the network."""
        with inferring(self._staged), inferring(nn.ModuleList(heads)):
            steps = list(self._staged.walk(live, self._staged.inference_stages))
            answers = [head(step.feature) for head, step in zip(heads, steps, strict=False)]
            return [*answers, logits_in(self._staged.unflatten_output(steps[-1].outputs), num_classes)]

    @property
    def _early(self) -> Any:
        return self._staged.inference_stages[:-1]

    @cached_property
    def _of_example(self) -> list[Tensor]:
        return self._run(self._unpadded)

    def _run(self, live: tuple[Tensor, ...]) -> list[Tensor]:
        with inferring(self._staged):
            return [step.feature.clone() for step in self._staged.walk(live, self._early)]

    @cached_property
    def _following(self) -> list[dict[int, set[int]]]:
        """For each feature, which of its dimensions follow which dimension of the input.

        The network runs with half of the example along each dimension, or twice of it, where it takes that.
        """
        following: list[dict[int, set[int]]] = [{} for _ in self.shapes]
        if not any(len(shape) in (3, 4) for shape in self.shapes):
            return following
        dimensions: list[tuple[int, ...]] = [(2, 3)]
        if self._image is None:
            dimensions = [(dim,) for dim in range(1, max(t.ndim for t in self._inputs))]
        for dims in dimensions:
            missing = set(range(len(self.shapes)))
            for change in (_half, _twice):
                inputs = [self._changed(tensor, dims, change) for tensor in self._inputs]
                if all(one.shape == other.shape for one, other in zip(inputs, self._inputs, strict=True)):
                    continue
                for k, shape in self._shapes_of(inputs).items():
                    before = self.features[k].shape
                    if k in missing and len(shape) == len(before):
                        missing.discard(k)
                        differ = {dim for dim, size in enumerate(shape) if dim and size != before[dim]}
                        following[k][dims[0]] = differ
                if not missing:
                    break
        return following

    def _changed(self, tensor: Tensor, dims: tuple[int, ...], change: Callable[[Tensor, int], Tensor]) -> Tensor:
        """A tensor at another size, if it has the size of the first input there."""
        if self._image is not None and not _is_image(tensor):
            return tensor
        for dim in dims:
            first = next(t for t in self._inputs if t.ndim > dim)
            if tensor.ndim > dim and tensor.shape[dim] == first.shape[dim]:
                tensor = change(tensor, dim)
        return tensor

    def _shapes_of(self, inputs: Sequence[Tensor]) -> dict[int, torch.Size]:
        """The shapes of the features that the network itself gives for an input, up to where it fails."""
        backbone, shapes = self._staged.backbone, dict[int, torch.Size]()
        dims = [stage.outputs[stage.feature_index].batch_dim or 0 for stage in self._early]

        def keep(k: int) -> Callable[..., None]:
            def hook(module: nn.Module, _args: Any, output: Any) -> None:
                shapes[k] = feature_at(module, output).movedim(dims[k], 0).shape

            return hook

        with ExitStack() as stack:
            stack.enter_context(inferring(self._staged))
            # Not in inference mode: the network may keep a tensor, which training could not use later.
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.no_grad())
            args, kwargs = self._staged.call_of(tuple(tensor.clone() for tensor in inputs))
            stack.enter_context(_attributes_kept(backbone))
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            for k, name in enumerate(self._staged.at):
                stack.callback(backbone.get_submodule(name).register_forward_hook(keep(k)).remove)
            # What it gives before it refuses the size has been seen.
            stack.enter_context(suppress(*_REFUSALS))
            backbone(*args, **kwargs)
        return shapes

    def _local(self, k: int) -> set[int]:
        """The dimension of a feature (N, ., .) along which a change of one step stays local; empty where none does."""
        for dim in self._sequence_dims(k):
            middle = self._size(dim) // 2
            moved = self._moved(k, dim, middle, middle + 1)
            if moved is None:
                continue
            shares = {axis: float(moved.any(3 - axis).any(0).float().mean()) for axis in (1, 2)}
            for axis in (1, 2):
                if 0 < shares[axis] < _LOCAL * shares[3 - axis]:
                    return {axis}
        return set()

    def _sight(self, k: int) -> _Sight:
        """Exchange the first, the middle and the last steps of the example, and see which tokens that changes."""
        sight = _Sight(first=True, last=True)
        for dim in self._sequence_dims(k)[:1]:
            size = self._size(dim)
            middle = size // 2
            # More steps where one has no effect, as padding has none.
            for blocks in (
                [(0, 1), (0, max(size // 4, 1)), (0, middle)],
                [(middle, middle + 1)],
                [(size - 1, size), (size - max(size // 4, 1), size), (middle, size)],
            ):
                for start, end in blocks:
                    moved = self._moved(k, dim, start, end)
                    if moved is not None and bool(moved.any()):
                        tokens = moved.any(2).any(0)
                        sight = _Sight(sight.first and bool(tokens[0]), sight.last and bool(tokens[-1]))
                        break
        return sight

    def _sequence_dims(self, k: int) -> list[int]:
        """The dimensions of the input that may be its length, those that the feature is known to follow first."""
        followed = [dim for dim, dims in self._following[k].items() if len(dims) == 1]
        others = range(1, max(t.ndim for t in self._inputs))
        return [*followed, *(dim for dim in others if dim not in followed and self._size(dim) > 1)]

    def _size(self, dim: int) -> int:
        return next(t.shape[dim] for t in self._inputs if t.ndim > dim)

    def _moved(self, k: int, dim: int, start: int, end: int) -> Tensor | None:
        """Which elements of feature k change when steps of the example are exchanged; None where it cannot be run."""
        inputs = tuple(
            self._exchanged(t, dim, start, end) if t.ndim > dim and t.shape[dim] == self._size(dim) else t
            for t in self._unpadded
        )
        try:
            return self._run(inputs)[k] != self._of_example[k]
        except _REFUSALS:
            return None

    def _exchanged(self, tensor: Tensor, dim: int, start: int, end: int) -> Tensor:
        """Other values in some steps: noise, or numbers of other samples or steps, which are in range."""
        steps = tensor.narrow(dim, start, end - start)
        if tensor.is_floating_point():
            spread = tensor.float().std(correction=0).item() or 1.0
            noise = torch.randn(steps.shape, generator=self._generator).to(steps.device) * spread
            changed = (steps + noise).to(tensor.dtype)
        else:
            if int(tensor.max()) <= 1:
                return tensor  # a mask
            others = [tensor.roll(1, 0), *(tensor.roll(shift, dim) for shift in range(1, tensor.shape[dim]))]
            changed = next(
                (o for o in (other.narrow(dim, start, end - start) for other in others) if not torch.equal(o, steps)),
                steps,
            )
        copy = tensor.clone()
        copy.narrow(dim, start, end - start).copy_(changed)
        return copy


@contextmanager
def _attributes_kept(network: nn.Module) -> Iterator[None]:
    """Put the attributes of all modules back, such as a table that a network keeps for the length it saw last."""
    parts = [(part, [(held, dict(held)) for held in (vars(part), buffers_of(part))]) for part in network.modules()]
    try:
        yield
    finally:
        for _, kept in parts:
            for held, before in kept:
                for name in [name for name in held if name not in before]:
                    del held[name]
                held.update(before)


def _half(tensor: Tensor, dim: int) -> Tensor:
    return tensor.narrow(dim, 0, max(tensor.shape[dim] // 2, 1))


def _twice(tensor: Tensor, dim: int) -> Tensor:
    return torch.cat([tensor, tensor], dim)


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_floating_point()


def is_mask(tensor: Tensor) -> bool:
    """Whether an input may say which steps are padding: (N, T), of zeros and ones with at least one of them."""
    return tensor.ndim == 2 and not tensor.is_floating_point() and tensor.shape[1] > 1 and int(tensor.max()) == 1


def _batch_first(feature: LiveTensor) -> tuple[int | str, ...]:
    """The shape of a feature as a head sees it: with the batch on dimension 0."""
    shape = list(feature.shape)
    if feature.batch_dim is not None:
        shape.insert(0, shape.pop(feature.batch_dim))
    return tuple(shape)


def _is_channels_last(shape: tuple[int | str, ...], image: Sequence[int] | None) -> bool:
    """Whether a map is (batch, height, width, channels), for a network of one size only: by the sides of the image."""
    _, first, second, third = shape
    if image is None or not isinstance(first, int) or not isinstance(second, int) or not isinstance(third, int):
        return False
    of_image = math.log(image[0] / image[1])
    return abs(math.log(first / second) - of_image) < abs(math.log(second / third) - of_image) - 1e-6


def warn_of_padding(staged: StagedModel, heads: Sequence[nn.Module], features: Sequence[Tensor], classes: int) -> None:
    """Warn of heads that read tokens which a mask among the inputs says are padding."""
    observed = _Observation(staged, features)
    for k in observed.reading_padding(heads, classes):
        pool = getattr(heads[k], "pool", None)
        kind = kind_of(heads[k]) + ("" if pool is None else f" with pool={pool!r}")
        if observed.first_sees_all(k):
            way_out = (
                "let the network give zeros for padding as eenet.networks.bert(pooling='mean') does, or pass "
                "heads=[...] that read what padding does not reach, such as TokenHead(pool='first')"
            )
        else:
            way_out = (
                "or place the exit at a module that gives zeros for padding, `output * mask.unsqueeze(-1)` of tokens "
                "(N, T, D), so that the default head leaves it out. In a recurrent or causal network the first token "
                "has seen one step only, so pool='first' is no way out"
            )
        warn(
            f"the head at {staged.at[k]!r}, {kind}, reads padding: what this exit says of a sample depends on how "
            f"far the batch is padded. Pad all inputs to one length, {way_out}",
            ReliabilityWarning,
        )


def require_head(name: str, head: nn.Module, feature: Tensor, expected: Tensor) -> None:
    """Run a head on its feature of the example, so that what does not fit is refused here and not in training.

    A head that works in place on the feature is given a copy of it from here on.
    """
    if isinstance(feature, Tensor) and _works_in_place(head, feature):
        # The layers after the exit, and other exits' gradients, need the feature as it was. A copy, not a refusal: such
        # heads are normal code, and then cost what they cost without `inplace`. A hook of the head, so that all that
        # runs it gets the copy: training, profiling, every runtime and every export; and only heads that need one.
        if isinstance(head, torch.jit.ScriptModule):
            raise InvalidInputError(
                f"the head at {name!r}, {kind_of(head)} of torch.jit, works in place on the feature, which the "
                "layers after it need; give the Python module that it was made from, or one without inplace=True"
            )
        head.register_forward_pre_hook(_given_a_copy)
    what = f"the feature at {name!r}, of shape {tuple(feature.shape)} and {feature.dtype}"
    try:
        with inferring(head):
            logits = head(feature)
    # What a module raises for an input of another shape: torch's own are RuntimeErrors, the rest is the caller's code.
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        weight = next((p for p in head.parameters() if p.is_floating_point()), None)
        if weight is not None and weight.dtype != feature.dtype:
            raise InvalidInputError(
                f"{what}, does not fit the head there, {kind_of(head)} of {weight.dtype}: pass heads=[...] "
                "with a module that converts it first, such as feature.float(), or place the exit at another module"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InvalidInputError(
            f"the head at {name!r}, {kind_of(head)}, fails on {what} ({reason}); give a head for a feature of "
            "this shape, or leave heads out"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != expected.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInputError(
            f"the head at {name!r} gives {got} for {expected.shape[0]} samples, expected logits of shape (batch, "
            f"{', '.join(str(size) for size in expected.shape[1:])})"
        )
    if not isinstance(feature, Tensor) or not feature.is_floating_point():
        return
    if _is_random(head, feature):
        raise InvalidInputError(f"the head at {name!r}, {kind_of(head)}, is random in inference; {FOLLOW_TRAINING}")
    with inferring(head):
        for row in range(min(len(feature), 2)):
            others = feature * 0.5 + 1
            others[row] = feature[row]
            # A head that is not reproducible differs from itself as well.
            if not torch.equal(head(others)[row], logits[row]) and torch.equal(head(feature)[row], logits[row]):
                raise InvalidInputError(
                    f"the head at {name!r}, {kind_of(head)}, mixes samples: what it says of one changes with "
                    "the others in the batch; give a head that answers each sample by itself"
                )


def _works_in_place(head: nn.Module, feature: Tensor) -> bool:
    """Whether a head writes to its feature or a view of it, in inference or in training.

    Also where that leaves the values of the example as they are, since those of other samples it may change.
    """
    for training in (False, True):
        with _undisturbed(head, feature, training=training):
            given = feature.clone()
            version = given._version
            with suppress(*_REFUSALS):  # of inference mode this is said by `require_head`
                head(given)
            # What is written through `.data` or numpy has no version.
            if given._version != version or not _same(given, feature):
                return True
    return False


def _given_a_copy(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].clone(), *args[1:])


def _is_random(head: nn.Module, feature: Tensor) -> bool:
    """Whether what a head says in inference depends on a generator."""
    with _undisturbed(head, feature, training=False):
        said = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            said.append(head(feature))
    # On a GPU also what is not random may differ from run to run.
    return not _same(said[0], said[2]) and (feature.device.type == "cpu" or _same(said[0], said[1]))


@contextmanager
def _undisturbed(head: nn.Module, feature: Tensor, *, training: bool) -> Iterator[None]:
    """A head in a mode, without gradients; its modes, its buffers and the generators are put back afterwards."""
    with modes_kept(head), torch.random.fork_rng(devices=[feature.device] if feature.is_cuda else []):
        head.train(training)
        # Not in inference mode, whose tensors have no version.
        with torch.inference_mode(mode=False), torch.no_grad(), buffers_kept(head):
            yield


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
