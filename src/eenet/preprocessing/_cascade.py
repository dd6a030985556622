"""What the members of a cascade make of the same raw inputs; and a preprocessing from its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eenet._values import array_value
from eenet.errors import InvalidInputError, kind_of
from eenet.preprocessing._base import ArrayPreprocessing, Flags, Input, Inputs, Preprocessing
from eenet.preprocessing._images import ImagePreprocessing
from eenet.preprocessing._texts import TextPreprocessing


@array_value
@dataclass(frozen=True)
class CascadePreprocessing(Preprocessing):
    """What the members of a cascade make of the same raw inputs, each by a preprocessing of its own.

    Parameters
    ----------
    members : mapping of str to Preprocessing
        For each member with inputs of its own their prefix, and what makes them: the arrays of "small" are
        "small_input_ids" and so on, which `eenet.models.InputMap(prefix="small")` gives to the member. All take texts,
        or all take images. A cascade makes all inputs of a sample when it comes in, whichever members it reaches.

    Raises
    ------
    InvalidInputError
        Where a prefix is no identifier or starts another one, there are none, or they take different raw inputs.

    Examples
    --------
    >>> from eenet.preprocessing import CascadePreprocessing, TextPreprocessing
    >>> from tokenizers import Tokenizer, models
    >>> few = Tokenizer(models.WordLevel({"[PAD]": 0, "good": 1}, unk_token="[PAD]"))
    >>> more = Tokenizer(models.WordLevel({"good": 0, "bad": 1, "[PAD]": 2}, unk_token="[PAD]"))
    >>> small, big = (TextPreprocessing(one, inputs=("input_ids",)) for one in (few, more))
    >>> prepare = CascadePreprocessing({"small": small, "big": big})
    >>> {name: array.tolist() for name, array in prepare(["good", "bad"]).items()}
    {'small_input_ids': [[1], [0]], 'big_input_ids': [[0], [1]]}
    """

    members: Mapping[str, Preprocessing]
    kind: str = field(default="text", init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.members, Mapping) or not self.members:
            raise InvalidInputError(f"members is {self.members!r}, expected a preprocessing for each of some prefixes")
        for prefix, one in self.members.items():
            if not isinstance(prefix, str) or not prefix.isidentifier():
                raise InvalidInputError(f"the prefix {prefix!r} is no identifier; expected a name such as 'small'")
            if not isinstance(one, (ImagePreprocessing, TextPreprocessing)):
                raise InvalidInputError(
                    f"the preprocessing of {prefix!r} is {kind_of(one)}, expected a TextPreprocessing or an "
                    "ImagePreprocessing"
                )
            other = next((name for name in self.members if name.startswith(f"{prefix}_")), None)
            if other is not None:
                raise InvalidInputError(
                    f"the prefix {other!r} starts with {prefix!r}, whose inputs it would be; call one by another name"
                )
        kinds = sorted({one.kind for one in self.members.values()})
        if len(kinds) > 1:
            raise InvalidInputError(f"the members take {' and '.join(kinds)}; all are given the same raw inputs")
        object.__setattr__(self, "members", dict(self.members))
        object.__setattr__(self, "kind", kinds[0])

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The inputs of all members, each name after its prefix; raises as the members do."""
        return self.with_flags(items)[0]

    def with_flags(self, items: Sequence[Any]) -> tuple[Inputs, Flags]:
        """As a call, and what any member says of an item."""
        made: Inputs = {}
        flags: Flags = {}
        for prefix, member in self.members.items():
            inputs, said = member.with_flags(items)
            made |= {f"{prefix}_{name}": array for name, array in inputs.items()}
            flags |= {name: flags[name] | flag if name in flags else flag for name, flag in said.items()}
        return made, flags

    def fitted(self, inputs: Sequence[Input]) -> CascadePreprocessing:
        """Each member's for its inputs; raises `InvalidInputError` for an input of no member, or another shape."""
        own: dict[str, list[Input]] = {prefix: [] for prefix in self.members}
        for one in inputs:
            prefix = next((prefix for prefix in own if one.name.startswith(f"{prefix}_")), None)
            if prefix is None:
                raise InvalidInputError(
                    f"the network's input {one.name!r} starts with none of the prefixes {list(own)}; it takes "
                    f"{[one.name for one in inputs]}"
                )
            own[prefix].append(_Renamed(one.name.removeprefix(f"{prefix}_"), one.shape))
        without = next((prefix for prefix, given in own.items() if not given), None)
        if without is not None:
            raise InvalidInputError(
                f"no input of the network starts with the prefix {without!r}; it takes {[one.name for one in inputs]}"
            )
        made = {prefix: _fitted(prefix, member, own[prefix]) for prefix, member in self.members.items()}
        return replace(self, members=made)

    def describe(self) -> dict[str, Any]:
        """A JSON-ready description; what the members keep beside theirs is in files of their own."""
        members = {}
        for prefix, member in self.members.items():
            members[prefix] = member.describe()
            if "tokenizer" in members[prefix]:
                members[prefix]["tokenizer"] = _member_file(prefix, members[prefix]["tokenizer"])
        return {"kind": self.kind, "members": members}

    def files(self) -> dict[str, bytes]:
        """The files of the members, by names that have their prefixes."""
        return {
            _member_file(prefix, name): content
            for prefix, member in self.members.items()
            for name, content in member.files().items()
        }


@dataclass(frozen=True)
class _Renamed:
    """An input as its member calls it."""

    name: str
    shape: tuple[int | str, ...]


def _fitted(prefix: str, member: Preprocessing, inputs: Sequence[Input]) -> Preprocessing:
    try:
        return member.fitted(inputs)
    except InvalidInputError as error:
        raise InvalidInputError(f"inputs of {prefix!r}: {error}") from error


def _member_file(prefix: str, name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{prefix}/{file}"


def preprocessing_from(description: Mapping[str, Any], *, read: Callable[[str], bytes]) -> Preprocessing:
    """The preprocessing of what `describe` gave; `read` gives the files beside it.

    Raises `InvalidInputError`, KeyError or TypeError for what is no description.
    """
    options = dict(description)
    kind = options.pop("kind")
    if "members" in options:
        members = {prefix: preprocessing_from(one, read=read) for prefix, one in options["members"].items()}
        return CascadePreprocessing(members)
    if kind == "array":
        return ArrayPreprocessing(tuple(options["inputs"]))
    if kind == "image":
        return ImagePreprocessing(**options)
    if kind == "text":
        return TextPreprocessing(**{**options, "tokenizer": read(options["tokenizer"])})
    raise InvalidInputError(f"preprocessing of the kind {kind!r} is not known")
