"""Cutting: what the stages are, that they give what the network gives, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages_toys import Chain, SmallResNet, warm
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import eenet
from eenet.errors import CutError, InvalidInputError
from eenet.stages import Stage, StagedModel, cut


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small() -> SmallResNet:
    model = SmallResNet().eval()
    warm(model)
    return model


def images(batch: int, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size)


def run_compacted(staged: StagedModel, x: tuple[Tensor, ...], boundary: int, index: Tensor) -> tuple[Tensor, ...]:
    live = x
    for number, stage in enumerate(staged.stages):
        if number == boundary:
            live = staged.compact(live, index, number)
            assert staged.batch_size_of(live, number) == len(index)
        out = stage(*live)
        live = tuple(out[i] for i in stage.passed)
    return out


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_stages_give_what_the_network_gives(batch: int) -> None:
    model = small()
    staged = cut(model, ["layer1", "layer2"], images(2))
    x = images(batch)
    assert len(staged.stages) == 3
    torch.testing.assert_close(staged(x), model(x))


@pytest.mark.parametrize("boundary", [1, 2, 3])
@pytest.mark.parametrize("index", [[2, 0], [1], [3, 2, 1, 0], [0, 0]])
def test_remaining_samples_keep_their_results(boundary: int, index: list[int]) -> None:
    model = small()
    staged = cut(model, ["layer1", "layer2.0", "layer3"], images(2))
    x = images(4)
    (got,) = run_compacted(staged, staged.flatten_inputs(x), boundary, torch.tensor(index))
    torch.testing.assert_close(got, model(x)[index])


def test_an_example_of_one_sample_is_enough() -> None:
    model = small()
    staged = cut(model, ["layer2"], images(1))
    for batch in (1, 2, 4):
        x = images(batch)
        torch.testing.assert_close(staged(x), model(x))


def test_the_interface_of_a_stage() -> None:
    staged = cut(small(), ["layer1", "layer2"], images(2))
    first, second, last = staged.stages
    assert [stage.name for stage in staged.stages] == ["layer1", "layer2", "output"]
    (x,) = first.inputs
    assert (x.name, x.shape, x.dtype, x.batch_dim) == ("x", ("batch", 3, 8, 8), torch.float32, 0)
    assert first.outputs[0].shape == ("batch", 4, 8, 8)
    assert second.inputs == tuple(first.outputs[i] for i in first.passed)
    assert last.inputs == tuple(second.outputs[i] for i in second.passed)
    assert (first.feature_index, second.feature_index, last.feature_index) == (0, 0, None)
    assert last.passed == ()
    assert last.outputs[0].shape == ("batch", 3)
    assert "layer1" in repr(first)
    assert isinstance(first, Stage)


def test_the_feature_is_the_output_of_the_module_even_where_nothing_later_uses_it_as_such() -> None:
    # `side` is used before the end of `a` only through its sum; its own output goes nowhere but into the cut.
    def forward(net: Chain, x: Tensor) -> Any:
        y = net.a(x)
        return net.b(x) + 0 * y.sum(1, keepdim=True)

    model = Chain(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    staged = cut(model, ["a"], torch.randn(2, 4))
    x = torch.randn(3, 4)
    first = staged.stages[0]
    assert first.feature_index is not None
    torch.testing.assert_close(first(x)[first.feature_index], model.get_submodule("a")(x))
    torch.testing.assert_close(staged(x), model(x))


def test_stages_hold_the_network_s_own_parameters_under_their_names() -> None:
    model = small()
    staged = cut(model, ["layer1"], images(2))
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    seen: set[str] = set()
    for stage in staged.stages:
        for name, parameter in stage.module.named_parameters():
            assert parameter is parameters[name]
        for name, buffer in stage.module.named_buffers():
            assert buffer is buffers[name]
        assert set(stage.state_dict()) <= set(model.state_dict())
        seen |= set(stage.state_dict())
    assert "layer1.conv.weight" in staged.stages[0].state_dict()
    assert "layer1.conv.weight" not in staged.stages[1].state_dict()
    assert not any(name.startswith("unused") for name in seen)
    assert set(staged.state_dict()) == {f"backbone.{name}" for name in model.state_dict()}
    assert len(list(staged.parameters())) == len(parameters)


def test_tied_weights_are_one_parameter() -> None:
    shared = nn.Linear(4, 4)
    model = Chain(lambda net, x: net.b(net.mid(net.a(x)).relu()), a=nn.Linear(4, 4), mid=shared, b=nn.Linear(4, 4))
    model.get_submodule("b").weight = shared.weight
    model.eval()
    staged = cut(model, ["mid"], torch.randn(2, 4))
    x = torch.randn(3, 4)
    torch.testing.assert_close(staged(x), model(x))
    assert any(parameter is shared.weight for parameter in staged.stages[1].module.parameters())


def test_the_network_is_left_as_it_was() -> None:
    model = small()
    model.layer1.train()
    keep = model.layer2.register_forward_hook(lambda *args: None)
    modes = [module.training for module in model.modules()]
    hooks = [list(module._forward_hooks) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    cut(model, ["layer1", "layer2"], images_fixed := torch.ones(2, 3, 8, 8))
    with pytest.raises(CutError):
        cut(model, ["layer2", "layer1"], images_fixed)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert [list(module._forward_hooks) for module in model.modules()] == hooks
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    keep.remove()


def test_outputs_keep_their_structure() -> None:
    def forward(net: Chain, x: Tensor, *, scale: Tensor) -> Any:
        y = net.a(x)
        return {"logits": net.b(y), "all": (y, [x * scale, None]), "again": y, "number": 7}

    model = Chain(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2)).eval()
    example = {"x": torch.randn(2, 4), "scale": torch.randn(2, 1)}

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor, scale: Tensor) -> object:
            return self.net(x, scale=scale)

    named = Named().eval()
    staged = cut(named, ["net.a"], example)
    x, scale = torch.randn(3, 4), torch.randn(3, 1)
    got, expected = staged(scale=scale, x=x), named(x, scale)
    assert list(got) == list(expected)
    torch.testing.assert_close(got["logits"], expected["logits"])
    torch.testing.assert_close(got["all"][1][0], expected["all"][1][0])
    assert got["all"][1][1] is None
    assert got["number"] == 7
    assert got["again"] is got["all"][0]
    last = staged.stages[-1]
    assert len(last.outputs) == 3, "a tensor returned twice comes once"


def test_the_first_tensor_of_a_module_s_outputs_is_its_feature() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        sequence, _ = net.rnn(x)
        return net.head(sequence[:, -1])

    model = Chain(forward, rnn=nn.GRU(4, 5, batch_first=True), head=nn.Linear(5, 2)).eval()
    staged = cut(model, ["rnn"], torch.randn(2, 6, 4))
    x = torch.randn(3, 6, 4)
    first = staged.stages[0]
    assert first.feature_index is not None
    torch.testing.assert_close(first(x)[first.feature_index], model.get_submodule("rnn")(x)[0])
    torch.testing.assert_close(staged(x), model(x))


class Both(nn.Module):
    """Gives two tensors, and says that an exit sees both, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 5)
        self.seen = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)

    def exit_feature(self, output: tuple[Tensor, Tensor]) -> Tensor:
        self.seen += 1
        return torch.cat(output, 1)


