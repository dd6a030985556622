"""`cut` and `StagedModel`: a model together with the stages it was cut into, by tracing or by hand."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from eenet._compat import pytree
from eenet.errors import CutError, InvalidInputError
from eenet.stages._binding import bind, device_of, dtype_of, modes_kept, move_constants, set_evaluation
from eenet.stages._capture import capture, modules_to_cut
from eenet.stages._check import (
    check_example,
    check_gradients,
    check_independent,
    check_reference,
    check_training,
)
from eenet.stages._example import BATCH, Example, arguments_of, form_of
from eenet.stages._gradients import GradientError, gradient_error
from eenet.stages._network import Contents, ExampleError, first_run, refuse_wrapped, run_after_trace, without_batch
from eenet.stages._samples import PrecisionError, Whole
from eenet.stages._sequence import StageSequence, named_stages, sequence_split
from eenet.stages._split import Split, split
from eenet.stages._stage import Dynamic, InputForm, Stage, Step, compact, walk
from eenet.stages._walks import Run

_log = logging.getLogger("eenet.stages")

# A batch size that a network compares its own with is looked beyond where it is at most this.
_MOST = 64


def cut(
    model: nn.Module,
    at: Sequence[str],
    example: Example,
    *,
    dynamic: Dynamic | None = None,
    check: bool = True,
) -> StagedModel:
    """Cut a network at the ends of the named modules into `len(at) + 1` stages that share its weights.

    `example` is a tensor, a tuple of positional arguments or a mapping of keyword arguments; every tensor in it has the
    batch on dimension 0. `dynamic` names further dimensions whose size may change, such as `{1: "sequence"}`. With
    `check`, the stages are compared with the model at two batch sizes and at that of the example, with samples selected
    at each boundary, and with other samples beside them. The model is left as it was. Raises CutError, which names the
    module and where one is at fault the tensor, and InvalidInputError for an example that cannot be used.

    Parameters
    ----------
    model : Module
        The network.
    at : sequence of str
        The names of the modules after which it is cut, in the order of the forward pass.
    example : Tensor, tuple or mapping
        An input that the network takes, with the batch on dimension 0.
    dynamic : mapping of int to str, or of str to such mappings, optional
        Further dimensions whose size may change, by name, such as `{1: "sequence"}`; where inputs differ, for each by
        its name: `{"signal": {2: "time"}, "mask": {1: "time"}}`.
    check : bool
        Whether to compare the stages with the network.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> x = torch.randn(5, 4)
    >>> staged = eenet.cut(network, at=["1"], example=x[:2])
    >>> bool(torch.allclose(staged(x), network(x)))
    True
    """
    staged = cut_for_heads(model, at, example, dynamic=dynamic, check=check)
    staged.take_run()
    return staged


def cut_for_heads(
    model: nn.Module, at: Sequence[str], example: Example, *, dynamic: Dynamic | None, check: bool = True
) -> StagedModel:
    """As `cut`; what the check computed is kept until `take_run` is called."""
    refuse_wrapped(model)
    modules_to_cut(model, at)
    # The example is kept for later traces, so it must not become an inference tensor, which tracing cannot use.
    with torch.inference_mode(mode=False):
        form = form_of(model, example, dynamic)
    staged = StagedModel(model, tuple(at), form, check=check)
    given = pytree.tree_leaves(arguments_of(example))
    staged._example_size = next(leaf for leaf in given if isinstance(leaf, Tensor)).shape[0]
    staged._keeps_run = True
    try:
        _ = staged.inference_stages
    except ExampleError as error:
        raise CutError(without_batch(model, *arguments_of(example)) or str(error)) from error
    staged._keeps_run = False
    return staged


class StagedModel(nn.Module):
    """A model cut into stages; calling it gives what calling the model gives. Made by `cut` or `from_stages`.

    The model is the submodule `backbone`, whose parameters the stages use. There is one list of stages for inference
    and one for training, traced when first used. After a change of the backbone's tensors that did not go through this
    module (`staged.backbone.to(...)`), call `rebind`.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> x = torch.randn(5, 4)
    >>> staged = eenet.StagedModel.from_stages([network[:2], network[2:]], example=x[:2], reference=network)
    >>> len(staged.stages), bool(torch.equal(staged(x), network(x)))
    (2, True)
    """

    backbone: nn.Module

    def __init__(self, backbone: nn.Module, at: tuple[str, ...], form: InputForm, *, check: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.training = backbone.training
        self.at = at
        self._form = form
        self._check = check
        self._modes = list(backbone.modules())
        self._all_off = (False,) * len(self._modes)
        self._splits: dict[tuple[bool, ...], Split] = {}
        self._device = device_of(backbone)
        self._dtype = dtype_of(backbone)
        self._contents = Contents.of(backbone)
        self._example_size = 0  # more than the samples of it that are kept
        self._keeps_run = False
        self._checked: list[Run] | None = None
        self.register_load_state_dict_post_hook(_rebind_after_load)  # type: ignore[no-untyped-call]

    @classmethod
    def from_stages(
        cls,
        stages: Sequence[nn.Module] | Mapping[str, nn.Module],
        example: Example,
        *,
        dynamic: Dynamic | None = None,
        reference: nn.Module | None = None,
        check: bool = True,
    ) -> StagedModel:
        """Stages written by hand, for a network that `cut` cannot trace; used and checked as those of `cut` are.

        Each of `stages` (a list, or a mapping that names them) returns a tensor or a tuple of tensors, which the next
        one is called with; the first tensor is the feature that an exit looks at. The last one returns what a network
        returns. `example` and `dynamic` are those of `cut`. Where the samples lie in each tensor is found by running
        the stages at two batch sizes. With `check`, they are run with samples selected at each boundary, and compared
        with `reference`, the network they were taken from, where it is given. Raises CutError, which names the stage
        and the tensor, and InvalidInputError for stages or an example that cannot be used.
        """
        sequence = StageSequence(named_stages(stages))
        names = [name for name, _ in sequence.named_children()]
        sequence.training = any(module.training for module in sequence.children())
        with torch.inference_mode(mode=False):
            form = form_of(next(sequence.children()), example, dynamic)
        staged = cls(sequence, tuple(names[:-1]), form, check=check)
        made = staged._split_for(staged._all_off)
        if reference is not None:
            with modes_kept(reference):
                set_evaluation(reference)
                check_reference(reference, made, form)
        return staged

    @property
    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments `(args, kwargs)` of a call that the stages were made with, at most three samples of them."""
        return self._form.args, dict(self._form.kwargs)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments of a call; each can be given by its name."""
        return self._form.arguments

    @property
    def dynamic(self) -> dict[Any, Any]:
        """The dimensions besides the batch whose size may change, by name, as they were given."""
        return dict(self._form.dynamic)

    @property
    def traced(self) -> bool:
        """Whether the stages are graphs made by `cut`, rather than modules written by hand."""
        return not isinstance(self.backbone, StageSequence)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the current mode (inference or training); raises CutError if it cannot be traced."""
        return self._current().stages

    @property
    def inference_stages(self) -> tuple[Stage, ...]:
        """The stages for inference, whatever the mode; raises CutError as `stages` does."""
        return self._split_for(self._all_off).stages

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives for these arguments, computed stage by stage."""
        live = self._form.flatten(args, kwargs)
        current = self._current()
        return current.unflatten(current.run(live))

    def walk(self, live: tuple[Tensor, ...], stages: Sequence[Stage] | None = None) -> Iterator[Step]:
        """Run the stages one at a time, each when the next step is asked for.

        Parameters
        ----------
        live
            The live tensors before the first stage, as `flatten_inputs` gives them.
        stages
            The stages to run; by default those of the current mode.

        Yields
        ------
        Step
            After each stage: its `outputs`, its `feature`, and `live`, the tensors before the next stage. These may be
            replaced, for instance by `staged.compact(step.live, rows, k + 1)`.
        """
        return walk(self.stages if stages is None else stages, live)

    def flatten_inputs(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """The live tensors of the first stage; raises InvalidInputError where the arguments differ from the example."""
        return self._form.flatten(args, kwargs)

    def call_of(self, live: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments `(args, kwargs)` of a call, from the live tensors of the first stage."""
        return self._form.with_tensors(live)

    def unflatten_output(self, tensors: tuple[Tensor, ...]) -> Any:
        """The model's output structure (tensor, tuple, mapping) from the tensors that the last stage gives."""
        return self._current_or_inference().unflatten(tensors)

    def compact(self, live: tuple[Tensor, ...], index: Tensor, stage_index: int) -> tuple[Tensor, ...]:
        """The samples `index` (int64, in any order) of a stage's live input tensors; constants stay as they are."""
        return compact(live, index, self._current_or_inference().stages[stage_index].batch_dims)

    def batch_size_of(self, live: tuple[Tensor, ...], stage_index: int = 0) -> int:
        """The number of samples in the live input tensors of a stage."""
        dims = self._current_or_inference().stages[stage_index].batch_dims
        for tensor, dim in zip(live, dims, strict=True):
            if dim is not None:
                return tensor.shape[dim]
        raise InvalidInputError(f"no input of stage {stage_index} has a batch dimension")

    def take_run(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The features at the exits and what the last stage gives, for as many samples as the example has.

        Of the check, where that was just made, which is then forgotten; otherwise the example is run.
        """
        rows = self._form.tensors()[0].shape[0]
        runs, self._checked = self._checked, None
        if runs is None:
            steps = walk(self.inference_stages, self._form.tensors())
            # Copies: a later stage may change a tensor in place.
            runs = [Run(step.stage, tuple([tensor.clone() for tensor in step.outputs])) for step in steps]
        features = [Step(run.stage, run.outputs).feature[:rows] for run in runs[:-1]]
        last = zip(runs[-1].stage.outputs, runs[-1].outputs, strict=True)
        return features, tuple([t if live.batch_dim is None else t.narrow(live.batch_dim, 0, rows) for live, t in last])

    def check_current(self) -> None:
        """Make sure that the stages still are those of the network, which may have been changed since it was cut.

        Compares the modules, forward methods, settings and shapes with those at the time of the cut, and runs the
        example through the network and through its stages: in inference, and in training mode, gradients included,
        where there are stages for that. Parameters and buffers that were replaced by others of the same shape are
        followed, as by `rebind`. Costs about three inference passes of the example (at most three samples): 1.4 ms of
        CPU for a network of two layers, 0.23 s for a ResNet-50 on two images of 128 x 128.

        Raises
        ------
        CutError
            Names the module that was changed, or the stage whose result differs.
        """
        now = Contents.of(self.backbone)
        again = "its stages are those of before; attach exits to the network again (or cut it again)"
        changed = self._contents.change(now)
        if changed is not None:
            raise CutError(f"the network was changed after it was cut: module {changed[0]!r} {changed[1]}; {again}")
        self.rebind()
        setting = self._contents.changed_setting(now)
        why = f"module {setting[0]!r} {setting[1]}" if setting else "a module, a hook or a value it reads is another"
        present = tuple([module.training for module in self._modes])
        for flags, made in self._splits.items():
            if not self.traced or (any(flags) and setting is None and flags != present):
                continue
            with self._in_mode(flags), torch.inference_mode(mode=False):
                try:
                    check_example(self.backbone, self.at, made, self._form)
                    if any(flags):
                        check_gradients(self.backbone, self.at, made, self._form)
                except PrecisionError as error:  # to cut it again would not help
                    raise CutError(f"the network was changed after it was cut: {error}") from error
                except CutError as error:
                    what = str(error).partition(";")[0]
                    raise CutError(
                        f"the network was changed after it was cut: {why}; {again}. What differs: {what}"
                    ) from error

    def rebind(self) -> None:
        """Make the stages use the backbone's present parameters, buffers and device.

        After a change of dtype the stages are traced again when next used, since tracing fixes the dtype of masks.
        """
        device, dtype = device_of(self.backbone), dtype_of(self.backbone)
        if device != self._device or dtype != self._dtype:
            with torch.inference_mode(mode=False):
                self._form = self._form.moved(device, self._dtype, dtype)
        if dtype != self._dtype:
            self._splits.clear()
        for made in self._splits.values():
            if device is not None and self._device is not None and device != self._device:
                for name, constant in made.constants.items():
                    made.constants[name] = constant.to(device)
                for module in _graphs(made):
                    move_constants(module, self._device, device)
            for module in _graphs(made):
                bind(module, self.backbone, made.constants)
        self._device, self._dtype = device, dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StagedModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.rebind()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Graphs are not saved: they are traced again when first used.
        return {**self.__dict__, "_splits": {}, "_contents": None, "_checked": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._contents = Contents.of(self.backbone)

    def __deepcopy__(self, memo: dict[int, Any]) -> StagedModel:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy({**self.__dict__, "_contents": None, "_checked": None}, memo))
        # A deep copy of a stage loses which of its buffers are persistent.
        made.rebind()
        made._contents = Contents.of(made.backbone)
        return made

    def _current(self) -> Split:
        # By the modes of all modules, so that a batch norm frozen inside a training network is respected.
        return self._split_for(tuple([module.training for module in self._modes]))

    def _current_or_inference(self) -> Split:
        # Asking every module for its mode takes longer than compacting; what is eval() as a whole is taken at its word.
        return self._current() if self.training else self._split_for(self._all_off)

    def _split_for(self, flags: tuple[bool, ...]) -> Split:
        split = self._splits.get(flags)
        if split is None:
            split = self._splits[flags] = self._trace(flags)
        return split

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a model is compiled, the making of its stages is not
    def _trace(self, flags: tuple[bool, ...]) -> Split:
        training, watch = any(flags), None
        network, start = type(self.backbone).__name__, time.perf_counter()
        mode = " in training mode" if training else ""
        before: Whole | None = None
        single: Whole | None = None
        bound: int | None = None
        with self._in_mode(flags), torch.inference_mode(mode=False):
            try:
                if isinstance(self.backbone, StageSequence):
                    made = sequence_split(self.backbone, self._form)
                else:
                    # Caches outside the network, such as tables of positions, are filled with true tensors first.
                    watch, before = first_run(self.backbone, self.at, self._form)
                    ran = time.perf_counter()
                    _log.info("%s runs three samples in %.1f s; it is traced now%s", network, ran - start, mode)
                    try:
                        captured = capture(self.backbone, self.at, self._form)
                    finally:
                        single = run_after_trace(self.backbone, self.at, self._form)
                    _log.info("%s was traced in %.1f s; its stages are checked now", network, time.perf_counter() - ran)
                    made, bound = split(captured, self._form.dynamic_dims), captured.largest
                for module in _graphs(made):
                    bind(module, self.backbone, made.constants)
                if self._check and training:
                    check_training(self.backbone, self.at, made, self._form, before)
                    if self.traced:
                        check_gradients(self.backbone, self.at, made, self._form)
                elif self._check:
                    # Of the example, which the network must take, and the first one beyond what was traced.
                    larger = {} if bound is None or bound > _MOST else {bound + 1: False}
                    larger |= {self._example_size: True} if self._example_size > BATCH else {}
                    runs = check_independent(self.backbone, self.at, made, self._form, before, single, larger)
                    self._checked = runs if self._keeps_run else None
            except CutError as error:
                if watch is not None and not isinstance(error, GradientError) and watch.drops_gradients(training):
                    error = gradient_error(watch, [], [])
                if not training:
                    raise error
                raise CutError(f"in training mode: {error}; call eval() to use the stages for inference") from error
        count = len(made.stages)
        _log.info("%s is cut into %d stages%s, after %.1f s", network, count, mode, time.perf_counter() - start)
        return made

    @contextlib.contextmanager
    def _in_mode(self, flags: tuple[bool, ...]) -> Iterator[None]:
        before = [module.training for module in self._modes]
        try:
            # Not through train(), which a model may override to do more than set its mode.
            for module, flag in zip(self._modes, flags, strict=True):
                module.training = flag
            yield
        finally:
            for module, flag in zip(self._modes, before, strict=True):
                module.training = flag

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.backbone).__name__}, at={list(self.at)})"


def _graphs(made: Split) -> Iterator[fx.GraphModule]:
    """The stages that are graphs; those written by hand hold their parameters themselves."""
    return (stage.module for stage in made.stages if isinstance(stage.module, fx.GraphModule))


def _rebind_after_load(module: nn.Module, _incompatible_keys: Any) -> None:
    # load_state_dict(assign=True) puts other tensors in place of the ones that the stages hold.
    if isinstance(module, StagedModel):
        module.rebind()
