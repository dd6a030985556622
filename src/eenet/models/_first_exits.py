"""A network that ends at one of its exits: what comes after it does not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from eenet._compat import left_by_exception
from eenet.errors import CutError
from eenet.models._cascade_network import CascadeNetwork, Member, signed
from eenet.models._heads import AnswerHead
from eenet.stages import feature_at


class _Reached(BaseException):
    """The exit of a network was reached, with these logits; no Exception, since a network may handle those."""

    def __init__(self, by: nn.Module, logits: Tensor) -> None:
        super().__init__()
        self.by, self.logits = by, logits


class FirstExits(nn.Module):
    """A network up to the end of its module `stop`, whose logits are what `head` says there."""

    def __init__(
        self, network: nn.Module, stop: str, head: nn.Module, batch_dim: int, arguments: Sequence[str]
    ) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.stop, self.batch_dim, self.arguments = stop, batch_dim, tuple(arguments)
        self.training = network.training

    @signed
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The logits of the exit."""

        def reached(module: nn.Module, _: Any, output: Any) -> None:
            raise _Reached(self, self.head(feature_at(module, output).movedim(self.batch_dim, 0)))

        handle = self.network.get_submodule(self.stop).register_forward_hook(reached)
        try:
            with left_by_exception():
                self.network(*args, **kwargs)
        except _Reached as exit_:
            if exit_.by is not self:  # that of a shorter network around this one
                raise
            return exit_.logits
        finally:
            handle.remove()
        raise CutError(f"the network ended before its module {self.stop!r} was called")

    def describe(self, source: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
        """How it is made again, of the source of the whole network and the description of the head."""
        return {
            "networks": [source],
            "stop": self.stop,
            "batch_dim": self.batch_dim,
            "arguments": list(self.arguments),
            "head": head,
        }


class Parts(NamedTuple):
    """What `attach` makes a model of: a network, the modules where its early exits are, and their heads."""

    network: nn.Module
    exits: list[str]
    heads: list[nn.Module]


class Exits(NamedTuple):
    """The exits of a model: their modules ("output" for the last), the heads of all but that, and batch dimensions."""

    names: Sequence[str]
    heads: Sequence[nn.Module]
    batch_dims: Sequence[int]


def kept(network: nn.Module, exits: Exits, chosen: Sequence[int], arguments: Sequence[str]) -> Parts:
    """A network with only the chosen exits, in their order; it ends at the last of them."""
    if not isinstance(network, CascadeNetwork):
        whole, prefix = _until(network, exits, chosen[-1], exits.names[chosen[-1]], arguments)
        early = chosen[:-1]
        return Parts(whole, [prefix + exits.names[k] for k in early], [exits.heads[k] for k in early])
    found = Parts(network, [], [])
    members: list[Member] = []
    numbers: list[int] = []
    for number, member in enumerate(network.members):
        assert isinstance(member, Member)
        own = [k for k in chosen if _member(exits.names[k], len(network.members)) == number]
        if not own:
            continue
        inside = f"members.{number}.network."
        own_answer = exits.names[own[-1]] in (f"members.{number}", "output")
        stop = "output" if own_answer else exits.names[own[-1]].removeprefix(inside)
        until, prefix = _until(member.network, exits, own[-1], stop, ())
        at = f"members.{len(members)}"
        for k in own[:-1]:
            found.exits.append(f"{at}.network.{prefix}{exits.names[k].removeprefix(inside)}")
            found.heads.append(exits.heads[k])
        if own[-1] != chosen[-1]:
            found.exits.append(at)
            found.heads.append(AnswerHead())
        members.append(Member(until, member.inputs, member.num_classes))
        numbers.append(number)
    names = None if network.names is None else [network.names[number] for number in numbers]
    made = CascadeNetwork(members, network.arguments, names)
    for module in (made, made.members, *members):
        module.training = network.training
    return found._replace(network=made)


def _until(network: nn.Module, exits: Exits, number: int, stop: str, arguments: Sequence[str]) -> tuple[nn.Module, str]:
    """The network up to an exit, and what comes before the names of its modules then."""
    if stop == "output":
        return network, ""
    return FirstExits(network, stop, exits.heads[number], exits.batch_dims[number], arguments), "network."


def _member(exit_name: str, count: int) -> int:
    return count - 1 if exit_name == "output" else int(exit_name.split(".")[1])