def test_a_module_may_say_what_an_exit_sees() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        first, second = net.both(x)
        return net.head(first) + second[:, :2]

    both = Both()
    model = Chain(forward, both=both, head=nn.Linear(3, 2)).eval()
    staged = cut(model, ["both"], torch.randn(2, 4))
    x = torch.randn(3, 4)
    first, last = staged.stages
    assert first.feature_index is not None
    torch.testing.assert_close(first(x)[first.feature_index], torch.cat(both(x), 1))
    torch.testing.assert_close(staged(x), model(x))
    assert [tensor.shape for tensor in last.inputs] == [("batch", 3), ("batch", 5)], "it does not travel on"
    before = both.seen
    model(x)
    assert both.seen == before, "the network by itself does not pay for it"


def test_an_exit_feature_that_is_no_tensor_is_refused() -> None:
    class Wrong(Both):
        def exit_feature(self, output: tuple[Tensor, Tensor]) -> Any:
            return output

    def forward(net: Chain, x: Tensor) -> Any:
        return net.head(net.both(x)[0])

    model = Chain(forward, both=Wrong(), head=nn.Linear(3, 2)).eval()
    with pytest.raises(CutError, match=r"Wrong\.exit_feature gave a tuple"):
        cut(model, ["both"], torch.randn(2, 4))


