"""What a recipe may say: its sections and fields.

The reference in `docs/reference/recipes.md` is written from these classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from eenet.errors import InvalidInputError, kind_of
from eenet.experiments.data._load import options_table
from eenet.training import TrainConfig

_REQUIRED: Any = ...
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_LIBRARIES = ("timm", "torchvision")


def _one_line(value: str) -> str:
    if not value.strip():
        raise ValueError
    return " ".join(value.split())


def _listed(value: Any) -> Any:
    """YAML has lists for tuples; an empty one says nothing."""
    return tuple(value) if isinstance(value, list) and value else value


def _part(value: Any) -> Any:
    return (value, None) if isinstance(value, str) else _listed(value)


def _share(value: str) -> str:
    if not value.endswith("%") or not 0 < float(value[:-1]) <= 1000:
        raise ValueError
    return value


def _rising(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) < 2 or list(value) != sorted(set(value)):
        raise ValueError
    return value


def _validation(value: Any) -> Any:
    if isinstance(value, str) and value != "calibration":
        raise ValueError
    return value


Item = TypeVar("Item")
Text = Annotated[str, AfterValidator(_one_line)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Count | Annotated[float, Field(gt=0, lt=1)]
Part = Annotated[tuple[Text, Amount | None], BeforeValidator(_part)]
Listed = Annotated[tuple[Item, ...], BeforeValidator(_listed)]

_NAME = "a name"
_COUNT = "a whole number of at least 1"
_NATURAL = "a whole number of at least 0"
_PART = "the name of a published split, or [split, amount]: a number of samples, or a share below 1"


def _says(expected: str, doc: str, default: Any = _REQUIRED) -> Any:
    """A field: what it expects in words, what it is, and its default."""
    made = {"default_factory": dict} if default == {} else {"default": default}
    return Field(**made, description=doc, json_schema_extra={"expected": expected})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class DataSettings(_Section):
    """Which data, and which part of it is for what."""

    name: Text = _says(_NAME, "the data set, as `experiments.data.load` knows it")
    options: dict[str, Any] = _says("a mapping", "options of the data set, such as `mean` and `std`", {})
    train: Part = _says(_PART, "what the network is trained on")
    calibration: Part = _says(_PART, "what schedulers are fitted on")
    test: Part = _says(_PART, "what everything is judged on, and nothing fitted")
    validation: Annotated[Amount | str, AfterValidator(_validation)] = _says(
        "a number of samples, a share below 1, or 'calibration'",
        "what checkpoints are chosen by: some of the training part; or the calibration part, where data is scarce or "
        "the weights have seen the training part",
    )
    max_length: Annotated[int, Field(ge=3)] = _says(
        "a whole number of at least 3", "texts: tokens that are kept, special ones included", 128
    )
    limit: Count | None = _says(f"{_COUNT}, or null", "at most this many samples of each published split", None)
    duplicates: bool | Literal["leave out"] = _says(
        "true, false or 'leave out'",
        "count samples that are equal and in different parts, which reads all data; 'leave out' takes such samples out "
        "of the training part (of texts, case and the spaces around words do not count)",
        True,  # noqa: FBT003
    )


class HeadSettings(_Section):
    """The early exit heads, where they are not the network's own."""

    kind: Text = _says(_NAME, "the class of the heads, one of eenet's own, such as `ConvHead`")
    options: dict[str, Any] = _says("a mapping", "its further arguments", {})


class ModelSettings(_Section):
    """The network."""

    name: Text = _says(
        _NAME, "the network, one of `eenet.models.MODELS`, or of another library: `timm:NAME` or `torchvision:NAME`"
    )
    options: dict[str, Any] = _says("a mapping", "further options of the network", {})
    weights: Text | None = _says(
        "a file, or null", "published weights to start from; `{data}` stands for the data folder", None
    )
    weights_classes: Count | Listed[Text] | Text | None = _says(
        "class names, a file of them, a number, or null",
        "the classes that these weights tell apart, where they are not the data's: the last layer starts from the rows "
        "of the data's classes, or with a number at random",
        None,
    )
    checkpoint: Text | None = _says(
        "a folder, 'package:NAME', 'hub:NAME', or null",
        "texts: the encoder and the tokenizer: a folder, an installed package's, or Hugging Face's",
        None,
    )
    exits: Listed[Text] = _says(
        "a list of module names", "where the early exits are, by default the network's own; others have none", ()
    )
    freeze: Listed[Text] = _says("a list of module names", "modules of the network that are not trained", ())
    heads: HeadSettings | None = _says(
        "a mapping with kind and options, or null",
        "other early exit heads than the network's own, or than the default ones",
        None,
    )


