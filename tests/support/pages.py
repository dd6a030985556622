"""The pages of the documentation, and the folder that their examples start from."""

from __future__ import annotations

from pathlib import Path

import eenet

DOCS = Path(__file__).resolve().parents[2] / "docs"


def demo_folder() -> None:
    """What `eenet demo` leaves behind, with an untrained network, a scheduler for it, and a folder of digits."""
    from PIL import Image

    from eenet.experiments.demo import TrainingSettings
    from eenet.experiments.demo._data import load_digits, split
    from eenet.experiments.demo._model import build, save_model

    settings = TrainingSettings(train=100, calibration=60, test=30)
    parts = split(load_digits(), settings, Path("demo"))
    model = build(settings.network, 0).eval()
    save_model(model, settings, Path("demo"))
    records = eenet.collect(model, [parts["calibration"].images])
    eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0).save("scheduler.safetensors")
    Path("digits").mkdir()
    for number, image in enumerate(parts["test"].images[:5, 0] * 0.3081 + 0.1307):
        Image.fromarray((image.numpy() * 255).round().astype("uint8")).save(f"digits/{number}.png")
