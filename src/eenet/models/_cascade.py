"""`cascade`: several networks as one multi-exit model, in which a member's own answer is the answer of an exit."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from eenet._cascades import require_several
from eenet._compat import flop_counter
from eenet._warn import warn
from eenet.errors import InvalidInputError, ReliabilityWarning, kind_of
from eenet.models._cascade_network import CascadeNetwork, InputMap, Member
from eenet.models._heads import AnswerHead
from eenet.models._io import inferring
from eenet.models._multi_exit import MultiExitModel, attach
from eenet.models._networks import Source, build_network
from eenet.stages import Dynamic, Example, arguments_of, without_batch


def cascade(
    members: Sequence[nn.Module | str] | Mapping[str, nn.Module | str],
    example: Example,
    num_classes: int | None = None,
    *,
    inputs: Sequence[nn.Module | Mapping[str, Any] | None]
    | Mapping[str, nn.Module | Mapping[str, Any] | None]
    | None = None,
    dynamic: Dynamic | None = None,
) -> MultiExitModel:
    """Several networks, asked one after another, as one model with exits; their weights are shared, not copied.

    A member's own answer is the answer of an exit, so that nothing has to be trained. The exits of a multi-exit member
    count one by one. What is returned is like any multi-exit model: collect, profile, fit, run, train, export and serve
    it. A budget such as "60%" is of the last member alone.

    Parameters
    ----------
    members
        At least two, the cheapest first: modules, multi-exit models, or names that `build_network` takes, whose weights
        are random. The same module or multi-exit model may come twice, with other inputs. A mapping gives them names:
        `{"small": small, "big": big}`.
    example
        The cascade's inputs, as for `attach`: a tensor, a tuple of arguments or a mapping of keyword arguments. Each
        member is called with them, but for `inputs`.
    num_classes
        C, the classes; read off the last member's output where it is not given.
    inputs
        For each member None, or what makes its inputs of the cascade's: an `eenet.models.InputMap` or the options of
        one (another size, normalization, or tensors by name), or a module of your own that is called as the cascade is
        and gives a tensor, a tuple of arguments or a mapping. Of members with names also a mapping by these, of those
        that need something made.
    dynamic
        Further dimensions of the inputs whose size may change, by name; by default those of the multi-exit members.

    Returns
    -------
    MultiExitModel
        Its exits have the members' names, such as "small" and "big", and "small.layer1" inside a multi-exit member.
        Without names they are "members.0" and so on, those of multi-exit members by their modules, and "output".

    Raises
    ------
    InvalidInputError
        If members have other classes, outputs, dtypes, devices or tasks, or fail on the example; it names the member.
        For names that are no identifiers, and names in `inputs` that no member has.
    CutError
        Where a member cannot be traced, or mixes samples.

    Warns
    -----
    ReliabilityWarning
        If a member computes more than the one that is asked after it.

    Examples
    --------
    >>> import torch, eenet
    >>> from torch import nn
    >>> small = nn.Linear(8, 3)
    >>> big = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    >>> model = eenet.cascade([small, big], example=torch.randn(2, 8))
    >>> x = torch.randn(5, 8)
    >>> model.exit_names, torch.equal(model(x)[0], small(x)), torch.equal(model(x)[1], big(x))
    (('members.0', 'output'), True, True)
    >>> eenet.cascade({"small": small, "big": big}, example=torch.randn(2, 8)).exit_names
    ('small', 'big')
    """
    several, names = require_several(members)
    given = [_built(member, num_classes) for member in several]
    for number, member in enumerate(given):
        if not isinstance(member, nn.Module):
            raise InvalidInputError(
                f"member {number} is {kind_of(member)}, expected a torch.nn.Module, a MultiExitModel or a name "
                "such as 'timm:resnet18'; for callables there is eenet.CallCascade"
            )
        if isinstance(member, MultiExitModel) and not member.staged.traced:
            raise InvalidInputError(
                f"member {number} has stages written by hand, which cannot be joined to others; write the stages of "
                "the cascade by hand as well: StagedModel.from_stages"
            )
    maps = _maps(inputs, len(given), names)
    networks = _apart([member.backbone if isinstance(member, MultiExitModel) else member for member in given], given)
    parts = [Member(network, one, num_classes) for network, one in zip(networks, maps, strict=True)]
    args, kwargs = arguments_of(example)
    _require_alike_weights(networks)
    logits = _tried(parts, networks, args, kwargs)
    _require_alike(given, logits)
    exits: list[str] = []
    heads: list[nn.Module] = []
    for number, member in enumerate(given):
        if isinstance(member, MultiExitModel):
            exits += [f"members.{number}.network.{name}" for name in member.staged.at]
            heads += list(member.heads)
        if number < len(given) - 1:
            exits.append(f"members.{number}")
            heads.append(AnswerHead())
    network = CascadeNetwork(parts, _arguments(networks, maps, args, kwargs), names)
    for module in (network, network.members, *parts):
        module.training = any(one.training for one in networks)
    if dynamic is None:
        known = [member.staged.dynamic for member in given if isinstance(member, MultiExitModel)]
        if any(isinstance(key, str) for one in known for key in one):
            raise InvalidInputError(
                "a member was cut with `dynamic` for each of its inputs by name; give that of the cascade's inputs, "
                "as dynamic={'signal': {2: 'time'}, 'mask': {1: 'time'}}"
            )
        dynamic = {dim: name for one in known for dim, name in one.items()}
    tasks = [member.task for member in given if isinstance(member, MultiExitModel)]
    return attach(
        network,
        exits,
        logits[-1].shape[1],
        example,
        heads=heads,
        dynamic=dynamic,
        task=tasks[0] if tasks else None,
    )


def _apart(networks: list[nn.Module], given: Sequence[nn.Module]) -> list[nn.Module]:
    """The networks; one with exits that comes again is another module with the same weights.

    Exits are at the ends of its modules, and a module that is called twice ends at no single place.
    """
    with_exits = [network for network, one in zip(networks, given, strict=True) if isinstance(one, MultiExitModel)]
    made: list[nn.Module] = []
    for network in networks:
        again = any(network is one for one in made) and any(network is one for one in with_exits)
        tensors = (*network.parameters(), *network.buffers()) if again else ()
        made.append(copy.deepcopy(network, {id(tensor): tensor for tensor in tensors}) if again else network)
    return made


def _built(member: Any, num_classes: int | None) -> Any:
    if not isinstance(member, str):
        return member
    takes = ":" not in member or Source.parse(member).registry in ("torchvision", "timm", "eenet")
    options = {"num_classes": num_classes} if takes and num_classes is not None else {}
    return build_network(member, **options)


def _maps(inputs: Any, count: int, names: Sequence[str] | None) -> list[nn.Module | None]:
    if inputs is None:
        return [None] * count
    if isinstance(inputs, Mapping):
        if names is None:
            raise InvalidInputError(
                f"inputs is a mapping, and the members are a list, which has no names; expected a list with one for "
                f"each of {count} members, or a mapping of members by the same names"
            )
        unknown = [name for name in inputs if name not in names]
        if unknown:
            raise InvalidInputError(f"inputs has the name {unknown[0]!r}, which no member has; expected {list(names)}")
        inputs = [inputs.get(name) for name in names]
    if not isinstance(inputs, (list, tuple)) or len(inputs) != count:
        what = f"a list of {len(inputs)}" if isinstance(inputs, (list, tuple)) else kind_of(inputs)
        raise InvalidInputError(f"inputs is {what}, expected a list with one for each of {count} members, or None")
    made: list[nn.Module | None] = []
    for number, one in enumerate(inputs):
        which = f"inputs[{number if names is None else names[number]!r}]"
        if isinstance(one, Mapping):
            options = list(inspect.signature(InputMap).parameters)
            unknown = [name for name in one if name not in options]
            if unknown:
                raise InvalidInputError(f"{which} has the option {unknown[0]!r}; an InputMap has {options}")
            one = InputMap(**one)
        if one is not None and not isinstance(one, nn.Module):
            raise InvalidInputError(f"{which} is {kind_of(one)}, expected an InputMap, its options, a module or None")
        made.append(one)
    return made


def _tried(
    parts: Sequence[Member], networks: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor]:
    """The logits of each member for the example; warns where one computes more than the next."""
    logits, flops = [], []
    for number, (part, network) in enumerate(zip(parts, networks, strict=True)):
        called = f"member {number}, {kind_of(network)},"
        try:
            with inferring(part), flop_counter() as counter:
                logits.append(part(*args, **kwargs))
        except InvalidInputError as error:
            raise InvalidInputError(f"{called} cannot be a member: {error}") from error
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            missing = without_batch(part, args, kwargs)
            if missing is not None:
                raise InvalidInputError(f"{called} fails on the example ({reason}): {missing}") from error
            raise InvalidInputError(
                f"{called} fails on the example ({reason}); all members are called with it: give inputs=[...] with an "
                "InputMap where one takes other names, another size or another normalization, and an example of the "
                "members' dtype and device"
            ) from error
        flops.append(counter.get_total_flops())
    for number, (here, after) in enumerate(pairwise(flops)):
        if here > after:
            warn(
                f"member {number} computes {here:.3g} FLOPs on the example, more than member {number + 1} with "
                f"{after:.3g}, which is asked after it; ask the cheaper one first, or leave out the one that is no "
                "more accurate",
                ReliabilityWarning,
            )
    return logits


def _require_equal(what: str, values: Sequence[Any], hint: str) -> None:
    """Raise where a member's value is not the last member's; `what` says what a member does with it."""
    last = len(values) - 1
    for number, value in enumerate(values):
        if value != values[last]:
            raise InvalidInputError(
                f"member {number} {what.format(value)}, member {last} {what.format(values[last])}; {hint}"
            )


def _require_alike_weights(networks: Sequence[nn.Module]) -> None:
    """Raise where the weights of members are not of one dtype, on one device; the message names the member."""
    weights = [_first(network) for network in networks]
    _require_equal("has weights of {}", [one.dtype for one in weights], "convert one, such as with member.float()")
    _require_equal("has weights on {}", [one.device for one in weights], "move one, such as with member.to('cpu')")


def _require_alike(given: Sequence[nn.Module], logits: Sequence[Tensor]) -> None:
    """Raise where answers of members are not alike; the message names the member."""
    counts, classes = ([one.shape[axis] for one in logits] for axis in (0, 1))
    _require_equal("answers {} samples of the example", counts, "a member gives one answer for each sample")
    _require_equal("has {} classes", classes, "give every member an output for each class of the task")
    shapes = [tuple(one.shape) for one in logits]
    _require_equal("has answers of shape {}", shapes, "bring them to one size in a module around one")
    _require_equal("has logits of {}", [one.dtype for one in logits], "convert one, such as with member.float()")
    tasks = [(number, one.task) for number, one in enumerate(given) if isinstance(one, MultiExitModel)]
    for number, task in tasks[1:]:
        if task != tasks[0][1]:
            raise InvalidInputError(
                f"member {number} has the task {task}, member {tasks[0][0]} has {tasks[0][1]}; give all the same"
            )


def _first(network: nn.Module) -> Tensor:
    return next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))


def _arguments(
    networks: Sequence[nn.Module], maps: Sequence[nn.Module | None], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """The names of the cascade's arguments: by position as a member calls them that is given all of them."""
    for network, one in zip(networks, maps, strict=True):
        if not args or one is not None:
            continue
        found = [
            name
            for name, parameter in inspect.signature(network.forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if len(found) >= len(args):
            return [*found[: len(args)], *kwargs]
    return [*(["input"] if len(args) == 1 else [f"input_{number}" for number in range(len(args))]), *kwargs]