def test_constants_cross_without_a_batch_dimension_and_are_not_compacted() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        positions = net.table.weight * 2
        return net.b(net.a(x) + positions) + positions

    model = Chain(forward, table=nn.Embedding(6, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    staged = cut(model, ["a"], torch.randn(2, 6, 4))
    dims = {live.shape: live.batch_dim for live in staged.stages[1].inputs}
    assert dims == {("batch", 6, 4): 0, (6, 4): None}
    x = torch.randn(4, 6, 4)
    index = torch.tensor([3, 1])
    (got,) = run_compacted(staged, (x,), 1, index)
    torch.testing.assert_close(got, model(x)[index])


def test_samples_may_lie_along_another_dimension() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        return net.b(net.a(x.transpose(0, 1))).transpose(0, 1)

    model = Chain(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    staged = cut(model, ["a"], torch.randn(2, 6, 4))
    assert [live.batch_dim for live in staged.stages[1].inputs] == [1]
    x = torch.randn(4, 6, 4)
    index = torch.tensor([3, 1])
    (got,) = run_compacted(staged, (x,), 1, index)
    torch.testing.assert_close(got, model(x)[index])


def test_a_size_is_read_again_after_the_boundary() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        length, double = x.shape[1], x.shape[1] * 2 + x.shape[0]
        y = net.a(x).mean(1)
        return net.b(y) / length + torch.ones(double, device=x.device).sum() - x.shape[0]

    model = Chain(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    # After the mean no live tensor has the sequence dimension: one that does is carried along.
    staged = cut(model, ["a"], torch.randn(2, 6, 4), dynamic={1: "sequence"})
    for batch, length in ((1, 6), (3, 5), (2, 9)):
        x = torch.randn(batch, length, 4)
        torch.testing.assert_close(staged(x), model(x))
    late = Chain(lambda net, x: net.c(net.a(x).mean(1)) * x.shape[1], a=nn.Linear(4, 4), c=nn.Linear(4, 4))
    late.c = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    staged = cut(late.eval(), ["c.0"], torch.randn(2, 6, 4), dynamic={1: "sequence"})
    assert any("sequence" in live.shape for live in staged.stages[1].inputs)
    x = torch.randn(3, 8, 4)
    torch.testing.assert_close(staged(x), late(x))


def test_channels_last_survives_compaction() -> None:
    staged = cut(small(), ["layer1"], images(2))
    live = (torch.randn(4, 4, 8, 8).to(memory_format=torch.channels_last),)
    (got,) = staged.compact(live, torch.tensor([2, 0]), 1)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, live[0][[2, 0]])


def test_no_cut_is_one_stage() -> None:
    model = small()
    staged = cut(model, [], images(2))
    assert len(staged.stages) == 1
    x = images(3)
    torch.testing.assert_close(staged(x), model(x))


def shared_twice() -> Chain:
    return Chain(lambda net, x: net.a(net.a(x)) + net.b(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.ModuleList())


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (["layr1"], r"'layr1'.*did you mean 'layer1'"),
        (["layer1", "layer1"], r"'layer1' twice"),
        (["unused"], r"'unused'.*not on the path"),
        (["layer2", "layer1"], r"'layer2' before 'layer1'.*order \['layer1', 'layer2'\]"),
        (["layer2.1", "layer2"], r"'layer2.1' and 'layer2'.*same place"),
        (["layer2", "layer2.1"], r"'layer2.1' and 'layer2'.*same place"),
        (["layer3.bn", "layer3.relu", "layer3"], r"same place"),
        ([""], r"no module of that name"),
    ],
)
def test_names_that_cannot_be_cut_at_are_refused_by_name(at: list[str], message: str) -> None:
    with pytest.raises(CutError, match=message):
        cut(small(), at, images(2))


def test_a_module_called_twice_is_refused_by_name() -> None:
    with pytest.raises(CutError, match=r"'a'.*calls it 2 times"):
        cut(shared_twice().eval(), ["a"], torch.randn(2, 4))


def test_a_container_is_refused_by_name() -> None:
    with pytest.raises(CutError, match=r"'c'.*only holds other modules"):
        cut(shared_twice().eval(), ["c"], torch.randn(2, 4))


def test_the_last_module_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    with pytest.raises(CutError, match=r"'1'.*nothing comes after it"):
        cut(model, ["1"], torch.randn(2, 4))


def test_a_name_given_twice_through_a_shared_module_is_refused() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    with pytest.raises(CutError, match=r"same module as '0'"):
        cut(model, ["0", "2"], torch.randn(2, 4))


def test_a_string_for_at_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\['layer1'\]"):
        cut(small(), "layer1", images(2))


def test_a_module_inside_a_no_grad_block_is_refused_by_name() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        with torch.no_grad():
            y = net.b(net.a(x))
        return net.c(y)

    model = Chain(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4), d=nn.Linear(4, 4)).eval()
    with pytest.raises(CutError, match=r"'a'.*no_grad"):
        cut(model, ["a"], torch.randn(2, 4))


def test_windows_across_a_boundary_are_refused_by_module_and_tensor() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        return net.b(net.a(x.reshape(-1, 4))).reshape(x.shape[0], -1)

    model = Chain(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    with pytest.raises(CutError, match=r"'a'.*'linear'.*6\*batch.*made in 'a'"):
        cut(model, ["a"], torch.randn(2, 6, 4))


def test_a_batch_by_batch_tensor_is_refused_by_name() -> None:
    def forward(net: Chain, x: Tensor) -> Any:
        return net.a(x @ x.T @ x) @ net.b(x).T @ (x @ x.T)

    model = Chain(lambda net, x: net.b(net.a(x @ x.T) @ x), a=nn.Identity(), b=nn.Linear(4, 4)).eval()
    model.a = nn.ReLU()
    with pytest.raises(CutError, match=r"'a'.*2 dimensions of the batch size"):
        cut(model, ["a"], torch.randn(2, 4))


def test_a_network_that_mixes_samples_after_the_cut_fails_the_self_check() -> None:
    model = Chain(lambda net, x: net.b(net.a(x) - x.mean(0)), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    mixed = Chain(lambda net, x: net.b((y := net.a(x)) - y.mean(0)), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    with pytest.raises(CutError, match=r"'a'.*selected after it.*mix the samples"):
        cut(mixed, ["a"], torch.randn(2, 4))
    # A mean that is taken before the cut is a constant of the batch: the remaining samples keep their results.
    x = torch.randn(3, 4)
    torch.testing.assert_close(cut(model, ["a"], torch.randn(2, 4), check=False)(x), model(x))


@pytest.mark.parametrize(
    "mix",
    [
        lambda y: y.flip(0),
        lambda y: y.roll(1, 0),
        lambda y: y[torch.randperm(y.shape[0], generator=torch.Generator().manual_seed(1))],
        lambda y: y.sort(0).values,
        lambda y: torch.cat([y[:1], y[:-1]]),
        lambda y: torch.cat([y[1:], y[:1]]),
        lambda y: y * (torch.arange(y.shape[0]) < 3)[:, None],
        lambda y: y / y.abs().max(),
        lambda y: (y / y.abs().max() * 127).round(),
        lambda y: y - y[:1],
    ],
    ids=[
        "flip",
        "roll",
        "permute",
        "sort",
        "repeat the first",
        "drop the first",
        "only three",
        "largest",
        "quantized",
        "first",
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_no_network_that_mixes_drops_or_repeats_samples_passes_by_chance(mix: Any, scale: float) -> None:
    """Also where the answers hardly depend on the input, as those of an untrained deep network."""
    for seed in range(3):
        torch.manual_seed(seed)
        net = Chain(lambda net, x: net.b(mix(net.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 3)).double().eval()
        with torch.no_grad():
            net.b.weight.mul_(scale)
        with pytest.raises(CutError, match=r"cannot cut|differs|cannot trace"):
            cut(net, ["a"], torch.randn(2, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0),
        lambda x: x / x.sum(),
        lambda x: x / x.abs().max(),
        lambda x: x - x[:1],
        lambda x: x.sort(0).values,
        lambda x: x + torch.arange(x.shape[0])[:, None],
        lambda x: x / x.shape[0],
    ],
    ids=["mean", "sum", "largest", "first", "sort", "place", "number"],
)
def test_what_depends_on_the_batch_before_the_first_exit_is_refused(mix: Any) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        net = Chain(lambda net, x: net.b(net.a(mix(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 3)).eval()
        with pytest.raises(CutError, match="layers before it mix the samples of a batch, or use their number"):
            cut(net, ["a"], torch.randn(2, 4))


def test_a_layer_is_run_on_no_more_samples_than_the_checks_must_see() -> None:
    """On three, by the network and by its stages, and on one: the time of attaching a large network."""
    rows: list[int] = []

    class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.convolution.default and type(args[0]) is Tensor and args[1].shape[0] == 5:
                rows.append(len(args[0]))
            return func(*args, **(kwargs or {}))

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3)).eval()
    with Counted():  # type: ignore[no-untyped-call]
        cut(net, ["1"], torch.randn(2, 3, 8, 8))
    assert sorted(rows) == [1, 3, 3]


class Placed(nn.Module):
    """Adds the place of a sample in the batch to its features, of which one may be so large that this looks small."""

    def __init__(self, largest: float, step: float, gain: float) -> None:
        super().__init__()
        self.a, self.b, self.c, self.e = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.Identity()
        self.scales = torch.tensor([largest, *[1.0] * 7])
        self.step, self.gain = step, gain
        with torch.no_grad():
            self.b.weight[:, 0] /= largest

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(self.a(x)) * self.scales
        places = self.step * torch.arange(x.shape[0])[:, None]
        answers: Tensor = self.c(torch.sin(self.gain * self.b(x + places)))
        return answers


@pytest.mark.parametrize(("largest", "step", "gain"), [(1e6, 1.0, 1.0), (1.0, 5e-6, 3e2)])
def test_a_difference_that_the_next_layer_makes_large_is_not_taken_for_rounding(
    largest: float, step: float, gain: float
) -> None:
    torch.manual_seed(0)
    with pytest.raises(CutError, match="selected after it, give another output"):
        cut(Placed(largest, step, gain).eval(), ["e"], torch.randn(2, 8))
    cut(Placed(largest, 0.0, gain).eval(), ["e"], torch.randn(2, 8))


class FirstToken(nn.Module):
    """A token that is the same for all samples before two of each, with the samples or the tokens first."""

    def __init__(self, *, tokens_first: bool, flat: bool) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.a, self.e, self.c = nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 3)
        self.tokens_first, self.flat = tokens_first, flat

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], 1, 4), x.view(x.shape[0], 2, 4)], 1)
        if self.tokens_first:
            x = x.transpose(0, 1).contiguous()
        n, m = x.shape[:2]
        x = self.a(x.reshape(n * m, 4)).reshape(n, m, 4) if self.flat else self.a(x)
        answers: Tensor = self.c(self.e(x.sum(0 if self.tokens_first else 1)))
        return answers


@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_tokens_that_are_the_same_for_all_samples_are_not_taken_for_samples(*, tokens_first: bool, flat: bool) -> None:
    """With as many tokens as samples in the checks, either dimension of a linear layer's input could be theirs."""
    torch.manual_seed(0)
    network = FirstToken(tokens_first=tokens_first, flat=flat).eval()
    x = torch.randn(5, 8)
    assert torch.allclose(cut(network, ["e"], x[:2])(x), network(x))


def test_each_step_of_a_cut_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="eenet.stages"):
        cut(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval(), ["0"], torch.randn(2, 4))
    said = [record.getMessage() for record in caplog.records]
    assert [any(word in line for line in said) for word in ("traced now", "checked now", "into 2 stages")] == [True] * 3


