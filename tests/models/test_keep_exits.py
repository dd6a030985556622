"""`keep_exits`: a model with fewer exits answers as before, and what no exit needs does not run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optional import import_or_skip
from torch import Tensor, nn

import eenet
from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel

X = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3


class Blocks(nn.Module):
    """Three blocks that change tensors in place, and a head."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(width)
            sizes = [1, width, width, width]
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
                for a, b in pairwise(sizes)
            )
            self.head = nn.Linear(width, 3)

    def forward(self, image: Tensor) -> Tensor:
        for block in self.blocks:
            image = block(image)
        logits: Tensor = self.head(image.mean(dim=(2, 3)))
        return logits


def with_exits(width: int = 4, *, small_heads: bool = False) -> MultiExitModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = eenet.build_network("test_keep_exits:Blocks", width=width).eval()
        heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)) for _ in range(2)]
        return eenet.attach(backbone, ["blocks.0", "blocks.1"], example=X[:2], heads=heads if small_heads else None)


def flops(model: MultiExitModel) -> list[float]:
    return [float(cost) for cost in eenet.profile(model, X[:1], unit="flops", batch_size=1, seconds=0.001).values]


@pytest.fixture(scope="module")
def whole() -> MultiExitModel:
    """A plain network, one with three exits, a larger one: five exits."""
    return eenet.cascade(
        [Blocks(2).eval(), with_exits(small_heads=True), eenet.build_network("test_keep_exits:Blocks").eval()], X[:2]
    )


MEMBERS = [[0], [1, 2, 3], [4]]


@given(chosen=st.sets(st.integers(0, 4), min_size=2).map(sorted))
@settings(max_examples=8, deadline=None)
def test_the_exits_that_are_kept_say_the_same_and_cost_what_leads_to_them(
    whole: MultiExitModel, chosen: list[int]
) -> None:
    model = whole.keep_exits(chosen)
    everything = whole(X)
    for logits, k in zip(model(X), chosen, strict=True):
        torch.testing.assert_close(logits, everything[k])
    # By themselves the exits cost the parts of their own member up to them, after those of the kept members before it.
    steps = flops(whole)
    starts = [0.0, steps[0], steps[3]]
    expected, before = [], 0.0
    for own, start in zip(MEMBERS, starts, strict=True):
        kept = [before + steps[k] - start for k in own if k in chosen]
        expected += kept
        before = kept[-1] if kept else before
    np.testing.assert_allclose(
        flops(model), expected, rtol=0.02
    )  # the heads of the exits on the way are part of what later ones cost
    records = eenet.collect(whole, [(X, Y)]).keep_exits(chosen)
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts(expected, "flops"), "90% of last", fallback=False)
    out = eenet.AdaptiveModel(model, scheduler)(X)
    np.testing.assert_array_equal(out.exits, scheduler.replay(records).exits)


def test_a_network_ends_at_the_last_exit_that_is_kept(tmp_path: Path) -> None:
    model = with_exits()
    shorter = model.keep_exits([0, 1])
    np.testing.assert_allclose(flops(shorter), flops(model)[:2])
    torch.testing.assert_close(shorter.plain(X), model(X)[1])
    assert shorter.staged.arguments == model.staged.arguments
    shorter.save_pretrained(tmp_path / "model")
    again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_keep_exits:Blocks"])
    for got, expected in zip(again(X), shorter(X), strict=True):
        torch.testing.assert_close(got, expected)
    fewer = model.keep_exits([1, 2])
    assert fewer.exit_names == ("blocks.1", "output")
    assert fewer.backbone is model.backbone


def test_exits_can_be_kept_of_what_was_kept(tmp_path: Path) -> None:
    names = ["blocks.0", "blocks.1", "blocks.2"]
    network = eenet.build_network("test_keep_exits:Blocks").eval()
    single = eenet.attach(network, names, example=X[:2])
    for whole, once, twice, kept in (
        (single, [0, 1, 2], [0, 1], [0, 1]),
        (eenet.cascade([single, with_exits(8)], X[:2]), [0, 1, 2, 4, 5], [0, 1, 3], [0, 1, 4]),
    ):
        shorter = whole.keep_exits(once).keep_exits(twice)
        everything = whole(X)
        for logits, k in zip(shorter(X), kept, strict=True):
            torch.testing.assert_close(logits, everything[k])
        assert flops(shorter) == flops(whole.keep_exits(kept))
        shorter.save_pretrained(tmp_path / str(len(kept)))
        again = MultiExitModel.from_pretrained(tmp_path / str(len(kept)), allow=["test_keep_exits:Blocks"])
        torch.testing.assert_close(again(X), shorter(X))


