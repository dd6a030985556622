"""The self-check of a cut: staged against whole at batch 1 and at another batch, and compacted at every boundary.

A network that mixes, drops or repeats samples must not pass by chance. So samples are selected in another order,
samples are made to differ, and each has to be equal to the last bit when the samples beside it are others: a tolerance
would let a network pass whose answers hardly depend on its input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from eenet._compat import BatchNorm, pytree
from eenet.errors import CutError, InvalidInputError
from eenet.stages._example import BATCH
from eenet.stages._gradients import Gradients, Watch, all_trainable, differing, gradient_error, gradients_of
from eenet.stages._samples import (
    FOLLOW_TRAINING,
    SEED,
    Whole,
    alike,
    buffers_kept,
    run_whole,
    sample_inputs,
    undisturbed,
    whole_of,
)
from eenet.stages._split import Split, random_steps
from eenet.stages._stage import InputForm, LiveTensor, Stage, compact, walk
from eenet.stages._walks import FAILURES, SELECTED, Run, Tensors, Walk, picked, walk_alone, walks_of


def check_inference(
    backbone: nn.Module,
    at: Sequence[str],
    split: Split,
    form: InputForm,
    before: Whole | None,
    single: Whole | None,
    larger: Mapping[int, bool],
) -> list[Run]:
    """Compare stages and model in inference; raises CutError that names the first stage whose result differs.

    `before` and `single` are what the model gave for the samples of the check and for the first of them, where it was
    run on them already; `larger` are further batch sizes to compare at, and whether the network
    must take them. Every run is used for all that it can show: what one walk of the whole batch gave is what
    samples that were selected at a boundary, and samples beside others, are compared with. Returns that walk.
    """
    inputs = sample_inputs(form, BATCH)
    with undisturbed(backbone):
        walks = walks_of(split, inputs)
        if walks.whole.failure is not None:  # where all walks ended
            _compare_walk(split, before or whole_of(backbone, at, form, inputs), walks.whole, f"at batch size {BATCH}")
        single = single or whole_of(backbone, at, form, picked(inputs, [0]))
        _compare_walk(split, single, walks.single, "at batch size 1")
        before = before or whole_of(backbone, at, form, inputs)
        runs = _compare_walk(split, before, walks.whole, f"at batch size {BATCH}")
        if form.dynamic:
            _check_other_lengths(backbone, at, split, form, inputs)
        if len(split.stages) > 1:
            _refuse_alike(inputs)
            _check_selected(split, inputs, runs, walks.selected)
            _check_neighbors(split, inputs, runs, walks.beside)
        for size, required in larger.items():
            rows = picked(inputs, [row % BATCH for row in range(size)])
            _check_larger(backbone, at, split, form, rows, required=required)
    return runs


def check_independent(
    backbone: nn.Module,
    at: Sequence[str],
    split: Split,
    form: InputForm,
    before: Whole | None,
    single: Whole | None,
    larger: Mapping[int, bool],
) -> list[Run]:
    """As `check_inference`; where that finds a fault in a network that is random, the error says so instead."""
    try:
        return check_inference(backbone, at, split, form, before, single, larger)
    except CutError as error:
        with undisturbed(backbone):
            refusal = _random(split, sample_inputs(form, BATCH)) or _hinted(backbone, error) or error
        raise refusal from error


def _check_selected(
    split: Split, inputs: Tensors, runs: Sequence[Run], selected: Sequence[Tensors | Exception]
) -> None:
    """Samples selected before a stage, in another order and number, must come out of it as in the whole batch.

    Where each stage by itself gives the same for them, in all that it hands on, so do all that come after it.
    """
    index = torch.tensor(SELECTED, device=inputs[0].device)
    for number, (stage, outputs) in enumerate(zip(split.stages, selected, strict=True)):
        if not isinstance(outputs, Exception) and _gives_selected(stage, outputs, runs[number].outputs, index):
            continue
        # What differs may be something that no answer depends on.
        if number:
            remaining = compact(runs[number - 1].live, index, stage.batch_dims)
            _compare_selected(split, remaining, number, runs[-1].outputs, index)
        else:
            _check_own_batch(split, inputs, runs)


def _gives_selected(stage: Stage, outputs: Tensors, whole: Tensors, index: Tensor) -> bool:
    """Whether what a stage gave for selected samples is what it gave for them in the whole batch."""
    for live, one, other in zip(stage.outputs, whole, outputs, strict=True):
        # An output of mixed samples cannot be selected from; equal at the whole batch is all it promises.
        if live.batch_dim is None and _mentions_batch(live):
            continue
        expected = one if live.batch_dim is None else one.index_select(live.batch_dim, index)
        if not _close(expected, other):
            return False
    return True


def _compare_selected(split: Split, remaining: Tensors, number: int, whole: Tensors, index: Tensor) -> None:
    """Run the stages from `number` on for selected samples; raises CutError where an output of the network differs."""
    name = split.stages[number - 1].name
    got = _run_stages(split, remaining, number, f"with samples selected after {name!r}")
    for live, one, other in zip(split.stages[-1].outputs, whole, got, strict=True):
        if live.batch_dim is not None or not _mentions_batch(live):
            _compare(
                one if live.batch_dim is None else one.index_select(live.batch_dim, index),
                other,
                f"cannot cut at {name!r}: samples {list(SELECTED)} of {BATCH}, selected after it, give another "
                f"output {live.name!r} than in the whole batch",
                "the layers after it mix the samples of a batch, or a constant depends on them",
            )


def _check_own_batch(split: Split, inputs: Tensors, runs: Sequence[Run]) -> None:
    """Samples in another order and number than in the whole batch; another batch size may round differently."""
    expected = _answers(runs, SELECTED)
    got = _answers(_completed(walk_alone(split, picked(inputs, SELECTED))), range(len(SELECTED)))
    for (name, last, one), (_, _, other) in zip(expected, got, strict=True):
        if not _close(one, other):
            what = "change when they are a batch of their own, in that order"
            raise CutError(_depends(split, name, last, SELECTED, what))


def _check_neighbors(split: Split, inputs: Tensors, runs: Sequence[Run], beside: Sequence[Walk]) -> None:
    """What the exits and the network say of a sample must not depend on the other samples, from the inputs on."""
    for row, walked in enumerate(beside):
        expected, got = _answers(runs, [row]), _answers(_completed(walked), [row])
        for number, ((name, last, one), (_, _, other)) in enumerate(zip(expected, got, strict=True)):
            if _same_bits(one, other):
                continue
            # A network that is not reproducible, as some are on a GPU, differs from itself as well.
            if _same_bits(one, _answers(_completed(walk_alone(split, inputs)), [row])[number][2]):
                raise CutError(_depends(split, name, last, [row], "change when the samples beside them are others"))


def _completed(walked: Walk) -> list[Run]:
    if walked.failure is not None:
        raise CutError(f"the stages fail with other samples in the batch: {walked.failure}") from walked.failure
    return walked.runs


def _answers(runs: Sequence[Run], rows: Sequence[int]) -> list[tuple[str, bool, Tensor]]:
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


def _depends(split: Split, name: str, last: bool, rows: Sequence[int], what: str) -> str:
    at = split.stages[-2].name if last else name
    return (
        f"cannot cut at {at!r}: in {'the output' if last else 'the feature at'} {name!r} samples {list(rows)} of "
        f"{BATCH} {what}; the layers {'after' if last else 'before'} it mix the samples of a batch, or use their "
        "number or places in it"
    )


def _close(expected: Tensor, got: Tensor) -> bool:
    try:
        _compare(expected, got, "")
    except CutError:
        return False
    return True


def _random(split: Split, inputs: tuple[Tensor, ...]) -> CutError | None:
    """The error for stages that are random in inference; None where they are not, or fail for another reason."""
    runs = []
    for seed in (SEED, SEED + 1):
        torch.manual_seed(seed)
        try:
            runs.append([step.outputs for step in walk(split.stages, inputs)][-1])
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
    if all(_same_bits(one, other) for one, other in zip(*runs, strict=True)):
        return None
    where = next((where for stage in split.stages for where in random_steps(stage.module)), "")
    return CutError(f"the network is random in inference{where}; {FOLLOW_TRAINING}")


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
    for later in range(1, BATCH):
        if any(alike(inputs, earlier, later) for earlier in range(later)):
            raise InvalidInputError(
                "the samples of the example are all alike, so that the self-check could not tell whether the network "
                "mixes them; give an example of two different samples, as they occur in the data"
            )


def check_training(backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm, before: Whole | None) -> None:
    """Compare stages and model in training mode, same seed, on one batch; leaves running statistics as they were.

    `before` is what the model gave for the samples of the check, where it was run on them already.
    """
    inputs = sample_inputs(form, BATCH)
    with undisturbed(backbone):
        before = before or whole_of(backbone, at, form, inputs)
        _compare_walk(split, before, walk_alone(split, inputs), "in training mode")


def check_example(backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm) -> None:
    """Compare stages and model on the example itself, in the present mode; raises CutError for what differs."""
    inputs = form.tensors()
    with undisturbed(backbone):
        _compare_walk(split, whole_of(backbone, at, form, inputs), walk_alone(split, inputs), "on the example")


def check_gradients(backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm) -> None:
    """Compare what a training step does: the gradients of all parameters and inputs, and what it does to buffers.

    Costs up to three passes forwards and backwards of three samples; leaves buffers and gradients as they were. Raises
    CutError, which names the parameters, the module at fault, the cause and the way out.
    """
    inputs = sample_inputs(form, BATCH)
    with undisturbed(backbone), all_trainable(backbone) as parameters, torch.enable_grad():
        inputs = tuple(tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs)

        def whole() -> tuple[Gradients, dict[str, Tensor]]:
            try:
                ran = run_whole(backbone, at, form, inputs)
            except FAILURES as error:
                raise CutError(f"the model itself fails at batch size {BATCH}: {error}") from error
            return gradients_of([*ran.features, *_returned(split, ran)], parameters, inputs), _values(backbone)

        def staged() -> tuple[Gradients, dict[str, Tensor]]:
            torch.manual_seed(SEED)
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
    with buffers_kept(backbone):
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
    inputs = sample_inputs(form, BATCH)
    with undisturbed(reference):
        for batch in (1, BATCH):
            rows = tuple(tensor[:batch] for tensor in inputs)
            got = _run_stages(split, rows, 0, f"at batch size {batch}")
            expected = _returned(split, whole_of(reference, (), form, rows))
            for tensor, one, other in zip(split.stages[-1].outputs, expected, got, strict=True):
                _compare(
                    one,
                    other,
                    f"the output {tensor.name!r} of the stages differs from the reference's at batch size {batch}",
                    "the stages leave out or repeat something that the reference does",
                )


def _compare_walk(split: Split, whole: Whole, walked: Walk, when: str, why: str = "") -> list[Run]:
    """What the stages gave, after it was compared with the model's features and what it returns."""
    for number, run in enumerate(walked.runs):
        if run.stage.feature_index is not None:
            got = run.outputs[run.stage.feature_index]
            what = f"the feature at {run.stage.name!r} differs from the model's {when}"
            _compare(whole.features[number], got, what, why)
    if walked.failure is not None:
        raise CutError(
            f"stage {split.stages[len(walked.runs)].name!r} fails {when}, where the network itself does not: "
            f"{walked.failure}; tracing fixed a size of the example there, or a table that the network keeps"
        ) from walked.failure
    for tensor, one, other in zip(
        split.stages[-1].outputs, _returned(split, whole), walked.runs[-1].outputs, strict=True
    ):
        _compare(one, other, f"the output {tensor.name!r} of the last stage differs from the model's {when}", why)
    return walked.runs


