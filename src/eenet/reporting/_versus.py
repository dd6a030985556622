"""Section 5, compare: schedulers and runs at equal realized cost, pair by pair, and samples whose fate differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.evaluation._style import REFERENCE, RIGHT, WRONG, styles, title_of
from eenet.reporting._charts import Chart, axis, chart, numbers, series
from eenet.reporting._replays import Replay, Replays
from eenet.scheduler import Decisions

Floats = NDArray[np.float64]

_FATES = {
    "only this one right": RIGHT,
    "only the chosen one right": WRONG,
    "worth the same, at another exit": REFERENCE,
}
_ROUNDING = 1e-12
_BANDS = 3  # of more, the page draws one
_LISTED = 10
"""How many samples of different fates are listed."""


def _utility(decisions: Decisions) -> Floats:
    assert decisions.utility is not None
    return decisions.utility.astype(np.float64)


def paired(one: Decisions, reference: Sequence[Decisions]) -> tuple[float, Floats] | None:
    """The accuracy of `one` minus the reference's at the same mean cost on the same samples; None where it has none.

    The reference is taken straight between the two of its budgets that cost just less and just more. The second value
    is what each sample (N,) contributes, with what its cost does (the delta method): its mean has the standard error.
    Samples that are handed back count as wrong.
    """
    costs = [decisions.mean_cost for decisions in reference]
    spent = one.mean_cost
    below = [g for g, cost in enumerate(costs) if cost <= spent + _ROUNDING]
    above = [g for g, cost in enumerate(costs) if cost >= spent - _ROUNDING]
    if not below or not above:
        return None
    low, high = max(below, key=lambda g: costs[g]), min(above, key=lambda g: costs[g])
    width = costs[high] - costs[low]
    share = (spent - costs[low]) / width if width > _ROUNDING else 0.0
    utilities = [_utility(reference[g]) for g in (low, high)]
    difference = _utility(one) - (1 - share) * utilities[0] - share * utilities[1]
    each = difference
    if width > _ROUNDING:
        slope = (utilities[1].mean() - utilities[0].mean()) / width
        extra = one.sample_costs - (1 - share) * reference[low].sample_costs - share * reference[high].sample_costs
        each = difference - slope * extra
    return float(difference.mean()), each


def _error(each: Floats) -> float:
    return float(each.std() / np.sqrt(len(each)))


def differences(replays: Replays, reference: str) -> Chart:
    """Every scheduler against one of them at the same realized cost, for each budget, on the run's records."""
    looks, made, overall = styles(list(replays.of)), [], {}
    theirs = [replay.decisions for replay in replays.of[reference] if replay is not None]
    for title, of in replays.of.items():
        if title == reference:
            continue
        x, y, errors, of_samples = [], [], [], []
        for replay in of:
            found = None if replay is None else paired(replay.decisions, theirs)
            if replay is not None and found is not None:
                x.append(replay.decisions.mean_cost)
                y.append(found[0])
                errors.append(2 * _error(found[1]))
                of_samples.append(found[1])
        low, high = np.subtract(y, errors), np.add(y, errors)
        made.append(series(title, looks[title], x, y, points=False, low=low, high=high))
        if y:
            overall[title] = {"mean": float(np.mean(y)), "standard_error": _error(np.mean(of_samples, axis=0))}
    return chart(
        "differences",
        f"Accuracy minus that of {reference}",
        "At the same mean cost on the same samples, pair by pair; the band is twice the standard error. Where a band "
        "holds zero, the two cannot be told apart on these samples."
        + (" Only the chosen scheduler has its band." if len(made) > _BANDS else ""),
        axis(f"mean cost per sample ({replays.costs.unit})"),
        axis("difference in accuracy", percent=True),
        rules=[{"axis": "y", "at": 0.0, "name": reference}],
        marker="cost",
        kind="lines",
        series=made,
        overall=overall,
    )


