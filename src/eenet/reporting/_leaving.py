"""Section 2, which samples exit where: by class, by difficulty, over time, and scores against thresholds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.evaluation._style import RIGHT, WRONG, exit_styles, styles
from eenet.reporting._charts import Chart, axis, chart, numbers, series
from eenet.reporting._frontier import limits_of, rounded, score_label
from eenet.reporting._replays import Replay, Replays
from eenet.scheduler import ExitHistory, Score

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]

_MOST_CLASSES = 30
_BINS = 40
_WINDOWS = 40
_GAIN = 0.005
"""By how much one prediction must be better than another, where right and wrong are shares, to count as better."""


def framed(replays: Replays, patch: Callable[[Replay], dict[str, Any] | None]) -> dict[str, Any]:
    """What of a chart depends on the budget: for each scheduler a patch for each budget, and the first one applied."""
    frames = {title: [None if one is None else patch(one) for one in of] for title, of in replays.of.items()}
    first = next(found for of in frames.values() for found in [*of[len(of) // 2 :], *of] if found is not None)
    return {**first, "frames": frames}


def by_class(replays: Replays) -> list[Chart]:
    """Exit shares of each class, the accuracy of those that leave there, and what each exit knows of each class."""
    records = replays.records
    if records.labels is None:
        return []
    rows, said = _classes(replays)
    labels = records.labels
    members = [np.flatnonzero(labels == c) for c in rows]
    names = [f"{replays.run.classes[c]}" for c in rows]
    exits = list(replays.run.exit_titles)
    right = records.require_utility().astype(np.float64)

    def shares(replay: Replay) -> dict[str, Any]:
        found = replay.decisions.exits
        table = [np.bincount(found[of], minlength=len(exits)) / len(of) for of in members]
        return {"values": _few(np.array(table))}

    def accuracies(replay: Replay) -> dict[str, Any]:
        decisions = replay.decisions
        assert decisions.utility is not None
        table = np.full((len(rows), len(exits)), np.nan)
        for row, of in enumerate(members):
            for k in range(len(exits)):
                there = of[(decisions.exits[of] == k) & ~decisions.abstained[of]]
                if len(there):
                    table[row, k] = decisions.utility[there].mean()
        return {"values": _few(table)}

    def heat(name: str, title: str, about: str, **more: Any) -> Chart:
        return chart(
            name,
            title,
            about + said,
            axis("exit"),
            axis("class"),
            kind="heat",
            rows=names,
            columns=exits,
            percent=True,
            limits=[0.0, 1.0],
            **more,
        )

    return [
        heat(
            "exits-by-class",
            "Where each class leaves",
            "A row is a class; its cells are the shares, in %, of its samples that leave at each exit, and add up to "
            "100. A class that is easy for the network has its share on the left.",
            **framed(replays, shares),
        ),
        heat(
            "accuracy-by-class",
            "How right those are that leave there",
            "The accuracy, in %, of the samples of a class that leave at an exit. A cell is empty where none does; one "
            "with few samples says little.",
            **framed(replays, accuracies),
        ),
        heat(
            "exit-accuracy-by-class",
            "What each exit knows of each class",
            "The accuracy, in %, that an exit would have if all samples of the class left there. It does not depend on "
            "the scheduler or the budget.",
            values=_few(np.array([[right[k, of].mean() for k in range(len(exits))] for of in members])),
        ),
    ]


def _few(table: Floats) -> list[Any]:
    """Shares to four digits: a page has many of them."""
    return numbers(np.round(table, 4))


def _classes(replays: Replays) -> tuple[list[int], str]:
    """The classes that are shown, and what to say of those that are not."""
    labels = replays.records.labels
    assert labels is not None
    counts = np.bincount(labels, minlength=replays.records.num_classes)
    present = np.flatnonzero(counts)
    if len(present) <= _MOST_CLASSES:
        return present.tolist(), ""
    chosen = np.sort(present[np.argsort(-counts[present], kind="stable")[:_MOST_CLASSES]])
    return chosen.tolist(), f" Of {len(present)} classes the {_MOST_CLASSES} with most samples are shown."


EASY, RESCUED, OVERTHOUGHT, WASTED, OTHER = "easy", "rescued", "overthought", "wasted", "other"

FATES = {
    EASY: "right at every exit",
    RESCUED: "rescued: wrong at the first exit, right at the last",
    OVERTHOUGHT: "overthought: right at an earlier exit, wrong at the last",
    WASTED: "wasted: wrong at every exit",
    OTHER: "right at the first and the last exit, wrong between",
}
"""Groups of samples by what the exits would say of them; no scheduler is part of it."""

_FATES_OF_SHARES = {
    EASY: "no exit is clearly better than the first",
    RESCUED: "the last exit is clearly better than the first",
    OVERTHOUGHT: "an earlier exit is clearly better than the last",
}


def fates_of(replays: Replays) -> tuple[NDArray[np.object_], dict[str, str]] | None:
    """The group of each sample, (N,), and what the groups are; None without labels."""
    if replays.utility is None:
        return None
    utility = replays.utility
    fates = np.full(utility.shape[1], OTHER, dtype=np.object_)
    if replays.records.labels is None:  # shares of many predictions, as in segmentation
        fates[:] = EASY
        fates[utility[-1] > utility[0] + _GAIN] = RESCUED
        fates[utility[:-1].max(axis=0) > utility[-1] + _GAIN] = OVERTHOUGHT
        return fates, _FATES_OF_SHARES
    right = utility > 0
    fates[right.all(axis=0)] = EASY
    fates[~right[0] & right[-1]] = RESCUED
    fates[right[:-1].any(axis=0) & ~right[-1]] = OVERTHOUGHT
    fates[~right.any(axis=0)] = WASTED
    return fates, {name: text for name, text in FATES.items() if name != OTHER or (fates == OTHER).any()}


def by_difficulty(replays: Replays) -> Chart:
    """Where samples leave by what the exits would say of them; without labels, by how sure the last exit is."""
    found = fates_of(replays)
    if found is not None:
        fates, titles = found
        groups = {text: np.flatnonzero(fates == name) for name, text in titles.items()}
        about = (
            "Samples in groups by what every exit would say of them. A scheduler that knows which samples are hard "
            "lets the easy and the wasted ones leave early, since going on gains nothing, and keeps the rescued ones. "
            "The overthought ones gain from leaving early."
        )
    else:
        sure = np.nan_to_num(replays.records.probabilities[-1].max(axis=1))
        order = np.argsort(sure, kind="stable")
        parts = np.array_split(order, 5)
        words = ("least sure fifth", "second fifth", "middle fifth", "fourth fifth", "surest fifth")
        groups = dict(zip(words, parts, strict=True))
        about = "Samples in fifths by the largest probability of the last exit. The records have no labels."
    groups = {f"{name} ({len(of)})": of for name, of in groups.items() if len(of)}
    exits = range(replays.records.num_exits)
    looks = exit_styles(len(exits))

    def bars(replay: Replay) -> dict[str, Any]:
        exits_of = replay.decisions.exits
        table = np.array([np.bincount(exits_of[of], minlength=len(exits)) / len(of) for of in groups.values()])
        return {
            "series": [
                {
                    "name": replays.run.exit_titles[k],
                    "style": looks[k].to_dict(),
                    "values": _few(table[:, k]),
                }
                for k in exits
            ]
        }

    return chart(
        "difficulty",
        "Where easy and hard samples leave",
        about,
        axis(""),
        axis("share of the group", percent=True, limits=(0, 1)),
        kind="bars",
        categories=list(groups),
        stacked=True,
        **framed(replays, bars),
    )


def over_time(replays: Replays) -> Chart | None:
    """Exit shares in windows of the records' order; None where that is not known to be that of time."""
    if not replays.run.ordered:
        return None
    count = len(replays.records)
    windows = np.array_split(np.arange(count), min(_WINDOWS, count))
    centers = [float(of.mean()) for of in windows]
    looks = exit_styles(replays.records.num_exits)

    def lines(replay: Replay) -> dict[str, Any]:
        exits = replay.decisions.exits
        table = np.array([np.bincount(exits[of], minlength=len(looks)) / len(of) for of in windows])
        return {
            "series": [
                series(replays.run.exit_titles[k], looks[k], centers, np.round(table[:, k], 4), points=False)
                for k in range(len(looks))
            ]
        }

    return chart(
        "over-time",
        "Where samples leave, over time",
        f"Shares in {len(windows)} windows of about {count // len(windows)} samples, in the order of the records. A "
        "change that lasts means that the data have changed since the scheduler was fitted.",
        axis("sample number"),
        axis("share of samples", percent=True, limits=(0, 1)),
        kind="lines",
        **framed(replays, lines),
    )


