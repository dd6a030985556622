"""The self-check of a cut: staged against whole at batch 1, at another batch, and compacted at every boundary.

A network that mixes, drops or repeats samples must not pass by chance. So samples are selected in an order that no
reversal or swap maps onto itself, samples are made to differ, and those selected have to be equal to the last bit when
the samples beside them are others: a tolerance would let a network pass whose answers hardly depend on its input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eenet._compat import BatchNorm, pytree
from eenet._values import array_value
from eenet.errors import CutError, InvalidInputError
from eenet.stages._binding import device_of
from eenet.stages._capture import feature_at
from eenet.stages._example import InputForm
from eenet.stages._gradients import Gradients, Watch, all_trainable, differing, gradient_error, gradients_of
from eenet.stages._split import Split, random_steps
from eenet.stages._stage import LiveTensor, Stage, Step, compact, walk

_BATCH = 4
_SURVIVORS = (2, 0, 3)
# Batches in which each sample stands beside others, and is itself replaced in one of the two: what a mixing network
# takes from one sample alone, such as the first or the largest, is another in at least one of them.
_BESIDE = ((0, 0, 2, 2), (1, 1, 3, 3))
_SEED = 0


def check_inference(backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm) -> None:
    """Compare stages and model in inference; raises CutError that names the first stage whose result differs.

    Every run is used for all that it can show: what one walk of the whole batch gave is what samples that were
    selected at a boundary, and samples beside others, are compared with.
    """
    # All batches are made the same way, so that they lie in memory the same way: another layout could round otherwise.
    inputs = _picked(sample_inputs(form, _BATCH), range(_BATCH))
    with undisturbed(backbone):
        _compare_runs(backbone, at, split, form, tuple(tensor[:1] for tensor in inputs), "at batch size 1")
        runs = _compare_runs(backbone, at, split, form, inputs, f"at batch size {_BATCH}")
        if form.dynamic:
            _check_other_lengths(backbone, at, split, form, inputs)
        if len(split.stages) > 1:
            _refuse_alike(inputs)
            _check_selected(split, inputs, runs)
            _check_neighbors(split, inputs, runs)


def check_independent(backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm) -> None:
    """As `check_inference`; where that finds a fault in a network that is random, the error says so instead."""
    try:
        check_inference(backbone, at, split, form)
    except CutError as error:
        with undisturbed(backbone):
            refusal = _random(split, sample_inputs(form, _BATCH)) or _hinted(backbone, error) or error
        raise refusal from error


def _picked(tensors: Sequence[Tensor], rows: Sequence[int]) -> tuple[Tensor, ...]:
    return tuple([tensor.index_select(0, torch.tensor(rows, device=tensor.device)) for tensor in tensors])


def _check_selected(split: Split, inputs: tuple[Tensor, ...], runs: Sequence[_Run]) -> None:
    """Samples selected before a stage, in another order and number, must come out of it as in the whole batch.

    Where each stage by itself gives the same for them, in all that it hands on, so do all that come after it.
    """
    index = torch.tensor(_SURVIVORS, device=inputs[0].device)
    for number, stage in enumerate(split.stages):
        remaining = compact(runs[number - 1].live if number else inputs, index, stage.batch_dims)
        if _gives_selected(stage, remaining, runs[number].outputs, index):
            continue
        # What differs may be something that no answer depends on.
        if number:
            _compare_selected(split, remaining, number, runs[-1].outputs, index)
        else:
            _check_own_batch(split, inputs, runs)


def _gives_selected(stage: Stage, remaining: tuple[Tensor, ...], whole: tuple[Tensor, ...], index: Tensor) -> bool:
    """Whether a stage gives for selected samples what it gave for them in the whole batch."""
    torch.manual_seed(_SEED)
    try:
        outputs = stage(*remaining)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    for live, one, other in zip(stage.outputs, whole, outputs, strict=True):
        # An output of mixed samples cannot be selected from; equal at the whole batch is all it promises.
        if live.batch_dim is None and _mentions_batch(live):
            continue
        expected = one if live.batch_dim is None else one.index_select(live.batch_dim, index)
        if not _close(expected, other):
            return False
    return True


def _compare_selected(
    split: Split, remaining: tuple[Tensor, ...], number: int, whole: tuple[Tensor, ...], index: Tensor
) -> None:
    """Run the stages from `number` on for selected samples; raises CutError where an output of the network differs."""
    name = split.stages[number - 1].name
    got = _run_stages(split, remaining, number, f"with samples selected after {name!r}")
    for live, one, other in zip(split.stages[-1].outputs, whole, got, strict=True):
        if live.batch_dim is not None or not _mentions_batch(live):
            _compare(
                one if live.batch_dim is None else one.index_select(live.batch_dim, index),
                other,
                f"cannot cut at {name!r}: samples {list(_SURVIVORS)} of {_BATCH}, selected after it, give another "
                f"output {live.name!r} than in the whole batch",
                "the layers after it mix the samples of a batch, or a constant depends on them",
            )


def _check_own_batch(split: Split, inputs: tuple[Tensor, ...], runs: Sequence[_Run]) -> None:
    """Samples in another order and number than in the whole batch; another batch size may round differently."""
    expected = _answers(runs, _SURVIVORS)
    got = _answers(_runs(split, _picked(inputs, _SURVIVORS)), range(len(_SURVIVORS)))
    for (name, last, one), (_, _, other) in zip(expected, got, strict=True):
        if not _close(one, other):
            what = "change when they are a batch of their own, in that order"
            raise CutError(_depends(split, name, last, _SURVIVORS, what))


def _check_neighbors(split: Split, inputs: tuple[Tensor, ...], runs: Sequence[_Run]) -> None:
    """What the exits and the network say of a sample must not depend on the other samples, from the inputs on."""
    for beside in _BESIDE:
        same = [row for row in range(_BATCH) if beside[row] == row]
        expected, got = _answers(runs, same), _answers(_runs(split, _picked(inputs, beside)), same)
        for number, ((name, last, one), (_, _, other)) in enumerate(zip(expected, got, strict=True)):
            # A network that is not reproducible, as some are on a GPU, differs from itself as well.
            if not _same_bits(one, other) and _same_bits(one, _answers(_runs(split, inputs), same)[number][2]):
                raise CutError(_depends(split, name, last, same, "change when the samples beside them are others"))


def _depends(split: Split, name: str, last: bool, rows: Sequence[int], what: str) -> str:
    at = split.stages[-2].name if last else name
    return (
        f"cannot cut at {at!r}: in {'the output' if last else 'the feature at'} {name!r} samples {list(rows)} of "
        f"{_BATCH} {what}; the layers {'after' if last else 'before'} it mix the samples of a batch, or use their "
        "number or places in it"
    )


def _close(expected: Tensor, got: Tensor) -> bool:
    try:
        _compare(expected, got, "")
    except CutError:
        return False
    return True


@array_value
@dataclass(frozen=True)
class _Run:
    """What a stage gave in a run: copies, since a later stage may change a tensor in place."""

    stage: Stage
    outputs: tuple[Tensor, ...]

    @property
    def live(self) -> tuple[Tensor, ...]:
        """The tensors that the next stage was run on, once more copies."""
        return tuple([self.outputs[i].clone() for i in self.stage.passed])


def _runs(split: Split, inputs: tuple[Tensor, ...]) -> list[_Run]:
    torch.manual_seed(_SEED)
    try:
        return [_run_of(step) for step in walk(split.stages, inputs)]
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise CutError(f"the stages fail with other samples in the batch: {error}") from error


def _run_of(step: Step) -> _Run:
    return _Run(step.stage, tuple([tensor.clone() for tensor in step.outputs]))


def _answers(runs: Sequence[_Run], rows: Sequence[int]) -> list[tuple[str, bool, Tensor]]:
    """The samples `rows` of each feature and each output: its name, whether it is an output, and the tensor."""
    index = torch.tensor(rows, device=runs[0].outputs[0].device)
    answers = []
    for run in runs:
        stage = run.stage
        if stage.feature_index is not None:
            dim = stage.outputs[stage.feature_index].batch_dim
            answers.append((stage.name, False, run.outputs[stage.feature_index].index_select(dim or 0, index)))
        else:
            answers += [
                (live.name, True, tensor.index_select(live.batch_dim, index))
                for live, tensor in zip(stage.outputs, run.outputs, strict=True)
                if live.batch_dim is not None
            ]
    return answers


def _random(split: Split, inputs: tuple[Tensor, ...]) -> CutError | None:
    """The error for stages that are random in inference; None where they are not, or fail for another reason."""
    runs = []
    for seed in (_SEED, _SEED + 1):
        torch.manual_seed(seed)
        try:
            runs.append([step.outputs for step in walk(split.stages, inputs)][-1])
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
    if all(_same_bits(one, other) for one, other in zip(*runs, strict=True)):
        return None
    where = next((where for stage in split.stages for where in random_steps(stage.module)), "")
    return CutError(
        f"the network is random in inference{where}; make that step follow `self.training` (for dropout, "
        "F.dropout(x, p, training=self.training))"
    )


def _hinted(backbone: nn.Module, error: CutError) -> CutError | None:
    """The error with a hint, where a module takes dimension 0 as time, or normalizes by the batch in inference."""
    for name, module in backbone.named_modules():
        # Every batch norm and instance norm has this; only of batch norm the samples are mixed.
        if isinstance(module, BatchNorm) and module.running_mean is None:
            return CutError(
                f"{error}. Module {name!r} ({type(module).__name__}) has track_running_stats=False, so it normalizes "
                "by the batch in inference too: give it running statistics, or use a norm of each sample (GroupNorm)"
            )
        if getattr(module, "batch_first", True) is False:
            return CutError(
                f"{error}. Module {name!r} ({type(module).__name__}) has batch_first=False, so it takes dimension 0 as "
                "time, where the example has the samples: pass (batch, time, features), with batch_first=True"
            )
    return None


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _refuse_alike(inputs: tuple[Tensor, ...]) -> None:
    for later in range(1, _BATCH):
        if any(_alike(inputs, earlier, later) for earlier in range(later)):
            raise InvalidInputError(
                "the samples of the example are all alike, so that the self-check could not tell whether the network "
                "mixes them; give an example of two different samples, as they occur in the data"
            )


def _alike(inputs: Sequence[Tensor], one: int, other: int) -> bool:
    return all(torch.equal(tensor[one], tensor[other]) for tensor in inputs)


def check_training(backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm) -> None:
    """Compare stages and model in training mode, same seed, on one batch; leaves running statistics as they were."""
    with undisturbed(backbone):
        _compare_runs(backbone, at, split, form, sample_inputs(form, _BATCH), "in training mode")


def check_example(backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm) -> None:
    """Compare stages and model on the example itself, in the present mode; raises CutError for what differs."""
    with undisturbed(backbone):
        _compare_runs(backbone, at, split, form, form.tensors(), "on the example")


def check_gradients(backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm) -> None:
    """Compare what a training step does: the gradients of all parameters and inputs, and what it does to buffers.

    Costs up to three passes forwards and backwards of four samples; leaves buffers and gradients as they were. Raises
    CutError, which names the parameters, the module at fault, the cause and the way out.
    """
    inputs = sample_inputs(form, _BATCH)
    with undisturbed(backbone), all_trainable(backbone) as parameters, torch.enable_grad():
        inputs = tuple(tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs)

        def whole() -> tuple[Gradients, dict[str, Tensor]]:
            results, features = _whole_run(backbone, at, split, form, inputs)
            return gradients_of([*features, *results], parameters, inputs), _values(backbone)

        def staged() -> tuple[Gradients, dict[str, Tensor]]:
            torch.manual_seed(_SEED)
            features, outputs = [], inputs
            for step in walk(split.stages, inputs):
                outputs = step.outputs
                if step.stage.feature_index is not None:
                    # A copy: a later in-place operator would change it.
                    features.append(outputs[step.stage.feature_index].clone())
            return gradients_of([*features, *outputs], parameters, inputs), _values(backbone)

        watch = Watch(backbone)
        with watch.watching():
            expected, buffers = _backward(backbone, whole, watch)
        got, after = _backward(backbone, staged, watch)
        for name, value in buffers.items():
            _compare(value, after[name], f"a training step changes the buffer {name!r} otherwise than in the model")
        relative = 10 * max((_relative_tolerance(tensor) for tensor in parameters.values()), default=1e-4)
        wrong = differing(expected, got, relative)
        if wrong:
            # A network that is not reproducible, as some are on a GPU, differs from itself as well.
            again, _ = _backward(backbone, whole, watch)
            unsure = differing(expected, again, relative)
            wrong = [name for name in wrong if name not in unsure]
        if wrong:
            right = [name for name, value in expected.items() if value is not None and name not in wrong]
            raise gradient_error(watch, wrong, right)


def _backward(
    backbone: nn.Module, run: Callable[[], tuple[Gradients, dict[str, Tensor]]], watch: Watch
) -> tuple[Gradients, dict[str, Tensor]]:
    """What `run` gives; the buffers are put back only after the backward pass, which may read them."""
    with _buffers_kept(backbone):
        try:
            return run()
        except RuntimeError as error:
            if "use_reentrant" in str(error) or "checkpoint" in str(error).lower():
                raise gradient_error(watch, [], []) from error
            raise CutError(f"the backward pass of the network fails: {error}") from error


def _values(backbone: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in backbone.named_buffers()}


def check_reference(reference: nn.Module, split: Split, form: InputForm) -> None:
    """Compare stages written by hand with the network they were taken from; raises CutError that names the output."""
    inputs = sample_inputs(form, _BATCH)
    with undisturbed(reference):
        for batch in (1, _BATCH):
            rows = tuple(tensor[:batch] for tensor in inputs)
            got = _run_stages(split, rows, 0, f"at batch size {batch}")
            expected, _ = _whole(reference, (), split, form, rows)
            for tensor, one, other in zip(split.stages[-1].outputs, expected, got, strict=True):
                _compare(
                    one,
                    other,
                    f"the output {tensor.name!r} of the stages differs from the reference's at batch size {batch}",
                    "the stages leave out or repeat something that the reference does",
                )


def _compare_runs(
    backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm, inputs: tuple[Tensor, ...], when: str
) -> list[_Run]:
    """What the stages give, after it was compared with the model's features and what it returns."""
    expected, features = _whole(backbone, at, split, form, inputs)
    steps = walk(split.stages, inputs)
    runs: list[_Run] = []
    torch.manual_seed(_SEED)
    for number, stage in enumerate(split.stages):
        try:
            run = _run_of(next(steps))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise CutError(
                f"stage {stage.name!r} fails {when}, where the network itself does not: {error}; tracing fixed a size "
                "of the example there, or a table that the network keeps"
            ) from error
        runs.append(run)
        if stage.feature_index is not None:
            got = run.outputs[stage.feature_index]
            _compare(features[number], got, f"the feature at {stage.name!r} differs from the model's {when}")
    for tensor, one, other in zip(split.stages[-1].outputs, expected, runs[-1].outputs, strict=True):
        _compare(one, other, f"the output {tensor.name!r} of the last stage differs from the model's {when}")
    return runs


