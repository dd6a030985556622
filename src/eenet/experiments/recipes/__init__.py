"""Experiments as files: from data to a folder of results, in steps that can be resumed; needs the extra "train"."""

from eenet._extras import require

require("pydantic", "train", "reading recipes")

# ruff: noqa: E402
from eenet.experiments.recipes._load import load_recipe, recipe_names
from eenet.experiments.recipes._results import readme as readme
from eenet.experiments.recipes._run import STEPS as STEPS
from eenet.experiments.recipes._run import RunOptions, reproduce
from eenet.experiments.recipes._schema import Recipe
from eenet.experiments.recipes._smoke import write_smoke_files as write_smoke_files

__all__ = ["Recipe", "RunOptions", "load_recipe", "recipe_names", "reproduce"]
