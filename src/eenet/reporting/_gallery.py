"""The samples of section 2: some of them, with what every exit says and where each scheduler lets them leave."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.reporting._frontier import rounded
from eenet.reporting._leaving import Scores, fates_of
from eenet.reporting._replays import Replay, Replays
from eenet.scheduler import Ensemble, ExitHistory

Ints = NDArray[np.intp]

SHOWN = 240
"""How many samples are in the gallery."""

_LONGEST = 2000  # characters of a text that are kept
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_NONE = "-"


def gallery(replays: Replays, scores: Scores) -> dict[str, Any]:
    """Samples of every group, with predictions, scores and exits.

    `exits` of a scheduler has a text for each sample, with one character for each budget: the exit, 0 to 9 and then a
    to z, or "-" where the budget is too small. `scores` has an entry for each score that it uses, and `score_of` says
    which one it uses at each budget.
    """
    records, given = replays.records, replays.run.samples
    found = fates_of(replays)
    fates = None if found is None else found[0]
    among = np.arange(len(records)) if given is None or given.rows is None else given.rows
    masked = given is not None and given.masks is not None
    picked = _chosen(len(among), None if fates is None else fates[among], SHOWN // 2 if masked else SHOWN)
    rows = among[picked]
    tops = np.nan_to_num(records.probabilities[:, rows].max(axis=2))
    finite = np.isfinite(records.probabilities[:, rows].sum(axis=2))
    samples = []
    for m, n in enumerate(rows.tolist()):
        one: dict[str, Any] = {
            "n": n,
            "predictions": records.predictions[:, n].tolist(),
            "tops": [round(float(top), 4) for top in tops[:, m]],
            "finite": finite[:, m].tolist(),
        }
        if records.labels is not None:
            one["label"] = int(records.labels[n])
        if replays.utility is not None:
            one["utility"] = [round(float(value), 4) for value in replays.utility[:, n]]
        if fates is not None:
            one["fate"] = str(fates[n])
        if given is not None:
            at = int(picked[m])
            image = given.image(at)
            if image is None:
                one["text"] = given.texts[at][:_LONGEST]
            else:
                one["image"] = image
                one |= {"masks": given.mask_images(at)} if masked else {}
        samples.append(one)
    return {
        "count": len(records),
        "pooled": bool(records.pooled),
        "fates": _groups(found),
        "samples": samples,
        "schedulers": {title: _decided(of, rows, scores) for title, of in replays.of.items()},
    }


def _groups(found: tuple[NDArray[np.object_], dict[str, str]] | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    fates, titles = found
    return [{"key": key, "text": text, "count": int((fates == key).sum())} for key, text in titles.items()]


def _chosen(count: int, fates: NDArray[np.object_] | None, shown: int) -> Ints:
    """About as many of each group as there is room for, drawn at random, in their order."""
    if count <= shown:
        return np.arange(count)
    rng = np.random.default_rng(0)
    if fates is None:
        return np.sort(rng.permutation(count)[:shown])
    groups = [rng.permutation(np.flatnonzero(fates == key)) for key in np.unique(fates.astype(str))]
    taken: list[Ints] = []
    room = shown
    for left, of in zip(range(len(groups), 0, -1), sorted(groups, key=len), strict=True):
        taken.append(of[: room // left])
        room -= len(taken[-1])
    return np.sort(np.concatenate(taken))


def _decided(of: tuple[Replay | None, ...], rows: Ints, scores: Scores) -> dict[str, Any]:
    numbers: dict[int, int] = {}
    kept: list[dict[str, Any]] = []
    score_of: list[int | None] = []
    columns, backs = [], []
    for replay in of:
        if replay is None:
            score_of.append(None)
            columns.append([_NONE] * len(rows))
            backs.append(["0"] * len(rows))
            continue
        score = replay.policy.score
        values, finite, number = scores.of(score)
        if number not in numbers:
            numbers[number] = len(kept)
            kept.append({"values": _listed(values[:, rows], finite[:, rows])})
            if isinstance(score, Ensemble):
                kept[-1]["answers"] = _answers(score, scores, rows)
        score_of.append(numbers[number])
        columns.append([_DIGITS[k] for k in replay.decisions.exits[rows].tolist()])
        backs.append(["1" if back else "0" for back in replay.decisions.abstained[rows].tolist()])
    decided: dict[str, Any] = {
        "scores": kept,
        "score_of": score_of,
        "exits": ["".join(chars) for chars in zip(*columns, strict=True)],
    }
    if any("1" in back for back in backs):
        decided["handed_back"] = ["".join(chars) for chars in zip(*backs, strict=True)]
    return decided


def _listed(values: NDArray[np.float64], finite: NDArray[np.bool_]) -> list[list[float | None]]:
    return [
        [rounded(value) if known else None for value, known in zip(row, mask, strict=True)]
        for row, mask in zip(values.tolist(), finite.tolist(), strict=True)
    ]


def _answers(score: Ensemble, scores: Scores, rows: Ints) -> list[list[int]]:
    """The combined answer of the shown samples at each exit, (K, M)."""
    whole = scores.history().take(rows)
    history, answers = ExitHistory(), []
    for evidence in whole.evidence:
        history.evidence.append(evidence)
        if len(history.evidence) < len(whole.evidence):
            history.scores.append(score(history))
        answers.append(score.answers(history).argmax(axis=1).tolist())
    return answers
