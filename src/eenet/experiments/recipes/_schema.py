"""What a recipe may say: its sections and fields, each with its check, its default and one line of explanation.

The reference in `docs/recipes.md` is written from these classes, and a recipe is read into them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from eenet.errors import InvalidInputError
from eenet.experiments.recipes import _checks as checks
from eenet.training import TrainConfig

Section = TypeVar("Section")


def _says(expected: str, check: checks.Check, doc: str) -> dict[str, Any]:
    """What is known of a field: what it expects in words, what checks and normalises it, what it is."""
    return {"expected": expected, "check": check, "doc": doc}


_NAME = "a name"
_COUNT = "a whole number of at least 1"
_PART = "the name of a published split, or [split, amount]: a number of samples, or a share below 1"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data, and who gets what of it."""

    name: str = field(metadata=_says(_NAME, checks.text, "the data set, as `experiments.data.load` knows it"))
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata=_says("a mapping", checks.mapping, "options of the data set, such as `mean` and `std`"),
    )
    train: tuple[str, int | float | None] = field(metadata=_says(_PART, checks.part, "what the network is trained on"))
    calibration: tuple[str, int | float | None] = field(
        metadata=_says(_PART, checks.part, "what schedulers are fitted on")
    )
    test: tuple[str, int | float | None] = field(
        metadata=_says(_PART, checks.part, "what everything is judged on, and nothing fitted")
    )
    validation: int | float | str = field(
        metadata=_says(
            "a number of samples, a share below 1, or 'calibration'",
            checks.held_out,
            "what checkpoints are chosen by: some of the training part, or where data is scarce the calibration part",
        )
    )
    max_length: int = field(
        default=128, metadata=_says(_COUNT, checks.whole(3), "texts: tokens that are kept, special ones included")
    )
    limit: int | None = field(
        default=None,
        metadata=_says(
            "a whole number of at least 1, or null",
            checks.or_none(checks.whole(1)),
            "at most so many samples of each published split",
        ),
    )
    duplicates: bool = field(
        default=True,
        metadata=_says(
            "true or false", checks.flag, "count samples of equal bytes across the parts, which reads all data"
        ),
    )


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The early exit heads, where they are not the network's own."""

    kind: str = field(
        metadata=_says(_NAME, checks.text, "the class of the heads, one of eenet's own, such as `MSDNetHead`")
    )
    options: dict[str, Any] = field(
        default_factory=dict, metadata=_says("a mapping", checks.mapping, "its further arguments")
    )


def _heads(value: Any) -> HeadSettings:
    return _read(HeadSettings, value, "model.heads")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network."""

    name: str = field(metadata=_says(_NAME, checks.text, "the network, one of `eenet.models.MODELS`"))
    options: dict[str, Any] = field(
        default_factory=dict, metadata=_says("a mapping", checks.mapping, "further options of the network")
    )
    weights: str | None = field(
        default=None,
        metadata=_says(
            "a file, or null",
            checks.or_none(checks.text),
            "published weights to start from; `{data}` stands for the data folder",
        ),
    )
    checkpoint: str | None = field(
        default=None,
        metadata=_says(
            "a folder, 'package:NAME', 'hub:NAME', or null",
            checks.or_none(checks.text),
            "texts: the encoder and the tokenizer: a folder, an installed package's, or Hugging Face's",
        ),
    )
    freeze: tuple[str, ...] = field(
        default=(),
        metadata=_says(
            "a list of module names", checks.many(checks.text), "modules of the network that are not trained"
        ),
    )
    heads: HeadSettings | None = field(
        default=None,
        metadata=_says(
            "a mapping with kind and options, or null",
            checks.or_none(_heads),
            "other early exit heads than the network's own",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The training run; besides these, every field of `eenet.training.TrainConfig`."""

    batch_size: int = field(metadata=_says(_COUNT, checks.whole(1), "samples in a batch of training"))
    evaluation_batch_size: int = field(
        default=128, metadata=_says(_COUNT, checks.whole(1), "samples in a batch where nothing is learned")
    )
    batch_norm_batches: int = field(
        default=0,
        metadata=_says(
            "a whole number of at least 0",
            checks.whole(0),
            "batches on which the statistics of batch norms are re-estimated before training",
        ),
    )
    workers: int = field(
        default=0, metadata=_says("a whole number of at least 0", checks.whole(0), "processes that read data")
    )


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """The measurement of what each exit costs."""

    batch_sizes: tuple[int, ...] = field(
        default=(1, 8, 32), metadata=_says("a list of whole numbers", checks.many(checks.whole(1)), "batch sizes")
    )
    seconds: float = field(
        default=5.0, metadata=_says("a number above 0", checks.positive, "about how long each batch size is measured")
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The comparison of schedulers."""

    unit: str = field(
        default="ms", metadata=_says("'ms', 'cpu_ms' or 'flops'", checks.unit, "what budgets are measured in")
    )
    batch_size: int = field(
        default=1, metadata=_says(_COUNT, checks.whole(1), "the batch size whose costs count, one of those profiled")
    )
    budgets: tuple[str, ...] = field(
        default=("50%", "65%", "80%"),
        metadata=_says(
            "a list of shares such as '60%'", checks.many(checks.budget), "budgets, in shares of the last exit's cost"
        ),
    )
    resplits: int = field(
        default=5, metadata=_says(_COUNT, checks.whole(1), "random resplits, over which differences are averaged")
    )


@dataclass(frozen=True, kw_only=True)
class PublishedSettings:
    """The setting of the paper: its costs, and budgets in their unit."""

    costs: tuple[float, ...] = field(
        metadata=_says("rising numbers, one for each exit", checks.rising, "the paper's cost of the way to each exit")
    )
    unit: str = field(default="ms", metadata=_says(_NAME, checks.text, "their unit"))
    budgets: tuple[float, ...] = field(
        metadata=_says("a list of numbers above 0", checks.many(checks.positive), "the paper's budgets")
    )
    grid: int = field(
        default=0,
        metadata=_says(
            "a whole number of at least 0",
            checks.whole(0),
            "further budgets, evenly between the first and the last exit's cost",
        ),
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
        title = _checked("title", values.get("title"), checks.text, _TOP["title"][0])
        about = _checked("about", values.get("about", title), checks.text, _TOP["about"][0])
        seed = _checked("seed", values.get("seed", 0), checks.whole(0), _TOP["seed"][0])
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
    given = _checked("train", values, checks.mapping, "a mapping")
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
    given = _checked(where, values, checks.mapping, "a mapping")
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


def _checked(where: str, value: Any, check: checks.Check, expected: str) -> Any:
    try:
        return check(value)
    except checks.RefusedError as error:
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
    sections: dict[str, type[Any]] = {**_SECTIONS, "model.heads": HeadSettings}
    for name, section in sections.items():
        assert section.__doc__ is not None
        lines += [
            "",
            f"### `{name}`",
            "",
            section.__doc__,
            "",
            "| field | expects | default | what it is |",
            "|---|---|---|---|",
        ]
        for item in dataclasses.fields(section):
            lines.append(f"| `{item.name}` | {item.metadata['expected']} | {_default(item)} | {item.metadata['doc']} |")
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
