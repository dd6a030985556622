"""The eager PyTorch back end: the answers of AdaptiveModel, inputs checked by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eenet
from eenet.errors import InvalidInputError
from eenet.runtime import StageBackend, TorchBackend
from eenet.serving.engine import Engine, EngineOptions
from eenet.tasks import Classification
from eenet.testing import toy_costs, toy_records
from networks import conv_model


class Masked(nn.Module):
    """Token embeddings averaged under a mask: two inputs of dynamic length, and a constant that crosses boundaries."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.middle = nn.Linear(8, 8)
        self.top = nn.Linear(8, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.middle(self.embed(ids)) + torch.arange(ids.shape[1]).float()[:, None]
        weights = mask[:, :, None].float()
        logits: Tensor = self.top((torch.tanh(x) * weights).sum(1) / weights.sum(1))
        return logits


def masked_model() -> eenet.MultiExitModel:
    torch.manual_seed(0)
    example = {"ids": torch.randint(11, (3, 6)), "mask": torch.ones(3, 6, dtype=torch.long)}
    return eenet.attach(Masked(), ["embed", "middle"], 4, example, dynamic={1: "length"}).eval()


def serve(
    backend: StageBackend, scheduler: eenet.Scheduler, requests: list[dict[str, np.ndarray]], max_batch: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    engine = Engine(scheduler.policy, EngineOptions(max_batch=max_batch, max_wait=0.0))
    accepted = []
    for inputs in requests:
        live = backend.enter(inputs)
        accepted.append(engine.submit(live, backend.size(0, live), 0.0))
    while (work := engine.next_work(0.0)) is not None:
        work.execute(backend, Classification())
        engine.complete(work, 0.0)
    return [(r.exits, r.logits) for r in accepted if r.logits is not None]


@pytest.mark.parametrize("max_batch", [3, 64])
def test_engine_and_torch_backend_give_the_answers_of_the_adaptive_model(max_batch: int) -> None:
    model = conv_model(1)
    x = torch.randn(64, 3, 8, 8)
    records = eenet.collect(model, [x])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=1.8)
    expected = eenet.AdaptiveModel(model, scheduler)(x)
    name = model.staged.inference_stages[0].inputs[0].name
    sizes = [1, 5, 10, 1, 2, 20, 25]
    ends = np.cumsum(sizes)
    requests = [{name: x[end - size : end].numpy()} for size, end in zip(sizes, ends, strict=True)]
    answers = serve(TorchBackend(model), scheduler, requests, max_batch)
    np.testing.assert_array_equal(np.concatenate([exits for exits, _ in answers]), expected.exits.numpy())
    assert len(set(expected.exits.tolist())) == 3
    logits = np.concatenate([logits for _, logits in answers])
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:the head at .* reads padding")
def test_inputs_of_several_lengths_and_constants_that_cross_boundaries() -> None:
    model = masked_model()
    generator = np.random.default_rng(0)
    requests = []
    for length in (6, 4, 6, 4, 9):
        ids = generator.integers(0, 11, (2, length))
        requests.append({"ids": ids, "mask": (np.arange(length) < length - 1).astype(np.int64) * np.ones((2, 1), int)})
    records = eenet.collect(model, [{"ids": torch.randint(11, (40, 6)), "mask": torch.ones(40, 6, dtype=torch.long)}])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0)
    answers = serve(TorchBackend(model), scheduler, requests, 16)
    fast = eenet.AdaptiveModel(model, scheduler)
    for inputs, (exits, logits) in zip(requests, answers, strict=True):
        expected = fast(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        np.testing.assert_array_equal(exits, expected.exits.numpy())
        np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:the head at .* reads padding")
def test_inputs_that_do_not_fit_are_refused_by_name() -> None:
    backend = TorchBackend(masked_model())
    ids, mask = np.zeros((2, 5), np.int64), np.ones((2, 5), np.int64)
    cases: list[tuple[Any, str]] = [
        (ids, "got one ndarray, but the network has 2 inputs; give a mapping with 'ids', 'mask'"),
        ({"ids": ids}, r"the network takes the inputs \['ids', 'mask'\]"),
        ({"ids": ids.astype(np.float32), "mask": mask}, "'ids' has dtype float32, expected int64"),
        ({"ids": ids, "mask": mask[:1]}, "'mask' has 1 in the dimension .*, but 'ids' has 2"),
        ({"ids": ids, "mask": mask[:, :4]}, "'mask' has 4 in the dimension .*, but 'ids' has 5"),
        ({"ids": ids[0], "mask": mask}, r"'ids' has shape \(5,\)"),
    ]
    for inputs, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            backend.enter(inputs)


def test_arrays_that_cannot_be_written_to_are_taken() -> None:
    model = conv_model(0)
    x = np.frombuffer(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32).tobytes(), np.float32)
    backend = TorchBackend(model)
    live = backend.enter(x.reshape(2, 3, 8, 8))
    _, logits = backend.run(0, live, observe=True)
    assert logits is not None
    assert logits.shape == (2, 5)
    assert backend.run(0, live, observe=False)[1] is None


def test_a_model_whose_live_tensors_numpy_cannot_hold_is_refused() -> None:
    model = eenet.attach(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).bfloat16(), ["0"], 2, torch.randn(2, 4, dtype=torch.bfloat16)
    )
    with pytest.raises(InvalidInputError, match=r"is torch.bfloat16, which numpy does not have: call model.float\(\)"):
        TorchBackend(model)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            "backbone.4",
            r"several precisions \(torch.float32 in module '0', torch.bfloat16 in module '4'\): make them one",
        ),
        (
            "backbone.0",
            r"several precisions \(torch.bfloat16 in module '0', torch.float32 in module '2'\): make them one",
        ),
        ("heads.0", r"the network is torch.float32 and the head at '1' is torch.bfloat16: one was converted without"),
    ],
)
def test_a_part_that_was_converted_alone_is_named_with_the_dtypes(part: str, said: str) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(3, 4)
    model = eenet.attach(network, ["1"], example=x)
    backend = TorchBackend(model)
    model.get_submodule(part).bfloat16()

    def run() -> None:
        live = backend.enter(x.numpy())
        for k in range(model.num_exits):
            live, _ = backend.run(k, live, observe=True)

    with pytest.raises(InvalidInputError, match=said):
        run()
    if part == "backbone.4":
        with pytest.raises(InvalidInputError, match=said):
            model.staged.check_current()


def test_a_head_that_was_converted_alone_is_named_by_export(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model = eenet.attach(network, ["0"], example=torch.randn(3, 4))
    scheduler = eenet.MaxProbability().fit(toy_records(exits=2, classes=3), toy_costs(2), "70%")
    model.heads.double()
    with pytest.raises(InvalidInputError, match=r"is torch.float32 and the head at '0' is torch.float64: one was conv"):
        eenet.export(model, scheduler, tmp_path / "bundle", example=torch.randn(3, 4), measure=False)
    assert list(tmp_path.iterdir()) == []