@pytest.mark.parametrize("way", [lambda y: y.roll(2, 0), lambda y: y.flip(0), lambda y: y[:1]])
def test_a_layer_does_not_hide_what_was_mixed_before_it(way: Callable[[Any], Any]) -> None:
    """The result of a layer is used for several batches only where it was given the same for a sample."""
    net = Chain(
        lambda net, x: net.c(net.b((y := net.a(x)) + 1e-6 * way(y))),
        a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 3),
    ).eval()  # fmt: skip
    with pytest.raises(CutError, match="when the samples beside them are others"):
        cut(net, ["b"], torch.randn(2, 4))
    one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 3)).eval()
    with pytest.raises(CutError, match="track_running_stats"):
        cut(one, ["1"], torch.randn(2, 3, 8, 8))


def test_a_trace_of_the_other_samples_is_found() -> None:
    net = Chain(lambda net, x: net.b((y := net.a(x)) + 1e-6 * y.sum(0)), a=nn.Linear(4, 4), b=nn.Linear(4, 3)).eval()
    with pytest.raises(CutError, match=r"samples \[0\] of 3 change when the samples beside them are others"):
        cut(net, ["a"], torch.randn(2, 4))


def test_samples_that_are_all_alike_are_told_apart_or_refused() -> None:
    net = Chain(lambda net, x: net.b(net.a(x).mean(1)), a=nn.Embedding(9, 4), b=nn.Linear(4, 3)).eval()
    mixed = Chain(lambda net, x: net.b(net.a(x).mean(1).roll(1, 0)), a=nn.Embedding(9, 4), b=nn.Linear(4, 3)).eval()
    for example in (torch.full((2, 7), 8), torch.ones(1, 7, dtype=torch.int64), torch.tensor([[0, 0, 1]])):
        cut(net, ["a"], example)
        with pytest.raises(CutError, match="mix"):
            cut(mixed, ["a"], example)
    with pytest.raises(InvalidInputError, match="samples of the example are all alike"):
        cut(net, ["a"], torch.zeros(2, 7, dtype=torch.int64))


