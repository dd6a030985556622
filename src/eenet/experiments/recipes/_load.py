"""Recipes in files: finding one by name, reading its YAML, and changing fields of it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError, kind_of
from eenet.experiments.recipes._schema import Recipe

_ENDINGS = (".yaml", ".yml")


def recipe_names() -> list[str]:
    """The names of the recipes that ship with eenet.

    Examples
    --------
    >>> from eenet.experiments.recipes import recipe_names
    >>> "digits" in recipe_names()
    True
    """
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_recipe(name: str, *, changes: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """A recipe by name, or from a YAML file of the user's own.

    Parameters
    ----------
    name
        One of `recipe_names()`, or the path of a file that ends in .yaml or .yml.
    changes
        Single fields to set, as "train.epochs=5"; the value is YAML.
    smoke
        Apply the recipe's section `smoke` before the changes, which makes everything small.

    Raises
    ------
    InvalidInputError
        Which names the field, for what is not a recipe.
    FileFormatError
        For a file that is no YAML.

    Examples
    --------
    >>> from eenet.experiments.recipes import load_recipe
    >>> recipe = load_recipe("cifar10-resnet56", changes=["train.epochs=5"])
    >>> recipe.config.epochs, recipe.data.name
    (5, 'cifar10')
    """
    path = _find(name)
    values: Mapping[str, Any] = _read(path)
    if smoke:
        overrides = values.get("smoke", {})
        if not overrides:
            raise InvalidInputError(f"recipe {path.stem!r} has no section 'smoke', which says how to make it small")
        if not isinstance(overrides, Mapping):
            raise InvalidInputError(f"smoke is {overrides!r}, expected a mapping of sections")
        values = _merged(values, overrides)
    for change in changes:
        values = _merged(values, _change(change))
    return Recipe.from_mapping(path.stem, values)


def _folder() -> Path:
    """Where the recipes are: in the installed package, or at the top of the repository in an editable install."""
    packaged = Path(__file__).parent / "files"
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "recipes"


def _find(name: str) -> Path:
    if name.endswith(_ENDINGS):
        path = Path(name)
        if not path.is_file():
            raise InvalidInputError(f"there is no recipe file {name!r}; give the path of a YAML file")
        return path
    known = recipe_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InvalidInputError(
            f"there is no recipe {name!r}; {hint}choose from {', '.join(known)}, or give a YAML file"
        )
    return _folder() / f"{name}.yaml"


def _read(path: Path) -> dict[str, Any]:
    yaml = require("yaml", "train")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{str(path)!r} holds {kind_of(content)}, expected a mapping of sections")
    return content


def _merged(values: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with what `other` says, mappings merged key by key."""
    merged = dict(values)
    for key, value in other.items():
        mine = merged.get(key)
        both = isinstance(mine, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(mine, value) if both and isinstance(mine, Mapping) else value
    return merged


def _change(text: str) -> dict[str, Any]:
    yaml = require("yaml", "train")
    path, equals, value = text.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise InvalidInputError(f"{text!r} changes nothing; expected SECTION.FIELD=VALUE such as train.epochs=5")
    try:
        change: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"the value of {text!r} is not YAML: {' '.join(str(error).split())}") from error
    for name in reversed(names):
        change = {name: change}
    changed: dict[str, Any] = change
    return changed