def _check_other_lengths(
    backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm, inputs: tuple[Tensor, ...]
) -> None:
    """Also at other sizes of the dynamic dimensions, unless the model itself refuses them."""
    for more, what in ((-1, "less"), (1, "more")):
        others = inputs
        for dim in form.dynamic:
            others = tuple(_resized(t, dim, t.shape[dim] + more) if dim < t.ndim else t for t in others)
        try:
            _whole(backbone, at, split, form, others)
        except CutError:
            continue
        names = ", ".join(f"{name} one {what}" for name in form.dynamic.values())
        _compare_runs(backbone, at, split, form, others, f"with {names}")


def _resized(tensor: Tensor, dim: int, size: int) -> Tensor:
    """The first steps of a tensor; where it has too few, its last one again."""
    last = tensor.narrow(dim, tensor.shape[dim] - 1, 1)
    return torch.cat([tensor, last], dim).narrow(dim, 0, size)


def _whole(
    backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm, inputs: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that the model returns, in the order of the last stage's outputs, and its features."""
    with _buffers_kept(backbone):
        return _whole_run(backbone, at, split, form, inputs)


def _whole_run(
    backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm, inputs: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """As `_whole`; what the run changes in the buffers stays."""
    features: list[Tensor] = []

    def keep(module: nn.Module, _args: Any, output: Any) -> None:
        # A copy: a later in-place operator of the model would change it.
        features.append(feature_at(module, output).clone())

    # As in a stage, the caller's tensors stay as they are even if the model works in place.
    args, kwargs = form.with_tensors([tensor.clone() for tensor in inputs])
    handles = [backbone.get_submodule(name).register_forward_hook(keep) for name in at]
    try:
        torch.manual_seed(_SEED)
        output = backbone(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise CutError(f"the model itself fails at batch size {inputs[0].shape[0]}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    leaves, spec = pytree.tree_flatten(output)
    if spec != split.out_spec:
        raise CutError(f"the model returns {spec}, but {split.out_spec} while it is traced; it cannot be cut")
    by_place: dict[int, Tensor] = {}
    for leaf, place in zip(leaves, split.leaves, strict=True):
        if isinstance(place, int):
            by_place.setdefault(place, leaf)
    return [by_place[place] for place in range(len(by_place))], features


def _run_stages(split: Split, live: tuple[Tensor, ...], first: int, when: str) -> tuple[Tensor, ...]:
    try:
        torch.manual_seed(_SEED)
        return split.run(live, first)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise CutError(f"the stages from {split.stages[first].name!r} on fail {when}: {error}") from error


def _mentions_batch(live: LiveTensor) -> bool:
    return any("batch" in str(size) for size in live.shape)


def _compare(expected: Tensor, got: Tensor, what: str, why: str = "") -> None:
    reason = f"; {why}" if why else "; the network has a step that tracing does not see"
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise CutError(
            f"{what}: {got.dtype} of shape {tuple(got.shape)}, expected {expected.dtype} of shape "
            f"{tuple(expected.shape)}{reason}"
        )
    if not expected.is_floating_point():
        if not torch.equal(expected, got):
            raise CutError(f"{what}{reason}")
        return
    same, reference, result = True, expected, got
    finite = expected.isfinite()
    if not finite.all() or not got.isfinite().all():
        # Where the model itself gives inf or NaN, the stages must give the same; the tolerance is for the finite rest.
        reference, result = expected[finite], got[finite]
        same = torch.equal(expected[~finite].nan_to_num(), got[~finite].nan_to_num()) and bool(result.isfinite().all())
    if reference.numel() and not torch.equal(reference, result):
        error = (result.double() - reference.double()).abs().max().item()
        scale = reference.abs().max().item()
    else:
        error = scale = 0.0
    least = 1e-12 if expected.dtype == torch.float64 else 1e-5
    if not same or error > least + _relative_tolerance(expected) * scale:
        raise CutError(f"{what} by {error:.2e} at a scale of {scale:.2e}{reason}")


def _relative_tolerance(tensor: Tensor) -> float:
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return 5e-2
    if tensor.dtype == torch.float64:
        return 1e-10
    # A GPU may compute float32 in TF32, and choose another algorithm at another batch size.
    return 1e-2 if tensor.device.type == "cuda" else 1e-4


def sample_inputs(form: InputForm, batch: int) -> tuple[Tensor, ...]:
    """`batch` samples around the example, which differ if they can: floats with noise, integers as permuted rows."""
    generator = torch.Generator().manual_seed(_SEED)
    stacks = []
    for tensor in form.tensors():
        rows = [_row(tensor, index) for index in range(batch)]
        stacked = torch.stack(rows)
        if tensor.is_floating_point():
            spread = tensor.float().std(correction=0).item() or 1.0
            noise = torch.randn(stacked.shape, generator=generator) * (0.5 * spread)
            stacked = (stacked + noise.to(stacked.device)).to(tensor.dtype)
        stacks.append(stacked)
    for later in range(1, batch):
        if any(_alike(stacks, earlier, later) for earlier in range(later)):
            _vary(stacks, later)
    return tuple(stacks)


def _vary(tensors: Sequence[Tensor], sample: int) -> None:
    """Change one number of a sample, to one that the example has elsewhere or a smaller one: those are in range."""
    whole = [t for t in tensors if not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool]
    if not whole:
        return
    # Of several the one with the largest numbers: tokens rather than a mask.
    tensor = max(whole, key=lambda t: int(t.max()))
    row = tensor[sample : sample + 1].view(-1)
    place = sample % len(row)
    others = tensor[tensor != row[place]]
    if len(others):
        row[place] = others[0]
    elif row[place] > 0:
        row[place] -= 1


def _row(tensor: Tensor, index: int) -> Tensor:
    """A row of the example; one that was there already is rolled, which keeps tokens and masks valid together."""
    row = tensor[index % tensor.shape[0]]
    seen = any(torch.equal(row, tensor[before % tensor.shape[0]]) for before in range(index))
    return row.roll(index, 0) if seen and row.ndim and not tensor.is_floating_point() else row


@contextlib.contextmanager
def undisturbed(backbone: nn.Module) -> Iterator[None]:
    """Without gradients; the generators are put back afterwards."""
    device = device_of(backbone)
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []), torch.no_grad(), _buffers_kept(backbone):
        yield


@contextlib.contextmanager
def _buffers_kept(backbone: nn.Module) -> Iterator[None]:
    """Put the buffers back afterwards: in training every run updates running statistics, and may start from them."""
    training = any(module.training for module in backbone.modules())
    before = [(buffer, buffer.clone()) for buffer in backbone.buffers()] if training else []
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                # Batch norm does not raise the version of what it changes.
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
