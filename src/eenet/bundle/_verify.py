"""The proof of a bundle: on real samples it gives the model's logits and takes the exits that a replay takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet.bundle._load import LoadedBundle
from eenet.errors import ExportError
from eenet.models import MultiExitModel, inferring
from eenet.records import ExitRecords
from eenet.runtime._adaptive import TENSORS
from eenet.runtime._backend import Array
from eenet.scheduler import ExitHistory, Scheduler
from eenet.tasks import Evidence, Segmentation

LOGITS_TOLERANCE = 1e-3
"""How far a bundle's logits may be from the model's, times the largest logit where that is above 1."""

TIE_TOLERANCE = 1e-3
"""A sample whose score is this close to the threshold (times the threshold where that is above 1) may go either way."""

_BATCH = 32
_MIXED = 64  # samples that are compared in other batches too
_ALONE, _OTHER_BATCH = 3, 13

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Proof:
    """What was compared: the samples, the largest difference of a logit, and samples at a tie that went otherwise.

    `itself` are the exits that were compared with what they say in other batches and not with the model: those after a
    stage in int8.
    """

    samples: int
    logits_difference: float
    ties: int
    itself: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description, with the tolerances."""
        return {
            "samples": self.samples,
            "largest_logits_difference": self.logits_difference,
            "logits_tolerance": LOGITS_TOLERANCE,
            "ties_that_went_otherwise": self.ties,
            "tie_tolerance": TIE_TOLERANCE,
            "compared_with_itself": list(self.itself),
        }


def verify(model: MultiExitModel, scheduler: Scheduler, bundle: LoadedBundle, live: tuple[Tensor, ...]) -> Proof:
    """Compare a bundle with the model on the samples in `live`; raises `ExportError` where they differ.

    Logits are compared at every exit, at batch 1 and in larger batches, and so that each sample comes alone, in another
    order and among others: where its logits depend on those, no bundle can do what a replay says. Exits are compared
    with those of a replay.

    At an exit in int8, or after a stage in int8, the logits are others than the model's, which is no fault: there a
    sample's logits are compared with those that the bundle itself gives in other batches, and the replay is of them.
    What they are worth was judged on the calibration samples.
    """
    specs = bundle.inputs
    itself = _changed(bundle)
    samples = model.staged.batch_size_of(live)
    worst, ties = 0.0, 0
    kept: list[list[NDArray[np.float32]]] = []
    with inferring(model):
        for number, rows in enumerate(_batches(samples)):
            inputs = model.staged.compact(live, torch.from_numpy(rows), 0)
            expected = _logits(model, inputs)
            given = {spec.name: tensor.numpy() for spec, tensor in zip(specs, inputs, strict=True)}
            got = _all_logits(bundle, given)
            worst = max(worst, _compare_logits(expected, got, bundle.exit_names, itself))
            expected = [got[k] if k in itself else one for k, one in enumerate(expected)]
            ties += _compare_exits(model, scheduler, expected, bundle(given).exits, rows)
            if 1 <= number <= _MIXED // _BATCH:
                kept.append(expected)
        whole = [np.concatenate(parts) for parts in zip(*kept, strict=True)]
        for rows in _other_batches(len(whole[0])):
            inputs = model.staged.compact(live, torch.from_numpy(rows), 0)
            given = {spec.name: tensor.numpy() for spec, tensor in zip(specs, inputs, strict=True)}
            got = _all_logits(bundle, given)
            if not _alike(whole, got, rows):
                _compare_logits(_logits(model, inputs), got, bundle.exit_names, itself)  # the bundle may be at fault
                raise ExportError(
                    f"the logits of samples {rows[:3].tolist()} are others when other samples are in their batch: the "
                    "network mixes samples, so that no sample can exit by itself; remove what computes over the batch "
                    "dimension"
                )
    return Proof(samples, worst, ties, itself)


def _changed(bundle: LoadedBundle) -> tuple[int, ...]:
    """The exits whose logits are others than the model's, since their head or a stage before them is in int8."""
    precision, exits = bundle.precision, bundle.backend.num_exits
    stages = [precision[f"stages.{k}"] == "int8" for k in range(exits)]
    return tuple(k for k in range(exits) if any(stages[: k + 1]) or precision.get(f"heads.{k}") == "int8")


