"""A whole multi-exit model in a folder: written, read, and refused where it is not whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from files import full_disk
from optional import import_or_skip
from torch import nn
from zoo import images, tokens

import eenet
from eenet.errors import FileFormatError, InvalidInputError, OutOfSpaceError
from eenet.models import ConvHead
from networks import SmallConvNet

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL_BERT = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100,
    "num_labels": 3,
}  # fmt: skip


def make(channels: int = 8, classes: int = 5) -> nn.Module:
    """What an import path in these tests names."""
    return SmallConvNet(channels, classes)


def small(**options: Any) -> eenet.MultiExitModel:
    net = eenet.build_network("test_pretrained:make", **options)
    return eenet.attach(net, ["first", "second"], example=X[:, :, :8, :8]).eval()


ALLOW = ["test_pretrained:make"]


def assert_same(one: eenet.MultiExitModel, other: eenet.MultiExitModel, *args: Any, **kwargs: Any) -> None:
    assert one.exit_names == other.exit_names
    with torch.no_grad():
        for a, b in zip(one(*args, **kwargs), other(*args, **kwargs), strict=True):
            torch.testing.assert_close(a, b)


def moved(model: eenet.MultiExitModel) -> eenet.MultiExitModel:
    """The model with other weights and statistics than it would start with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        kept = model.state_dict().keys()  # others follow from the options that the head or network is made with
        for name, buffer in model.named_buffers():
            if name in kept and buffer.is_floating_point():
                buffer.add_(0.1)
    return model


@pytest.mark.parametrize(
    ("build", "exits", "inputs"),
    [
        (lambda: eenet.build_network("torchvision:resnet18", num_classes=10), ["layer1", "layer3"], images),
        (
            lambda: eenet.build_network("torchvision:lraspp_mobilenet_v3_large", num_classes=4),
            ["backbone.4"],
            images,
        ),
        (
            lambda: eenet.build_network("timm:mixer_s16_224", num_classes=10, img_size=64),
            ["blocks.1"],
            images,
        ),
        (lambda: eenet.build_network("hf:BertForSequenceClassification", config=SMALL_BERT), "auto:3:flops", tokens),
        (
            lambda: eenet.build_network("eenet:resnet56", num_classes=10),
            ["layers.0", "layers.1"],
            lambda batch: images(batch, 32),
        ),
    ],
    ids=["torchvision", "segmentation", "timm", "hf", "eenet"],
)
def test_networks_that_have_a_name(
    build: Callable[[], nn.Module], exits: Any, inputs: Callable[[int], Any], tmp_path: Path
) -> None:
    library = {"timm": "timm", "hf": "transformers"}
    for name in ("torchvision", *library.values()):
        import_or_skip(name)
    example = inputs(2)
    text = "input_ids" in example
    given = example if text else tuple(example.values())
    model = moved(eenet.attach(build(), exits, example=given, dynamic={1: "sequence"} if text else None).eval())
    model.save_pretrained(tmp_path / "model")
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}
    again = eenet.MultiExitModel.from_pretrained(tmp_path / "model")
    assert not again.training
    assert again.source == model.source
    if text:
        assert_same(model, again, **tokens(3, 7))
    else:
        assert_same(model, again, *inputs(3).values())
    assert [type(head) for head in again.heads] == [type(head) for head in model.heads]


def test_a_model_of_hugging_face_says_itself_how_it_is_built(tmp_path: Path) -> None:
    transformers = import_or_skip("transformers")
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL_BERT))
    model = eenet.attach(net.eval(), ["bert.encoder.layer.0"], example=tokens(2)).eval()
    model.save_pretrained(tmp_path)
    assert_same(model, eenet.MultiExitModel.from_pretrained(tmp_path), **tokens(3))