def test_what_tracing_froze_fails_the_self_check() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.lin, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            return self.out(self.lin(x) * self.calls)

    with pytest.raises(CutError, match=r"differs from the model's at batch size"):
        cut(Counts().eval(), ["lin"], torch.randn(2, 4))


def test_a_trace_that_fails_names_the_module_and_the_cause() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Linear(4, 4), Branch(), nn.Linear(4, 4)).eval()
    with pytest.raises(CutError, match=r"cannot trace the model in module '1'") as caught:
        cut(model, ["0"], torch.randn(2, 4))
    assert caught.value.__cause__ is not None
    said = str(caught.value)
    assert "Could not guard on data-dependent expression" in said
    assert "return x if x.sum() > 0 else -x" in said
    assert said.endswith("change that step, or write the stages by hand with StagedModel.from_stages")


def test_a_fixed_batch_size_is_refused() -> None:
    model = Chain(lambda net, x: net.b(net.a(x).reshape(2, 4)), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).eval()
    with pytest.raises(CutError, match="cannot trace"):
        cut(model, ["a"], torch.randn(2, 4))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.randn(0, 4), "batch size 0"),
        (torch.tensor(1.0), "scalar"),
        ((torch.randn(2, 4), torch.randn(3, 4)), "batch size 3"),
        ((1, 2), "holds no tensor"),
        (3, "expected a tensor"),
        ({"y": torch.randn(2, 4)}, "does not fit"),
        ((torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 4)), "does not fit"),
    ],
)
def test_examples_that_cannot_be_used_are_refused(example: object, message: str) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, other: Tensor | None = None) -> Any:
            return x

    with pytest.raises(InvalidInputError, match=message):
        cut(Two(), [], example)  # type: ignore[arg-type]


