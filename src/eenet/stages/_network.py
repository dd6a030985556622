"""The network beside its stages: run before it is traced, left undamaged after that, and compared with later."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eenet._compat import clear_fake_caches, is_fake, pytree
from eenet.errors import CutError, InvalidInputError, kind_of
from eenet.stages._example import BATCH, MODEL_ERRORS, Example, arguments_of
from eenet.stages._gradients import Watch
from eenet.stages._samples import (
    Whole,
    is_of_precisions,
    precisions,
    run_whole,
    sample_inputs,
    several_precisions,
    undisturbed,
)
from eenet.stages._stage import InputForm


def refuse_wrapped(network: nn.Module) -> None:
    """Refuse modules that only wrap a network, and those whose code tracing cannot see. Raises InvalidInputError."""
    if not isinstance(network, nn.Module):
        raise InvalidInputError(f"the network is {kind_of(network)}, expected a torch.nn.Module")
    if isinstance(network, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise InvalidInputError(
            f"the network is {kind_of(network)}, which runs another one on several devices; give that one, "
            "`net.module`, and wrap the model with exits instead"
        )
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"module {name!r}" if name else "the network"
            raise InvalidInputError(
                f"{what} is {kind_of(module)} of torch.jit, which cannot be traced; give the Python module "
                "that it was made from"
            )


class ExampleError(CutError):
    """A network fails on the example by itself."""


def require_runs(network: nn.Module, form: InputForm, example: Example) -> None:
    """Raise `CutError` where a network fails on the example by itself, with the way out where that is known."""
    try:
        first_run(network, (), form)
    except ExampleError as error:
        raise CutError(without_batch(network, *arguments_of(example)) or str(error)) from error


def without_batch(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """What to say of an example that a network takes as a sample of a batch, and not as it is; else None."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda one: torch.stack([one, one]), (args, kwargs))
    with undisturbed(network):
        try:
            network(*args, **kwargs)
        except MODEL_ERRORS:
            return None
    return (
        "the network takes the example as one sample of a batch: that dimension is missing; give x[None] in place of x"
    )


def first_run(network: nn.Module, at: Sequence[str], form: InputForm) -> tuple[Watch, Whole | None]:
    """Run the network on the samples of the checks in its present mode: what was seen, and what it gave.

    Raises CutError where it fails on the example too, or returns no tensors; None where it fails on the samples alone.
    Leaves buffers and generators as they were.
    """
    try:
        watch = Watch(network)
        # No backward pass will follow, so what it would need is not kept.
        nothing = torch.empty(0)
        nothing_saved = torch.autograd.graph.saved_tensors_hooks(lambda _: nothing, lambda _: nothing)
        with undisturbed(network), torch.enable_grad(), nothing_saved, watch.watching():
            ran = run_whole(network, at, form, sample_inputs(form, BATCH))
    except MODEL_ERRORS:
        watch = Watch(network)
        args, kwargs = form.with_tensors([tensor.clone() for tensor in form.tensors()])
        with undisturbed(network), torch.enable_grad(), watch.watching():
            try:
                output = network(*args, **kwargs)
            except MODEL_ERRORS as error:
                size = form.tensors()[0].shape[0]
                raise ExampleError(
                    f"the model itself fails on the example, at batch size {size}: {type(error).__name__}: {error}"
                    + _precision_hint(network, form, error)
                ) from error
        _check_output(output, form)
        return watch, None
    _check_output(ran.output, form)
    return watch, ran.detached()


def _precision_hint(network: nn.Module, form: InputForm, error: BaseException) -> str:
    """What to do where numbers of two precisions meet; empty for another error."""
    several = several_precisions(network, error)
    if several:
        return f"; {several}"
    where = precisions(network) if is_of_precisions(error) else {}
    given = next((tensor.dtype for tensor in form.tensors() if tensor.is_floating_point()), None)
    if given is not None and where and given not in where:
        (dtype,) = where
        return f"; its parameters are {dtype} and the example is {given}: give example.to({dtype}), or network.float()"
    return ""


def run_after_trace(network: nn.Module, at: Sequence[str], form: InputForm) -> Whole | None:
    """What the network gives for the first sample of the checks, None where it fails; run after it was traced.

    A cache outside the network, such as `functools.lru_cache`, may have kept a tensor made while tracing. Raises
    CutError where that cannot be repaired.
    """
    ran, gives_fake = _run_one(network, at, form)
    if not gives_fake:
        return ran
    cleared = clear_fake_caches()
    ran, gives_fake = _run_one(network, at, form)
    if gives_fake:
        also = f" ({', '.join(cleared)} was cleared)" if cleared else ""
        raise CutError(
            "the network keeps tensors that were made while it was traced, in a cache outside its modules, and gives "
            f"FakeTensors from now on{also}; clear that cache, and fill it on tensors before exits are attached"
        )
    return ran


