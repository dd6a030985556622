"""Stages written by hand: the same interface and the same checks as for those that `cut` makes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from stages_toys import Chain
from torch import Tensor, nn

import eenet
from eenet.errors import CutError, InvalidInputError
from eenet.stages import StagedModel


class Branching(nn.Module):
    """What no trace can follow: the next step depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if float(x.detach().sum()) > 1e9 else x + 0.0


def stem() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), Branching())


def middle() -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3, stride=2, padding=1), Branching())


def top() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def parts() -> list[nn.Module]:
    return [part.eval() for part in (stem(), middle(), top())]


def test_stages_run_as_the_network_they_were_taken_from() -> None:
    network = nn.Sequential(*parts()).eval()
    with pytest.raises(CutError, match="cannot trace"):
        eenet.cut(network, ["0"], images())
    staged = StagedModel.from_stages(list(network), images(1), reference=network)
    assert [stage.name for stage in staged.stages] == ["stage0", "stage1", "output"]
    assert staged.at == ("stage0", "stage1")
    assert not staged.traced
    assert staged.stages[0].outputs[0].shape == ("batch", 4, 8, 8)
    for batch in (1, 4):
        x = images(batch)
        torch.testing.assert_close(staged(x), network(x))
    assert {id(p) for p in staged.parameters()} == {id(p) for p in network.parameters()}
    assert "stage1.1.weight" in staged.stages[1].state_dict()


def test_remaining_samples_keep_their_results() -> None:
    staged = StagedModel.from_stages(parts(), images())
    x = images(4)
    expected = staged(x)
    for boundary in (1, 2):
        live = staged.flatten_inputs(x)
        for number, stage in enumerate(staged.stages):
            if number == boundary:
                live = staged.compact(live, torch.tensor([3, 1]), number)
            live = stage(*live)
        torch.testing.assert_close(live[0], expected[[3, 1]])


def test_a_stage_that_works_in_place_does_not_change_the_feature_before_it() -> None:
    staged = StagedModel.from_stages(parts(), images())
    x = images(3)
    (feature,) = staged.stages[0](x)
    before = feature.clone()
    staged.stages[1](feature)
    assert torch.equal(feature, before)
    assert (before < 0).any()


def test_exits_training_profiling_and_running() -> None:
    model = eenet.attach(StagedModel.from_stages({"low": stem(), "high": middle(), "top": top()}, images()))
    assert model.exit_names == ("low", "high", "output")
    assert model.num_classes == 5
    model.train()
    sum(logits.square().sum() for logits in model(images(4))).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    x = images(40)
    records = eenet.collect(model, [(x, torch.arange(40) % 2)])
    costs = eenet.profile(model, x[:2], unit="flops")
    scheduler = eenet.MaxProbability().fit(records, costs, budget=float(costs[1]))
    out = eenet.AdaptiveModel(model, scheduler)(x)
    np.testing.assert_array_equal(out.exits.numpy(), scheduler.replay(records).exits)
    assert len(set(out.exits.tolist())) > 1
    with torch.no_grad():
        expected = torch.stack(model(x))[out.exits, torch.arange(40)]
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)
    assert "low" in str(eenet.describe(model))