def test_dynamic_dimensions_are_checked() -> None:
    for dynamic in ({0: "batch"}, {1: "not a name"}, {1: "batch"}):
        with pytest.raises(InvalidInputError, match="dynamic"):
            cut(nn.Linear(4, 4), [], torch.randn(2, 3, 4), dynamic=dynamic)
    with pytest.raises(InvalidInputError, match="size 1 in the dynamic dimension 1"):
        cut(nn.Linear(4, 4), [], torch.randn(2, 1, 4), dynamic={1: "sequence"})


def test_an_argument_of_the_example_can_be_given_by_its_name() -> None:
    staged = cut(small(), ["layer1"], images(2))
    x = images(2)
    torch.testing.assert_close(staged(x=x), staged(x))


def test_calls_that_differ_from_the_example_are_refused() -> None:
    staged = cut(small(), ["layer1"], images(2))
    with pytest.raises(InvalidInputError, match=r"'x' has shape \(2, 3, 9, 9\), expected \(any, 3, 8, 8\)"):
        staged(images(2, size=9))
    with pytest.raises(InvalidInputError, match="int64"):
        staged(torch.zeros(2, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(InvalidInputError, match="arguments"):
        staged(images(2), images(2))
    with pytest.raises(InvalidInputError, match="arguments"):
        staged(z=images(2))
    with pytest.raises(InvalidInputError, match="expected a tensor"):
        staged([images(2)])
    optional = r"'x' is None, expected a tensor, .*: of an optional mask give ones, or cut the model with an example w"
    with pytest.raises(InvalidInputError, match=optional):
        staged(None)
    with pytest.raises(InvalidInputError, match=r"shape \(\)"):
        staged(torch.tensor(1.0))


def test_inputs_that_a_forward_takes_by_any_name_or_number() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, *xs: Tensor, **options: Any) -> Any:
            return self.b(self.a(xs[0] if xs else options["first"])) * (2 if options.get("twice") else 1)

    model = Loose().eval()
    x = torch.randn(3, 4)
    staged = cut(model, ["a"], (torch.randn(2, 4), torch.randn(2, 1)))
    torch.testing.assert_close(staged(x, x[:, :1]), model(x, x[:, :1]))
    assert [live.name for live in staged.stages[0].inputs] == ["xs_0", "xs_1"]
    staged = cut(model, ["a"], {"twice": True, "first": torch.randn(2, 4), "nothing": None})
    torch.testing.assert_close(staged(first=x, twice=True, nothing=None), model(first=x, twice=True))
    assert [live.name for live in staged.stages[0].inputs] == ["first"]


def test_settings_in_the_example_are_fixed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], twice: bool = False) -> Any:
            y = self.lin(x)
            return (y * 2 if twice else y) + pair[0] * pair[1]

    model = Scaled().eval()
    staged = cut(model, ["lin"], (torch.randn(2, 4), (torch.randn(2, 4), torch.randn(2, 4)), True))
    x, pair = torch.randn(3, 4), (torch.randn(3, 4), torch.randn(3, 4))
    torch.testing.assert_close(staged(x, pair, True), model(x, pair, True))
    assert len(staged.flatten_inputs(x, pair, True)) == 3
    with pytest.raises(InvalidInputError, match=r"is False, but the model was cut with True"):
        staged(x, pair, False)
    with pytest.raises(InvalidInputError, match="nested"):
        staged(x, [*pair, x], True)
    with pytest.raises(InvalidInputError, match="batch size 2"):
        staged(x, (pair[0], torch.randn(2, 4)), True)


