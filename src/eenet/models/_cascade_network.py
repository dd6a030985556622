"""Networks asked one after another as one network, which is then cut at the ends of its members as any other is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.errors import InvalidInputError
from eenet.models._io import logits_in


class InputMap(nn.Module):
    """What a member of a cascade is given of the cascade's inputs: some by other names, images of another size.

    Parameters
    ----------
    names : mapping, optional
        The member's arguments and which inputs of the cascade they are: `{"input_ids": "small_ids"}` for a member with
        a tokenizer of its own. For cascades whose example is a mapping. By default all inputs as they are.
    size : (int, int), optional
        Height and width that images (N, C, H, W) are brought to, bilinear and without antialiasing.
    mean, std : sequence of float, optional
        For each channel, or one for all: images are normalized to (x - mean) / std. The cascade's own inputs then are
        what both members start from, such as pixels in 0..1.
    prefix : str, optional
        In place of `names`: the member is given the inputs that start with this and "_", without it. "small" gives it
        small_input_ids as input_ids, as `eenet.preprocessing.CascadePreprocessing` makes it.

    Raises
    ------
    InvalidInputError
        If a size is not two numbers from 1, a mean or std is no finite numbers, or a std is 0.

    Examples
    --------
    >>> import torch
    >>> InputMap(size=(8, 8), mean=[0.5], std=[0.25])(torch.ones(2, 1, 32, 32)).amax()
    tensor(2.)
    """

    def __init__(
        self,
        names: Mapping[str, str] | None = None,
        *,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__()
        if prefix is not None and (names is not None or not isinstance(prefix, str) or not prefix.isidentifier()):
            raise InvalidInputError(
                f"prefix is {prefix!r} and names {names!r}; expected one of them, and a prefix such as 'small'"
            )
        if names is not None and not isinstance(names, Mapping):
            raise InvalidInputError(
                f"names is {names!r}, expected a mapping of the member's arguments to the cascade's inputs, such as "
                "{'input_ids': 'small_ids'}"
            )
        if size is not None and (
            not isinstance(size, (list, tuple)) or len(size) != 2 or not all(_is_side(side) for side in size)
        ):
            raise InvalidInputError(f"size is {size!r}, expected height and width, two whole numbers from 1")
        mean, std = _numbers("mean", mean), _numbers("std", std)
        if std is not None and not all(std):
            raise InvalidInputError(f"std is {std}, expected numbers other than 0: images are divided by it")
        self.size = None if size is None else tuple(int(side) for side in size)
        self.options: dict[str, Any] = {
            "names": None if names is None else dict(names),
            "size": None if self.size is None else list(self.size),
            "mean": mean,
            "std": std,
            "prefix": prefix,
        }
        # Not buffers: they are settings of the cascade, which its description has, and no weights.
        self.mean, self.std = mean, std

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The arguments of a member, from those of the cascade: a tensor, a tuple or a mapping."""
        names, prefix = self.options["names"], self.options["prefix"]
        if prefix is not None:
            names = {name.removeprefix(f"{prefix}_"): name for name in kwargs if name.startswith(f"{prefix}_")}
            if not names:
                raise InvalidInputError(
                    f"the cascade has no input that starts with {prefix + '_'!r}, as a member's inputs say; "
                    f"{_by_name(kwargs)}: give an example that is a mapping of all members' inputs"
                )
        if names is not None:
            missing = [name for name in names.values() if name not in kwargs]
            if missing:
                raise InvalidInputError(
                    f"the cascade has no input {missing[0]!r}, which a member's inputs name; {_by_name(kwargs)}: "
                    "give an example that is a mapping of all members' inputs"
                )
            kwargs = {own: kwargs[name] for own, name in names.items()}
        args = tuple(self._image(value) for value in args)
        kwargs = {name: self._image(value) for name, value in kwargs.items()}
        if kwargs and args:
            raise InvalidInputError("a cascade's inputs are given by position or by name, not both")
        if kwargs:
            return kwargs
        return args[0] if len(args) == 1 else args

    def _image(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
            return value
        if self.size is not None and tuple(value.shape[2:]) != self.size:
            value = F.interpolate(value, size=self.size, mode="bilinear", align_corners=False)
        for numbers, normalized in ((self.mean, torch.sub), (self.std, torch.div)):
            if numbers is not None:
                value = normalized(value, value.new_tensor(numbers).reshape(1, -1, 1, 1))
        return value


def _by_name(inputs: Mapping[str, Any]) -> str:
    return f"it has {list(inputs)}" if inputs else "its inputs have no names"


def _is_side(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1


def _numbers(name: str, given: Any) -> list[float] | None:
    """The finite numbers of a mean or a std, as its description holds them."""
    if given is None:
        return None
    try:
        numbers = [float(one) for one in given]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise InvalidInputError(f"{name} is {given!r}, expected finite numbers: one for each channel, or [one] for all")
    return numbers


class Member(nn.Module):
    """A network of a cascade: takes the cascade's inputs, gives logits."""

    def __init__(self, network: nn.Module, inputs: nn.Module | None, num_classes: int | None) -> None:
        super().__init__()
        self.network = network
        self.inputs = inputs
        self.num_classes = num_classes

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Its logits."""
        if self.inputs is not None:
            given = self.inputs(*args, **kwargs)
            if isinstance(given, Mapping):
                args, kwargs = (), dict(given)
            else:
                args, kwargs = (given if isinstance(given, tuple) else (given,)), {}
        return logits_in(self.network(*args, **kwargs), self.num_classes)


class signed:  # noqa: N801 - a decorator
    """A `forward` whose arguments have the names in the module's `arguments`."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __get__(self, network: Any, owner: type | None = None) -> Any:
        if network is None:
            return self._forward
        return _Bound(self._forward, network)


class _Bound:
    def __init__(self, forward: Any, network: Any) -> None:
        self._call, self._network = forward, network

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._network, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in self._network.arguments]
        )


