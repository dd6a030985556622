"""What a recipe may say: its sections and fields, each with its check, its default and one line of explanation.

The reference in `docs/recipes.md` is written from these classes, and a recipe is read into them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from eenet.errors import InvalidInputError
from eenet.training import TrainConfig

Check = Callable[[Any], Any]
Section = TypeVar("Section")


class _NotAllowed(ValueError):
    """A value that a check refuses; `expected` says what it takes."""


def _setting(expected: str, check: Check, doc: str, default: Any = dataclasses.MISSING) -> Any:
    metadata = {"expected": expected, "check": check, "doc": doc}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _NotAllowed
    return " ".join(value.split())


def _whole(least: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise _NotAllowed
        return value

    return check


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise _NotAllowed
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _NotAllowed
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _NotAllowed
    return dict(value)


def _many(check: Check) -> Check:
    def every(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not value:
            raise _NotAllowed
        return tuple(check(item) for item in value)

    return every


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _amount(value: Any) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise _NotAllowed


def _part(value: Any) -> tuple[str, int | float | None]:
    if isinstance(value, str):
        return _text(value), None
    if isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str):
        return value[0], None if value[1] is None else _amount(value[1])
    raise _NotAllowed


def _held_out(value: Any) -> int | float | str:
    return value if value == "calibration" else _amount(value)


def _budget(value: Any) -> str:
    if isinstance(value, str) and value.endswith("%"):
        try:
            share = float(value[:-1])
        except ValueError as error:
            raise _NotAllowed from error
        if 0 < share <= 100:
            return value
    raise _NotAllowed


def _unit(value: Any) -> str:
    if value not in ("ms", "cpu_ms", "flops"):
        raise _NotAllowed
    return str(value)


def _rising(value: Any) -> tuple[float, ...]:
    costs: tuple[float, ...] = _many(_positive)(value)
    if len(costs) < 2 or list(costs) != sorted(set(costs)):
        raise _NotAllowed
    return costs


_NAME = "a name"
_COUNT = "a whole number of at least 1"
_PART = "the name of a published split, or [split, amount]: a number of samples, or a share below 1"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data, and who gets what of it."""

    name: str = _setting(_NAME, _text, "the data set, as `eenet.data.load` knows it")
    options: dict[str, Any] = _setting("a mapping", _mapping, "options of the data set, such as `mean` and `std`", {})
    train: tuple[str, int | float | None] = _setting(_PART, _part, "what the network is trained on")
    calibration: tuple[str, int | float | None] = _setting(_PART, _part, "what schedulers are fitted on")
    test: tuple[str, int | float | None] = _setting(_PART, _part, "what everything is judged on, and nothing fitted")
    validation: int | float | str = _setting(
        "a number of samples, a share below 1, or 'calibration'",
        _held_out,
        "what checkpoints are chosen by: taken out of the training part, or the calibration part where data is scarce",
    )
    max_length: int = _setting(_COUNT, _whole(3), "texts: tokens that are kept, special ones included", 128)
    limit: int | None = _setting("a whole number of at least 1, or null", _or_none(_whole(1)), "at most so many samples of each published split", None)  # noqa: E501
    duplicates: bool = _setting("true or false", _flag, "count samples of equal bytes across the parts, which reads all data", True)  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The early exit heads, where they are not the network's own."""

    kind: str = _setting(_NAME, _text, "the class of the heads, one of eenet's own, such as `MSDNetHead`")
    options: dict[str, Any] = _setting("a mapping", _mapping, "its further arguments", {})


