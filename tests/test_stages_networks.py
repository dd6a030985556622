"""Cutting the networks people use: torchvision, timm and Hugging Face."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eenet.stages import StagedModel, cut
from stages_toys import warm
from torchvision_shim import import_or_skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_survivors_agree(staged: StagedModel, model: nn.Module, index: list[int], **inputs: Tensor) -> None:
    """Run with survivors selected after each boundary in turn, against the same rows of the whole batch."""
    with torch.no_grad():
        whole = model(*inputs.values()) if set(inputs) == {"x"} else model(**inputs)
        plain = staged.flatten_inputs(*inputs.values()) if set(inputs) == {"x"} else staged.flatten_inputs(**inputs)
        logits = whole if isinstance(whole, Tensor) else next(iter(whole.values()))
        for boundary in range(1, len(staged.stages)):
            live = plain
            for number, stage in enumerate(staged.stages):
                if number == boundary:
                    live = staged.compact(live, torch.tensor(index), number)
                out = stage(*live)
                live = tuple(out[i] for i in stage.passed)
            torch.testing.assert_close(out[0], logits[index], rtol=1e-4, atol=1e-4)


VISION: dict[str, tuple[Callable[[Any], nn.Module], list[str]]] = {
    "resnet18": (lambda tv: tv.resnet18(num_classes=10), ["layer1", "layer2.0", "layer3"]),
    "resnet18 inside a block": (lambda tv: tv.resnet18(num_classes=10), ["layer1.0.bn1", "layer1.0.conv2"]),
    "resnet50": (lambda tv: tv.resnet50(num_classes=10), ["layer1", "layer2", "layer3"]),
    "densenet121": (
        lambda tv: tv.densenet121(num_classes=10),
        ["features.denseblock1", "features.denseblock2.denselayer3", "features.transition2"],
    ),
    "mobilenet_v3_large": (lambda tv: tv.mobilenet_v3_large(num_classes=10), ["features.4", "features.8"]),
    "efficientnet_b0": (lambda tv: tv.efficientnet_b0(num_classes=10), ["features.3", "features.5"]),
    "regnet_y_400mf": (
        lambda tv: tv.regnet_y_400mf(num_classes=10),
        ["trunk_output.block1", "trunk_output.block3"],
    ),
    "vit": (
        lambda tv: tv.VisionTransformer(64, 16, 3, 4, 48, 96, num_classes=10),
        ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"],
    ),
    "swin_t": (lambda tv: tv.swin_t(num_classes=10), ["features.1.0.attn", "features.3.0", "features.5.2"]),
    "convnext_tiny": (lambda tv: tv.convnext_tiny(num_classes=10), ["features.1", "features.3"]),
    "deeplabv3_resnet50": (
        lambda tv: tv.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=5, aux_loss=True
        ),
        ["backbone.layer1", "backbone.layer2"],
    ),
    "lraspp_mobilenet_v3_large": (
        lambda tv: tv.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5),
        ["backbone.4", "backbone.7"],
    ),
}


@pytest.mark.parametrize("name", VISION)
def test_torchvision(name: str) -> None:
    models = import_or_skip("torchvision.models")
    build, at = VISION[name]
    model = build(models).eval()
    warm(model)
    staged = cut(model, at, torch.randn(1, 3, 64, 64), check=False)
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        got, expected = staged(x), model(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert type(got) is type(expected)
    assert_survivors_agree(staged, model, [2, 0], x=x)


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


TIMM = {
    "resnet50": ({}, ["layer1", "layer2"]),
    "convnext_tiny": ({}, ["stages.0", "stages.1"]),
    "vit_small_patch16_224": ({"img_size": 64, "depth": 4}, ["blocks.0", "blocks.2"]),
    "mixer_s16_224": ({"img_size": 64}, ["blocks.0", "blocks.2"]),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    import_or_skip("torchvision")
    timm = import_or_skip("timm")
    settings, at = TIMM[name]
    model = timm.create_model(name, num_classes=10, **settings).eval()
    staged = cut(model, at, torch.randn(1, 3, 64, 64), check=False)
    assert_survivors_agree(staged, model, [2, 0], x=torch.randn(3, 3, 64, 64))


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "num_labels": 3,
    "max_position_embeddings": 40,
}
SMALL_DISTIL = {
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 64,
    "vocab_size": 100,
    "num_labels": 3,
    "max_position_embeddings": 40,
}
TEXT: dict[str, tuple[str, dict[str, int], list[str]]] = {
    "Bert": ("BertForSequenceClassification", SMALL, ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
    "Roberta": ("RobertaForSequenceClassification", SMALL, ["roberta.encoder.layer.0", "roberta.encoder.layer.1"]),
    "DistilBert": (
        "DistilBertForSequenceClassification",
        SMALL_DISTIL,
        ["distilbert.transformer.layer.0", "distilbert.transformer.layer.1"],
    ),
}


def text_model(name: str, attention: str) -> tuple[nn.Module, list[str]]:
    import_or_skip("torchvision")
    transformers = import_or_skip("transformers")
    classifier, settings, at = TEXT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{name}Config")(**settings, attn_implementation=attention)
        return getattr(transformers, classifier)(config).eval(), at


def tokens(batch: int, length: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return {"input_ids": torch.randint(5, 90, (batch, length)), "attention_mask": mask}


@pytest.mark.parametrize("dynamic", [None, {1: "sequence"}], ids=["fixed", "dynamic"])
@pytest.mark.parametrize(
    ("name", "attention"), [("Bert", "sdpa"), ("Bert", "eager"), ("Roberta", "sdpa"), ("DistilBert", "sdpa")]
)
def test_text_with_a_mask(name: str, dynamic: Mapping[int, str] | None, attention: str) -> None:
    model, at = text_model(name, attention)
    staged = cut(model, at, tokens(2, 12), dynamic=dynamic)
    for batch, length in ((1, 12), (4, 12), *(((3, 9), (2, 20)) if dynamic else ())):
        batch_tokens = tokens(batch, length)
        got, expected = staged(**batch_tokens), model(**batch_tokens)
        assert type(got) is type(expected)
        torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert_survivors_agree(staged, model, [3, 1], **tokens(4, 12))
    shapes = {live.shape for live in staged.stages[1].inputs}
    assert ("batch", "sequence" if dynamic else 12, 32) in shapes


def test_the_mask_changes_the_result() -> None:
    model, at = text_model("Bert", "sdpa")
    staged = cut(model, at, tokens(2, 12), check=False)
    padded = tokens(2, 12)
    other = padded["input_ids"].clone()
    other[-1, 6:] = 7
    torch.testing.assert_close(
        staged(**padded).logits, staged(input_ids=other, attention_mask=padded["attention_mask"]).logits
    )
    visible = {"input_ids": padded["input_ids"], "attention_mask": torch.ones_like(padded["attention_mask"])}
    assert not torch.allclose(staged(**padded).logits, staged(**visible).logits)
