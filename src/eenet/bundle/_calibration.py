"""The samples that int8 is made and judged with: some give the quantizer its ranges, the others judge the exits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from eenet._warn import warn
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.models import MultiExitModel
from eenet.models._io import check_labels, labels_of, require_batches, unpack
from eenet.records import missing_classes
from eenet.runtime._adaptive import tensor_spec
from eenet.runtime._backend import Boundaries, Live
from eenet.tasks import Segmentation

_FEWEST = 32
"""Samples without which neither ranges nor accuracies can be said."""
_RANGES = 128
"""The most samples that the quantizer gets its ranges from: more change little and take long."""
_CHUNK = 16


class Samples:
    """The calibration samples as live tensors, in two parts where there are enough: for ranges and for judging."""

    def __init__(self, model: MultiExitModel, calibration: Iterable[Any]) -> None:
        require_batches(calibration, model.staged.example, "calibration")
        self._boundaries = boundaries_of(model)
        dense = isinstance(model.task, Segmentation)
        self._classes = None if dense else model.num_classes
        whole: list[tuple[Live, Any]] = []
        for batch in calibration:
            args, kwargs, labels = unpack(batch)
            live = tuple(tensor.detach().cpu().numpy() for tensor in model.staged.flatten_inputs(*args, **kwargs))
            size = self._boundaries.size(0, live)
            if size and labels is None:
                raise InvalidInputError(
                    "the calibration data have no labels, by which the accuracy of int8 exits is judged; give batches "
                    "of (inputs, labels)"
                )
            if size:
                labels = labels_of(labels, size)
                given = torch.from_numpy(labels.astype(np.int64))
                unlike = torch.empty(size, model.num_classes, *given.shape[1:] if dense else (), device="meta")
                check_labels(model.task, unlike, given)
            if not all(np.isfinite(one).all() for one in live if one.dtype.kind == "f"):
                raise InvalidInputError(
                    "the calibration data hold NaN or infinity, of which the quantizer can take no ranges; correct them"
                )
            for start in range(0, size, _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, size))
                whole.append((self._boundaries.take(0, live, rows), labels[rows]))
        self.total = sum(len(labels) for _, labels in whole)
        if self.total < _FEWEST:
            raise InvalidInputError(
                f"the calibration data hold {self.total} samples; expected at least {_FEWEST} for ranges and "
                "accuracies, and some hundred are good; give more, or precision='fp32'"
                + ("" if self.total else ". A generator gives its batches once")
            )
        most = min(_RANGES, self.total // 4)
        self.apart = most >= _FEWEST
        self.judged, self.ranges = whole, [live for live, _ in whole]
        if self.apart:
            chosen = np.zeros(self.total, dtype=np.bool_)
            chosen[np.random.default_rng(0).permutation(self.total)[:most]] = True
            self.ranges, self.judged = [], []
            start = 0
            for live, labels in whole:
                mine = chosen[start : start + len(labels)]
                start += len(labels)
                if mine.any():
                    self.ranges.append(self._boundaries.take(0, live, np.flatnonzero(mine)))
                if not mine.all():
                    rest = np.flatnonzero(~mine)
                    self.judged.append((self._boundaries.take(0, live, rest), labels[rest]))

    def note(self, max_exit_drop: float) -> None:
        """Warn where the samples are few, or lack classes."""
        labels = np.concatenate([labels for _, labels in self.judged])
        lacking = None if self._classes is None else missing_classes(labels, self._classes)
        if lacking is not None:
            warned(lacking)
        judged = len(labels)
        if not self.apart:
            warned(
                f"the {self.total} calibration samples give the quantizer its ranges and judge it too, which flatters "
                f"it a little; {4 * _FEWEST} or more are taken apart"
            )
        if judged * max_exit_drop < 1:
            warned(
                f"{judged} samples judge the exits, of which one is {100 / judged:.2g} points: with max_exit_drop="
                f"{max_exit_drop:g} none may be lost; give more, or allow more"
            )


def boundaries_of(model: MultiExitModel) -> Boundaries:
    """What passes from stage to stage."""
    return Boundaries([tuple(tensor_spec(one) for one in stage.inputs) for stage in model.staged.inference_stages])


def warned(message: str) -> None:
    """Warn whoever called `export`."""
    warn(message, ReliabilityWarning)
