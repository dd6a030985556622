"""The samples that a cut is checked with, and what the network itself gives for them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eenet._compat import pytree
from eenet.errors import CutError
from eenet.stages._binding import device_of
from eenet.stages._capture import feature_at
from eenet.stages._stage import InputForm

SEED = 0

_OF_PRECISIONS = re.compile(r"dtype|type \(|BFloat16|Half|Double")
"""What torch says where numbers of two precisions meet."""

FOLLOW_TRAINING = "make that step follow `self.training` (for dropout, F.dropout(x, p, training=self.training))"
"""What to do about a step that is random in inference."""


@dataclass(frozen=True, eq=False)
class Whole:
    """What the network gave: its output, and copies of the features at the exits."""

    output: Any
    features: tuple[Tensor, ...]

    def detached(self) -> Whole:
        """The same without gradients, as copies."""
        output, features = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (self.output, self.features))
        return Whole(output, features)


def run_whole(network: nn.Module, at: Sequence[str], form: InputForm, inputs: Sequence[Tensor]) -> Whole:
    """Run the network, as a call does, with the seed of the checks; what it changes in its buffers stays."""
    features: list[Tensor] = []

    def keep(module: nn.Module, _args: Any, output: Any) -> None:
        # A copy: a later in-place operator of the model would change it.
        features.append(feature_at(module, output).clone())

    # As in a stage, the caller's tensors stay as they are even if the model works in place.
    args, kwargs = form.with_tensors([tensor.clone() for tensor in inputs])
    handles = [network.get_submodule(name).register_forward_hook(keep) for name in at]
    try:
        torch.manual_seed(SEED)
        output = network(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return Whole(output, tuple(features))


def whole_of(network: nn.Module, at: Sequence[str], form: InputForm, inputs: Sequence[Tensor]) -> Whole:
    """As `run_whole`; raises CutError where the network fails, and puts the buffers back."""
    with buffers_kept(network):
        try:
            return run_whole(network, at, form, inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            said = (
                f"the model itself fails at batch size {inputs[0].shape[0]}, on samples made from the example, whose "
                f"floats have noise: {error}"
            )
            several = several_precisions(network, error)
            if several:
                raise PrecisionError(f"{said}; {several}") from error
            raise CutError(said) from error


class PrecisionError(CutError):
    """The network fails since its parameters are of several precisions."""


def is_of_precisions(error: BaseException) -> bool:
    """Whether numbers of two precisions met, by what torch says."""
    return _OF_PRECISIONS.search(str(error)) is not None


def precisions(network: nn.Module) -> dict[torch.dtype, str]:
    """The dtypes of the parameters, each with the name of the first module that has it."""
    where: dict[torch.dtype, str] = {}
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point():
            where.setdefault(parameter.dtype, name.rpartition(".")[0])
    return where


def several_precisions(network: nn.Module, error: BaseException) -> str:
    """What to do where the parameters of a network are of several precisions and meet; empty for another error."""
    where = precisions(network) if is_of_precisions(error) else {}
    if len(where) < 2:
        return ""
    places = ", ".join(f"{dtype} in module {name!r}" for dtype, name in where.items())
    return (
        f"it has parameters of several precisions ({places}): make them one with network.float(), or let its forward "
        "pass convert what goes from one to the other"
    )


def sample_inputs(form: InputForm, batch: int) -> tuple[Tensor, ...]:
    """`batch` samples around the example, which differ if they can: floats by noise, integers by order and a number."""
    generator = torch.Generator().manual_seed(SEED)
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
        if any(_reordered(stacks, earlier, later) for earlier in range(later)):
            _vary(stacks, later)
    return tuple(stacks)


def _reordered(inputs: Sequence[Tensor], one: int, other: int) -> bool:
    """Whether two samples hold the same numbers, in any order: a mean over tokens would not tell them apart."""
    return all(torch.equal(t[one].flatten().sort().values, t[other].flatten().sort().values) for t in inputs)


def alike(inputs: Sequence[Tensor], one: int, other: int) -> bool:
    """Whether two samples are the same in all inputs."""
    return all(torch.equal(tensor[one], tensor[other]) for tensor in inputs)


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
    with torch.random.fork_rng(devices=[device] if on_gpu else []), torch.no_grad(), buffers_kept(backbone):
        yield


@contextlib.contextmanager
def buffers_kept(backbone: nn.Module) -> Iterator[None]:
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
