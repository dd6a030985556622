"""Cutting the networks people use: torchvision, timm and Hugging Face; the table of them in the docs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from optional import import_or_skip
from torch import Tensor, nn
from zoo import DOCS, NETWORKS, Inputs, row, tokens, written_rows

from eenet.stages import StagedModel, cut


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else next(iter(output.values()))


def assert_remaining_agree(
    staged: StagedModel, whole: Any, live: tuple[Tensor, ...], index: list[int], tolerance: float = 1e-4
) -> None:
    """Run with samples selected after each boundary in turn, against the same samples of the whole batch."""
    expected = first_tensor(whole)[index]
    with torch.no_grad():
        for boundary in range(1, len(staged.stages)):
            passing = live
            for number, stage in enumerate(staged.stages):
                if number == boundary:
                    passing = staged.compact(passing, torch.tensor(index), number)
                    assert staged.batch_size_of(passing, number) == len(index)
                out = stage(*passing)
                passing = tuple(out[i] for i in stage.passed)
            torch.testing.assert_close(out[0], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_cut_and_given_exits(name: str) -> None:
    network = NETWORKS[name]
    model = network.attach()
    backbone, staged = model.backbone, model.staged
    assert len(staged.stages) == len(network.at) + 1
    for batch in (1, 4):
        inputs = network.inputs(batch)
        with torch.no_grad():
            whole, got = network.call(backbone, inputs), network.call(staged, inputs)
            exits = network.call(model, inputs)
        assert type(got) is type(whole)
        torch.testing.assert_close(first_tensor(got), first_tensor(whole), rtol=1e-4, atol=1e-4)
        assert {logits.shape for logits in exits} == {first_tensor(whole).shape}
        assert exits[0].shape[:2] == (batch, network.num_classes)
        torch.testing.assert_close(exits[-1], first_tensor(whole), rtol=1e-4, atol=1e-4)
    live = network.call(staged.flatten_inputs, inputs)
    assert_remaining_agree(staged, whole, live, [2, 0, 3])
    assert row(network, model) in written_rows(), (
        f"the row of {name!r} in {DOCS.name} is not what this test found; write the table again: python tests/zoo.py"
    )


def test_the_table_in_the_docs_has_these_networks_and_no_others() -> None:
    names = [line.split("|")[1].strip() for line in written_rows()]
    assert names == list(NETWORKS), "write the table again: python tests/zoo.py"


def test_resnet18_trains_as_without_stages() -> None:
    models = import_or_skip("torchvision.models")
    torch.manual_seed(3)
    plain = models.resnet18(num_classes=10).train()
    torch.manual_seed(3)
    model = models.resnet18(num_classes=10)
    staged = cut(model, ["layer1", "layer3"], torch.randn(2, 3, 64, 64), check=False).train()
    x = torch.randn(4, 3, 64, 64)
    expected, got = plain(x), staged(x)
    torch.testing.assert_close(got, expected)
    expected.logsumexp(1).sum().backward()
    got.logsumexp(1).sum().backward()
    for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
    for one, other in zip(plain.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(other, one)


def text_model(name: str, attention: str = "sdpa") -> tuple[nn.Module, list[str]]:
    network = NETWORKS[f"Hugging Face {name}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = network.build().eval()
        model.set_attn_implementation(attention)
    return model, list(network.at)


@pytest.mark.parametrize(
    ("name", "attention"), [("Bert", "sdpa"), ("Bert", "eager"), ("Roberta", "sdpa"), ("DistilBert", "sdpa")]
)
def test_texts_of_any_length(name: str, attention: str) -> None:
    model, at = text_model(name, attention)
    dynamic: Mapping[int, str] = {1: "sequence"}
    staged = cut(model, at, tokens(2, 12), dynamic=dynamic)
    for batch, length in ((1, 12), (4, 12), (3, 9), (2, 20)):
        inputs: Inputs = tokens(batch, length)
        got, expected = staged(**inputs), model(**inputs)
        torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)
    inputs = tokens(4, 12)
    assert_remaining_agree(staged, model(**inputs), staged.flatten_inputs(**inputs), [3, 1])
    assert ("batch", "sequence", 32) in {live.shape for live in staged.stages[1].inputs}


def test_the_mask_changes_the_result() -> None:
    model, at = text_model("Bert")
    staged = cut(model, at, tokens(2, 12), check=False)
    padded = tokens(2, 12)
    other = padded["input_ids"].clone()
    other[-1, 6:] = 7
    torch.testing.assert_close(
        staged(**padded).logits, staged(input_ids=other, attention_mask=padded["attention_mask"]).logits
    )
    visible = {"input_ids": padded["input_ids"], "attention_mask": torch.ones_like(padded["attention_mask"])}
    assert not torch.allclose(staged(**padded).logits, staged(**visible).logits)
