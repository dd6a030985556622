"""Gradients of a network and of its stages compared, and where in the network they begin to differ.

Tracing records operators, not what autograd was set to do instead of their derivatives: the backward pass of an
autograd Function, reentrant checkpointing, hooks on gradients. Results do not show that, gradients do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eenet._compat import pytree
from eenet.errors import CutError

_SEED = 1


# Gradients by the name of their parameter or input; None where nothing depends on it.
Gradients = dict[str, Tensor | None]


@contextlib.contextmanager
def all_trainable(backbone: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """The floating-point parameters by name, all of them requiring gradients: what is frozen now may be thawed."""
    parameters = {
        name: tensor
        for name, tensor in backbone.named_parameters()
        if tensor.is_floating_point() and not tensor.is_inference()
    }
    before = [(tensor, tensor.requires_grad) for tensor in parameters.values()]
    try:
        for tensor, _ in before:
            tensor.requires_grad_()
        yield parameters
    finally:
        for tensor, required in before:
            tensor.requires_grad_(required)


def gradients_of(results: Sequence[Tensor], parameters: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Gradients:
    """The gradients of a weighted sum of `results` by parameter and input; the weights are the same in every call."""
    generator = torch.Generator().manual_seed(_SEED)
    total: Tensor | None = None
    for result in results:
        if result.is_floating_point():
            weights = torch.randn(result.shape, generator=generator).to(result.device, result.dtype)
            if result.requires_grad:
                # The mean keeps the sum in the range of half precision.
                part = (result * weights).mean()
                total = part if total is None else total + part
    targets = {**parameters, **{f"input {n}": tensor for n, tensor in enumerate(inputs) if tensor.requires_grad}}
    if total is None:
        return dict.fromkeys(targets)
    gradients = torch.autograd.grad(total, list(targets.values()), allow_unused=True)
    return dict(zip(targets, gradients, strict=True))


def differing(one: Gradients, other: Gradients, relative: float) -> list[str]:
    """The names whose gradients differ by more than rounding; None counts as zero."""
    pairs = {name: (one[name], other.get(name)) for name in one}
    largest = max((g.abs().max().item() for g in one.values() if g is not None and g.numel()), default=0.0)
    names = []
    for name, (first, second) in pairs.items():
        if first is None and second is None:
            continue
        a = first if first is not None else torch.zeros_like(second)  # type: ignore[arg-type]
        b = second if second is not None else torch.zeros_like(a)
        if not a.numel() or torch.equal(a, b):
            continue
        finite = a.isfinite() & b.isfinite()
        if not torch.equal(a.isfinite(), b.isfinite()):
            names.append(name)
            continue
        error = (a[finite].double() - b[finite].double()).abs().max().item() if finite.any() else 0.0
        scale = max(a[finite].abs().max().item(), b[finite].abs().max().item()) if finite.any() else 0.0
        # A gradient that is zero but for rounding, as of a bias before a batch norm, is measured by the others.
        if error > relative * (scale + 0.01 * largest):
            names.append(name)
    return names


@dataclass
class Watch:
    """Sees a network run: the order in which its parts ran, and which of them hold backward passes of their own."""

    network: nn.Module
    order: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    own_backward: dict[str, str] = field(default_factory=dict)
    _running: list[str] = field(default_factory=list)
    _seen: set[Any] = field(default_factory=set)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """The modules are watched in the block."""
        handles = []
        for name, module in self.network.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def drops_gradients(self, training: bool) -> bool:
        """Whether something was seen that keeps the network from being traced in the mode."""
        # Reentrant checkpointing leaves gradients switched off in the graph, in inference too.
        return any(training or "Checkpoint" in function for function in self.own_backward.values())

    def _enter(self, name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._attribute((args, kwargs), self._running[-1] if self._running else "")
            self._running.append(name)
            self.order.append(name)

        return hook

    def _leave(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            self._attribute(output, name)
            self.ends[name] = len(self.order)
            if self._running:
                self._running.pop()

        return hook

    def place(self, parameter: str) -> int:
        """When the module of a parameter ran; -1 for an input, or a module that did not run."""
        module = parameter.rpartition(".")[0]
        return self.order.index(module) if module in self.order and not parameter.startswith("input ") else -1

    def _attribute(self, values: Any, name: str) -> None:
        """Give the autograd nodes behind `values` that are new to module `name`."""
        nodes: list[Any] = [leaf.grad_fn for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
        while nodes:
            node = nodes.pop()
            if node is None or node in self._seen:
                continue
            self._seen.add(node)
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                self.own_backward.setdefault(name, type(node).__name__.removesuffix("Backward"))
            nodes += [following for following, _ in node.next_functions]


class GradientError(CutError):
    """The stages would give other gradients than the network."""


def gradient_error(watch: Watch, wrong: Sequence[str], right: Sequence[str]) -> GradientError:
    """Why the gradients differ: the module, the cause and the way out, from what differs and what does not."""
    out = "write the stages by hand with StagedModel.from_stages, where gradients are those of the network"
    shown = ", ".join(repr(name) for name in wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    what = f"the gradients of {shown or 'the stages'} {'differ' if wrong else 'would differ'} from the network's"
    # The step at fault comes after all that differs.
    last = max((watch.place(name) for name in wrong), default=-1)
    suspects = [name for name in watch.own_backward if watch.ends.get(name, len(watch.order)) > last]
    name = next(iter(suspects or watch.own_backward), None)
    if name is None:
        place = _between(watch, wrong, right)
        return GradientError(
            f"{what}{place} a step changes gradients in a way that tracing drops, such as a hook on a tensor or an "
            f"autograd Function; {out}"
        )
    function = watch.own_backward[name]
    where = f"module {name!r} ({type(watch.network.get_submodule(name)).__name__})" if name else "the network"
    if "Checkpoint" in function:
        where += " checkpoints activations in the reentrant way, which tracing drops; call checkpoint with "
        out = f"use_reentrant=False, or {out}"
    elif function == "BackwardHookFunction":
        where += " has a backward hook, which stages do not run; remove the hook, or "
    else:
        where += f" uses the autograd Function {function!r}, whose backward pass tracing drops; "
    return GradientError(f"{what}: {where}{out}")


def _between(watch: Watch, wrong: Sequence[str], right: Sequence[str]) -> str:
    """Where the step is: behind the last module whose gradients differ, before the first whose do not."""
    last = max((watch.place(name) for name in wrong), default=-1)
    after = [watch.place(name) for name in right if watch.place(name) > last]
    first = min(after, default=len(watch.order))
    leaves = [
        name
        for name in watch.order[last + 1 : first]
        if name and not any(True for _ in watch.network.get_submodule(name).children())
    ]
    if len(leaves) == 1:
        return f": in module {leaves[0]!r} ({type(watch.network.get_submodule(leaves[0])).__name__})"
    start = f"after {watch.order[last]!r}" if last >= 0 and watch.order[last] else "after the input"
    stop = f" and before {watch.order[first]!r}" if first < len(watch.order) else ""
    return f": {start}{stop}"
