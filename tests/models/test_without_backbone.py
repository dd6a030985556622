"""Models saved without their network, and models that are found by a name."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import eenet
from eenet.errors import InvalidInputError
from networks import SmallConvNet

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ALLOW = ["test_without_backbone:make"]


def make() -> nn.Module:
    """What an import path in these tests names."""
    return SmallConvNet(8, 5)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()


def with_exits(net: nn.Module, source: str | None = ALLOW[0]) -> eenet.MultiExitModel:
    torch.manual_seed(1)
    return eenet.attach(net, ["first", "second"], example=X, source=source).eval()


def assert_same(one: eenet.MultiExitModel, other: eenet.MultiExitModel) -> None:
    with torch.no_grad():
        for a, b in zip(one(X), other(X), strict=True):
            assert torch.equal(a, b)


def test_the_heads_alone_need_the_network_they_were_trained_on(tmp_path: Path) -> None:
    model = with_exits(network())
    model.save_pretrained(tmp_path / "heads", backbone=False)
    model.save_pretrained(tmp_path / "whole")
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("heads", "whole")}
    assert size["whole"] - size["heads"] >= sum(4 * p.numel() for p in model.backbone.parameters())
    description = json.loads((tmp_path / "heads" / "model.json").read_text())
    assert (description["schema"], json.loads((tmp_path / "whole" / "model.json").read_text())["schema"]) == (2, 1)

    assert_same(model, eenet.from_pretrained(tmp_path / "heads", backbone=network()))
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    for given in (tmp_path / "weights.safetensors", str(tmp_path / "weights.safetensors")):
        assert_same(model, eenet.from_pretrained(tmp_path / "heads", backbone=given, allow=ALLOW))
    with pytest.raises(InvalidInputError, match=r"heads and what was fine-tuned, not the network; give a network of"):
        eenet.from_pretrained(tmp_path / "heads")
    with pytest.raises(InvalidInputError, match="has other weights than the network that this model was saved of"):
        eenet.from_pretrained(tmp_path / "heads", backbone=network(7))
    with pytest.raises(InvalidInputError, match=r"backbone is a MultiExitModel, .*expected the network .*\.backbone"):
        eenet.from_pretrained(tmp_path / "heads", backbone=model)
    with pytest.raises(InvalidInputError, match="allow="):
        eenet.from_pretrained(tmp_path / "heads", backbone=tmp_path / "weights.safetensors")
    with pytest.raises(InvalidInputError, match="holds the whole model; leave backbone out"):
        eenet.from_pretrained(tmp_path / "whole", backbone=network(), allow=ALLOW)


def test_what_was_fine_tuned_is_stored_beside_the_heads(tmp_path: Path) -> None:
    original = network()
    model = with_exits(copy.deepcopy(original))
    tuned = "second.0.weight"
    assert tuned in dict(model.backbone.named_parameters())
    with torch.no_grad():
        model.backbone.get_parameter(tuned).add_(0.5)
    model.save_pretrained(tmp_path / "model", backbone=original)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert [name for name in stored if name.startswith("backbone.")] == [f"backbone.{tuned}"]
    assert_same(model, eenet.from_pretrained(tmp_path / "model", backbone=network()))
    with pytest.raises(InvalidInputError, match="other weights"):
        eenet.from_pretrained(tmp_path / "model", backbone=network(7))


def test_a_network_that_is_given_stays_as_it_is_where_it_was_fine_tuned(tmp_path: Path) -> None:
    original = network()
    tuned = []
    for number in (1, 2):
        model = with_exits(copy.deepcopy(original))
        with torch.no_grad():
            model.backbone.get_parameter("second.0.weight").add_(0.3 * number)
        model.save_pretrained(tmp_path / str(number), backbone=original)
        tuned.append(model)
    loaded = [eenet.from_pretrained(tmp_path / str(number), backbone=original) for number in (1, 2)]
    for model, again in zip(tuned, loaded, strict=True):
        assert_same(model, again)
    with torch.no_grad():
        assert torch.equal(original(X), network()(X))
    with_exits(original).save_pretrained(tmp_path / "heads", backbone=False)
    shared = eenet.from_pretrained(tmp_path / "heads", backbone=original)
    assert shared.backbone is original  # nothing of it is stored, so there is nothing to keep apart

    half = eenet.attach(network().half(), ["first"], example=X.half())
    half.save_pretrained(tmp_path / "half", backbone=False)
    assert eenet.from_pretrained(tmp_path / "half", backbone=original).backbone is not original
    assert next(original.parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_with_the_weights_but_another_activation_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    def layers(activation: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 8, 3), nn.ReLU())
        return nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval().to(dtype)

    model = eenet.attach(layers(nn.ReLU()), ["0.2"], example=X.to(dtype)).eval()
    model.save_pretrained(tmp_path / "heads", backbone=False)
    eenet.from_pretrained(tmp_path / "heads", backbone=layers(nn.ReLU()))
    with pytest.raises(
        InvalidInputError, match=r"gives other logits for its example, by up to .* such as an activation"
    ):
        eenet.from_pretrained(tmp_path / "heads", backbone=layers(nn.Tanh()))


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds what convolutions take to ten bits of the mantissa, as cuDNN does by default (TF32)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default):
            bits = [one.contiguous().view(torch.int32) + 0x1000 & ~0x1FFF for one in args[:2]]
            args = (*(one.view(torch.float32) for one in bits), *args[2:])
        return func(*args, **(kwargs or {}))


def test_a_model_saved_where_convolutions_round_is_loaded_where_they_do_not(tmp_path: Path) -> None:
    trained = eenet.from_pretrained("tiny-imagenet-100-resnet56")
    rounding = Rounding()  # type: ignore[no-untyped-call]
    images = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = torch.stack(list(trained(images)))
        with rounding:
            apart = (torch.stack(list(trained(images))) - exact).abs()
    worst = max(range(0, 200, 2), key=lambda n: float(apart[:, n : n + 2].max() / exact[:, n : n + 2].abs().max()))
    exits, network = trained.exit_names[:-1], trained.plain
    example = images[worst : worst + 2]
    model = eenet.attach(network, exits, heads=list(trained.heads), num_classes=100, example=example).eval()
    with rounding:
        model.save_pretrained(tmp_path / "heads", backbone=False)
    again = eenet.from_pretrained(tmp_path / "heads", backbone=network)
    with torch.no_grad():
        assert torch.equal(again(example)[0], model(example)[0])


def test_a_network_without_a_name_is_given_as_a_module(tmp_path: Path) -> None:
    model = with_exits(network(), source=None)
    with pytest.raises(InvalidInputError, match="not known how this SmallConvNet is built"):
        model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "heads", backbone=False)
    assert_same(model, eenet.from_pretrained(tmp_path / "heads", backbone=network()))
    with pytest.raises(InvalidInputError, match="give the network itself, a module"):
        eenet.from_pretrained(tmp_path / "heads", backbone="timm:resnet18")


def test_a_backbone_that_is_not_there(tmp_path: Path) -> None:
    with_exits(network()).save_pretrained(tmp_path / "heads", backbone=False)
    for given, words in (
        ("nowhere", "there is no such folder or file"),
        ("package:no_such_package_here", r"pip install no-such-package-here"),
        ("package:json", r"has no get_model_path"),
        ("timm:resnet18", r"expected 'test_without_backbone:make'"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            eenet.from_pretrained(tmp_path / "heads", backbone=given, allow=ALLOW)
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidInputError, match="has no tensor of this SmallConvNet: it holds other"):
        eenet.from_pretrained(tmp_path / "heads", backbone=tmp_path / "other.safetensors", allow=ALLOW)


def test_models_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_exits(network())
    model.save_pretrained(tmp_path / "models" / "mine")
    shutil.copytree(tmp_path / "models" / "mine", tmp_path / "more" / "of-a-recipe" / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=r"neither a folder nor the name of a model; there are .*EENET_MODELS"):
        eenet.from_pretrained("mine")
    monkeypatch.setenv("EENET_MODELS", f"{tmp_path / 'models'}:{tmp_path / 'more'}:{tmp_path / 'absent'}")
    for name in ("mine", "of-a-recipe"):
        assert_same(model, eenet.from_pretrained(name, allow=ALLOW))
    with pytest.raises(InvalidInputError, match="there are mine, of-a-recipe"):
        eenet.from_pretrained("min")


def test_one_of_our_own_networks_takes_its_weights_of_a_file_or_a_folder(tmp_path: Path) -> None:
    digits = eenet.from_pretrained("digits").eval()
    digits.save_pretrained(tmp_path / "heads", backbone=False)
    (tmp_path / "folder").mkdir()
    weights = tmp_path / "folder" / "weights.safetensors"
    save_file(digits.backbone.state_dict(), weights)
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for given in (weights, weights.parent):
        again = eenet.from_pretrained(tmp_path / "heads", backbone=given).eval()
        for one, other in zip(digits(x), again(x), strict=True):
            assert torch.equal(one, other)
    save_file({name: 1.5 * one for name, one in digits.backbone.state_dict().items()}, weights)
    with pytest.raises(InvalidInputError, match="has other weights than the network that this model was saved of"):
        eenet.from_pretrained(tmp_path / "heads", backbone=weights)
    wrong: Any = 5
    with pytest.raises(InvalidInputError, match="backbone is an int, expected 'timm:NAME'"):
        eenet.from_pretrained(tmp_path / "heads", backbone=wrong)


def test_the_models_that_ship_can_be_loaded() -> None:
    results = Path(__file__).parents[2] / "results"
    shipped = sorted(results.glob("*/model/model.json")) if results.is_dir() else []
    if not shipped:
        pytest.skip("needs results/, which is in the repository alone")
    for description in shipped:
        if "backbone" not in json.loads(description.read_text(encoding="utf-8")):
            assert eenet.from_pretrained(description.parent.parent.name).num_exits >= 2