class TrainSettings(_Section):
    """The training run: fields of the recipe itself, and every field of `eenet.training.TrainConfig` but the seed."""

    batch_size: Count = _says(_COUNT, "samples in a batch of training")
    evaluation_batch_size: Count = _says(_COUNT, "samples in a batch where nothing is learned", 128)
    batch_norm_batches: Natural = _says(
        _NATURAL, "batches on which the statistics of batch norms are re-estimated before training", 0
    )
    workers: Natural = _says(_NATURAL, "processes that read data", 0)
    channels_last: bool = _says(
        "true or false",
        "images: keep tensors in the channels-last layout while training, which is faster on many CPUs",
        False,  # noqa: FBT003
    )
    teacher: Text | None = _says(
        "a folder, the name of a model that ships, or null",
        "a saved model of the same classes, such as `work/model` of another recipe's results, whose last exit teaches "
        "all exits with `teacher_weight`; `{out}` stands for the folder of the results, `{data}` for that of the data",
        None,
    )


class ProfileSettings(_Section):
    """The measurement of what each exit costs."""

    batch_sizes: Listed[Count] = _says("a list of whole numbers", "batch sizes", (1, 8, 32))
    seconds: Positive = _says("a number above 0", "about how long each batch size is measured", 5.0)
    scheduler: bool = _says(
        "true or false",
        "include the steps of a scheduler, those of EENet, in times",
        False,  # noqa: FBT003
    )
    full_batches: bool = _says(
        "true or false",
        "true: of batches whose samples all go to the same exit, one table for all methods; false: of batches in which "
        "samples exit on the way, as `eenet profile` measures them, and each method is fitted in the costs of its own "
        "policies",
        True,  # noqa: FBT003
    )


class EvaluationSettings(_Section):
    """The comparison of schedulers."""

    unit: Annotated[str, Field(pattern="^(ms|cpu_ms|flops)$")] = _says(
        "'ms', 'cpu_ms' or 'flops'", "what budgets are measured in", "ms"
    )
    batch_size: Count = _says(_COUNT, "the batch size whose costs count, one of those profiled", 1)
    budgets: Listed[Annotated[str, AfterValidator(_share)]] = _says(
        "a list of shares such as '60%'", "budgets, in shares of the plain network's cost", ("50%", "65%", "80%")
    )
    resplits: Natural = _says(
        _NATURAL, "random resplits, over which differences are averaged; 0 leaves the comparison out", 5
    )
    rounds: Natural = _says(
        _NATURAL,
        "run every fitted scheduler on the test part this many times, in turns with the plain network, and measure the "
        "time per sample",
        0,
    )


class PublishedSettings(_Section):
    """The setting of the paper: its costs, and budgets in their unit."""

    costs: Annotated[Listed[Positive], AfterValidator(_rising)] = _says(
        "rising numbers, one for each exit", "the paper's cost of the way to each exit"
    )
    unit: Text = _says(_NAME, "their unit", "ms")
    budgets: Listed[Positive] = _says("a list of numbers above 0", "the paper's budgets")
    grid: Natural = _says(_NATURAL, "further budgets, evenly between the first and the last exit's cost", 0)


