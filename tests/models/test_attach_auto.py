"""Exits that place themselves, heads that fit what they look at, and exits on networks cut already."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from stages_toys import Chain, SmallResNet
from torch import Tensor, nn
from zoo import NETWORKS

import eenet
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.models import ConvHead, GridHead, SegmentationHead, TokenHead, VectorHead
from eenet.models._placement import Placed, _most_that_pay
from eenet.stages import split_points
from networks import SmallConvNet

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def blocks(count: int, width: int = 8, inner: int | None = None) -> nn.Sequential:
    """Residual blocks of equal cost, and a classifier that costs next to nothing."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            between = inner or 4 * width
            self.first, self.second = nn.Linear(width, between), nn.Linear(between, width)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.second(self.first(x).relu())
            return out

    return nn.Sequential(*(Residual() for _ in range(count)), nn.Linear(width, 2))


@pytest.mark.parametrize("exits", [2, 3, 4])
def test_exits_stand_at_the_ends_of_blocks_at_equal_cost(exits: int) -> None:
    model = eenet.attach(blocks(12).eval(), f"auto:{exits}:flops", example=torch.randn(2, 8))
    assert model.exit_names == (*(str(12 * k // exits - 1) for k in range(1, exits)), "output")
    shares = [row.flops for row in eenet.describe(model).rows]
    assert max(shares) / min(shares) < 1.1


def test_places_say_what_they_cost_and_what_would_cross() -> None:
    found = {place.name: place for place in split_points(blocks(2).eval(), torch.randn(2, 8))}
    assert list(found) == ["0.first", "0.second", "0", "1.first", "1.second", "1"]
    assert found["0.first"].elements == 8 + 32
    assert found["0.first"].tensors == 2
    assert (found["0"].elements, found["0"].tensors) == (8, 1)
    total = 4 * 8 * 32 + 8 * 2
    assert found["0"].share == pytest.approx(2 * 8 * 32 / total)


class OfSensor(nn.Module):
    """Two inputs that meet after the first of them was embedded; a third that comes in late is small."""

    def __init__(self) -> None:
        super().__init__()
        self.sensor, self.sensor_deep = nn.Embedding(6, 8), nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))
        self.stem, self.body, self.late = nn.Linear(64, 24), blocks(2, 32)[:2], nn.Linear(32, 32)
        self.fc = nn.Linear(34, 5)

    def forward(self, signal: Tensor, sensor: Tensor, late: Tensor) -> Tensor:
        of_sensor = self.sensor_deep(self.sensor(sensor)) * (1.0 if signal.shape[0] else 0.0)
        x = self.late(self.body(torch.cat([self.stem(signal), of_sensor], 1)))
        answer: Tensor = self.fc(torch.cat([x, late], 1))
        return answer


def test_places_say_how_much_of_the_inputs_they_have_seen_and_auto_takes_none_that_has_seen_little() -> None:
    x = {"signal": torch.randn(2, 64), "sensor": torch.tensor([1, 5]), "late": torch.randn(2, 2)}
    sees = {place.name: place.sees for place in split_points(OfSensor().eval(), x, cost="ms")}
    assert sees["sensor"] == sees["sensor_deep"] == pytest.approx(1 / 67)
    assert sees["stem"] == pytest.approx(64 / 67)
    assert sees["late"] == pytest.approx(65 / 67)
    for asked in ("auto:2:flops", "auto:3", "auto:2"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)  # which exits pay is not tested here
            try:
                names = eenet.attach(OfSensor().eval(), asked, example=x).exit_names
            except InvalidInputError as error:
                names = tuple(re.findall(r"'([\w.]+)' at", str(error)))
        assert not any(name.startswith("sensor") for name in names), names


@pytest.mark.parametrize("name", ["sensor", "sensor_deep", "stem", "body", "late"])
def test_a_named_exit_that_has_seen_one_small_input_of_several_is_warned_of(name: str) -> None:
    x = {"signal": torch.randn(2, 64), "sensor": torch.zeros(2, dtype=torch.int64), "late": torch.randn(2, 2)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        eenet.attach(OfSensor().eval(), [name], example=x)
    small = name.startswith("sensor")
    assert [str(one.message).partition(" that the")[0] for one in said] == (
        [f"the exit at {name!r} has seen 1% of the values"] if small else []
    )
    width = {"stem": 24, "body": 32, "late": 32}.get(name, 8)
    eenet.attach(OfSensor().eval(), [name], example=x, heads=[nn.Linear(width, 5)])  # made for it: nothing is said


class LateMask(nn.Module):
    """A text whose mask comes in after the first exit."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.deep, self.top = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        steps = self.deep(self.embed(tokens)) * mask.unsqueeze(-1)
        logits: torch.Tensor = self.top(steps.sum(1))
        return logits


def test_a_mask_is_no_input_that_an_exit_has_to_have_seen() -> None:
    x = {"tokens": torch.randint(20, (2, 6)), "mask": torch.ones(2, 6, dtype=torch.int64)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        eenet.attach(LateMask().eval(), ["deep"], example=x)
    assert not [one for one in said if "of the values that the network takes" in str(one.message)]


def test_of_exits_that_do_not_all_pay_as_many_stay_as_can() -> None:
    def placed(*places: tuple[float, float]) -> list[Placed]:
        return [Placed(f"{share}", share, head) for share, head in places]

    first, second, third = placed((0.14, 0.011), (0.57, 0.077), (0.76, 0.067))
    assert _most_that_pay([first, second, third]) == [first, second], "the second pays without the third"
    assert _most_that_pay([first]) == [first]
    assert _most_that_pay([third]) == [], "0.067 of 0.24"
    close, cheap = placed((0.5, 0.1), (0.5001, 0.001))
    assert _most_that_pay([close, cheap]) == [cheap], "the cheaper one where one of two can stay"


def test_a_small_interface_is_worth_a_little_inequality() -> None:
    front = [nn.Linear(64, 64) for _ in range(9)]
    wide, narrow = nn.Linear(64, 1024), nn.Linear(1024, 4)
    net = nn.Sequential(*front, wide, narrow, nn.Linear(4, 16384), nn.Linear(16384, 2)).eval()
    shares = {place.name: place.share for place in split_points(net, torch.randn(2, 64))}
    assert shares["9"] == pytest.approx(0.5)
    assert shares["10"] == pytest.approx(0.52)
    assert eenet.attach(net, "auto:2:flops", example=torch.randn(2, 64)).exit_names == ("10", "output")


def test_one_tensor_to_hand_on_is_worth_a_little_inequality() -> None:
    net = blocks(3, inner=8).eval()
    shares = {place.name: place.share for place in split_points(net, torch.randn(2, 8))}
    assert shares["1.first"] == pytest.approx(0.48)
    assert shares["1"] == pytest.approx(0.64)
    assert eenet.attach(net, "auto:2:flops", example=torch.randn(2, 8)).exit_names == ("1", "output")


def test_modules_that_end_nowhere_or_mix_samples_are_no_places() -> None:
    twice = nn.Linear(4, 4)
    model = Chain(
        lambda net, x: net.last(net.mixed(net.twice(net.twice(x)).reshape(-1, 2)).reshape(-1, 4)),
        twice=twice,
        mixed=nn.Linear(2, 2),
        last=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)),
    )
    assert [place.name for place in split_points(model.eval(), torch.randn(2, 4))] == ["last.0", "last.1"]


def test_the_network_is_left_as_it_was() -> None:
    model = SmallResNet().train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    split_points(model, X)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_exits_are_placed_by_measured_time_too() -> None:
    found = split_points(blocks(6, width=256).eval(), torch.randn(64, 256), cost="ms")
    shares = [place.share for place in found]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    model = eenet.attach(blocks(6, width=256).eval(), "auto:2:ms", example=torch.randn(64, 256))
    assert model.num_exits == 2
    assert model.placement is not None
    (placed,) = model.placement.kept
    assert (placed.name, "output") == model.exit_names
    assert 0.3 < placed.share < 0.7
    assert 0 < placed.head < 0.25 * (1 - placed.share)
    assert f"{placed.name!r} at {placed.share:.0%} of the network's time" in str(eenet.describe(model))


def test_exits_that_do_not_pay_are_left_out() -> None:
    with pytest.warns(ReliabilityWarning, match="left out, since they would not pay"):
        model = eenet.attach(blocks(12, width=64).eval(), "auto:10", example=torch.randn(2, 64))
    placement = model.placement
    assert placement is not None
    assert model.exit_names == (*(place.name for place in placement.kept), "output")
    assert len(placement.kept) + len(placement.dropped) == 9
    ends = [*(place.share for place in placement.kept[1:]), 1.0]
    assert all(place.head <= 0.25 * (end - place.share) for place, end in zip(placement.kept, ends, strict=True))


def test_a_network_whose_heads_cost_more_than_they_save_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 9999))
    for exits in ("auto", "auto:2"):
        with pytest.raises(InvalidInputError, match=r"no exit pays in this network.*name the modules"):
            eenet.attach(net.eval(), exits, example=torch.randn(2, 4))
    assert eenet.attach(net.eval(), "auto:2:flops", example=torch.randn(2, 4)).num_exits == 2


def test_a_model_with_exits_says_so() -> None:
    model = eenet.attach(SmallConvNet(), ["first"], example=X)
    with pytest.raises(InvalidInputError, match=r"has exits already, at \['first'\].*model.backbone"):
        eenet.attach(model, ["second"], example=X)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision resnet18", ("layer1", "layer3.0", "output")),
        ("torchvision vit_b_16", ("encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_7", "output")),
        ("torchvision swin_t", None),
        ("torchvision deeplabv3_resnet50", None),
        ("Hugging Face MiniLM-L6-H384", ("bert.encoder.layer.1", "bert.encoder.layer.3", "output")),
    ],
)
def test_exits_of_known_networks(name: str, expected: tuple[str, ...] | None) -> None:
    network = NETWORKS[name]
    model = eenet.attach(network.build().eval(), "auto:3:flops", example=network.example(2)).eval()
    assert model.num_classes == network.num_classes
    assert expected is None or model.exit_names == expected
    parts = [row.flops for row in eenet.describe(model).rows]
    assert max(parts) < 0.5 * sum(parts)
    assert len({logits.shape for logits in network.call(model, network.inputs(3))}) == 1


@pytest.mark.parametrize("exits", ["auto:", "auto:1", "auto:x", "auto:3:hours"])
def test_what_cannot_be_read_is_refused(exits: str) -> None:
    with pytest.raises(InvalidInputError, match=r"'auto.*expected a list of module names.*'auto', or 'auto:3'"):
        eenet.attach(SmallConvNet(), exits, 5, X)


def test_too_many_exits_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="only 4 places of different cost in this network for 9 early exits"):
        eenet.attach(blocks(2).eval(), "auto:10:flops", 2, torch.randn(2, 8))


def test_classes_are_read_off_the_output() -> None:
    assert eenet.attach(SmallConvNet(classes=7), ["first"], example=X).num_classes == 7
    with pytest.raises(InvalidInputError, match="example is None"):
        eenet.attach(SmallConvNet(), ["first"])


def test_a_network_cut_already_is_taken_as_it_is() -> None:
    net = SmallConvNet().eval()
    staged = eenet.cut(net, ["first"], X)
    model = eenet.attach(staged, heads=[head := ConvHead(8, 5)])
    assert model.staged is staged
    assert model.heads[0] is head
    assert model.exit_names == ("first", "output")


# Default heads


def only_head(net: nn.Module, at: str, example: Any) -> nn.Module:
    model = eenet.attach(net.eval(), [at], example=example)
    return model.heads[0]


def test_channels_last_maps_are_told_by_the_ratio_of_the_image() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        maps = net.a(nn.functional.avg_pool2d(x, 2).permute(0, 2, 3, 1))
        return net.b(maps.mean((1, 2)))

    wide = torch.randn(2, 3, 8, 24)
    for width, example in ((12, wide), (6, wide), (5, torch.randn(2, 3, 12, 12))):
        net = Chain(forward, a=nn.Linear(3, width), b=nn.Linear(width, 4))
        head = only_head(net, "a", example)
        assert isinstance(head, GridHead)
        assert head.channels_last
        assert head.conv.in_channels == width
    plain = only_head(SmallConvNet(), "first", wide)
    assert isinstance(plain, GridHead)
    assert not plain.channels_last


def test_tokens_of_images_are_averaged() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        tokens = net.a(x.flatten(2).transpose(1, 2))
        return net.b(tokens.mean(1))

    head = only_head(Chain(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 4)), "a", X)
    assert isinstance(head, TokenHead)
    assert head.pool == "mean"


def test_a_head_sees_the_batch_first() -> None:
    net = Chain(lambda net, x: net.b(net.a(x.transpose(0, 1))[0]), a=nn.Linear(4, 8), b=nn.Linear(8, 3))
    model = eenet.attach(net.eval(), ["a"], example=torch.randn(2, 6, 4)).eval()
    x = torch.randn(5, 6, 4)
    early, last = model(x)
    assert early.shape == last.shape == (5, 3)
    torch.testing.assert_close(model(x[2:3])[0], early[2:3])


def test_dense_prediction_gives_every_exit_the_size_of_the_output() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        maps = net.b(net.a(x))
        return {"out": nn.functional.interpolate(maps, size=x.shape[2:], mode="bilinear"), "aux": maps}

    net = Chain(forward, a=nn.Conv2d(3, 6, 3, stride=2), b=nn.Conv2d(6, 4, 3, stride=2)).eval()
    x = torch.randn(3, 3, 17, 21)
    model = eenet.attach(net, ["a"], 4, x[:2]).eval()
    assert isinstance(model.heads[0], SegmentationHead)
    assert [tuple(logits.shape) for logits in model(x)] == [(3, 4, 17, 21)] * 2
    torch.testing.assert_close(model(x)[-1], net(x)["out"])


def test_a_feature_that_no_default_head_fits_asks_for_heads() -> None:
    net = Chain(lambda net, x: net.b(net.a(x).flatten(1)), a=nn.Conv3d(1, 2, 3), b=nn.Linear(2 * 27, 3))
    x = torch.randn(2, 1, 5, 5, 5)
    with pytest.raises(InvalidInputError, match=r"'a' gives a feature of shape .*pass heads=\[...\]"):
        eenet.attach(net.eval(), ["a"], 3, x)
    head = nn.Sequential(nn.Flatten(), VectorHead(54, 3))
    assert eenet.attach(net.eval(), ["a"], 3, x, heads=[head])(x)[0].shape == (2, 3)
