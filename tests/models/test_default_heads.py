"""Default heads look at the whole feature, however it is laid out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from optional import import_or_skip
from stages_toys import Chain
from torch import Tensor, nn

import eenet
from eenet.errors import ReliabilityWarning
from eenet.models import GridHead, SequenceHead, TokenHead, VectorHead


class Recurrent(nn.Module):
    """An LSTM over (N, T, 3) whose answer is that of its last step; the exit is at the first layer."""

    def __init__(self, *, both: bool = False, text: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 3) if text else nn.Identity()
        self.first = nn.LSTM(3, 8, batch_first=True, bidirectional=both)
        self.second = nn.LSTM(16 if both else 8, 8, batch_first=True)
        self.top = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.top(self.second(self.first(self.embed(x))[0])[0][:, -1])
        return logits


class Attending(nn.Module):
    """A transformer of two layers; `steps` fixes the length, by a table of positions that has no other."""

    def __init__(self, *, causal: bool = False, text: bool = False, steps: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8) if text else nn.Linear(3, 8)
        self.positions = None if steps is None else nn.Parameter(torch.randn(steps, 8))
        make = {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "batch_first": True, "dropout": 0.0}
        self.first = nn.TransformerEncoderLayer(**make)  # type: ignore[arg-type]
        self.second = nn.TransformerEncoderLayer(**make)  # type: ignore[arg-type]
        self.top = nn.Linear(8, 2)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.positions is not None:
            x = x + self.positions
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        x = self.second(self.first(x, src_mask=mask), src_mask=mask)
        logits: Tensor = self.top(x[:, -1])
        return logits


def convolutions(*, flat: bool = False, width: int = 16, steps: int = 100) -> nn.Module:
    end: tuple[nn.Module, ...] = (nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 4))
    if flat:
        end = (nn.Flatten(), nn.Linear(32 * (steps - 8), 4))
    return nn.Sequential(nn.Conv1d(1, width, 5), nn.Tanh(), nn.Conv1d(width, 32, 5), *end)


def gpt2() -> nn.Module:
    transformers = import_or_skip("transformers")
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=32, num_labels=3, pad_token_id=0, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    network: nn.Module = transformers.GPT2ForSequenceClassification(config)
    return network


def time_first(net: Chain, x: Tensor) -> Any:
    return net.top(net.first(x.transpose(0, 1))[0][-1])


def rows_last(net: Chain, x: Tensor) -> Any:
    return net.top(net.first(x.permute(0, 2, 3, 1)).mean((1, 2)))


@dataclass(frozen=True)
class Layout:
    """A network, where its exit is, an input, the dimension its steps lie along, and the head that fits."""

    build: Callable[[], nn.Module]
    at: str
    example: Callable[[int], Tensor]
    steps: int
    head: type[nn.Module]
    pool: str | None = None
    dynamic: bool = False


def floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, *shape)


def words(batch: int) -> Tensor:
    return torch.randint(1, 20, (batch, 12))


LAYOUTS = {
    "vector": Layout(
        lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)), "1", floats(6), 1, VectorHead
    ),
    "convolution over time": Layout(convolutions, "1", floats(1, 100), 2, SequenceHead),
    "convolution over a fixed time": Layout(lambda: convolutions(flat=True), "1", floats(1, 100), 2, SequenceHead),
    "as many channels as steps": Layout(lambda: convolutions(width=16), "1", floats(1, 20), 2, SequenceHead),
    "convolution over any time": Layout(convolutions, "1", floats(1, 100), 2, SequenceHead, dynamic=True),
    "map": Layout(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        ),
        "1", floats(3, 10, 10), 2, GridHead,
    ),
    "map with channels last": Layout(
        lambda: Chain(rows_last, first=nn.Linear(3, 9), top=nn.Linear(9, 3)), "first", floats(3, 10, 10), 2, GridHead
    ),
    "recurrent": Layout(Recurrent, "first", floats(9, 3), 1, TokenHead, "last"),
    "recurrent both ways": Layout(lambda: Recurrent(both=True), "first", floats(9, 3), 1, TokenHead, "mean"),
    "recurrent over text": Layout(lambda: Recurrent(text=True), "first", words, 1, TokenHead, "mean"),
    "time first inside": Layout(
        lambda: Chain(time_first, first=nn.LSTM(3, 8), top=nn.Linear(8, 3)), "first", floats(9, 3), 1, TokenHead, "last"
    ),
    "attention": Layout(Attending, "first", floats(9, 3), 1, TokenHead, "mean"),
    "attention over text": Layout(lambda: Attending(text=True), "first", words, 1, TokenHead, "first"),
    "causal attention": Layout(lambda: Attending(causal=True), "first", floats(9, 3), 1, TokenHead, "last"),
    "causal attention at one length": Layout(
        lambda: Attending(causal=True, steps=9), "first", floats(9, 3), 1, TokenHead, "last"
    ),
    "causal attention over text": Layout(
        lambda: Attending(causal=True, text=True), "first", words, 1, TokenHead, "mean"
    ),
    "GPT-2": Layout(gpt2, "transformer.h.0", words, 1, TokenHead, "mean"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_exit_depends_on_every_step_and_every_channel(name: str) -> None:
    layout = LAYOUTS[name]
    torch.manual_seed(0)
    net = layout.build().eval()
    dynamic = {layout.steps: "steps"} if layout.dynamic else None
    model = eenet.attach(net, [layout.at], example=layout.example(3), dynamic=dynamic).eval()
    head = model.heads[0]
    assert type(head) is layout.head
    assert getattr(head, "pool", None) == layout.pool or layout.pool is None
    x, other = layout.example(6), layout.example(6)
    features: list[Tensor] = []
    handle = head.register_forward_hook(lambda _module, args, _output: features.append(args[0].clone()))
    with torch.no_grad():
        before = model(x)[0]
        handle.remove()
        for step in range(x.shape[layout.steps]):
            changed = x.clone()
            changed.select(layout.steps, step).copy_(other.select(layout.steps, step))
            assert not torch.equal(model(changed)[0], before), f"step {step} is not seen"
        (feature,) = features
        for dim in range(1, feature.ndim):
            if layout.pool in ("first", "last") and dim == 1:
                continue  # one token, which has seen the others, as above
            for index in range(feature.shape[dim]):
                changed = feature.clone()
                changed.select(dim, index).add_(torch.randn_like(changed.select(dim, index)))
                assert not torch.equal(head(changed), before), f"index {index} of dimension {dim} is not seen"


def test_a_network_is_as_it_was_after_its_layout_was_observed() -> None:
    class Remembering(nn.Module):
        """Keeps a table for the length it saw last, and does not look whether that is the present one."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.top = nn.Linear(3, 8), nn.Linear(8, 2)
            self.length = 9
            self.register_buffer("table", torch.ones(9))

        def forward(self, x: Tensor) -> Tensor:
            self.length = x.shape[1]
            self.table = torch.ones(x.shape[1])
            logits: Tensor = self.top(self.first(x).mean(1))
            return logits

    net = Remembering().eval()
    table = net.table
    eenet.attach(net, ["first"], example=torch.randn(2, 9, 3))
    assert net.length == 9
    assert net.table.shape == table.shape
    assert not any(module._forward_hooks for module in net.modules())


