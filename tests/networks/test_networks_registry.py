"""The paper's networks by name, with their exits attached."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from networks_counts import on_meta
from optional import import_or_skip
from torch import Tensor, nn

import eenet
from eenet.errors import InvalidInputError
from eenet.models import MODELS, build_network, make_heads, multi_exit

EXITS = {
    "resnet56": 3,
    "resnet56-bottleneck": 3,
    "resnet20": 3,
    "resnet-digits": 3,
    "densenet121-cifar": 4,
    "msdnet35": 5,
    "msdnet-cifar": 7,
    "hrnet-w18-small-v1": 4,
    "hrnet-w18-small-v2": 4,
    "hrnet-w18": 4,
    "hrnet-w32": 4,
    "hrnet-w48": 4,
    "bert-base": 4,
    "minilm": 3,
}


def test_the_registry_has_the_papers_networks() -> None:
    assert set(MODELS) == set(EXITS)


@pytest.mark.parametrize("name", EXITS)
def test_every_network_has_the_papers_exits_and_a_head_for_each(name: str) -> None:
    if name in ("bert-base", "minilm"):
        import_or_skip("transformers")
    spec = MODELS[name]
    net: Any = on_meta(build_network, name)
    exits = spec.exits(net)
    assert len(exits) == EXITS[name] - 1
    modules = dict(net.named_modules())
    assert all(exit_name in modules for exit_name in exits)
    with torch.device("meta"):
        heads = make_heads(net, exits)
    assert len(heads) == len(exits)
    assert all(isinstance(head, nn.Module) for head in heads)


@pytest.mark.parametrize("name", ["resnet56-bottleneck", "densenet121-cifar"])
def test_image_networks_with_exits(name: str) -> None:
    model = multi_exit(name, num_classes=6).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        logits = model(x)
        assert [tuple(one.shape) for one in logits] == [(3, 6)] * EXITS[name]
        torch.testing.assert_close(logits[-1], model.backbone(x), rtol=1e-4, atol=1e-4)
        # The remaining samples may be any number, in any order.
        for one, other in zip(logits, model(x[[2, 0]]), strict=True):
            torch.testing.assert_close(one[[2, 0]], other, rtol=1e-4, atol=1e-4)


def test_options_and_examples_reach_a_network_that_trains() -> None:
    example = torch.randn(2, 3, 24, 24)
    model = multi_exit("msdnet-cifar", num_classes=4, exits=2, example=example)
    assert model.exit_names == ("blocks.0", "output")
    logits = model.train()(torch.randn(4, 3, 24, 24))
    assert [tuple(one.shape) for one in logits] == [(4, 4)] * 2
    loss = sum((nn.functional.cross_entropy(one, torch.arange(4)) for one in logits), torch.zeros(()))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet56-bottleneck", {}),
        ("msdnet-cifar", {"exits": 3}),
        ("minilm", {"vocab_size": 50, "num_hidden_layers": 4}),
        ("bert-base", {"hidden_size": 12, "vocab_size": 60, "pooling": "mean"}),
    ],
)
def test_a_network_remembers_how_to_be_built_again(name: str, options: dict[str, Any]) -> None:
    if name in ("bert-base", "minilm"):
        import_or_skip("transformers")
    net = on_meta(build_network, name, num_classes=3, **options)
    source = eenet.Source.of(net)
    assert source is not None
    assert source.name == f"eenet:{name}"
    again = on_meta(source.build)
    shapes = [{key: tensor.shape for key, tensor in one.state_dict().items()} for one in (net, again)]
    assert shapes[0] == shapes[1]
    heads = [make_heads(one, MODELS[name].exits(one)) for one in (net, again)]
    assert [str(head) for head in heads[0]] == [str(head) for head in heads[1]]


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInputError, match=r"did you mean 'resnet56'.*msdnet35"):
        build_network("resnet-56")
    with pytest.raises(InvalidInputError, match="there are resnet56"):
        multi_exit("zzz")


def test_examples_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    state = torch.get_rng_state()
    for spec in MODELS.values():
        one, other = spec.example(), spec.example()
        for first, second in zip(*(tensors(example) for example in (one, other)), strict=True):
            torch.testing.assert_close(first, second)
    torch.testing.assert_close(torch.get_rng_state(), state)


def tensors(example: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(example.values()) if isinstance(example, dict) else [example]


def test_what_is_public_is_documented() -> None:
    for name in eenet.networks.__all__:
        assert inspect.getdoc(getattr(eenet.networks, name)), name
