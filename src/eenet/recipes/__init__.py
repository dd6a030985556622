"""Experiments as files: from data to a folder of results, in steps that can be resumed; needs the extra "train"."""

from eenet.recipes._catalogue import load_recipe as load_recipe
from eenet.recipes._catalogue import recipe_folder as recipe_folder
from eenet.recipes._catalogue import recipe_names as recipe_names
from eenet.recipes._results import readme as readme
from eenet.recipes._run import STEPS as STEPS
from eenet.recipes._run import Place as Place
from eenet.recipes._run import reproduce as reproduce
from eenet.recipes._schema import Recipe as Recipe
from eenet.recipes._schema import reference as reference
