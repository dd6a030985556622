"""What benchmarks/serving.py serves, and the process that does: `python benchmarks/_serving_models.py fixed stage`.

fixed   a back end that sleeps for `16 + n` units on n samples at each of four stages: a call has a fixed cost 16 times
        that of a sample. The sleep stands for an accelerator, which the processor waits for.
free    the same without the sleep: what is left is the server's own cost.
cpu     ResNet-18 at 112 px with exits after layer1, layer2 and layer3, random weights; in eager PyTorch, or with
        --bundle the bundle of ONNX graphs that `export_bundle` wrote.
small   a convolutional network at 16 px in eager PyTorch, a millisecond for a sample: for soaking.

In each 40/30/20/10 % of the inputs leave at the four exits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import eenet
from eenet.errors import InvalidInputError
from eenet.runtime import Live
from eenet.scheduler import ThresholdPolicy
from eenet.serving.engine import EngineOptions, FixedBudget, Limits, ServedModel
from eenet.serving.http import ServerOptions, make_server
from eenet.tasks import Classification
from resnet50 import SHARES, fixed

EXITS, CLASSES = 4, 2
FIXED = 16.0
POOL = 400
"""Inputs that requests are drawn from: enough that the shares come out."""

ENGINES = ("model", "batch", "stage")


class SleepingBackend:
    """Stages whose logits are the input, and whose time is given: `fixed + n` units of sleep on n samples."""

    num_exits, num_classes = EXITS, CLASSES

    def __init__(self, unit: float) -> None:
        self.unit = unit

    def enter(self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any]) -> Live:
        x = np.asarray(inputs["x"] if isinstance(inputs, Mapping) else inputs)
        if x.shape[1:] != (EXITS * CLASSES,):
            raise InvalidInputError(f"the input 'x' has shape {x.shape}, expected (n, {EXITS * CLASSES})")
        return (x,)

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        (x,) = live
        if self.unit:
            time.sleep(self.unit * (FIXED + len(x)))
        logits = x[:, CLASSES * k : CLASSES * (k + 1)] if observe or k == EXITS - 1 else None
        return (() if k == EXITS - 1 else live), logits

    def size(self, k: int, live: Live) -> int:  # noqa: ARG002 - the protocol's
        return len(live[0])

    def take(self, k: int, live: Live, rows: NDArray[np.intp]) -> Live:  # noqa: ARG002
        return (live[0][rows],)

    def join(self, k: int, parts: Sequence[Live]) -> Live:  # noqa: ARG002
        return (np.concatenate([x for (x,) in parts]),)


class _Spec:
    name, dtype, shape = "x", "float32", ("batch", EXITS * CLASSES)


class _Arrays:
    kind = "array"

    def __call__(self, items: Sequence[Any]) -> Mapping[str, Any]:
        raise NotImplementedError


class Synthetic:
    """A model around a `SleepingBackend`."""

    def __init__(self, unit: float) -> None:
        self.backend = SleepingBackend(unit)
        self.task = Classification()
        self.inputs = [_Spec()]
        self.preprocessing = _Arrays()
        self.class_names = None
        self.info: dict[str, Any] = {"backend": "synthetic", "exits": ["1", "2", "3", "output"]}
        logits = synthetic_inputs().reshape(POOL, EXITS, CLASSES).transpose(1, 0, 2)
        records = eenet.ExitRecords.from_logits(logits, np.zeros(POOL, dtype=np.intp))
        self.scheduler = fixed(records, SHARES)
        self.costs = self.scheduler.costs


def synthetic_inputs() -> NDArray[np.float32]:
    """Logits (POOL, EXITS * CLASSES) that are sure from some exit on."""
    rng = np.random.default_rng(0)
    leave = rng.permutation(np.repeat(np.arange(EXITS), np.round(np.array(SHARES) * POOL).astype(int)))
    logits = rng.uniform(0, 0.1, (POOL, EXITS, CLASSES)).astype(np.float32)
    for n, k in enumerate(leave):
        logits[n, k:, 0] += 10 + rng.uniform()
    return logits.reshape(POOL, -1)


def images(size: int) -> NDArray[np.float32]:
    """Noise of different contrast (POOL, 3, size, size), so that even random heads distinguish the images."""
    rng = np.random.default_rng(0)
    contrast = rng.random((POOL, 1, 1, 1), dtype=np.float32) + 0.5
    return rng.standard_normal((POOL, 3, size, size), dtype=np.float32) * contrast


_SIZES = {"cpu": 112, "small": 16}


def inputs_of(name: str) -> NDArray[np.float32]:
    """The pool of inputs of a model."""
    return images(_SIZES[name]) if name in _SIZES else synthetic_inputs()


def export_bundle(folder: Path) -> None:
    """Write the network of "cpu" as a bundle of ONNX graphs."""
    model, scheduler = network_and_scheduler("cpu")
    example = torch.from_numpy(images(_SIZES["cpu"])[:64])
    eenet.export(model, scheduler, folder, example=example, measure=False)


def model(name: str, unit: float, bundle: Path | None = None) -> Any:
    """What is served."""
    if name not in _SIZES:
        return Synthetic(unit if name == "fixed" else 0.0)
    if bundle is not None:
        return eenet.bundle.load(bundle, threads=1)
    model, scheduler = network_and_scheduler(name)
    return ServedModel(model, scheduler)


def network_and_scheduler(name: str) -> tuple[eenet.MultiExitModel, eenet.Scheduler]:
    """The network behind "cpu" or "small", the same each time."""
    torch.manual_seed(0)
    if name == "cpu":
        network, classes = eenet.build_network("torchvision:resnet18").eval(), 1000
    else:
        network, classes = _small().eval(), 10
    x = torch.from_numpy(inputs_of(name))
    model = eenet.attach(network, ["layer1", "layer2", "layer3"], num_classes=classes, example=x[:2]).eval()
    batches = [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in torch.split(x, 20)]
    return model, fixed(eenet.collect(model, batches), SHARES)


def _small() -> torch.nn.Module:
    def layer(inputs: int, outputs: int, stride: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(inputs, outputs, 3, stride, 1), torch.nn.ReLU())

    layers = {f"layer{k + 1}": layer(16 if k else 3, 16, 1 + k % 2) for k in range(4)}
    pool = {"pool": torch.nn.AdaptiveAvgPool2d(1), "flat": torch.nn.Flatten(), "top": torch.nn.Linear(16, 10)}
    return torch.nn.Sequential(OrderedDict(layers | pool))


def all_exits_off(policy: ThresholdPolicy) -> ThresholdPolicy:
    """The policy of whole-model batching."""
    return replace(policy, enabled=np.zeros_like(policy.enabled))


def main() -> int:
    """Serve until stopped; the first line of output is the port."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("fixed", "free", "cpu", "small"))
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--unit", type=float, default=1e-3)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--max-wait", type=float, default=0.002)
    parser.add_argument("--max-samples", type=int, default=4096)
    parser.add_argument("--head-timeout", type=float, default=10.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    served = model(options.model, options.unit, options.bundle)
    controller = FixedBudget(served.scheduler)
    if options.engine == "model":
        controller.policy = all_exits_off(controller.policy)
    engine = EngineOptions(
        max_batch=options.max_batch,
        max_wait=options.max_wait,
        max_samples=options.max_samples,
        merge=options.engine == "stage",
    )
    limits = Limits(timeout=120.0, head_timeout=options.head_timeout)
    make_server(
        served,
        ServerOptions(port=0, engine=engine, limits=limits),
        controller=controller,
        ready=lambda url: print(url.rpartition(":")[2], flush=True),
    ).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
