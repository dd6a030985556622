"""The table of a model's stages."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stages_toys import Chain
from torch import nn

import eenet
from eenet.models import Description, StageRow
from networks import SmallConvNet

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_numbers_are_those_of_the_network() -> None:
    model = eenet.attach(SmallConvNet(), ["first", "second"], 5, X)
    found = eenet.describe(model)
    assert [row.name for row in found.rows] == ["first", "second", "output"]
    assert found.rows[0].live == ("x batchx3x8x8",)
    assert found.rows[1].live[0].endswith("batchx8x8x8")
    # 3x3 convolutions without bias, and the two vectors of each batch norm.
    assert [row.parameters for row in found.rows] == [216 + 16, 1152 + 32, 2304 + 32 + 85]
    assert [row.head_parameters for row in found.rows[:2]] == [
        sum(p.numel() for p in h.parameters()) for h in model.heads
    ]
    assert found.parameters == sum(p.numel() for p in model.parameters())
    costs = eenet.profile(model, X, unit="flops", seconds=0.01)
    assert found.flops == costs[-1]
    assert found.rows[0].flops + found.rows[0].head_flops == costs[0]
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert found.rows[-1].head is None


def test_it_prints_as_a_table_and_writes_as_json() -> None:
    found = eenet.describe(eenet.attach(SmallConvNet(), ["first"], 5, X))
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "stage", "live", "tensors", "params", "FLOPs", "head", "params", "FLOPs", "of", "FLOPs",
    ]  # fmt: skip
    assert lines[2].startswith("first ")
    assert "GridHead" in lines[2]
    assert lines[-1].startswith("SmallConvNet: 2 stages")
    written = json.loads(json.dumps(found.to_dict()))
    assert written["stages"][0]["name"] == "first"
    assert written["flops"] == found.flops


def test_shared_and_unused_parameters_are_counted_once() -> None:
    shared = nn.Linear(4, 4)
    net = Chain(
        lambda net, x: net.b(net.mid(net.a(x)).relu()),
        a=nn.Linear(4, 4),
        mid=shared,
        b=nn.Linear(4, 4),
        idle=nn.Linear(3, 3),
    )
    net.get_submodule("b").weight = shared.weight
    found = eenet.describe(eenet.cut(net.eval(), ["mid"], torch.randn(2, 4)))
    assert [row.parameters for row in found.rows] == [40, 4]
    assert found.unused_parameters == 12
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert "12 of them not used" in found.to_text()


@given(st.integers(70, 200))
def test_the_table_is_as_wide_as_the_terminal_and_says_all(width: int) -> None:
    live = tuple(f"a_rather_long_name_{n} 3x128x14x14" for n in range(4))
    row = StageRow("members.1.network.bert.encoder.layer.11", live, 10**8, 10**9, "TokenHead", 10**5, 10**6, 0.5)
    found = Description("Network", (row, replace(row, name="output", head=None)), 0, "placed by measured time " * 9)
    lines = found.to_text(width=width).splitlines()
    assert max(map(len, lines)) <= width
    said = Counter("".join(cell for one in found.rows for cell in one.cells()) + found.placement)
    del said[" "]
    assert said <= Counter("".join(lines)), "nothing is cut off"


def test_the_model_is_left_in_its_mode() -> None:
    model = eenet.attach(SmallConvNet().train(), ["first"], 5, X)
    model.heads[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    eenet.describe(model)
    assert model.training
    assert not model.heads[0].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