class CascadeNetwork(nn.Module):
    """Asks all members about all samples; gives the logits of the last, and the others' beside them.

    Cut at the ends of its members, a sample that has an answer asks no further member. `names` are those of the
    members, where they have any: exits are called by them, modules and weights by the members' numbers.
    """

    def __init__(self, members: Sequence[Member], arguments: Sequence[str], names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.arguments = tuple(arguments)
        self.names = None if names is None else tuple(names)

    def exit_name(self, at: str) -> str:
        """What the exit at a module, or the last at "output", is called."""
        if self.names is None:
            return at
        if at == "output":
            return self.names[-1]
        number, _, inside = at.removeprefix("members.").partition(".")
        network: Any = self.members[int(number)].network
        inside = inside.removeprefix("network.")
        inside = network.exit_name(inside) if inside and isinstance(network, CascadeNetwork) else inside
        return f"{self.names[int(number)]}.{inside}" if inside else self.names[int(number)]

    @signed
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The logits of the last member as "logits"; those of member k as "member_k"."""
        *early, last = [member(*args, **kwargs) for member in self.members]
        # Returned, so that a cut sees them on the way to the output; added to the last one's they would spread NaN.
        return {"logits": last, **{f"member_{number}": logits for number, logits in enumerate(early)}}

    @property
    def last(self) -> nn.Module:
        """The last member alone, which takes the cascade's inputs."""
        return self.members[-1]

    def describe(self, sources: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """How it is made again, of the sources of its distinct networks; None where a mapping is the caller's own."""
        networks = self.networks()
        members = []
        for member in self.members:
            assert isinstance(member, Member)
            if member.inputs is not None and type(member.inputs) is not InputMap:
                return None
            options = None if member.inputs is None else member.inputs.options
            members.append(
                {"network": next(i for i, n in enumerate(networks) if n is member.network), "inputs": options}
            )
        names = {} if self.names is None else {"names": list(self.names)}
        return {"networks": list(sources), "members": members, "arguments": list(self.arguments), **names}

    def networks(self) -> list[nn.Module]:
        """The distinct networks: one at two resolutions is there once."""
        found: dict[int, nn.Module] = {}
        for member in self.members:
            assert isinstance(member, Member)
            found.setdefault(id(member.network), member.network)
        return list(found.values())

    @classmethod
    def of(cls, options: Mapping[str, Any], networks: Sequence[nn.Module]) -> CascadeNetwork:
        """The cascade of what `describe` gave; raises `InvalidInputError` where that is damaged."""
        try:
            members = [
                Member(networks[one["network"]], None if one["inputs"] is None else _input_map(one["inputs"]), None)
                for one in options["members"]
            ]
            names = options.get("names")  # members in a list have none
            if names is not None and len(names) != len(members):
                raise InvalidInputError(f"the source of a cascade has {len(names)} names for {len(members)} members")
            return cls(members, [str(name) for name in options["arguments"]], names)
        except (KeyError, TypeError, IndexError) as error:
            raise InvalidInputError(f"the source of a cascade describes no members ({error!r})") from error


def _input_map(options: Mapping[str, Any]) -> InputMap:
    size = options["size"]
    return InputMap(
        options["names"],
        size=None if size is None else tuple(size),
        mean=options["mean"],
        std=options["std"],
        prefix=options["prefix"],
    )