def _batches(samples: int) -> list[Ints]:
    """Every sample once, a first one also alone: a batch of one is where a traced size shows."""
    rows = np.arange(samples)
    return [rows[:1], *(rows[start : start + _BATCH] for start in range(0, samples, _BATCH))]


def _other_batches(samples: int) -> list[Ints]:
    """The samples in another order and in other batches; some alone."""
    rows = np.random.default_rng(0).permutation(samples)
    alone, rest = rows[:_ALONE], rows[_ALONE:]
    return [*alone[:, None], *(rest[start : start + _OTHER_BATCH] for start in range(0, len(rest), _OTHER_BATCH))]


def _alike(whole: list[NDArray[np.float32]], got: list[NDArray[np.float32]], rows: Ints) -> bool:
    """Whether the samples `rows` have the logits that they had in the batches before."""
    for one, other in zip(whole, got, strict=True):
        scale = max(1.0, float(np.abs(one[np.isfinite(one)]).max(initial=0.0)))
        if not np.allclose(one[rows], other, rtol=0, atol=LOGITS_TOLERANCE * scale, equal_nan=True):
            return False
    return True


def _logits(model: MultiExitModel, live: tuple[Tensor, ...]) -> list[NDArray[np.float32]]:
    args, kwargs = model.staged.call_of(live)
    return [TENSORS.to_host(logits) for logits in model(*args, **kwargs)]


def _all_logits(bundle: LoadedBundle, inputs: dict[str, Array]) -> list[NDArray[np.float32]]:
    backend, all_logits = bundle.backend, []
    live = backend.enter(inputs)
    for k in range(backend.num_exits):
        live, logits = backend.run(k, live, observe=True)
        assert logits is not None
        all_logits.append(logits)
    return all_logits


def _compare_logits(
    expected: list[NDArray[np.float32]],
    got: list[NDArray[np.float32]],
    names: tuple[str, ...],
    itself: tuple[int, ...],
) -> float:
    worst = 0.0
    for k, (name, one, other) in enumerate(zip(names, expected, got, strict=True)):
        if one.shape != other.shape:
            raise ExportError(
                f"at exit {name!r} the bundle gives logits of shape {other.shape}, the model {one.shape}; the graph "
                "has a size fixed that changes: report it, and use backend='torch'"
            )
        if k in itself:
            continue
        finite = np.isfinite(one)
        difference = float(np.abs(other[finite] - one[finite]).max(initial=0.0))
        scale = max(1.0, float(np.abs(one[finite]).max(initial=0.0)))
        if not np.array_equal(finite, np.isfinite(other)) or not difference <= LOGITS_TOLERANCE * scale:
            raise ExportError(
                f"at exit {name!r} the bundle's logits differ from the model's by {difference:.2g} at a scale of "
                f"{scale:.2g}, more than {LOGITS_TOLERANCE:g} of it; the network has a step that this backend computes "
                "otherwise: use backend='torch'"
            )
        worst = max(worst, difference)
    return worst


def _compare_exits(
    model: MultiExitModel, scheduler: Scheduler, logits: list[NDArray[np.float32]], exits: NDArray[np.int64], rows: Ints
) -> int:
    """How many samples exited elsewhere than in a replay; raises `ExportError` for one that is not a tie."""
    history: list[Evidence] = []
    for one in logits:
        history.append(model.task.evidence(model.task.shown(one), history))
    dense = isinstance(model.task, Segmentation)
    records = ExitRecords.from_evidence([history]) if dense else ExitRecords.from_logits(np.stack(logits))
    replayed = scheduler.replay(records).exits
    differing = np.flatnonzero(replayed != exits)
    if len(differing) == 0:
        return 0
    policy, seen = scheduler.policy, ExitHistory()
    for evidence in history[:-1]:
        seen.evidence.append(evidence)
        seen.scores.append(policy.score(seen))
    for n in differing:
        k = int(min(replayed[n], exits[n]))
        score, threshold = float(seen.scores[k][n]), float(policy.thresholds[k])
        if abs(score - threshold) > TIE_TOLERANCE * max(1.0, abs(threshold)):
            raise ExportError(
                f"sample {rows[n]} takes exit {exits[n]} in the bundle and {replayed[n]} in a replay, although its "
                f"score {score:.6g} at exit {k} is no tie with the threshold {threshold:.6g}; use backend='torch'"
            )
    return len(differing)