def _heads(value: Any) -> HeadSettings:
    return _read(HeadSettings, value, "model.heads")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network."""

    name: str = _setting(_NAME, _text, "the network, one of `eenet.models.MODELS`")
    options: dict[str, Any] = _setting("a mapping", _mapping, "further options of the network", {})
    weights: str | None = _setting(
        "a file, or null",
        _or_none(_text),
        "published weights to start from; `{data}` stands for the data folder",
        None,
    )
    checkpoint: str | None = _setting(
        "a folder, 'package:NAME', 'hub:NAME', or null",
        _or_none(_text),
        "texts: the encoder and the tokenizer: a folder, one that an installed package ships, or one of Hugging Face",
        None,
    )
    freeze: tuple[str, ...] = _setting(
        "a list of module names", _many(_text), "modules of the network that are not trained", ()
    )
    heads: HeadSettings | None = _setting(
        "a mapping with kind and options, or null", _or_none(_heads), "other early exit heads than the network's own", None
    )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training run; besides these, every field of `eenet.training.TrainConfig`."""

    batch_size: int = _setting(_COUNT, _whole(1), "samples in a batch of training")
    evaluation_batch_size: int = _setting(_COUNT, _whole(1), "samples in a batch where nothing is learned", 128)
    batch_norm_batches: int = _setting(
        "a whole number of at least 0",
        _whole(0),
        "batches on which the statistics of batch norms are re-estimated before training",
        0,
    )
    workers: int = _setting("a whole number of at least 0", _whole(0), "processes that read data", 0)


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """The measurement of what each exit costs."""

    batch_sizes: tuple[int, ...] = _setting("a list of whole numbers", _many(_whole(1)), "batch sizes", (1, 8, 32))
    seconds: float = _setting("a number above 0", _positive, "about how long each batch size is measured", 5.0)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The comparison of schedulers."""

    unit: str = _setting("'ms', 'cpu_ms' or 'flops'", _unit, "what budgets are measured in", "ms")
    batch_size: int = _setting(_COUNT, _whole(1), "the batch size whose costs count, one of those profiled", 1)
    budgets: tuple[str, ...] = _setting(
        "a list of shares such as '60%'", _many(_budget), "budgets, in shares of the last exit's cost", ("50%", "65%", "80%")
    )
    resplits: int = _setting(_COUNT, _whole(1), "random resplits, over which differences are averaged", 5)


@dataclass(frozen=True, kw_only=True)
class PublishedSettings:
    """The setting of the paper: its costs, and budgets in their unit."""

    costs: tuple[float, ...] = _setting("rising numbers, one for each exit", _rising, "the paper's cost of the way to each exit")
    unit: str = _setting(_NAME, _text, "their unit", "ms")
    budgets: tuple[float, ...] = _setting("a list of numbers above 0", _many(_positive), "the paper's budgets")
    grid: int = _setting(
        "a whole number of at least 0", _whole(0), "further budgets, evenly between the first and the last exit's cost", 0
    )


_SECTIONS: dict[str, type[Any]] = {
    "data": DataSettings,
    "model": ModelSettings,
    "train": TrainSettings,
    "profile": ProfileSettings,
    "evaluation": EvaluationSettings,
    "published": PublishedSettings,
}
_TOP = {
    "title": ("one line of text", "what the recipe reproduces"),
    "about": ("text", "where the setting comes from, and what differs from the paper's and why"),
    "seed": ("a whole number of at least 0", "of the split, the network, the training and the schedulers; 0"),
    "smoke": ("a mapping", "what `--smoke` changes: the same sections, with small sizes"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe. `settings` is the mapping it was read from, overrides included and `smoke` left out."""

    name: str
    title: str
    about: str
    seed: int
    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    config: TrainConfig
    profile: ProfileSettings
    evaluation: EvaluationSettings
    published: PublishedSettings | None
    settings: Mapping[str, Any]

    @classmethod
    def from_mapping(cls, name: str, values: Any) -> Recipe:
        """Check a mapping such as a YAML file gives; raises `InvalidInputError`, which names the field."""
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"recipe {name!r} is a {type(values).__name__}, expected a mapping of sections")
        _refuse_unknown(values, [*_TOP, *_SECTIONS], f"recipe {name!r}")
        title = _checked("title", values.get("title"), _text, _TOP["title"][0])
        about = _checked("about", values.get("about", title), _text, _TOP["about"][0])
        seed = _checked("seed", values.get("seed", 0), _whole(0), _TOP["seed"][0])
        for required in ("data", "model", "train"):
            if required not in values:
                raise InvalidInputError(f"recipe {name!r} has no section {required!r}; see docs/recipes.md")
        train, config = _read_train(values["train"], seed)
        evaluation = _read(EvaluationSettings, values.get("evaluation", {}), "evaluation")
        profile = _read(ProfileSettings, values.get("profile", {}), "profile")
        if evaluation.batch_size not in profile.batch_sizes:
            raise InvalidInputError(
                f"evaluation.batch_size is {evaluation.batch_size}, expected one of profile.batch_sizes "
                f"{list(profile.batch_sizes)}"
            )
        published = values.get("published")
        kept = {key: value for key, value in values.items() if key != "smoke"}
        return cls(
            name=name,
            title=title,
            about=about,
            seed=seed,
            data=_read(DataSettings, values["data"], "data"),
            model=_read(ModelSettings, values["model"], "model"),
            train=train,
            config=config,
            profile=profile,
            evaluation=evaluation,
            published=None if published is None else _read(PublishedSettings, published, "published"),
            settings=kept,
        )