class Recipe(_Section):
    """A checked recipe.

    Attributes
    ----------
    name
        Of the file.
    config
        The settings of the training run, those of the section `train` that are not of the data.
    settings
        The mapping it was read from, changes included and `smoke` left out.

    Examples
    --------
    >>> from eenet.experiments.recipes import load_recipe
    >>> load_recipe("digits").seed
    0
    """

    title: Text = _says("one line of text", "what the recipe reproduces")
    about: Text = _says("text", "where the setting comes from, and what differs from the paper's and why", "")
    seed: Natural = _says(_NATURAL, "of the split, the network, the training and the schedulers", 0)
    data: DataSettings = _says("a mapping", "")
    model: ModelSettings = _says("a mapping", "")
    train: TrainSettings = _says("a mapping", "")
    profile: ProfileSettings = _says("a mapping", "", ProfileSettings())
    evaluation: EvaluationSettings = _says("a mapping", "", EvaluationSettings())
    published: PublishedSettings | None = _says("a mapping", "", None)
    name: str = Field(exclude=True)
    config: TrainConfig = Field(exclude=True)
    settings: dict[str, Any] = Field(exclude=True)

    @classmethod
    def from_mapping(cls, name: str, values: Any) -> Recipe:
        """Check a mapping such as a YAML file gives.

        Raises
        ------
        InvalidInputError
            In one line: the field, its value, and what was expected.
        """
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"recipe {name!r} is {kind_of(values)}, expected a mapping of sections")
        given = {key: value for key, value in values.items() if key != "smoke"}
        known = [key for key in cls.model_fields if key not in ("name", "config", "settings")]
        _refuse_unknown(given, [*known, "smoke"], f"recipe {name!r}")
        for required in ("data", "model", "train"):
            if required not in given:
                raise InvalidInputError(f"recipe {name!r} has no section {required!r}; see docs/reference/recipes.md")
        seed = given.get("seed", 0)
        own, config = _split_train(given["train"], seed if isinstance(seed, int) and seed >= 0 else 0)
        try:
            recipe = cls.model_validate(
                {
                    "about": given.get("title"),
                    **given,
                    "train": own,
                    "name": name,
                    "config": config,
                    "settings": dict(given),
                }
            )
        except ValidationError as error:
            raise _refused(cls, error, given) from error
        _require_network(recipe.model)
        _require_teacher(recipe.train, config)
        _require_placeholders(recipe)
        size, sizes = recipe.evaluation.batch_size, list(recipe.profile.batch_sizes)
        if size not in sizes:
            raise InvalidInputError(f"evaluation.batch_size is {size}, expected one of profile.batch_sizes {sizes}")
        return recipe

    @classmethod
    def reference(cls) -> str:
        """The tables of all sections, in Markdown."""
        top = {name: field for name, field in cls.model_fields.items() if field.description}
        lines = ["| field | expects | what it is |", "|---|---|---|"]
        lines += [f"| `{name}` | {_expected(field)} | {field.description} |" for name, field in top.items()]
        lines.append("| `smoke` | a mapping | what `--smoke` changes: the same sections, with small sizes |")
        by_name = {name: _section_of(field) for name, field in cls.model_fields.items()}
        sections = {name: section for name, section in by_name.items() if section is not None}
        sections["model.heads"] = HeadSettings
        for name, kind in sections.items():
            assert kind.__doc__ is not None
            head = ["| field | expects | default | what it is |", "|---|---|---|---|"]
            lines += ["", f"### `{name}`", "", kind.__doc__, "", *head]
            for key, field in kind.model_fields.items():
                lines.append(f"| `{key}` | {_expected(field)} | {_default(field)} | {field.description} |")
            if kind is DataSettings:
                lines += ["", "Of `data.options`:", "", *options_table().splitlines()]
            if kind is TrainSettings:
                lines += ["", "Those of `TrainConfig` (None is `null` in a recipe):", "", *_config_table()]
        return "\n".join(lines) + "\n"