@pytest.mark.filterwarnings("ignore:the head at .* reads padding")
def test_several_tensors_constants_keywords_and_structured_outputs() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)

        def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0) -> Any:
            hidden = self.embed(ids) * scale
            return hidden, mask[:, None, :].expand(-1, 2, -1).transpose(0, 1), torch.arange(3.0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, hidden: Tensor, mask: Tensor, bias: Tensor) -> Any:
            weights = mask[0].unsqueeze(-1).float()
            logits = self.fc((hidden * weights).sum(1)) + bias
            return {"logits": logits, "hidden": hidden, "nothing": None}

    example = {"ids": torch.randint(10, (2, 6)), "mask": torch.ones(2, 6, dtype=torch.long), "scale": 2.0}
    staged = StagedModel.from_stages([First().eval(), Last().eval()], example, dynamic={1: "sequence"})
    passed = staged.stages[1].inputs
    assert [live.batch_dim for live in passed] == [0, 1, None]
    assert passed[0].shape == ("batch", "sequence", 4)
    ids, mask = torch.randint(10, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    got = staged(ids=ids, mask=mask, scale=2.0)
    assert got["nothing"] is None
    assert got["logits"].shape == (3, 3)
    with pytest.raises(InvalidInputError, match=r"is 3\.0, but the model was cut with 2\.0"):
        staged(ids=ids, mask=mask, scale=3.0)
    model = eenet.attach(staged)
    assert [tuple(logits.shape) for logits in model(ids=ids, mask=mask, scale=2.0)] == [(3, 3), (3, 3)]


def test_copies_dtypes_and_loaded_weights() -> None:
    staged = StagedModel.from_stages(parts(), images())
    twin = copy.deepcopy(staged).double()
    x = images(3)
    torch.testing.assert_close(twin(x.double()), staged(x).double(), rtol=1e-4, atol=1e-5)
    assert twin.stages[0].inputs[0].dtype == torch.float64
    other = StagedModel.from_stages(parts(), images())
    other.load_state_dict(staged.state_dict(), assign=True)
    torch.testing.assert_close(other(x), staged(x))


def test_a_reference_that_gives_something_else_is_noticed() -> None:
    network = nn.Sequential(*parts()).eval()
    with pytest.raises(CutError, match="differs from the reference's at batch size 1"):
        StagedModel.from_stages([network[0], network[1], top().eval()], images(), reference=network)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda: [nn.Linear(4, 4), nn.Linear(5, 3)], r"stage 'stage1' fails at batch size 3, called with \(3, 4\)"),
        (lambda: [Chain(lambda net, x: {"a": x}), nn.Linear(4, 3)], "stage 'stage0' returns a dict"),
        (lambda: [Chain(lambda net, x: (x, None)), nn.Linear(4, 3)], "returns a tuple that holds None"),
        (lambda: [nn.Linear(4, 4), Chain(lambda net, x: None)], "'stage1', returns None, which holds no tensor"),
        (
            lambda: [Chain(lambda net, x: x.reshape(-1, 2)), Chain(lambda net, x: x.reshape(-1, 4))],
            r"'stage0' hands on 'stage0_0' of shape \(2\*batch, 2\).*samples cannot",
        ),
        (lambda: [Chain(lambda net, x: x @ x.T), nn.Identity()], r"shape \(batch, batch\).*samples cannot"),
        (lambda: [Chain(lambda net, x: x.sum(0)), nn.Identity()], "has no dimension of the batch"),
        (
            lambda: [nn.Linear(4, 4), Chain(lambda net, x: x - x.mean(0, keepdim=True))],
            "'stage0'.*selected after it.*mix the samples",
        ),
    ],
    ids=["widths", "mapping", "none", "no output", "windows", "batch by batch", "no batch", "mixing"],
)
def test_stages_that_cannot_work_are_refused_by_name(stages: Any, message: str) -> None:
    with pytest.raises(CutError, match=message):
        StagedModel.from_stages(stages(), torch.randn(2, 4))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "there are no stages"),
        (3, "expected a list of modules"),
        ([3], "'stage0' is an int, expected a torch.nn.Module"),
        ({"a.b": nn.Linear(4, 4)}, r"cannot be called 'a\.b'"),
        ({"output": nn.Linear(4, 4)}, "cannot be called 'output'"),
        ([shared := nn.Linear(4, 4), shared], "'stage1' is the same module as 'stage0'"),
    ],
    ids=["none", "number", "no module", "dot", "output", "twice"],
)
def test_what_is_no_list_of_stages_is_refused(stages: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        StagedModel.from_stages(stages, torch.randn(2, 4))


def test_exits_elsewhere_than_the_stages_end_are_refused() -> None:
    staged = StagedModel.from_stages(parts(), images())
    with pytest.raises(InvalidInputError, match=r"is cut at \['stage0', 'stage1'\] already"):
        eenet.attach(staged, ["stage0"])
    with pytest.raises(InvalidInputError, match="one stage only"):
        eenet.attach(StagedModel.from_stages([nn.Linear(4, 4)], torch.randn(2, 4)))