def _read_train(values: Any, seed: int) -> tuple[TrainSettings, TrainConfig]:
    own = {item.name for item in dataclasses.fields(TrainSettings)}
    theirs = {item.name for item in dataclasses.fields(TrainConfig)} - {"seed"}
    given = _checked("train", values, _mapping, "a mapping")
    if "seed" in given:
        raise InvalidInputError("train.seed is set; give the seed of all steps at the top of the recipe instead")
    _refuse_unknown(given, [*own, *theirs], "train", within="train.")
    settings = _read(TrainSettings, {key: value for key, value in given.items() if key in own}, "train")
    try:
        config = TrainConfig.from_dict({key: value for key, value in given.items() if key in theirs} | {"seed": seed})
    except InvalidInputError as error:
        raise InvalidInputError(f"train.{error}") from error
    return settings, config


def _read(section: type[Section], values: Any, where: str) -> Section:
    given = _checked(where, values, _mapping, "a mapping")
    fields = dataclasses.fields(section)  # type: ignore[arg-type]
    _refuse_unknown(given, [item.name for item in fields], where, within=f"{where}.")
    found: dict[str, Any] = {}
    for item in fields:
        if item.name in given:
            found[item.name] = _checked(
                f"{where}.{item.name}", given[item.name], item.metadata["check"], item.metadata["expected"]
            )
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise InvalidInputError(f"{where}.{item.name} is missing; expected {item.metadata['expected']}")
    return section(**found)


def _checked(where: str, value: Any, check: Check, expected: str) -> Any:
    try:
        return check(value)
    except _NotAllowed as error:
        raise InvalidInputError(f"{where} is {value!r}, expected {expected}") from error


def _refuse_unknown(given: Mapping[Any, Any], known: Sequence[str], where: str, *, within: str = "") -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {within}{near[0]}?" if near else f"there are {', '.join(known)}"
            raise InvalidInputError(f"{where} has no {key!r}; {hint}")


def reference() -> str:
    """The tables of all sections, in Markdown."""
    lines = ["| field | expects | what it is |", "|---|---|---|"]
    lines += [f"| `{name}` | {expected} | {doc} |" for name, (expected, doc) in _TOP.items()]
    for name, section in (*_SECTIONS.items(), ("model.heads", HeadSettings)):
        assert section.__doc__ is not None
        lines += ["", f"### `{name}`", "", section.__doc__, "", "| field | expects | default | what it is |", "|---|---|---|---|"]
        for item in dataclasses.fields(section):
            lines.append(
                f"| `{item.name}` | {item.metadata['expected']} | {_default(item)} | {item.metadata['doc']} |"
            )
    return "\n".join(lines) + "\n"


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default_factory is not dataclasses.MISSING:
        return "`{}`"
    if item.default is dataclasses.MISSING:
        return "required"
    if item.default is None:
        return "`null`"
    if isinstance(item.default, bool):
        return f"`{str(item.default).lower()}`"
    return f"`{list(item.default) if isinstance(item.default, tuple) else item.default}`"
