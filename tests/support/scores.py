"""What tests of schedulers compute of scores: by hand, from public names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eenet.records import ExitRecords
from eenet.scheduler import ExitHistory, Score

Floats = NDArray[np.float64]
TIE = 1e-5
"""Scores closer than this count as equal: no threshold lies between them."""


def history_of(records: ExitRecords, score: Score) -> ExitHistory:
    """The history of all records at the early exits, with their scores."""
    history = ExitHistory()
    for evidence in records.all_evidence()[:-1]:
        history.evidence.append(evidence)
        history.scores.append(score(history))
    return history


def scores_of(records: ExitRecords, score: Score) -> Floats:
    """Scores (K-1, N)."""
    return np.stack(history_of(records, score).scores)


def largest_tie(records: ExitRecords, score: Score) -> int:
    """The largest number of samples with one score at one exit: a threshold cannot split them."""
    history, largest = history_of(records, score), 0
    for k, scores in enumerate(history.scores):
        finite = np.logical_and.reduce([evidence.finite for evidence in history.evidence[: k + 1]])
        ordered = np.sort(scores[finite])
        if len(ordered):
            ends = np.flatnonzero(np.diff(ordered) > TIE) + 1
            largest = max(largest, int(np.diff(np.concatenate([[0], ends, [len(ordered)]])).max()))
    return largest
