"""What cannot be cut is refused with the module, the cause and the way out; the network is left undamaged."""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import eenet
from eenet.errors import CutError, InvalidInputError


@functools.lru_cache
def table(n: int) -> Tensor:
    return torch.arange(n) / n


class Step(nn.Module):
    """A network, or a part of one, written as a function of the module and its inputs."""

    def __init__(self, step: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.step = step
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.step(self, *args, **kwargs)


def network(middle: nn.Module, *, position: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*parts[:position], middle, *parts[position:]).eval()


def ends(**options: Any) -> Any:
    """A network of two layers, and the way they are put together."""
    return Step(options["step"], a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()


class TestCachesOutsideTheNetwork:
    def test_a_network_that_was_never_run(self) -> None:
        table.cache_clear()
        net = network(Step(lambda _self, x: x + table(x.shape[-1])))
        model = eenet.attach(net, ["1"], example=torch.randn(2, 6)).eval()
        x = torch.randn(5, 6)
        assert type(net(x)) is Tensor
        assert type(table(8)) is Tensor
        torch.testing.assert_close(model(x)[-1], net(x))

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_cache_that_is_filled_while_tracing_only(self, fails: bool) -> None:
        @functools.lru_cache
        def offset(n: int) -> list[Tensor]:
            return [torch.ones(n)]

        def step(_self: nn.Module, x: Tensor) -> Tensor:
            if torch.compiler.is_exporting():
                offset(x.shape[-1])
                if fails and x.sum() > 0:
                    return x
            return x + offset(x.shape[-1])[0] if offset.cache_info().currsize else x + torch.ones(x.shape[-1])

        net = network(Step(step))
        x = torch.randn(5, 6)
        if fails:
            with pytest.raises(CutError, match="data-dependent"):
                eenet.attach(net, ["1"], example=torch.randn(2, 6))
        else:
            eenet.attach(net, ["1"], example=torch.randn(2, 6))
        assert type(net(x)) is Tensor

    def test_one_that_cannot_be_cleared_is_named(self) -> None:
        kept: dict[int, Tensor] = {}

        def step(_self: nn.Module, x: Tensor) -> Tensor:
            if torch.compiler.is_exporting():
                kept[0] = torch.ones(8)
            return x + kept.get(0, torch.ones(8))

        with pytest.raises(CutError, match="made while it was traced, in a cache outside"):
            eenet.attach(network(Step(step)), ["1"], example=torch.randn(2, 6))


class TestSamplesDependOnEachOther:
    @pytest.mark.parametrize("position", [0, 1, 2])
    @pytest.mark.parametrize(
        "mix",
        [
            lambda x: x - x.mean(0),
            lambda x: x.flip(0),
            lambda x: x * x.std(),
            lambda x: x + 1e-4 * x.roll(1, 0),
            lambda x: x.softmax(0),
        ],
    )
    def test_before_the_first_exit(self, mix: Callable[[Tensor], Tensor], position: int) -> None:
        net = network(Step(lambda _self, x: mix(x)), position=position)
        with pytest.raises(CutError, match="before it mix the samples"):
            eenet.attach(net, ["3"], example=torch.randn(4, 6))

    def test_after_the_first_exit(self) -> None:
        net = network(Step(lambda _self, x: x + 1e-4 * x.mean(0)), position=3)
        with pytest.raises(CutError, match=r"cannot cut at '1'.*mix the samples"):
            eenet.attach(net, ["1"], example=torch.randn(4, 6))

    def test_in_stages_written_by_hand(self) -> None:
        first = Step(lambda _self, x: x - x.mean(0))
        with pytest.raises(CutError, match=r"feature at 'first'.*before it mix the samples"):
            eenet.StagedModel.from_stages({"first": first, "last": nn.Linear(6, 3)}, torch.randn(4, 6))

    def test_constants_and_lookups_do_not(self) -> None:
        net = network(Step(lambda _self, x: x + torch.arange(8.0)))
        eenet.attach(net, ["1", "3"], example=torch.randn(4, 6))


def test_time_first_is_named_as_the_reason() -> None:
    net = Step(lambda s, x: s.b(s.a(s.lstm(x)[0])[-1]), lstm=nn.LSTM(6, 6), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    with pytest.raises(CutError, match=r"'lstm' \(LSTM\) has batch_first=False.*\(batch, time, features\)"):
        eenet.attach(net.eval(), ["a"], example=torch.randn(5, 4, 6))


@pytest.mark.parametrize("place", [0, 3])
def test_a_batch_norm_without_running_statistics_is_named(place: int) -> None:
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    layers.insert(place, nn.BatchNorm1d(4 if place == 0 else 8, track_running_stats=False))
    with pytest.raises(CutError, match=rf"'{place}' \(BatchNorm1d\) has track_running_stats=False.*GroupNorm"):
        eenet.cut(nn.Sequential(*layers).eval(), ["2"], torch.randn(4, 4))


@pytest.mark.parametrize("position", [1, 3])
def test_a_network_that_is_random_in_inference_is_not_said_to_mix_samples(position: int) -> None:
    net = network(Step(lambda _self, x: F.dropout(x)), position=position)
    message = f"is random in inference: 'dropout' in module '{position}'.*self.training"
    with pytest.raises(CutError, match=message) as caught:
        eenet.attach(net, ["2" if position == 1 else "1"], example=torch.randn(2, 6))
    assert "mix" not in str(caught.value)


def asking(condition: Callable[[int], bool]) -> nn.Sequential:
    return network(Step(lambda _self, x: x * 2 if condition(x.shape[0]) else x), position=4)


@pytest.mark.parametrize(
    ("condition", "samples", "wrong"),
    [
        (lambda n: n > 4, 8, 5),
        (lambda n: n > 4, 2, 5),  # beyond the example too, where tracing says at which size the network turns
        (lambda n: n == 8, 8, 8),
        (lambda n: n % 4 == 0, 12, 12),
    ],
    ids=["more", "example of two", "one size", "multiples"],
)
def test_a_network_that_asks_for_the_batch_size_is_refused(
    condition: Callable[[int], bool], samples: int, wrong: int
) -> None:
    with pytest.raises(CutError, match=f"differs from the model's at batch size {wrong} .*the same for every number"):
        eenet.cut(asking(condition), ["1"], torch.randn(samples, 6))


def test_a_network_that_refuses_large_batches_can_be_cut() -> None:
    def small(_self: Any, x: Tensor) -> Tensor:
        if x.shape[0] > 4:
            raise ValueError("at most four samples")
        return x

    net = network(Step(small))
    x = torch.randn(4, 6)
    assert torch.allclose(eenet.cut(net, ["1"], x)(x), net(x))


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class DynamicCache:
    """Stands for what transformers returns of earlier tokens."""


LABELS = {"x": torch.randn(2, 6), "labels": torch.tensor([0, 1])}


def with_loss(self: Any, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
    logits = self.b(self.a(x))
    return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Both(nn.Module):
    """Its output is a dataclass that torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Output:
        return Output(self.linear(x), x)


REFUSED: list[tuple[Callable[[], nn.Module], Any, str]] = [
    (lambda: ends(step=lambda s, x: Output(s.b(s.a(x)), x)), None, r"dataclass Output.*`\.logits`.*register_dataclass"),
    (
        lambda: Step(lambda s, x: s.b(s.a(x).logits), a=Both(), b=nn.Linear(8, 3)).eval(),
        None,
        r"cannot cut at 'a': its output is .*Output \(a dataclass.*register_dataclass\(Output\).*module inside it",
    ),
    (lambda: ends(step=lambda s, x: s.b(s.a.forward(x))), None, r"'a'.*runs its forward\(\) directly; call the module"),
    (
        lambda: ends(step=lambda s, x: {"logits": s.b(s.a(x)), "past_key_values": DynamicCache()}),
        None,
        "returns 'past_key_values', a DynamicCache.*use_cache=False",
    ),
    (lambda: ends(step=with_loss), LABELS, "the example has 'labels'.*leave 'labels' out"),
    (lambda: nn.DataParallel(ends(step=lambda s, x: s.b(s.a(x)))), None, r"DataParallel.*net\.module"),
    (lambda: ends(step=lambda _s, x: x.view(7)), None, "the model itself fails on the example, at batch size 2.*shape"),
    (
        lambda: ends(step=lambda s, x: s.b(s.a(x.gather(1, x.round().long())))),
        torch.tensor([[0.0, 5.0, 5.0, 0.0, 0.0, 5.0]] * 2),
        "the model itself fails at batch size 3, on samples made from the example, whose floats have noise: index",
    ),
]


@pytest.mark.parametrize(("make", "example", "message"), REFUSED)
def test_the_reason_and_the_way_out(make: Callable[[], nn.Module], example: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        eenet.attach(make(), ["a"], example=torch.randn(2, 6) if example is None else example)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_of_torch_jit() -> None:
    with pytest.raises(InvalidInputError, match=r"module '2' is a \w+ of torch\.jit.*Python module"):
        eenet.cut(network(torch.jit.script(nn.Linear(8, 8))), ["1"], torch.randn(2, 6))


def test_errors_of_the_network_s_own_code_while_tracing() -> None:
    def step(_self: nn.Module, x: Tensor) -> Tensor:
        return x if not torch.compiler.is_exporting() else x / (0 // 0)

    with pytest.raises(CutError, match="cannot trace the model in module '2': ZeroDivisionError"):
        eenet.attach(network(Step(step)), ["1"], example=torch.randn(2, 6))


def test_a_failed_trace_writes_nothing_but_the_message(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(_self: nn.Module, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    before = sys.stderr
    with pytest.raises(CutError, match="in module '2'") as caught:
        eenet.attach(network(Step(step)), ["1"], example=torch.randn(2, 6))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert stream.getvalue() == ""
    assert sys.stderr is before
    assert not handler.filters


def test_what_a_network_prints_while_it_is_traced_stays(capfd: pytest.CaptureFixture[str]) -> None:
    def step(_self: nn.Module, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            print("tracing", file=sys.stderr)
        return x

    eenet.attach(network(Step(step)), ["1"], example=torch.randn(2, 6))
    assert "tracing" in capfd.readouterr().err


class TestWhatIsNotUnderstood:
    """A message instead of an error of Python, for what is given in place of a network, a head or an example."""

    def plain(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

    def test_no_module(self) -> None:
        with pytest.raises(InvalidInputError, match=r"the network is a function, expected a torch\.nn\.Module"):
            eenet.attach(lambda x: x, ["1"], example=torch.randn(2, 6))  # type: ignore[arg-type]

    def test_heads(self) -> None:
        x = torch.randn(2, 6)
        with pytest.raises(InvalidInputError, match="heads is a Linear, expected a list"):
            eenet.attach(self.plain(), ["1"], example=x, heads=nn.Linear(8, 3))  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=r"the head at '1' is a builtin_function_or_method, expected"):
            eenet.attach(self.plain(), ["1"], example=x, heads=[torch.relu])  # type: ignore[list-item]

    def test_names(self) -> None:
        x = torch.randn(2, 6)
        with pytest.raises(CutError, match=r"no module of that name; it has '0', '1', '2'$"):
            eenet.attach(self.plain(), ["layer1"], example=x)
        with pytest.raises(CutError, match=r"torch\.compile calls it '_orig_mod\.1'"):
            eenet.attach(torch.compile(self.plain(), backend="eager"), ["1"], example=x)  # type: ignore[arg-type]

    def test_a_batch_with_labels(self) -> None:
        with pytest.raises(InvalidInputError, match=r"of a batch \(inputs, labels\) give the inputs alone"):
            eenet.attach(self.plain(), ["1"], example=[torch.randn(2, 6), torch.tensor([0, 1])])

    def test_an_object_around_the_logits(self) -> None:
        class Answer:
            def __init__(self, logits: Tensor) -> None:
                self.logits = logits

        net = ends(step=lambda net, x: Answer(net.b(net.a(x))))
        with pytest.raises(
            CutError, match=r"returns an Answer, in which tracing sees no tensor; return its `\.logits`"
        ):
            eenet.attach(net, ["a"], example=torch.randn(2, 6))


def test_numbers_of_two_precisions_are_named_with_the_way_out() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 3))
    message = r"several precisions \(torch.float32 in module '0', torch.bfloat16 in module '1'\): .*network.float\(\)"
    with pytest.raises(CutError, match=message):
        eenet.cut(network, ["0"], torch.randn(2, 4))
    with pytest.raises(CutError, match=r"parameters are torch.bfloat16 and the example is torch.float32: give example"):
        eenet.cut(network.bfloat16(), ["0"], torch.randn(2, 4))
    eenet.cut(network.float().eval(), ["0"], torch.randn(2, 4))


@pytest.mark.parametrize("shape", [(3, 8, 8), (64, 8, 8)])
def test_an_example_without_the_dimension_of_the_batch(shape: tuple[int, ...]) -> None:
    network = nn.Sequential(nn.Conv2d(shape[0], 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    dense = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    for model, example in ((network, torch.randn(shape)), (dense, torch.randn(8))):
        with pytest.raises(CutError, match=r"that dimension is missing; give x\[None\] in place of x"):
            eenet.attach(model, ["0"], example=example)
        with pytest.raises(CutError, match=r"that dimension is missing; give x\[None\] in place of x"):
            eenet.attach(model, "auto:2:flops", example=example)
        whole = eenet.attach(model, ["0"], example=example[None])
        for call in (whole, lambda x, whole=whole: eenet.profile(whole, x, seconds=0.01)):
            with pytest.raises(InvalidInputError, match=r"batch is missing: give x\[None\] in place of x"):
                call(example)
    with pytest.raises(InvalidInputError, match=r"fails on the example .*; give x\[None\] in place of x"):
        eenet.cascade([network, network], example=torch.randn(shape))
    with pytest.raises(CutError, match="the model itself fails on the example"):  # of another reason
        eenet.attach(network, ["0"], example=torch.randn(2, 5, 8, 8))