def differences_resplits(comparison: Mapping[str, Any]) -> Chart:
    """The paired differences of a comparison over resplits, with its standard errors (`Comparison.differences`)."""
    rows = [row for row in comparison["differences"] if row["budget"] is not None]
    reference = comparison["reference"]
    names = [name for name in dict.fromkeys(row["scheduler"] for row in rows) if name != reference]
    looks = styles([title_of(name) for name in names])
    made = []
    for name in names:
        of = [row for row in rows if row["scheduler"] == name]
        title = title_of(name)
        errors = [2 * row["standard_error"] for row in of]
        made.append(
            series(title, looks[title], [row["budget"] for row in of], [row["mean"] for row in of], y_error=errors)
        )
    all_budgets = {
        title_of(row["scheduler"]): {"mean": row["mean"], "standard_error": row["standard_error"]}
        for row in comparison["differences"]
        if row["budget"] is None and row["scheduler"] != reference
    }
    resplits = len({row["resplit"] for row in comparison["rows"]})
    return chart(
        "differences-resplits",
        f"Accuracy minus that of {title_of(reference)} over {resplits} resplits",
        "At the same held-out cost, mean over the resplits; bars are two standard errors, from samples drawn again.",
        axis(f"budget ({comparison['unit']} per sample)"),
        axis("difference in accuracy", percent=True),
        rules=[{"axis": "y", "at": 0.0, "name": title_of(reference)}],
        marker="budget",
        kind="lines",
        series=made,
        overall=all_budgets,
    )


