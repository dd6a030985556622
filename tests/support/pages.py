"""The pages of the documentation, and the folder that their examples start from."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import eenet

DOCS = Path(__file__).resolve().parents[2] / "docs"


def demo_folder() -> None:
    """What `eenet demo` leaves behind, with a network that is hardly trained, a scheduler and a folder of digits."""
    shutil.copytree(_made(), ".", dirs_exist_ok=True)


@cache
def _made() -> Path:
    """It once in each process, which takes it away at its end."""
    from PIL import Image
    from rich.console import Console

    from eenet.experiments.data import load, loader
    from eenet.experiments.recipes import RunOptions, load_recipe, reproduce

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    recipe = load_recipe("digits", smoke=True, changes=["data.train=[train, 100]", "data.duplicates=false"])
    options = RunOptions(out=folder / "demo", smoke=True, progress=False)
    reproduce(recipe, options, console=Console(quiet=True), steps=("data", "train"))
    model = eenet.MultiExitModel.from_pretrained(folder / "demo" / "work" / "model")
    records = eenet.collect(model, loader(load("digits", ".", "train", limit=60), 60))
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0)
    scheduler.save(folder / "scheduler.safetensors")
    (folder / "digits").mkdir()
    images, _ = load("digits", ".", "train", limit=5).batch(range(5))
    for number, image in enumerate(images[:, 0] * 0.3081 + 0.1307):
        Image.fromarray((image.numpy() * 255).round().astype("uint8")).save(folder / "digits" / f"{number}.png")
    return folder
