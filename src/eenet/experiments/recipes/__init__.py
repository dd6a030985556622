"""Experiments as files: from data to a folder of results, in steps that can be resumed; needs the extra "train"."""

from eenet._extras import require

require("pydantic", "train", "reading recipes")

from eenet.experiments.recipes._results import readme  # noqa: E402
from eenet.experiments.recipes._run import STEPS, RunOptions, reproduce  # noqa: E402
from eenet.experiments.recipes._schema import Recipe, load_recipe, recipe_names  # noqa: E402
from eenet.experiments.recipes._smoke import write_smoke_files  # noqa: E402

__all__ = ["STEPS", "Recipe", "RunOptions", "load_recipe", "readme", "recipe_names", "reproduce", "write_smoke_files"]