def test_a_disk_that_is_full_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    model = small()
    with full_disk(2000), pytest.raises(OutOfSpaceError, match=r"cannot write '.*model'.*free some space"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_import_path_has_to_be_allowed(tmp_path: Path) -> None:
    model = moved(small(channels=4))
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(InvalidInputError, match=r"allow=\['test_pretrained:make'\]"):
        eenet.MultiExitModel.from_pretrained(tmp_path / "a")
    assert_same(model, eenet.MultiExitModel.from_pretrained(tmp_path / "a", allow=ALLOW), X[:, :, :8, :8])


def test_the_source_may_be_given_and_is_proved(tmp_path: Path) -> None:
    example = X[:, :, :8, :8]
    known = eenet.attach(
        SmallConvNet(4), ["first"], example=example, source=eenet.Source("test_pretrained:make", {"channels": 4})
    ).eval()
    known.save_pretrained(tmp_path / "a")
    assert_same(known, eenet.MultiExitModel.from_pretrained(tmp_path / "a", allow=ALLOW), example)
    wrong = eenet.attach(SmallConvNet(4), ["first"], example=example, source="test_pretrained:make")
    with pytest.raises(InvalidInputError, match=r"'first.0.weight' has shape \(4, 3, 3, 3\) in it and \(8, 3, 3, 3\)"):
        wrong.save_pretrained(tmp_path / "b")
    changed = small()
    changed.backbone.get_submodule("first")._modules["2"] = nn.Tanh()
    with pytest.raises(InvalidInputError, match="gives other logits than the one that the source"):
        changed.save_pretrained(tmp_path / "b")
    unknown = eenet.attach(SmallConvNet(), ["first"], example=example)
    with pytest.raises(InvalidInputError, match=r"how this SmallConvNet is built; give .*='mypackage.networks:make'"):
        unknown.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(InvalidInputError, match="source is 'resnet18', expected 'torchvision:NAME'"):
        eenet.attach(SmallConvNet(), ["first"], example=example, source="resnet18")


def test_heads_of_the_callers_own_are_given_again(tmp_path: Path) -> None:
    def head() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    net = eenet.build_network("test_pretrained:make")
    example = X[:, :, :8, :8]
    model = eenet.attach(net, ["first"], example=example, heads=[head()]).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=r"not eenet's own; pass heads=\[...\]"):
        eenet.MultiExitModel.from_pretrained(tmp_path, allow=ALLOW)
    assert_same(model, eenet.MultiExitModel.from_pretrained(tmp_path, allow=ALLOW, heads=[head()]), example)
    with pytest.raises(FileFormatError, match=r"another architecture.*'heads.0.conv.weight' is missing"):
        eenet.MultiExitModel.from_pretrained(tmp_path, allow=ALLOW, heads=[ConvHead(8, 5)])


def test_dtypes_and_tied_weights(tmp_path: Path) -> None:
    model = small().double()
    model.save_pretrained(tmp_path)
    again = eenet.MultiExitModel.from_pretrained(tmp_path, allow=ALLOW)
    assert_same(model, again, X[:, :, :8, :8].double())
    model.bfloat16().save_pretrained(tmp_path)
    again = eenet.MultiExitModel.from_pretrained(tmp_path, allow=ALLOW)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.json").unlink(), r"holds no model\.json \(.*model\.safetensors\)"),
        (lambda f: (f / "model.json").write_text('{"format":'), "is damaged"),
        (lambda f: edit(f, format="other"), "does not describe a model"),
        (lambda f: edit(f, schema=3), "has schema 3, this eenet reads up to 2: upgrade"),
        (lambda f: edit(f, exits="first"), "'exits' is 'first', expected a list"),
        (lambda f: edit(f, exits=["first"]), "2 heads for 1 exits"),
        (lambda f: edit(f, dtype="load"), "'dtype' is 'load'"),
        (lambda f: edit(f, exits=["first", "other"]), "cannot be cut there.*'other'"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot read .*model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"), r"model\.safetensors' is damaged"),
        (
            lambda f: edit(f, source={"name": "test_pretrained:make", "options": {"channels": 6}}, heads=[None, None]),
            "pass heads",
        ),
        (
            lambda f: edit(f, source={"name": "test_pretrained:make", "options": {"weights": "x.pt"}}),
            "has the option 'weights'",
        ),
        (lambda f: edit(f, source={"name": "os:system", "options": {"command": "true"}}), r"allow=\['os:system'\]"),
        (lambda f: edit(f, source={"name": "eenet:resnet57", "options": {}}), "no network 'resnet57'"),
    ],
)
def test_damaged_folders_are_refused(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InvalidInputError, match=message):
        eenet.MultiExitModel.from_pretrained(tmp_path / "model", allow=ALLOW)


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    edit(tmp_path, source={"name": "test_pretrained:make", "options": {"classes": 5, "channels": 8}})
    eenet.MultiExitModel.from_pretrained(tmp_path, allow=ALLOW)
    heads = json.loads((tmp_path / "model.json").read_text())["heads"]
    heads[0]["options"]["hidden"] = 16
    edit(tmp_path, heads=heads)
    with pytest.raises(FileFormatError, match=r"another architecture.*'heads.0.dense.weight' has shape"):
        eenet.MultiExitModel.from_pretrained(tmp_path, allow=ALLOW)