def test_what_ends_at_an_exit_is_not_saved_without_its_network(tmp_path: Path) -> None:
    model = with_exits()
    for backbone in (False, model.backbone):
        with pytest.raises(InvalidInputError, match="whose head is part of it and would not be written"):
            model.keep_exits([0, 1]).save_pretrained(tmp_path / "shorter", backbone=backbone)
    assert not (tmp_path / "shorter").exists()
    fewer = model.keep_exits([1, 2])
    fewer.save_pretrained(tmp_path / "fewer", backbone=False)
    again = MultiExitModel.from_pretrained(tmp_path / "fewer", backbone=model.backbone)
    torch.testing.assert_close(again(X), fewer(X))


@pytest.mark.parametrize("member", [False, True])
def test_a_source_that_was_given_is_that_of_what_is_left(member: bool, tmp_path: Path) -> None:
    source = eenet.Source("test_keep_exits:Blocks", {"width": 8})
    model = eenet.attach(Blocks(8).eval(), ["blocks.0", "blocks.1"], example=X[:2], source=source).keep_exits([0, 1])
    if member:
        model = eenet.cascade([model, eenet.build_network("test_keep_exits:Blocks", width=32).eval()], X[:2])
    model.save_pretrained(tmp_path / "model")
    again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_keep_exits:Blocks"])
    torch.testing.assert_close(again(X), model(X))


def test_what_is_left_can_be_trained_and_be_a_member() -> None:
    shorter = with_exits(small_heads=True).keep_exits([0, 1])
    model = eenet.cascade([shorter, Blocks(8).eval()], X[:2]).train()
    model(X, labels=Y)["loss"].backward()
    named = dict(model.backbone.named_parameters())
    used = {name: one for name, one in named.items() if ".network.network.blocks.2" not in name}
    unused = {name: one for name, one in named.items() if name not in used and "network.network.head" not in name}
    assert unused
    assert all(one.grad is None for one in unused.values()), "the last block has no part in any answer"
    assert all(used[name].grad is not None for name in used if "network.network.head" not in name)


def test_a_saved_cascade_and_its_bundle_have_the_fewer_exits(tmp_path: Path) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        import_or_skip(library)
    members = [with_exits(), eenet.build_network("test_keep_exits:Blocks", width=32).eval()]
    whole = eenet.cascade(members, X[:2])
    model = whole.keep_exits([0, 3])
    model.save_pretrained(tmp_path / "model")
    again = MultiExitModel.from_pretrained(tmp_path / "model", allow=["test_keep_exits:Blocks"])
    records = eenet.collect(whole, [(X, Y)]).keep_exits([0, 3])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 3.0]), 2.0, fallback=False)
    bundle = eenet.export(again, scheduler, tmp_path / "bundle", example=X[:2], measure=False)
    assert len(bundle.exit_names) == 2
    np.testing.assert_array_equal(bundle(X.numpy()).exits, scheduler.replay(records).exits)


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ([2], r"exits are \[2\], expected the numbers of at least 2 exits, from 0 to 2"),
        ([0, 0], r"each once"),
        ([0, 3], r"exits are \[0, 3\], expected numbers from 0 to 2"),
        ([-1, 0], r"expected numbers from 0 to 2"),
        ([True, False, True], r"expected the numbers"),
        ("01", r"expected the numbers"),
    ],
)
def test_other_exits_are_refused(exits: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        with_exits().keep_exits(exits)


def test_stages_written_by_hand_are_refused() -> None:
    layers = Blocks().eval().blocks
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = eenet.attach(eenet.StagedModel.from_stages([layers[0], layers[1], tail], X[:2]))
    with pytest.raises(InvalidInputError, match="written by hand"):
        model.keep_exits([0, 1])
