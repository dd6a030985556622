"""The pages of the documentation, and the folder that their examples start from."""

from __future__ import annotations

from pathlib import Path

import eenet

DOCS = Path(__file__).resolve().parents[2] / "docs"


def demo_folder() -> None:
    """What `eenet demo` leaves behind, with a network that is hardly trained, a scheduler and a folder of digits."""
    from PIL import Image
    from rich.console import Console

    from eenet.experiments.data import load, loader
    from eenet.experiments.recipes import RunOptions, load_recipe, reproduce

    recipe = load_recipe("digits", smoke=True, changes=["data.train=[train, 100]", "data.duplicates=false"])
    options = RunOptions(out=Path("demo"), smoke=True, progress=False)
    reproduce(recipe, options, console=Console(quiet=True), steps=("data", "train"))
    model = eenet.MultiExitModel.from_pretrained("demo/work/model")
    records = eenet.collect(model, loader(load("digits", ".", "train", limit=60), 60))
    eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0).save("scheduler.safetensors")
    Path("digits").mkdir()
    images, _ = load("digits", ".", "train", limit=5).batch(range(5))
    for number, image in enumerate(images[:, 0] * 0.3081 + 0.1307):
        Image.fromarray((image.numpy() * 255).round().astype("uint8")).save(f"digits/{number}.png")