@pytest.mark.parametrize("name", ["torchvision:resnet1", "timm:nothing", "hf:BertConfig", "hf:os", "nowhere:make"])
def test_names_that_nothing_is_known_by_are_refused(name: str) -> None:
    for library in ("torchvision", "timm", "transformers"):
        import_or_skip(library)
    with pytest.raises(InvalidInputError, match=r"no network|cannot import"):
        eenet.build_network(name)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    first = small()
    first.save_pretrained(folder)

    def failing(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    second = moved(small())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", failing)
        named = rf"cannot write '{re.escape(str(folder))}': No space left on device; free some space"
        with pytest.raises(OutOfSpaceError, match=named):
            second.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_same(first, eenet.MultiExitModel.from_pretrained(folder, allow=ALLOW), X[:, :, :8, :8])
    second.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_same(second, eenet.MultiExitModel.from_pretrained(folder, allow=ALLOW), X[:, :, :8, :8])


class Killed(BaseException):
    """Stands for a kill, after which nothing runs any more."""


@pytest.mark.parametrize(("failing", "left"), [(0, ["model"]), (1, ["model"]), ("killed", [])])
def test_the_earlier_folder_is_not_lost_where_it_cannot_be_replaced(
    failing: int | str, left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    first = small()
    first.save_pretrained(folder)
    rename, renamed = Path.rename, list[Path]()

    def patched(path: Path, target: Path) -> Path:
        renamed.append(path)
        if failing == "killed" and len(renamed) > 1:
            raise Killed
        if len(renamed) - 1 == failing:
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", patched)
        with pytest.raises(Killed if failing == "killed" else InvalidInputError):
            moved(small()).save_pretrained(folder)
    assert [path.name for path in tmp_path.glob("[!.]*")] == left
    if failing == "killed":
        said = r"\(no such folder; a process that replaced it was killed, and the earlier one is '(.*)': rename"
        with pytest.raises(InvalidInputError, match=said) as error:
            eenet.MultiExitModel.from_pretrained(folder)
        (named,) = re.findall(said, str(error.value))
        Path(named).rename(folder)
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_same(first, eenet.MultiExitModel.from_pretrained(folder, allow=ALLOW), X[:, :, :8, :8])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="holds no saved model; choose a new folder"):
        small().save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="holds no saved model"):
        small().save_pretrained(tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_stages_written_by_hand_cannot_be_built_again(tmp_path: Path) -> None:
    staged = eenet.StagedModel.from_stages([nn.Linear(4, 4), nn.Linear(4, 3)], torch.randn(2, 4))
    with pytest.raises(InvalidInputError, match="written by hand"):
        eenet.attach(staged).save_pretrained(tmp_path / "model")