def _run_one(network: nn.Module, at: Sequence[str], form: InputForm) -> tuple[Whole | None, bool]:
    """What the network gives for one sample, and whether that is made of FakeTensors.

    One is enough: what is kept for a batch size was not kept while tracing, where that has no value.
    """
    try:
        with undisturbed(network):
            ran = run_whole(network, at, form, [tensor[:1] for tensor in sample_inputs(form, BATCH)])
    except MODEL_ERRORS as error:
        return None, "FakeTensor" in f"{type(error).__name__}: {error}"
    return ran, any(is_fake(leaf) for leaf in pytree.tree_leaves(ran.output))


def _check_output(output: Any, form: InputForm) -> None:
    """Refuse what a network returns that cannot be traced, with what to do about it."""
    for name, value in _parts(output):
        if type(value).__name__.endswith("Cache"):
            raise CutError(
                f"the network returns {name}, {kind_of(value)} of what it computed for earlier tokens, which "
                "cannot be traced; switch it off: use_cache=False in the example's arguments, or "
                "network.config.use_cache = False"
            )
        if dataclasses.is_dataclass(value) and len(pytree.tree_leaves(value)) == 1 and not isinstance(value, Mapping):
            names = [field.name for field in dataclasses.fields(value)]
            take = "logits" if "logits" in names else names[0] if names else "its tensor"
            kind = type(value).__name__
            raise CutError(
                f"the network returns {name}, a dataclass {kind}, which cannot be traced; return its `.{take}` (in a "
                f"module around the network), or call torch.export.register_dataclass({kind}) before"
            )
    for leaf in pytree.tree_leaves(output):
        if not isinstance(leaf, (Tensor, bool, int, float, complex, str, bytes, type(None))):
            take = "logits" if isinstance(getattr(leaf, "logits", None), Tensor) else "tensors"
            raise CutError(
                f"the network returns {kind_of(leaf)}, in which tracing sees no tensor; return its `.{take}` "
                "(in a module around the network)"
            )
    losses = [name for name, value in _parts(output) if isinstance(value, Tensor) and value.ndim == 0]
    labels = [name for name in form.kwargs if name in ("labels", "label", "targets", "target")]
    if losses and labels:
        raise CutError(
            f"the example has {labels[0]!r}, so that the network returns a loss over the whole batch; leave "
            f"{labels[0]!r} out of the example"
        )


def _parts(output: Any) -> Iterator[tuple[str, Any]]:
    """The output itself and, where it is a mapping or a tuple, what is in it, with a name each."""
    yield "its output", output
    if isinstance(output, Mapping):
        yield from ((repr(key), value) for key, value in output.items())
    elif isinstance(output, (tuple, list)):
        yield from ((f"output {position}", value) for position, value in enumerate(output))


# Settings that can be compared by value; what else a module holds is compared by identity, or not at all.
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True)
class Contents:
    """What a network consists of: its modules, their forward methods, settings, parameters and buffers, by name."""

    modules: dict[str, nn.Module]
    forwards: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    tensors: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, network: nn.Module) -> Contents:
        """The present contents of a network, without copying anything."""
        modules = dict(network.named_modules(remove_duplicate=False))
        return cls(
            modules,
            {name: _forward(module) for name, module in modules.items()},
            {name: _settings(module) for name, module in modules.items()},
            {
                name: tuple(tensor.shape)
                for found in (network.named_parameters(remove_duplicate=False), network.named_buffers())
                for name, tensor in found
            },
        )

    def change(self, now: Contents) -> tuple[str, str] | None:
        """The first change that the stages cannot follow: the module, and what happened to it."""
        for name, module in self.modules.items():
            there = now.modules.get(name)
            if there is not module:
                what = "was removed" if there is None else f"was replaced by another {type(there).__name__}"
                return name, what
        for name, module in now.modules.items():
            if name not in self.modules:
                return name, f"({kind_of(module)}) was added"
        for name, forward in self.forwards.items():
            if now.forwards[name] != forward:
                return name, "has another forward method"
        for name, shape in self.tensors.items():
            owner, _, leaf = name.rpartition(".")
            found = now.tensors.get(name)
            if found != shape:
                return owner, f"has another {leaf}: " + ("none" if found is None else f"shape {found}, not {shape}")
        added = next((name for name in now.tensors if name not in self.tensors), None)
        if added is not None:
            owner, _, leaf = added.rpartition(".")
            return owner, f"has another {leaf}, which it had not"
        return None

    def changed_setting(self, now: Contents) -> tuple[str, str] | None:
        """The first attribute with another value, which may or may not change what the network gives."""
        for name, before in self.settings.items():
            for key, value in before.items():
                there = now.settings.get(name, {}).get(key)
                if type(there) is not type(value) or there != value:
                    return name, f"has {key}={there!r}, which was {value!r}"
        return None


def _forward(module: nn.Module) -> Any:
    """What runs when the module is called: a forward of its own, or that of its class."""
    return vars(module).get("forward", getattr(type(module), "forward", None))


def _settings(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key != "training" and _plain(value)}


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(isinstance(item, _PLAIN) for item in value)
    return isinstance(value, _PLAIN) and not isinstance(value, Tensor)