def test_an_exit_of_a_recurrent_network_learns_what_the_whole_sequence_says() -> None:
    torch.manual_seed(0)
    model = eenet.attach(Recurrent(), ["first"], example=torch.randn(3, 9, 3)).train()
    x = torch.randn(512, 9, 3)
    y = (x.sum((1, 2)) > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x)[0], y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    fresh = torch.randn(512, 9, 3)
    with torch.no_grad():
        right = model.eval()(fresh)[0].argmax(1) == (fresh.sum((1, 2)) > 0).long()
    assert right.float().mean() > 0.9


def test_a_head_that_reads_a_sequence_shortens_it() -> None:
    head = SequenceHead(4, 3, stride=8).eval()
    for steps in (1, 7, 8, 100):
        assert head(torch.randn(2, 4, steps)).shape == (2, 3)
    again = copy.deepcopy(head)
    assert again.options == {"channels": 4, "num_classes": 3, "stride": 8}


class Padded(nn.Module):
    """Attention over (N, T, 3) with a mask of what is no padding, and zeros for padding where it is asked for."""

    def __init__(self, *, zeros: bool) -> None:
        super().__init__()
        self.embed, self.top, self.zeros = nn.Linear(3, 8), nn.Linear(8, 2), zeros
        self.first = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.end = nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.first(self.embed(x), src_key_padding_mask=mask == 0)
        x = self.end(x * mask.unsqueeze(-1) if self.zeros else x * 1.0)
        logits: Tensor = self.top(x[:, 0])
        return logits


@pytest.mark.parametrize(("zeros", "pool"), [(True, "attention"), (False, "first")])
@pytest.mark.parametrize("lengths", [(9, 9), (4, 6), (9, 2), (1, 1)])
def test_padding_does_not_change_what_an_exit_says(zeros: bool, pool: str, lengths: tuple[int, int]) -> None:
    """Nor does padding in the example change the head that is chosen."""
    torch.manual_seed(0)
    example = {"x": torch.randn(2, 9, 3), "mask": torch.zeros(2, 9, dtype=torch.long)}
    for row, length in enumerate(lengths):
        example["mask"][row, :length] = 1
    model = eenet.attach(Padded(zeros=zeros).eval(), ["end"], example=example, dynamic={1: "steps"}).eval()
    assert isinstance(model.heads[0], TokenHead)
    assert model.heads[0].pool == pool
    x = torch.randn(4, 12, 3)
    mask = torch.ones(4, 12, dtype=torch.long)
    mask[:, 7:] = 0
    longer, shorter = model(x=x, mask=mask)[0], model(x=x[:, :7], mask=mask[:, :7])[0]
    assert torch.allclose(longer, shorter, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "last", "attention"])
