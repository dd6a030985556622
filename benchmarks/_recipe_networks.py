"""Networks that recipes trained: the samples that calibrate and judge them, and bundles made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import eenet
from eenet.experiments.data import ThreeWaySplit
from eenet.experiments.recipes import Recipe, load_recipe
from eenet.experiments.recipes._data import RecipeData, checkpoint_folder

_ALL = 1e12

Array = NDArray[Any]


class Inputs:
    """Samples as the graphs take them; a batch of texts ends where its longest text does."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, some: slice) -> dict[str, Array]:
        found = {name: np.ascontiguousarray(one[some]) for name, one in self.arrays.items()}
        mask = found.get("attention_mask")
        if mask is not None:
            longest = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1
            found = {name: np.ascontiguousarray(one[:, :longest]) for name, one in found.items()}
        return found


@dataclass
class Network:
    """A trained network with exits, its recipe, and the samples of the parts "calibration" and "test" with labels."""

    recipe: Recipe
    model: eenet.MultiExitModel
    samples: dict[str, Inputs]
    labels: dict[str, Array]


def read(
    name: str, folder: Path | None, root: Path, most: int | None = None, checkpoint: Path | None = None
) -> Network:
    """The network of a recipe: of a folder of `eenet reproduce`, or the one that comes with the library.

    `checkpoint` has the tokenizer of texts, where it is not where the recipe says. At most `most` samples of either
    part; those that judge are in a random order, so that the first are of all kinds.
    """
    model = eenet.MultiExitModel.from_pretrained(name if folder is None else folder / "work" / "model").eval()
    recipe = load_recipe(name)
    data = RecipeData(recipe, root, tokenizer=checkpoint_folder(recipe, checkpoint, download=False))
    data.use(data.make_split() if folder is None else ThreeWaySplit.load(folder / "split.json"))
    names = [one.name for one in model.staged.inference_stages[0].inputs]
    network = Network(recipe, model, {}, {})
    for part in ("calibration", "test"):
        tensors, truth = data.samples(part, _ALL)
        rows = np.sort(np.random.default_rng(0).permutation(len(truth))[:most])
        if part == "test":
            rows = np.random.default_rng(1).permutation(rows)
        network.samples[part] = Inputs({key: one.numpy()[rows] for key, one in zip(names, tensors, strict=True)})
        network.labels[part] = truth.numpy()[rows]
    return network


def exported(network: Network, folders: Mapping[str, Path], **options: Any) -> dict[str, Any]:
    """Bundles of a network by their precision, each in a folder; the calibration part chooses what is int8.

    `options` are others of `eenet.export`.
    """
    model, x, y = network.model, network.samples["calibration"], network.labels["calibration"]

    def call(some: slice) -> Any:
        args, kwargs = model.staged.call_of(tuple(torch.from_numpy(one) for one in x[some].values()))
        return kwargs if kwargs and not args else args if len(args) > 1 else args[0]

    loader = [(call(slice(n, n + 32)), torch.from_numpy(y[n : n + 32])) for n in range(0, len(y), 32)]
    records = eenet.collect(model, loader)
    any_costs = eenet.ExitCosts(np.arange(1.0, model.num_exits + 1))
    scheduler = eenet.MaxProbability().fit(records, any_costs, "100%")
    return {
        precision: eenet.export(
            model, scheduler, folder, example=loader[0][0], records=records, precision=precision,
            calibration=loader, measure=False, threads=1, **options,
        )
        for precision, folder in folders.items()
    }  # fmt: skip