def test_a_walk_runs_a_stage_when_it_is_asked_for_and_takes_other_live_tensors() -> None:
    model = small().eval()
    staged = cut(model, ["layer1", "layer2"], images(2))
    x = images(4)
    steps = staged.walk(staged.flatten_inputs(x))
    first = next(steps)
    assert first.stage is staged.stages[0]
    assert first.feature.shape[0] == 4
    first.live = staged.compact(first.live, torch.tensor([3, 1]), 1)
    *_, last = steps
    assert last.live == ()
    torch.testing.assert_close(staged.unflatten_output(last.outputs), model(x)[[3, 1]])


class Recurrent(nn.Module):
    """Classifies the last step of a sequence (N, T, 4)."""

    def __init__(self, kind: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.first = kind(4, 8, batch_first=True, **options)
        width = options.get("proj_size", 8) * (2 if options.get("bidirectional") else 1)
        self.second = kind(width, 8, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.second(self.first(x)[0])[0][:, -1])
        return logits


RECURRENT: list[tuple[Callable[..., nn.RNNBase], dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.LSTM, {"bidirectional": True, "num_layers": 2, "dropout": 0.5}),
    (nn.LSTM, {"proj_size": 5}),
    (nn.GRU, {"bidirectional": True}),
    (nn.RNN, {"nonlinearity": "relu"}),
    (nn.RNN, {"nonlinearity": "tanh"}),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "options"), RECURRENT)
def test_recurrent_layers_stay_one_operator_for_any_number_of_steps(
    kind: Callable[..., nn.RNNBase], options: dict[str, Any]
) -> None:
    model = Recurrent(kind, **options).eval()
    staged = cut(model, ["first"], torch.randn(2, 6, 4), dynamic={1: "time"})
    for batch, steps in ((1, 6), (3, 40)):
        x = torch.randn(batch, steps, 4)
        torch.testing.assert_close(staged(x), model(x))
    assert staged.stages[0].outputs[0].shape[:2] == ("batch", "time")
    graph = staged.stages[0].module
    assert isinstance(graph, torch.fx.GraphModule)
    assert len([node for node in graph.graph.nodes if node.op == "call_function"]) < 20
    # In training too, with the gradients of the network.
    x = torch.randn(3, 6, 4)
    grads = []
    for one in (model.train(), staged.train()):
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(one(x).square().sum(), list(model.parameters())))
    torch.testing.assert_close(grads[0], grads[1])


