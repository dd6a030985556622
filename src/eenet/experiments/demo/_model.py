"""The demo's network: building it, and keeping it on disk as weights and a description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eenet._files import existing_file, read_arrays, write_arrays, write_json
from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.demo._data import IMAGE_SHAPE
from eenet.experiments.demo._settings import NetworkSettings, TrainingSettings
from eenet.models import ConvHead, MultiExitModel, attach
from eenet.networks import CifarResNet

NUM_CLASSES = 10
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
_SCHEMA = 1
_KIND = "demo-model"


def build(network: NetworkSettings, seed: int) -> MultiExitModel:
    """The network with its exits, weights random by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = CifarResNet(network.blocks, widths=network.widths, num_classes=NUM_CLASSES, channels=IMAGE_SHAPE[0])
        # Lean heads: what they take, every sample that passes them pays.
        heads = [
            ConvHead(width, NUM_CLASSES, hidden=network.head_width, grid=network.head_grid)
            for width in network.widths[:-1]
        ]
        return attach(backbone, network.exits, NUM_CLASSES, example=example_input(), heads=heads)


def example_input(samples: int = 4) -> Tensor:
    """Noise of the shape of the digits: what the time of a convolution depends on."""
    return torch.randn(samples, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))


def save_model(model: MultiExitModel, settings: TrainingSettings, out: Path) -> None:
    """Write `model.safetensors` and `model.json`; both carry the settings, so that a mix of two runs is noticed."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in _weights(model).items()}
    write_arrays(out / WEIGHTS, arrays, kind=_KIND, schema=_SCHEMA, header=settings.to_dict())
    write_json(
        out / DESCRIPTION,
        {
            "schema": _SCHEMA,
            "network": "eenet.networks.CifarResNet",
            "num_classes": NUM_CLASSES,
            "image_shape": list(IMAGE_SHAPE),
            "exits": list(model.exit_names),
            "weights": WEIGHTS,
            "settings": settings.to_dict(),
        },
    )


def saved_settings(out: Path) -> dict[str, Any] | None:
    """The training settings of the model in a demo folder, or None where there is no whole model."""
    try:
        description = json.loads((out / DESCRIPTION).read_text(encoding="utf-8"))
        settings = description["settings"]
        _, header = read_arrays(out / WEIGHTS, kind=_KIND, schema=_SCHEMA)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return settings if settings == header else None


def load_model(out: str | Path) -> MultiExitModel:
    """The trained network of a demo folder; raises `InvalidInputError` where the folder does not hold one."""
    folder = Path(out)
    if not (folder / DESCRIPTION).is_file():
        raise InvalidInputError(
            f"{str(folder)!r} holds no {DESCRIPTION}: expected a folder that 'eenet demo' made; run: eenet demo --out "
            f"{folder}"
        )
    try:
        description = json.loads(existing_file(folder / DESCRIPTION).read_text(encoding="utf-8"))
        settings = description["settings"]
        network = NetworkSettings.from_dict(settings["network"])
        seed = int(settings["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"{str(folder / DESCRIPTION)!r} is damaged ({error}); run: eenet demo --retrain --out {folder}"
        ) from error
    arrays, header = read_arrays(folder / WEIGHTS, kind=_KIND, schema=_SCHEMA)
    if header != settings:
        raise FileFormatError(
            f"{DESCRIPTION} and {WEIGHTS} in {str(folder)!r} come from different runs; run: eenet demo --retrain --out "
            f"{folder}"
        )
    model = build(network, seed)
    weights = _weights(model)
    if {name: tuple(t.shape) for name, t in weights.items()} != {name: a.shape for name, a in arrays.items()}:
        raise FileFormatError(
            f"the weights in {str(folder / WEIGHTS)!r} do not fit the network in {DESCRIPTION}; run: eenet demo "
            f"--retrain --out {folder}"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))
    return model.eval()


def _weights(model: MultiExitModel) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once: those of the backbone and of the heads.

    Without the counters of batch normalisation, which inference does not look at.
    """
    named = {f"backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    named |= {f"heads.{name}": tensor for name, tensor in model.heads.state_dict().items()}
    return {name: tensor for name, tensor in named.items() if tensor.ndim > 0}