def fates(replays: Replays) -> Chart:
    """Against the chosen scheduler, at the chosen budget: the shares of samples that every other treats otherwise."""

    def patch(title: str, g: int) -> dict[str, Any] | None:
        theirs = replays.of[title][g]
        if theirs is None:
            return None
        others = [other for other in replays.of if other != title]
        return {"categories": others, "series": _bars([_fates(replays.of[other][g], theirs) for other in others])}

    frames = {title: [patch(title, g) for g in range(len(replays.budgets))] for title in replays.of}
    of_first = next(iter(frames.values()))
    shown = next(found for found in [*of_first[len(of_first) // 2 :], *of_first] if found is not None)
    return chart(
        "fates",
        "Samples whose fate differs",
        "Every other scheduler against the chosen one, at the chosen budget: samples that only one of the two gets "
        "right, and samples that both treat alike but let leave at another exit.",
        axis(""),
        axis("share of the samples", percent=True),
        kind="bars",
        stacked=True,
        frames=frames,
        **shown,
    )


def _bars(shares: Sequence[Mapping[str, float] | None]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "style": style.to_dict(),
            "values": numbers([np.nan if of is None else round(of[name], 4) for of in shares]),
        }
        for name, style in _FATES.items()
    ]


def _fates(one: Replay | None, reference: Replay | None) -> dict[str, float] | None:
    if one is None or reference is None:
        return None
    mine, theirs = _utility(one.decisions), _utility(reference.decisions)
    moved = one.decisions.exits != reference.decisions.exits
    better, worse = mine > theirs, mine < theirs
    alike = ~better & ~worse
    parts = (better, worse, alike & moved)
    return {name: float(part.mean()) for name, part in zip(_FATES, parts, strict=True)}


def different(replays: Replays, one: str, reference: str, budget_index: int) -> dict[str, Any] | None:
    """A table of samples that only one of two schedulers gets right at a budget; None where there are none."""
    first, second = (replays.of[title][budget_index] for title in (one, reference))
    if first is None or second is None:
        return None
    gain = _utility(first.decisions) - _utility(second.decisions)
    rows = np.flatnonzero(gain)
    if not len(rows):
        return None
    shown = rows[np.argsort(-np.abs(gain[rows]), kind="stable")][:_LISTED]
    labels, classes = replays.records.labels, replays.run.classes

    def answer(found: Replay, n: int) -> str:
        said = int(found.decisions.predictions[n])
        if replays.records.pooled:
            return "" if found.decisions.utility is None else f"{found.decisions.utility[n]:.1%} right"
        return "handed back" if said < 0 else classes[said]

    budget = replays.costs.in_words(float(replays.budgets[budget_index]))
    return {
        "title": f"Samples that {one} and {reference} treat differently at {budget}: {len(shown)} of {len(rows)}",
        "columns": [
            "sample",
            "label",
            *(f"{title}: {what}" for title in (one, reference) for what in ("exit", "answer")),
        ],
        "rows": [
            [
                str(n),
                "" if labels is None else classes[labels[n]],
                *(text for found in (first, second) for text in (str(found.decisions.exits[n]), answer(found, n))),
            ]
            for n in shown.tolist()
        ],
    }


def runs(several: Sequence[Replays]) -> list[Chart]:
    """Each labeled run's first scheduler; where runs share samples and units, the paired difference too."""
    several = [replays for replays in several if replays.records.utility is not None and _first(replays)]
    if len(several) < 2:
        return []
    names = [replays.run.name for replays in several]
    looks = styles(names)
    made, units = [], {replays.costs.unit for replays in several}
    alike = len(units) == 1
    for name, replays in zip(names, several, strict=True):
        of = [replay.decisions for replay in _first(replays)]
        scale = 1.0 if alike else replays.costs.reference
        y = [float(_utility(decisions).mean()) for decisions in of]
        error = [2 * float(_utility(decisions).std()) / np.sqrt(len(decisions.exits)) for decisions in of]
        x = [decisions.mean_cost / scale for decisions in of]
        look = looks[name]
        made.append(series(name, look, x, y, points=False, low=np.subtract(y, error), high=np.add(y, error)))
    cost = axis(f"mean cost per sample ({units.pop()})") if alike else axis("mean cost, of its reference", percent=True)
    charts = [
        chart(
            "runs",
            "Accuracy against cost of every run",
            "The first scheduler of each run at all budgets; the band is twice the standard error."
            + ("" if alike else " The runs' costs have different units, so each is a share of its own reference."),
            cost,
            axis("accuracy", percent=True),
            kind="lines",
            series=made,
        )
    ]
    first = several[0]
    pairs = [(name, other) for name, other in zip(names[1:], several[1:], strict=True) if alike and _same(first, other)]
    made = []
    for name, other in pairs:
        theirs = [replay.decisions for replay in _first(first)]
        found = [(replay.decisions.mean_cost, paired(replay.decisions, theirs)) for replay in _first(other)]
        known = [(spent, pair[0], _error(pair[1])) for spent, pair in found if pair is not None]
        if known:
            cost_of, gain, spread = (np.array(column) for column in zip(*known, strict=True))
            low, high = gain - 2 * spread, gain + 2 * spread
            made.append(series(name, looks[name], cost_of, gain, points=False, low=low, high=high))
    if made:
        charts.append(
            chart(
                "runs-differences",
                f"Accuracy minus that of {names[0]}",
                "At the same mean cost on the same samples, pair by pair; the band is twice the standard error.",
                charts[0]["x"],
                axis("difference in accuracy", percent=True),
                rules=[{"axis": "y", "at": 0.0, "name": names[0]}],
                kind="lines",
                series=made,
            )
        )
    return charts


def _first(replays: Replays) -> list[Replay]:
    return [replay for replay in next(iter(replays.of.values()), ()) if replay is not None]


def _same(one: Replays, other: Replays) -> bool:
    """Whether two runs are of the same samples, as far as labels can tell."""
    mine, theirs = one.records.labels, other.records.labels
    return mine is not None and theirs is not None and np.array_equal(mine, theirs)


def versus(replays: Replays) -> tuple[list[Chart], list[str], list[dict[str, Any]]]:
    """The schedulers of a run against its first one: charts, what they say, and tables of samples."""
    charts: list[Chart] = []
    notes: list[str] = []
    tables: list[dict[str, Any]] = []
    if replays.records.utility is None:
        notes.append("Differences in accuracy need labels, and these records have none.")
    elif len(replays.of) < 2:
        notes.append("There is one scheduler, so none to compare it with: fit others with eenet fit --method.")
    else:
        reference = next(iter(replays.of))
        charts += [differences(replays, reference), fates(replays)]
        notes += _told_apart(charts[0])
        found = [different(replays, title, reference, len(replays.budgets) // 2) for title in replays.of]
        tables += [table for table in found if table is not None]
    if replays.run.comparison is not None:
        charts.insert(1, differences_resplits(replays.run.comparison))
    elif replays.records.utility is not None:
        notes.append(
            "The errors here are those of other samples. How much depends on the calibration samples too is shown by "
            "resplits: eenet compare RECORDS --costs COSTS --out DIR, then give DIR/comparison.json to eenet report."
        )
    return charts, notes, tables


def _told_apart(made: Chart) -> list[str]:
    """In words: which schedulers differ from the reference beyond two standard errors, over all budgets."""
    reference = made["rules"][0]["name"]
    groups: dict[str, list[str]] = {}
    for name, of in made["overall"].items():
        mean, error = of["mean"], of["standard_error"]
        what = f"Not to be told from {reference} on these samples"
        if abs(mean) > 2 * error:
            what = f"{'Better' if mean > 0 else 'Worse'} than {reference} beyond two standard errors"
        found = f"{name} ({100 * mean:+.2f} points, standard error {100 * error:.2f})"
        groups.setdefault(what, []).append(found)
    return [f"{what}, over all budgets: {', '.join(names)}." for what, names in groups.items()]