class _Table(nn.Module):
    """Positions kept for the longest input so far, as rotary embeddings keep them; for each batch size, if asked."""

    def __init__(self, *, of_batch: bool = False) -> None:
        super().__init__()
        self.of_batch = of_batch
        self.kept = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.of_batch:
            if len(self.kept) != len(x):
                self.kept = torch.arange(len(x))[:, None, None] * 0.0
            return x + self.kept
        if x.shape[1] > len(self.kept):
            self.kept = torch.arange(x.shape[1])[:, None] / 10
        return x + self.kept[: x.shape[1]]


def test_a_table_that_tracing_fixed_is_refused_with_its_cause() -> None:
    def network(**options: bool) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), _Table(**options), nn.Linear(4, 4), nn.Flatten(2)).eval()

    x = torch.randn(2, 5, 4)
    # At the example's length the table is right; longer inputs need a longer one.
    with pytest.raises(CutError, match=r"stage '1' fails with time one more, where the network itself does not.*table"):
        cut(network(), ["1"], x, dynamic={1: "time"})
    cut(network(), ["1"], x)
    with pytest.raises(CutError, match=r"fixes the batch size of input 'input' to 3, such as a table"):
        cut(network(of_batch=True), ["1"], x)


class Masked(nn.Module):
    """Channels over time, and a mask that has its time in another dimension than they."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.classify = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, signal: Tensor, mask: Tensor) -> Tensor:
        x = self.first(signal * mask[:, None]).relu()
        answer: Tensor = self.classify(self.second(x).mean(-1))
        return answer


MASKED = {"signal": {2: "time"}, "mask": {1: "time"}}


def masked_inputs(samples: int, length: int) -> dict[str, Tensor]:
    mask = torch.ones(samples, length)
    mask[::2, length // 2 :] = 0
    return {"signal": torch.randn(samples, 3, length), "mask": mask}


@pytest.mark.parametrize("length", [5, 12, 31])
def test_inputs_may_have_their_changing_size_in_different_dimensions(length: int) -> None:
    net = Masked().eval()
    staged = eenet.cut(net, ["first"], masked_inputs(2, 12), dynamic=MASKED)
    assert [one.shape for one in staged.stages[0].inputs] == [("batch", 3, "time"), ("batch", "time")]
    assert staged.dynamic == MASKED
    fresh = masked_inputs(7, length)
    with torch.inference_mode():
        torch.testing.assert_close(staged(**fresh), net(**fresh))
    with pytest.raises(InvalidInputError, match=r"input 'signal' has shape \(7, 2, \d+\), expected \(any, 3, any\)"):
        staged(signal=fresh["signal"][:, :2], mask=fresh["mask"])


def test_what_the_mapping_of_changing_sizes_cannot_be_is_refused_in_words() -> None:
    net, example = Masked().eval(), masked_inputs(2, 12)
    for wrong, message in (
        ({"noise": {1: "time"}}, r"names 'noise', expected numbers .* among \['signal', 'mask'\]"),
        ({"signal": {2: "time"}, 1: "time"}, r"names 1, expected numbers of dimensions alone"),
        ({"signal": 2}, r"has 2 for the input 'signal', expected dimensions and their names"),
        ({"signal": {3: "time"}}, r"dimension 3 of the input 'signal', which has 3 dimensions"),
        ({"mask": {0: "time"}}, r"names dimension 0; expected 1 or more"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            eenet.cut(net, ["first"], example, dynamic=wrong)  # type: ignore[arg-type]
    with pytest.raises(CutError, match=r"size where `dynamic` does not name it, such as a mask: dynamic={'x'"):
        eenet.cut(net, ["first"], example, dynamic={2: "time"})


def test_a_model_and_a_sequence_of_such_inputs_are_saved_and_made_again(tmp_path: Path) -> None:
    model = eenet.attach(
        Masked().eval(), ["first"], 4, masked_inputs(2, 12), dynamic=MASKED, source=eenet.Source(f"{__name__}:Masked")
    ).eval()
    model.save_pretrained(tmp_path / "model")
    again = eenet.from_pretrained(tmp_path / "model", allow=[f"{__name__}:Masked"])
    assert again.staged.dynamic == MASKED
    fresh = masked_inputs(3, 20)
    with torch.inference_mode():
        torch.testing.assert_close(again(**fresh)[0], model(**fresh)[0])
    with pytest.raises(InvalidInputError, match="give that of the cascade's inputs"):
        eenet.cascade([model, again], example=fresh)
    assert eenet.cascade([model, again], example=fresh, dynamic=MASKED).staged.dynamic == MASKED
