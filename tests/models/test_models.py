"""Attaching exits to a network, and collecting records with it."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eenet
from eenet.errors import CutError, InvalidInputError, ReliabilityWarning
from eenet.models import ConvHead, DownsamplingHead, GridHead, TokenHead, VectorHead
from eenet.networks import CifarResNet
from networks import SmallConvNet, conv_model, table_model

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_attach_shares_the_weights_and_leaves_the_network_as_it_was() -> None:
    net = SmallConvNet().train()
    before = copy.deepcopy(net.state_dict())
    keys = set(net.state_dict())
    model = eenet.attach(net, exits=["first", "second"], num_classes=5, example=X)
    assert model.backbone is net
    assert {id(p) for p in net.parameters()} <= {id(p) for p in model.parameters()}
    assert set(net.state_dict()) == keys
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert model.num_exits == 3
    assert model.exit_names == ("first", "second", "output")


def test_the_last_exit_is_the_network_itself() -> None:
    model = conv_model(0)
    outputs = model(X)
    assert [tuple(o.shape) for o in outputs] == [(4, 5)] * 3
    torch.testing.assert_close(outputs[-1], model.backbone.eval()(X))


def test_training_all_exits_moves_heads_and_backbone_and_batch_norm() -> None:
    torch.manual_seed(0)
    net = SmallConvNet()
    model = eenet.attach(net, exits=["first", "second"], num_classes=5, example=X).train()
    mean = net.first[1].running_mean
    assert isinstance(mean, Tensor)
    mean_before = mean.clone()
    y = torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = sum((nn.functional.cross_entropy(o, y) for o in model(X)), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 3
    assert not torch.equal(net.first[1].running_mean, mean_before)  # type: ignore[arg-type]
    model.eval()
    torch.testing.assert_close(model(X)[-1], net(X))


class Returning(nn.Module):
    """A network that returns what the test says."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.top = nn.Linear(6, 4)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).relu()
        return self.make(self.top(hidden), hidden)


@pytest.mark.parametrize(
    "make",
    [
        lambda logits, hidden: logits,
        lambda logits, hidden: {"logits": logits, "hidden": hidden},
        lambda logits, hidden: (hidden, logits),
    ],
    ids=["tensor", "mapping", "tuple"],
)
def test_logits_are_found_in_the_usual_outputs(make: Any) -> None:
    model = eenet.attach(Returning(make), exits=["body"], num_classes=4, example=torch.randn(3, 6))
    assert [tuple(o.shape) for o in model(torch.randn(5, 6))] == [(5, 4), (5, 4)]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda logits, hidden: (logits, logits * 2), "a tuple of a tensor of shape"),
        (lambda logits, hidden: {"scores": logits}, "a mapping of 'scores': a tensor of shape"),
        (lambda logits, hidden: hidden, r"a tensor of shape \(\d, 6\)"),
    ],
    ids=["two candidates", "no logits", "other width"],
)
def test_outputs_that_cannot_be_understood_are_refused_with_what_was_found(make: Any, found: str) -> None:
    with pytest.raises(InvalidInputError, match=f"returns {found}.*wrap the network"):
        eenet.attach(Returning(make), exits=["body"], num_classes=4, example=torch.randn(3, 6))


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ([], "expected a list of module names"),
        ("first", "expected a list of module names"),
        (["frist"], "frist.*first"),
        (["first", "first"], "first"),
        (["second", "first"], "first|second"),
        (["first", "spare"], "spare"),
    ],
)
def test_wrong_exit_names_are_refused_by_name(exits: Any, message: str) -> None:
    net = SmallConvNet()
    net.add_module("spare", nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match=message):
        eenet.attach(net, exits=exits, num_classes=5, example=X)


def test_wrong_heads_classes_and_examples_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="1 heads for 2 exits"):
        eenet.attach(SmallConvNet(), ["first", "second"], 5, X, heads=[ConvHead(8, 5)])
    with pytest.raises(
        InvalidInputError, match=r"head at 'second' gives \(3, 7\) for 3 samples, expected .*\(batch, 5\)"
    ):
        eenet.attach(SmallConvNet(), ["first", "second"], 5, X, heads=[ConvHead(8, 5), ConvHead(16, 7)])
    with pytest.raises(InvalidInputError, match="num_classes is 1"):
        eenet.attach(SmallConvNet(), ["first"], 1, X)
    with pytest.raises(InvalidInputError, match="batch"):
        eenet.attach(SmallConvNet(), ["first"], 5, X[:0])
    with pytest.raises((CutError, InvalidInputError)):
        eenet.attach(SmallConvNet(), ["first"], 5, "not a tensor")