class Scores:
    """The scores of all records at every exit but the last, (K - 1, N), computed once for each score."""

    def __init__(self, replays: Replays) -> None:
        self._evidence = replays.records.all_evidence()
        self._kept: list[tuple[Score, Floats, Bools]] = []

    def of(self, score: Score) -> tuple[Floats, Bools, int]:
        """Scores, whether the evidence was finite so far, and the number of this score."""
        for number, (known, scores, finite) in enumerate(self._kept):
            if known is score or (type(known) is type(score) and known == score):
                return scores, finite, number
        history, rows, masks = ExitHistory(), [], []
        for evidence in self._evidence[:-1]:
            history.evidence.append(evidence)
            rows.append(score(history))
            history.scores.append(rows[-1])
            masks.append(history.finite)
        self._kept.append((score, np.array(rows), np.array(masks)))
        return self._kept[-1][1], self._kept[-1][2], len(self._kept) - 1

    def history(self) -> ExitHistory:
        """The evidence of all records at every exit."""
        return ExitHistory(self._evidence)


def distributions(replays: Replays, scores: Scores) -> list[Chart]:
    """For each exit but the last, the scores of the samples that come to it, with the threshold."""
    utility = replays.utility

    def at(k: int) -> Chart:
        def steps(replay: Replay) -> dict[str, Any]:
            values, finite, _ = scores.of(replay.policy.score)
            limit = limits_of(replay.policy)[k]
            here = np.flatnonzero((replay.decisions.exits >= k) & finite[k])
            coming = values[k, here]
            edges = _edges(coming, limit)
            groups = [("these samples", RIGHT, np.ones(len(here), dtype=np.bool_))]
            if utility is not None:
                if replays.records.labels is None:  # shares of many predictions, as in segmentation
                    good = utility[k, here] >= utility[-1, here] - _GAIN
                    named = ("as good as the last exit", "worse than the last exit")
                else:
                    good, named = utility[k, here] > 0, ("right here", "wrong here")
                groups = [(named[0], RIGHT, good), (named[1], WRONG, ~good)]
            clipped = np.clip(coming, edges[0], edges[-1])
            return {
                "series": [
                    {
                        "name": name,
                        "style": style.to_dict(),
                        "edges": [rounded(edge) for edge in edges.tolist()],
                        "values": np.histogram(clipped[of], edges)[0].tolist(),
                    }
                    for name, style, of in groups
                ],
                "rules": [] if limit is None else [{"axis": "x", "at": limit, "name": "threshold"}],
                "x": axis(score_label(replay.policy.score.name)),
                "numbers": {
                    "come to this exit": int((replay.decisions.exits >= k).sum()),
                    "leave here": int((replay.decisions.exits == k).sum()),
                    "threshold": "off" if limit is None else limit,
                },
            }

        name = replays.run.exit_titles[k]
        blank = chart(
            f"scores-exit-{k}",
            f"Scores at {name}",
            "The samples that come to this exit, by their score. Those at or right of the threshold leave. The "
            "score is good where the wrong ones are left of it. Scores beyond the axis are in its first and last bar.",
            axis("score"),
            axis("samples"),
            kind="steps",
            series=[],
        )
        return {**blank, **framed(replays, steps)}

    return [at(k) for k in range(replays.records.num_exits - 1)]


def _edges(values: Floats, limit: float | None) -> Floats:
    """The edges of bars over the middle 99 % of the values, and the threshold where it is near."""
    if not len(values):
        center = limit or 0.0
        return np.linspace(center - 1, center + 1, 3)
    low, high = np.quantile(values, [0.005, 0.995]).tolist()
    if limit is not None:
        wide = 0.5 * max(high - low, 1e-6)
        low, high = max(min(low, limit), low - wide), min(max(high, limit), high + wide)
    if high - low < 1e-9 * max(1.0, abs(low)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _BINS + 1)


def scheduler_styles(replays: Replays) -> dict[str, dict[str, Any]]:
    """The styles of the schedulers, for the page."""
    return {title: style.to_dict() for title, style in styles(list(replays.of)).items()}
