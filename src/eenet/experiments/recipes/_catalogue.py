"""The recipes that ship with eenet, recipes of the user's own, and changes to single fields of one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eenet._extras import require
from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.recipes._schema import Recipe

_ENDINGS = (".yaml", ".yml")


def recipe_folder() -> Path:
    """Where the recipes are: in the installed package, or at the top of the repository in an editable install."""
    packaged = Path(__file__).parent / "files"
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "recipes"


def recipe_names() -> list[str]:
    """The names of the recipes that ship with eenet."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def load_recipe(name: str, *, changes: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """A recipe by name, or from a YAML file of the user's own.

    `changes` set single fields, as "train.epochs=5" (the value is YAML); with `smoke` those of the recipe's `smoke`
    section apply before. Raises `InvalidInputError`, which names the field, for what is not a recipe.
    """
    path = _find(name)
    values = _read(path)
    overrides = values.get("smoke", {}) if isinstance(values, Mapping) else {}
    if smoke:
        if not overrides:
            raise InvalidInputError(f"recipe {path.stem!r} has no section 'smoke', which says how to make it small")
        if not isinstance(overrides, Mapping):
            raise InvalidInputError(f"smoke is {overrides!r}, expected a mapping of sections")
        values = _merged(values, overrides)
    for change in changes:
        values = _merged(values, _change(change))
    return Recipe.from_mapping(path.stem, values)


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
    return recipe_folder() / f"{name}.yaml"


def _read(path: Path) -> dict[str, Any]:
    yaml = require("yaml", "train")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{str(path)!r} holds a {type(found).__name__}, expected a mapping of sections")
    return found


def _merged(values: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with what `other` says, mappings merged key by key."""
    found = dict(values)
    for key, value in other.items():
        mine = found.get(key)
        both = isinstance(mine, Mapping) and isinstance(value, Mapping)
        found[key] = _merged(mine, value) if both and isinstance(mine, Mapping) else value
    return found


def _change(text: str) -> dict[str, Any]:
    yaml = require("yaml", "train")
    path, equals, value = text.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise InvalidInputError(f"{text!r} changes nothing; expected SECTION.FIELD=VALUE such as train.epochs=5")
    try:
        found: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"the value of {text!r} is not YAML: {' '.join(str(error).split())}") from error
    for name in reversed(names):
        found = {name: found}
    changed: dict[str, Any] = found
    return changed