def _check_larger(
    backbone: nn.Module,
    at: Sequence[str],
    split: Split,
    form: InputForm,
    inputs: tuple[Tensor, ...],
    *,
    required: bool,
) -> None:
    """Also at a larger batch size: a network may ask for it, and tracing then keeps one of its ways alone."""
    try:
        whole = whole_of(backbone, at, form, inputs)
    except CutError:
        if required:
            raise
        return
    why = (
        f"the network does something else at this batch size than at {BATCH}, such as an `if` on x.shape[0]; let it do "
        "the same for every number of samples"
    )
    _compare_walk(split, whole, walk_alone(split, inputs), f"at batch size {inputs[0].shape[0]}", why)


def _check_other_lengths(
    backbone: nn.Module, at: Sequence[str], split: Split, form: InputForm, inputs: tuple[Tensor, ...]
) -> None:
    """Also at other sizes of the dynamic dimensions, unless the model itself refuses them."""
    for more, what in ((-1, "less"), (1, "more")):
        others = form.resized(inputs, partial(_lengthened, more))
        try:
            whole = whole_of(backbone, at, form, others)
        except CutError:
            continue
        names = ", ".join(f"{name} one {what}" for name in form.dynamic_names)
        _compare_walk(split, whole, walk_alone(split, others), f"with {names}")


def _lengthened(more: int, tensor: Tensor, dim: int) -> Tensor:
    """The tensor with this many steps more, its last one again, or less."""
    size = tensor.shape[dim] + more
    last = tensor.narrow(dim, tensor.shape[dim] - 1, 1)
    return torch.cat([tensor, last], dim).narrow(dim, 0, size)


def _returned(split: Split, whole: Whole) -> list[Tensor]:
    """The tensors that the model returns, in the order of the last stage's outputs."""
    leaves, spec = pytree.tree_flatten(whole.output)
    if spec != split.out_spec:
        raise CutError(f"the model returns {spec}, but {split.out_spec} while it is traced; it cannot be cut")
    by_place: dict[int, Tensor] = {}
    for leaf, place in zip(leaves, split.leaves, strict=True):
        if isinstance(place, int):
            by_place.setdefault(place, leaf)
    return [by_place[place] for place in range(len(by_place))]


def _run_stages(split: Split, live: tuple[Tensor, ...], first: int, when: str) -> tuple[Tensor, ...]:
    try:
        torch.manual_seed(SEED)
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