def _config_table() -> list[str]:
    """The fields of `TrainConfig` that a recipe may set, with what its docstring says of them."""
    section = inspect.cleandoc(TrainConfig.__doc__ or "").partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    said: list[tuple[list[str], list[str]]] = []
    for line in section.splitlines():
        if line.startswith(" "):
            said[-1][1].append(line.strip())
        else:
            said.append((line.split(", "), []))
    defaults = {item.name: _yaml(item.default) for item in dataclasses.fields(TrainConfig)}
    rows = []
    for names, text in said:
        if names != ["seed"]:
            cells = [
                ", ".join(f"`{name}`" for name in names),
                ", ".join(defaults[name] for name in names),
                " ".join(text),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return ["| field | default | what it is |", "|---|---|---|", *rows]


def _yaml(value: Any) -> str:
    """A default as a recipe says it; YAML reads a word of digits as a number where it has no quotes."""
    text = json.dumps(list(value) if isinstance(value, tuple) else value)
    return f"`{text if isinstance(value, str) and value.isdigit() else text.strip(chr(34))}`"


def placeholders(path: str) -> tuple[str, ...]:
    """The names in braces in a path of a recipe; `{{` and `}}` are braces themselves."""
    return tuple(found.group(1) for found in _BRACES.finditer(path) if found.group(1) is not None)


def filled(field: str, path: str, **known: str | Path) -> str:
    """The path that a field of a recipe gives, with what its placeholders stand for.

    Raises `InvalidInputError` for a placeholder that is not one of these, with the field and those that there are.
    """
    unknown = [name for name in placeholders(path) if name not in known]
    if unknown:
        raise InvalidInputError(
            f"{field} is {path!r}, and {{{unknown[0]}}} stands for nothing; there {'are' if len(known) > 1 else 'is'} "
            f"{' and '.join(f'{{{name}}}' for name in known)}; write {{{{{unknown[0]}}}}} for braces in a name"
        )
    return _BRACES.sub(lambda found: found.group(0)[0] if found.group(1) is None else str(known[found.group(1)]), path)


def _require_placeholders(recipe: Recipe) -> None:
    """Refuse paths with unknown placeholders before anything runs."""
    for name in ("weights", "weights_classes"):
        path = getattr(recipe.model, name)
        if isinstance(path, str):
            filled(f"model.{name}", path, data="")
    if recipe.train.teacher is not None:
        filled("train.teacher", recipe.train.teacher, out="", data="")


def _require_network(model: ModelSettings) -> None:
    """Refuse import paths, since a recipe is a file, which must not run code; networks of others need exits."""
    library, colon, _ = model.name.partition(":")
    if colon and library not in _LIBRARIES:
        raise InvalidInputError(
            f"model.name is {model.name!r}, expected one of eenet.models.MODELS, 'timm:NAME' or 'torchvision:NAME'"
        )
    if colon and not model.exits:
        raise InvalidInputError(
            f"model.exits is missing: {model.name!r} has no exits of its own; name the modules at whose ends they are, "
            "some of those that eenet.stages.split_points gives"
        )
    if colon and model.checkpoint is not None:
        raise InvalidInputError(f"model.checkpoint is for texts, and {model.name!r} reads images; leave it out")


def _require_teacher(train: TrainSettings, config: TrainConfig) -> None:
    if (train.teacher is None) != (config.teacher_weight == 0):
        raise InvalidInputError(
            f"train.teacher is {train.teacher!r} and train.teacher_weight {config.teacher_weight:g}; give a folder and "
            "a weight above 0, or neither"
        )


def _split_train(values: Any, seed: int) -> tuple[dict[str, Any], TrainConfig]:
    """The fields of the section that are of the data, and the rest as a `TrainConfig`."""
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"train is {values!r}, expected a mapping")
    if "seed" in values:
        raise InvalidInputError("train.seed is set; give the seed of all steps at the top of the recipe instead")
    theirs = [item.name for item in dataclasses.fields(TrainConfig) if item.name != "seed"]
    # The name of the field before eenet 0.2.
    _refuse_unknown(values, [*TrainSettings.model_fields, *theirs, "optimiser"], "train", within="train.")
    own = {key: value for key, value in values.items() if key in TrainSettings.model_fields}
    try:
        config = TrainConfig.from_dict({key: value for key, value in values.items() if key not in own} | {"seed": seed})
    except InvalidInputError as error:
        raise InvalidInputError(f"train.{error}") from error
    return own, config


def _refused(section: type[BaseModel], error: ValidationError, values: Any) -> InvalidInputError:
    """Our words for the first thing that pydantic refuses, an unknown field before others."""
    problems = error.errors(include_url=False, include_context=False)
    first = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    path: list[str] = []
    value, kind, field = values, section, None
    for key in first["loc"]:
        field = kind.model_fields.get(str(key))
        if field is None:
            break
        path.append(str(key))
        value = value.get(key) if isinstance(value, Mapping) else None
        inner = _section_of(field)
        if inner is None:
            break
        kind = inner
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        return _unknown(str(first["loc"][-1]), list(kind.model_fields), where, f"{where}.")
    assert field is not None
    if first["type"] == "missing" and len(first["loc"]) == len(path):
        return InvalidInputError(f"{where} is missing; expected {_expected(field)}")
    return InvalidInputError(f"{where} is {value!r}, expected {_expected(field)}")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section."""
    among = get_args(field.annotation) or (field.annotation,)
    return next((kind for kind in among if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _expected(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["expected"]) if isinstance(extra, dict) else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _refuse_unknown(given: Mapping[Any, Any], known: Sequence[str], where: str, *, within: str = "") -> None:
    for key in given:
        if key not in known:
            raise _unknown(str(key), known, where, within)


def _unknown(key: str, known: Sequence[str], where: str, within: str) -> InvalidInputError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {within}{near[0]}?" if near else f"there are {', '.join(known)}"
    return InvalidInputError(f"{where} has no {key!r}; {hint}")