def test_a_head_that_fails_on_its_feature_is_refused_by_module_and_shape() -> None:
    heads = [ConvHead(8, 5), nn.Sequential(nn.Flatten(), nn.Linear(99, 5))]
    message = (
        r"the head at 'second', a Sequential, fails on the feature at 'second', of shape \(3, 16, 4, 4\) and "
        r"torch.float32 \(.*\); give a head for a feature of this shape, or leave heads out"
    )
    with pytest.raises(InvalidInputError, match=message):
        eenet.attach(SmallConvNet(), ["first", "second"], 5, X, heads=heads)


class Narrowing(nn.Module):
    """Works in bfloat16 inside."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)


class Widening(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


@pytest.mark.parametrize("own", [False, True])
def test_a_feature_of_another_dtype_than_its_head_is_refused_with_a_way_out(own: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 8), Narrowing(), Widening(), nn.Linear(8, 3)).eval()
    x = torch.randn(3, 6)
    message = (
        r"the feature at '1', of shape \(3, 8\) and torch.bfloat16, does not fit the head there, a \w+ of "
        r"torch.float32: pass heads=\[...\] .* such as feature.float\(\)"
    )
    with pytest.raises(InvalidInputError, match=message):
        eenet.attach(net, ["1"], example=x, heads=[nn.Linear(8, 3)] if own else None)
    converting = nn.Sequential(Widening(), nn.Linear(8, 3))
    assert eenet.attach(net, ["1"], example=x, heads=[converting])(x)[0].shape == (3, 3)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("part", [False, True])
def test_scripted_modules_are_refused_with_a_way_out(part: bool) -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    net = nn.Sequential(scripted, nn.Linear(6, 4)) if part else scripted
    name = "module '0'" if part else "the network"
    exits: list[Any] = [["0"], "auto:2:flops"]
    for asked in exits:
        with pytest.raises(InvalidInputError, match=rf"{name} is a \w+ of torch.jit.*give the Python module"):
            eenet.attach(net, asked, example=torch.randn(3, 6))


@pytest.mark.parametrize(
    "change",
    [lambda y: y[:3], lambda y: torch.cat([y, y]), lambda y: y[: y.shape[0] // 2 * 2], lambda y: y.t() @ y],
    ids=["drops", "repeats", "drops the odd one", "one answer for all"],
)
@pytest.mark.parametrize("samples", [2, 3])
def test_a_network_without_one_answer_for_each_sample_is_refused(change: Any, samples: int) -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.top = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = change(self.top(self.body(x)))
            return logits

    with pytest.raises(InvalidInputError, match=r"drops, repeats or mixes samples|cannot (cut|trace)"):
        eenet.attach(Changing(), ["body"], 4, torch.randn(samples, 4))


def test_an_example_of_batch_size_one_is_enough() -> None:
    model = eenet.attach(SmallConvNet(), ["first"], 5, X[:1]).eval()
    for n in (1, 2, 7):
        assert [tuple(o.shape) for o in model(torch.randn(n, 3, 8, 8))] == [(n, 5), (n, 5)]


def test_default_heads_fit_the_feature() -> None:
    vector = eenet.attach(Returning(lambda logits, hidden: logits), ["body"], 4, torch.randn(2, 6))
    assert isinstance(vector.heads[0], VectorHead)
    assert isinstance(conv_model(0).heads[0], GridHead)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.last(self.layer(x)[:, 0])
            return logits

    tokens = eenet.attach(Tokens().eval(), ["layer"], 3, torch.randn(2, 5, 8))
    assert isinstance(tokens.heads[0], TokenHead)


def test_large_and_small_features_fit_the_convolutional_head() -> None:
    head = ConvHead(8, 3).eval()
    for size in (1, 2, 7, 8, 30):
        assert head(torch.randn(2, 8, size, size)).shape == (2, 3)


def test_moving_the_model_to_another_dtype_keeps_stages_and_network_together() -> None:
    model = eenet.attach(SmallConvNet().eval(), ["first"], 5, X).eval().double()
    x = X.double()
    torch.testing.assert_close(model(x)[-1], model.backbone(x))
    assert model(x)[0].dtype == torch.float64


def test_state_dicts_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = eenet.attach(SmallConvNet().eval(), ["first"], 5, X).eval()
    torch.manual_seed(2)
    two = eenet.attach(SmallConvNet().eval(), ["first"], 5, X).eval()
    two.load_state_dict(one.state_dict())
    for a, b in zip(one(X), two(X), strict=True):
        torch.testing.assert_close(a, b)


def test_the_residual_network_has_the_published_size() -> None:
    # He et al., CVPR 2016, table 6: ResNet-20 has 0.27 M parameters, ResNet-56 has 0.85 M.
    for blocks, millions in (((3, 3, 3), 0.27), ((9, 9, 9), 0.85)):
        net = CifarResNet(blocks)
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions
        assert net.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


# Collecting


def test_collect_gives_the_models_logits_in_the_loaders_order_and_leaves_its_mode() -> None:
    model = conv_model(1).train()
    model.heads[0].eval()
    x, y = torch.randn(10, 3, 8, 8), torch.arange(10) % 5
    records = eenet.collect(model, [(x[:7], y[:7]), (x[7:], y[7:])])
    assert model.training
    assert not model.heads[0].training
    model.eval()
    expected = torch.softmax(torch.stack(model(x)), -1)
    np.testing.assert_allclose(records.probabilities, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert records.labels is not None
    assert records.labels.tolist() == y.tolist()


def test_collect_reads_the_usual_batches() -> None:
    model = conv_model(2)
    x, y = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    expected = eenet.collect(model, [(x, y)])
    batches: list[Any] = [[x, y], ((x,), y), x, (x,)]
    for batch in batches:
        found = eenet.collect(model, [batch])
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        labeled = not (isinstance(batch, Tensor) or (isinstance(batch, tuple) and len(batch) == 1))
        assert (found.labels is not None) == labeled
    by_name = eenet.attach(SmallConvNet().eval(), ["first"], 5, {"x": x})
    named: list[Any] = [{"x": x, "labels": y}, ({"x": x}, y), {"x": x, "label": y}]
    for batch in named:
        assert eenet.collect(by_name, [batch]).labels is not None


def test_collect_says_where_labels_lack_classes_of_the_network() -> None:
    model = table_model(2, 10)
    labels = torch.arange(10).repeat_interleave(50)[:150]
    batches = [(torch.randn(50, 20), labels[start : start + 50]) for start in (0, 50, 100)]
    with pytest.warns(ReliabilityWarning, match=r"lack 7 of .* 10 classes \(3, 4, 5, 6, 7, 8, 9\), .*sorted by class"):
        eenet.collect(model, batches)


def test_collect_passes_over_empty_batches() -> None:
    model = conv_model(2)
    x, y = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    expected = eenet.collect(model, [(x, y)])
    found = eenet.collect(model, [(x[:0], y[:0]), (x[:4], y[:4]), (x[:0], y[:0]), (x[4:], y[4:])])
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-5, atol=1e-6)
    assert found.labels is not None
    assert found.labels.tolist() == y.tolist()
    with pytest.raises(InvalidInputError, match="no batch with a sample"):
        eenet.collect(model, [(x[:0], y[:0])])
    with pytest.raises(InvalidInputError, match=r"a batch of 0 samples has labels of shape \(6,\)"):
        eenet.collect(model, [(x[:0], y)])


def test_collect_passes_over_empty_batches_that_the_network_could_not_run() -> None:
    class Reshaping(nn.Module):
        """As BERT does: with no sample there is no telling what -1 stands for."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.top = nn.Linear(6, 6), nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.top(self.body(x).reshape(x.shape[0], -1, 2).sum(1))
            return logits

    model = eenet.attach(Reshaping().eval(), ["body"], 4, torch.randn(2, 6))
    x = torch.randn(3, 6)
    assert len(eenet.collect(model, [x[:0], x])) == 3
    with pytest.raises(RuntimeError):
        model(x[:0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_inputs_of_another_precision_are_refused_before_torch_is(dtype: torch.dtype) -> None:
    model = copy.deepcopy(conv_model(0))
    x = torch.randn(4, 3, 8, 8)
    records = eenet.collect(model, [(x, torch.arange(4))])
    fast = eenet.AdaptiveModel(model, eenet.Static(1).fit(records, eenet.ExitCosts([1.0, 2.0, 3.0])))
    message = rf"input .* has dtype {dtype}, but the model works in torch.float32; convert the input with "
    for run in (fast, model, lambda z: eenet.collect(model, [(z, torch.arange(4))])):
        with pytest.raises(InvalidInputError, match=message):
            run(x.to(dtype))
    if dtype == torch.float16:
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x.to(dtype))[-1].shape == (4, 5)  # autocast converts it
    else:
        assert model.to(dtype)(x.to(dtype))[-1].dtype == dtype, "the other way out"


def test_collect_refuses_labels_that_do_not_fit_their_batch() -> None:
    x, y = torch.randn(6, 3, 8, 8), torch.zeros(6, dtype=torch.long)
    # Six labels in all, but the fourth would go to the wrong sample.
    with pytest.raises(InvalidInputError, match=r"a batch of 3 samples has labels of shape \(4,\); expected one label"):
        eenet.collect(conv_model(0), [(x[:3], y[:4]), (x[3:], y[4:])])
    with pytest.raises(InvalidInputError, match=r"a batch of 6 samples has labels of shape \(\)"):
        eenet.collect(conv_model(0), [(x, torch.tensor(1))])


def test_collect_refuses_what_it_cannot_read() -> None:
    model = conv_model(2)
    x, y = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    with pytest.raises(InvalidInputError, match="gave no batch"):
        eenet.collect(model, [])
    with pytest.raises(InvalidInputError, match="1 of 2 batches have labels"):
        eenet.collect(model, [(x, y), x])
    with pytest.raises(InvalidInputError, match=r"labels\[0\] is 5, expected 0 to 4"):
        eenet.collect(model, [(x, y + 5)])
    bad: Mapping[str, Any] = {"labels": y}
    with pytest.raises((InvalidInputError, TypeError)):
        eenet.collect(model, [bad])


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_a_downsampling_head_narrows_the_map_and_widens_it_in_channels(depth: int) -> None:
    head = DownsamplingHead(8, 5, depth=depth).eval()
    assert head(torch.randn(2, 8, 16, 24)).shape == (2, 5)
    assert head.fc.in_features == 8 * 2 ** min(depth, 2)
    with pytest.raises(RuntimeError, match="expected input"):
        head(torch.randn(2, 4, 16, 24))


# Copies and files


class Half(nn.Module):
    """Multiplies by a tensor that it makes itself, which a trace keeps as a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.full((1,), 0.5)


def saved_and_loaded(model: eenet.MultiExitModel) -> eenet.MultiExitModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, eenet.MultiExitModel)
    return loaded


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")
@pytest.mark.parametrize("copied", [saved_and_loaded, copy.deepcopy], ids=["torch.save", "deepcopy"])
@pytest.mark.parametrize("training", [False, True])
def test_a_copy_gives_the_same_answers_and_has_its_buffers_as_saved(copied: Any, training: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), Half(), nn.Linear(8, 3))
    x = torch.randn(6, 4)
    model = eenet.attach(net, ["2"], example=x[:3]).train()
    for _ in range(3):
        model(x)
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = copied(model)
    assert again.training == training
    assert again.exit_names == model.exit_names
    assert (again.num_classes, again.task, again.source) == (model.num_classes, model.task, model.source)
    assert before["staged.backbone.1.num_batches_tracked"] == 3
    assert {name: value.tolist() for name, value in again.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    with torch.no_grad():
        for one, other in zip(model.eval()(x), again.eval()(x), strict=True):
            assert torch.equal(one, other)
        next(again.backbone.parameters()).add_(1)
        assert not torch.equal(again(x)[0], model(x)[0]), "a copy shares no weights, and its stages use its own"


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")
def test_a_copy_keeps_its_memory_format_and_moves_as_the_model_does() -> None:
    model = copy.deepcopy(conv_model(0)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    again = saved_and_loaded(model)
    convolutions = [m for m in again.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    for one, other in zip(model(X), again(X), strict=True):
        torch.testing.assert_close(one, other)
    wide = again.double()
    assert wide(X.double())[0].dtype == torch.float64
    if torch.cuda.is_available():
        moved = again.float().to("cuda")
        assert {logits.device.type for logits in moved(X.to("cuda"))} == {"cuda"}


# After a change of the network, and compiled


def test_a_network_that_was_changed_is_noticed_when_records_are_collected() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    model = eenet.attach(net, ["1"], example=x[:2]).eval()
    eenet.collect(model, [(x, y)])
    with torch.no_grad():
        net[2].weight.mul_(2)  # type: ignore[operator] # other values are no other network
    eenet.collect(model, [(x, y)])
    net[2] = nn.Sequential(nn.Linear(8, 3), nn.Tanh())
    with pytest.raises(CutError, match=r"the network was changed after it was cut: module '2'"):
        eenet.collect(model, [(x, y)])


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile's own
def test_a_model_can_be_compiled_before_it_was_called_in_training_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = eenet.attach(net, ["2"], example=torch.randn(3, 4)).train()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(5, 4)
    torch.manual_seed(0)
    got = compiled(x)
    torch.testing.assert_close(got, model(x))
    got[0].sum().backward()
    assert net[0].weight.grad is not None


class WithAuxiliaryLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last, self.aux = (nn.Linear(4, n) for n in (4, 4, 3, 3))

    def forward(self, x: Tensor) -> Any:
        h = self.first(x).relu()
        y = self.last(self.second(h).relu())
        return (y, self.aux(h)) if self.training else y


@pytest.mark.parametrize("converted", ["network", "heads"])
def test_a_network_or_heads_converted_alone_are_named(converted: str) -> None:
    model = copy.deepcopy(conv_model(0))
    x, y = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    scheduler = eenet.Static(0).fit(eenet.collect(model, [(x, y)]), eenet.ExitCosts([1.0, 2.0, 3.0]))
    fast = eenet.AdaptiveModel(model, scheduler)
    (model.backbone if converted == "network" else model.heads).double()
    given = x.double() if converted == "network" else x
    network, head = ("float64", "float32") if converted == "network" else ("float32", "float64")
    message = rf"the network is torch.{network} and the head at 'first' is torch.{head}.*model.to\(torch.{network}\)"
    for call in (
        lambda: model(given),
        lambda: eenet.collect(model, [(given, y)]),
        lambda: model.train()(given, labels=y),
        lambda: eenet.profile(model.eval(), given, unit="flops"),
        lambda: fast(given),
    ):
        with pytest.raises(InvalidInputError, match=message):
            call()
    model.to(torch.float64)
    torch.testing.assert_close(fast(x.double()).logits, model(x.double())[0])


def test_heads_that_convert_their_feature_run_beside_a_network_of_another_precision() -> None:
    class Single(VectorHead):
        def forward(self, feature: Tensor) -> Any:
            return super().forward(feature.float() if self.convert else feature)

    head: Any = Single(8, 3)
    head.convert = False
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    model = eenet.attach(network, ["1"], example=torch.randn(2, 4).double(), heads=[head])
    model.heads.float()
    head.convert = True
    x = torch.randn(5, 4).double()
    assert [logits.dtype for logits in model(x)] == [torch.float32, torch.float64]
    with pytest.raises(InvalidInputError, match=r"^input '.*' has shape \(5, 3\)"):
        model(x[:, :3])


def test_auxiliary_logits_in_training_are_named_as_such() -> None:
    model = eenet.attach(WithAuxiliaryLogits().eval(), ["first"], example=torch.randn(2, 4))
    with pytest.raises(InvalidInputError, match=r"2 tensors could be the logits.*aux_logits=False"):
        model.train()(torch.randn(4, 4))


@pytest.mark.parametrize("mix", [lambda f: f - f.mean(0), lambda f: f / f.abs().max(), lambda f: f - f[:1]])
def test_a_head_that_mixes_samples_is_refused(mix: Any) -> None:
    class Head(nn.Linear):
        def forward(self, feature: Tensor) -> Tensor:
            return super().forward(mix(feature))

    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(InvalidInputError, match="the head at '1', a Head, mixes samples"):
        eenet.attach(network, ["1"], example=torch.randn(2, 4), heads=[Head(8, 3)])


def test_a_plain_network_is_refused_wherever_one_with_exits_is_asked_for(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model, x = eenet.attach(network, ["1"], example=torch.randn(2, 4)), torch.randn(16, 4)
    records = eenet.collect(model, [(x, torch.arange(16) % 3)])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([0.4, 1.0], "ms"), "100%")
    wrong: Any = network
    for call in (
        lambda: eenet.collect(wrong, [x]),
        lambda: eenet.profile(wrong, x),
        lambda: eenet.AdaptiveModel(wrong, scheduler),
        lambda: eenet.export(wrong, scheduler, tmp_path / "bundle", example=x),
        lambda: eenet.train(wrong, [], [], out=tmp_path / "run"),
    ):
        with pytest.raises(InvalidInputError, match="model is a Sequential, expected a MultiExitModel"):
            call()
    wrong = model
    with pytest.raises(InvalidInputError, match="records are a MultiExitModel, expected ExitRecords"):
        scheduler.replay(wrong)


class TestLabels:
    def test_a_call_with_labels_gives_the_loss_that_train_minimizes(self) -> None:
        model = conv_model(0)
        labels = torch.tensor([0, 1, 2, 3])
        found = model(X, labels=labels)
        torch.testing.assert_close(found["logits"], model(X))
        each = [nn.functional.cross_entropy(z, labels) for z in model(X)]
        torch.testing.assert_close(found["loss"], each[0] / 3 + each[1] * 2 / 3 + each[2])

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (torch.tensor([0, 1, 2, 5]), "the label 5, expected 0 to 4"),
            (torch.tensor([0, 1, -1, 3]), "the label -1"),
            (torch.tensor([0, 1, 2]), r"shape \(3,\), expected whole numbers of shape \(4,\)"),
            (torch.rand(4), "torch.float32"),
        ],
    )
    def test_labels_that_do_not_fit_are_named(self, labels: Tensor, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            conv_model(0)(X, labels=labels)

    def test_labels_of_any_whole_dtype_and_lists_of_them_count_alike(self) -> None:
        model, labels = conv_model(0), [0, 1, 2, 3]
        expected = model(X, labels=torch.tensor(labels))["loss"]
        torch.testing.assert_close(model(X, labels=labels)["loss"], expected)
        for dtype in (torch.int32, torch.uint8, torch.int16):
            torch.testing.assert_close(model(X, labels=torch.tensor(labels, dtype=dtype))["loss"], expected)

    def test_a_data_set_of_single_samples_is_no_loader(self) -> None:
        data = torch.utils.data.TensorDataset(X, torch.arange(4))
        with pytest.raises(InvalidInputError, match="TensorDataset gives single samples, expected batches; give torch"):
            eenet.collect(conv_model(0), data)  # type: ignore[arg-type]
        assert len(eenet.collect(conv_model(0), torch.utils.data.DataLoader(data, 3))) == 4

    def test_one_batch_is_no_loader(self) -> None:
        labels = torch.arange(4) % 3
        for loader, message in (
            (X, r"a tensor of shape \(4, 3, 8, 8\), whose items are single samples; expected batches: give \[inputs\]"),
            (
                (X, labels),
                r"the pair \(inputs, labels\) of one batch, .*; expected batches: give \[\(inputs, labels\)\]",
            ),
        ):
            with pytest.raises(InvalidInputError, match=message):
                eenet.collect(conv_model(0), loader)
        assert len(eenet.collect(conv_model(0), torch.stack([X, X]))) == 8  # batches of inputs alone, in a tensor
        assert len(eenet.collect(conv_model(0), (X, X))) == 8

    def test_pixels_without_a_label_do_not_count(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
        model = eenet.attach(network, ["1"], example=X).eval()
        labels = torch.zeros(4, 8, 8, dtype=torch.long)
        labels[:, :, 4:] = 255
        half = [nn.functional.cross_entropy(z[:, :, :, :4], labels[:, :, :4]) for z in model(X)]
        torch.testing.assert_close(model(X, labels=labels)["loss"], half[0] / 2 + half[1])
        assert float(model(X, labels=torch.full_like(labels, 255))["loss"].detach()) == 0.0

    def test_the_signature_names_the_inputs_so_that_trainers_find_their_columns(self) -> None:
        model = conv_model(0)
        assert list(inspect.signature(model.forward).parameters) == ["x", "labels"]
        assert list(inspect.signature(copy.deepcopy(model).forward).parameters) == ["x", "labels"]
        torch.testing.assert_close(model(x=X), model(X))
        with pytest.raises(InvalidInputError, match=r"keywords \[y\]"):
            model(y=X)
        with pytest.raises(InvalidInputError, match="1 positional and keywords"):
            model(X, x=X)

    def test_keys_that_are_no_inputs_are_named_first_with_what_drops_them(self) -> None:
        model = conv_model(0)
        labels = torch.zeros(len(X), dtype=torch.long)
        batch = {"x": X, "labels": labels, "idx": torch.arange(len(X)), "text": ["a"] * len(X)}
        message = (
            r"^'idx', 'text' are no inputs of the network: take them out, as with batch.pop\('idx'\) and batch.pop"
            r"\('text'\), or of a data set of Hugging Face with remove_columns\(\['idx', 'text'\]\); got "
        )
        for call in (lambda: model(**batch), lambda: eenet.collect(model, [batch])):
            with pytest.raises(InvalidInputError, match=message):
                call()
        del batch["idx"], batch["text"]
        assert len(eenet.collect(model, [batch])) == len(X)

    def test_an_input_called_labels_is_an_input(self) -> None:
        class Prompted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

            def forward(self, x: Tensor, labels: Tensor) -> Tensor:
                out: Tensor = self.last(self.first(x + labels))
                return out

        inputs = {"x": torch.randn(4, 4), "labels": torch.randn(4, 4)}
        model = eenet.attach(Prompted(), ["first"], example=inputs).eval()
        assert [tuple(z.shape) for z in model(**inputs)] == [(4, 3), (4, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_classes": torch.zeros(2, 4)},
            r"num_classes is a Tensor, .* attach\(network, exits, num_classes, example\)",
        ),
        ({"num_classes": "3"}, r"num_classes is a str, expected a whole number"),
        ({"num_classes": 3.5}, r"num_classes is a float, expected a whole number"),
        ({"dynamic": ["sequence"]}, r"dynamic is \['sequence'\], expected a mapping"),
        ({"task": "classification"}, r"task is 'classification', expected one of eenet\.tasks"),
    ],
)
def test_arguments_in_each_other_s_place_are_named(arguments: Any, message: str) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(InvalidInputError, match=message):
        eenet.attach(network, ["1"], **{"example": torch.zeros(2, 4), **arguments})


def test_collect_takes_batches_only() -> None:
    model = eenet.attach(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), ["1"], 3, torch.zeros(2, 4))
    wrong: Any = 3
    with pytest.raises(InvalidInputError, match="loader is an int, expected a DataLoader or a list of batches"):
        eenet.collect(model, wrong)
    arrays: Any = [(np.zeros((5, 4), np.float32), np.zeros(5, int))]
    with pytest.raises(InvalidInputError, match=r"inputs of a batch are of type ndarray; .* torch\.from_numpy"):
        eenet.collect(model, arrays)
    ragged = [(torch.zeros(2, 4), [[0], [0, 1]])]
    with pytest.raises(InvalidInputError, match="the labels of a batch are no array of integers"):
        eenet.collect(model, ragged)
    labels: dict[str, Any] = {
        r"dtype float32, .* give labels\.long\(\) of a tensor": torch.zeros(2),
        r"dtype float32, .* of one-hot labels give labels\.argmax\(1\)": torch.eye(3)[:2],
        r"dtype bool, .* give labels\.long\(\) of a tensor": torch.tensor([True, False]),
        r"dtype <U1, .* numpy\.searchsorted\(model\.classes_, labels\)": ["a", "b"],
    }
    for message, given in labels.items():
        with pytest.raises(InvalidInputError, match=message):
            eenet.collect(model, [(torch.zeros(2, 4), given)])
