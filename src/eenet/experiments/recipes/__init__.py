"""Experiments as files: from data to a folder of results, in steps that can be resumed; needs the extra "train"."""

from eenet.experiments.recipes._catalogue import load_recipe as load_recipe
from eenet.experiments.recipes._catalogue import recipe_folder as recipe_folder
from eenet.experiments.recipes._catalogue import recipe_names as recipe_names
from eenet.experiments.recipes._results import readme as readme
from eenet.experiments.recipes._run import STEPS as STEPS
from eenet.experiments.recipes._run import Place as Place
from eenet.experiments.recipes._run import reproduce as reproduce
from eenet.experiments.recipes._schema import Recipe as Recipe
from eenet.experiments.recipes._schema import reference as reference
from eenet.experiments.recipes._smoke import DATASETS as DATASETS
from eenet.experiments.recipes._smoke import write_smoke_files as write_smoke_files