def test_a_head_that_reads_padding_is_warned_of(pool: str) -> None:
    example = {"x": torch.randn(2, 9, 3), "mask": torch.ones(2, 9, dtype=torch.long)}
    with pytest.warns(ReliabilityWarning, match=f"'end', a TokenHead with pool='{pool}', reads padding") as warned:
        eenet.attach(Padded(zeros=False), ["end"], example=example, heads=[TokenHead(8, 2, pool=pool)])
    assert [Path(one.filename).name for one in warned] == [Path(__file__).name]
    if pool != "last":
        eenet.attach(Padded(zeros=True), ["end"], example=example, heads=[TokenHead(8, 2, pool=pool)])


class Masked(nn.Module):
    """A GRU over (N, T, 3) with a mask of what is no padding, with an exit before zeros for padding and one after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.top = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)
        self.zeroed = Zeroed()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        steps = self.zeroed(self.first(x)[0], mask)
        logits: Tensor = self.top(steps.sum(1) / mask.sum(1, keepdim=True))
        return logits


class Zeroed(nn.Module):
    def forward(self, output: Tensor, mask: Tensor) -> Tensor:
        return output * mask.unsqueeze(-1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.long])
def test_of_a_recurrent_network_the_way_out_is_zeros_for_padding(dtype: torch.dtype) -> None:
    """Its first token has seen one step: `pool="first"` would keep padding out, and the sequence with it."""
    example = {"x": torch.randn(2, 9, 3), "mask": torch.ones(2, 9, dtype=dtype)}
    with pytest.warns(ReliabilityWarning, match=r"output \* mask.unsqueeze\(-1\)") as warned:
        (head,) = eenet.attach(Masked().eval(), ["first"], example=example).heads
    assert isinstance(head, TokenHead)
    assert head.pool == "last", "whole numbers that are a mask make no text of it"
    assert "such as TokenHead(pool='first')" not in str(warned[0].message)
    steps = {"x": {1: "time"}, "mask": {1: "time"}}
    model = eenet.attach(Masked().eval(), ["zeroed"], example=example, dynamic=steps).eval()
    assert isinstance(model.heads[0], TokenHead)
    assert model.heads[0].pool == "attention"
    x, mask = torch.randn(4, 12, 3), torch.ones(4, 12, dtype=dtype)
    mask[:, 7:] = 0
    longer, shorter = model(x=x, mask=mask)[0], model(x=x[:, :7], mask=mask[:, :7])[0]
    assert torch.allclose(longer, shorter, atol=1e-5)


def test_of_a_network_whose_first_token_sees_all_it_is_that_token() -> None:
    example = {"x": torch.randn(2, 9, 3), "mask": torch.ones(2, 9, dtype=torch.long)}
    with pytest.warns(ReliabilityWarning, match=r"such as TokenHead\(pool='first'\)"):
        eenet.attach(Padded(zeros=False), ["end"], example=example, heads=[TokenHead(8, 2, pool="mean")])


class Averaging(Padded):
    """Does not use its mask."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.top(self.end(self.embed(x)).mean(1)) + 0 * mask[:, :1]
        return logits


def test_of_a_network_that_reads_padding_itself_no_head_is_warned_of() -> None:
    example = {"x": torch.randn(2, 9, 3), "mask": torch.ones(2, 9, dtype=torch.long)}
    assert eenet.attach(Averaging(zeros=False), ["end"], example=example).num_exits == 2


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_tokens_that_are_zero_do_not_count(pool: str) -> None:
    head = TokenHead(6, 3, pool=pool).eval()
    tokens = torch.randn(4, 5, 6)
    padded = torch.cat([tokens, torch.zeros(4, 3, 6)], 1)
    assert torch.allclose(head(padded), head(tokens), atol=1e-6)
    assert head(torch.zeros(2, 3, 6)).isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(56, 56), (32, 16), (13, 9), (7, 7), (3, 20)])
def test_a_grid_of_a_known_size_is_that_of_adaptive_pooling(height: int, width: int) -> None:
    torch.manual_seed(0)
    fast = GridHead(5, 3, grid=(min(height, 7), 4), size=(height, width)).eval()
    slow = GridHead(5, 3, grid=(min(height, 7), 4)).eval()
    slow.load_state_dict(fast.state_dict())
    feature = torch.randn(2, 5, height, width)
    assert torch.allclose(fast(feature), slow(feature), atol=1e-5)
    assert torch.allclose(fast(fast.reduced(feature)), fast(feature), atol=1e-6)
    assert torch.allclose(fast(feature.to(memory_format=torch.channels_last)), fast(feature), atol=1e-5)
    assert fast(torch.randn(2, 5, height + 1, width + 2)).shape == (2, 3)
