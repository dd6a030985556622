"""Budgets and guarantees kept, over samples, resplits and simulated calibration sets; and exits that are dead."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from eenet.errors import InfeasibleBudgetError, ReliabilityWarning
from eenet.evaluation._style import RIGHT, WRONG, styles, title_of
from eenet.records import ExitRecords
from eenet.reporting._charts import Chart, axis, chart, numbers, series
from eenet.reporting._replays import Replays
from eenet.scheduler import MaxProbability, Scheduler, dead_exits

_MOST = 500
"""Samples of the population and of a calibration set in it, at most."""
_ROUNDING = 1e-9
_LEVEL = 0.95
_SHARES = (1 / 3, 2 / 3)
"""The budgets of the simulated promise: shares of the way from the first exit's cost to the last one's."""


def adherence(replays: Replays) -> Chart:
    """What each scheduler spent on the run's records, as a share of the budget, with twice the standard error."""
    looks, made = styles(list(replays.of)), []
    for title, of in replays.of.items():
        x, y, errors = [], [], []
        for budget, replay in zip(replays.budgets.tolist(), of, strict=True):
            if replay is not None:
                spent = replay.decisions.sample_costs
                x.append(budget)
                y.append(replay.decisions.mean_cost / budget)
                errors.append(2 * float(spent.std()) / np.sqrt(len(spent)) / budget)
        low, high = np.subtract(y, errors), np.add(y, errors)
        made.append(series(title, looks[title], x, y, points=False, low=low, high=high))
    what = "these records" if replays.run.fresh else "the records that they were fitted on"
    return chart(
        "adherence",
        "Is the budget kept?",
        f"Mean cost on {what} over the budget; the band is twice the standard error over the samples. On the line, all "
        "of the budget is spent; above it, more.",
        axis(f"budget ({replays.costs.unit} per sample)"),
        axis("spent, of the budget", percent=True),
        rules=[{"axis": "y", "at": 1.0, "name": "the budget"}],
        marker="budget",
        kind="lines",
        series=made,
    )


def adherence_resplits(comparison: Mapping[str, Any]) -> list[Chart]:
    """Over the resplits of a comparison: what was spent of the budget, and in which share of them it was kept."""
    rows = [row for row in comparison["rows"] if row["held_out_cost"] is not None]
    rows = [{**row, "scheduler": title_of(row["scheduler"])} for row in rows]
    names = list(dict.fromkeys(row["scheduler"] for row in rows))
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    whole = _reference(comparison)
    looks, made, kept = styles(names), [], []
    for name in names:
        x, y, low, high, shares = [], [], [], [], []
        for budget in budgets:
            ratios = [
                row["held_out_cost"] / budget for row in rows if (row["scheduler"], row["budget"]) == (name, budget)
            ]
            shares.append(sum(ratio <= 1 + _ROUNDING for ratio in ratios) / len(ratios) if ratios else None)
            if ratios:
                x.append(budget)
                y.append(float(np.mean(ratios)))
                low.append(min(ratios))
                high.append(max(ratios))
        made.append(series(name, looks[name], x, y, low=low, high=high))
        kept.append(shares)
    resplits = len({row["resplit"] for row in rows})
    spent = chart(
        "adherence-resplits",
        f"Spent of the budget over {resplits} resplits",
        "Held-out cost over the budget: mean over the resplits, the band from the lowest to the highest.",
        axis(f"budget ({comparison['unit']} per sample)"),
        axis("spent, of the budget", percent=True),
        rules=[{"axis": "y", "at": 1.0, "name": "the budget"}],
        marker="budget",
        kind="lines",
        series=made,
    )
    share = chart(
        "budget-kept",
        f"In how many of {resplits} resplits the budget was kept",
        "The share of the resplits in which the held-out cost was within the budget. A fit without a guarantee meets "
        "it on its calibration records, so about half of fresh sets cost more.",
        axis("budget, of the plain network" if _plain(comparison) else "budget, of the last exit"),
        axis(""),
        kind="heat",
        rows=names,
        columns=[f"{budget / whole:.0%}" for budget in budgets],
        values=kept,
        percent=True,
        limits=[0.0, 1.0],
    )
    return [spent, share]


def _plain(comparison: Mapping[str, Any]) -> bool:
    return comparison["costs"].get("plain") is not None


def _reference(comparison: Mapping[str, Any]) -> float:
    costs = comparison["costs"]
    return float(costs["plain"] if _plain(comparison) else costs["values"][-1])


def coverage(replays: Replays, draws: int) -> Chart:
    """How often a budget is kept on the whole population, with and without a guarantee: a simulation.

    The run's records are taken for the population, whose mean cost is known. Calibration sets, as large as the run's
    own, are drawn from them with replacement, and max probability is fitted to each, with the guarantee and without.
    The level is that of the run's schedulers, where one has a guarantee.
    """
    pool, costs = replays.records, replays.costs
    asked = [scheduler.guarantee for scheduler in replays.run.schedulers.values()]
    level = next((one for one in asked if isinstance(one, float)), _LEVEL)
    if len(pool) > _MOST:
        pool = pool.subset(np.arange(_MOST) * len(pool) // _MOST)
    size = min(_MOST, len(pool if replays.run.calibration is None else replays.run.calibration))
    budgets = [costs[0] + share * (costs[-1] - costs[0]) for share in _SHARES]
    kept: dict[bool, list[list[bool]]] = {True: [], False: []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        for draw in range(draws):
            drawn = pool.subset(np.random.default_rng(draw).integers(0, len(pool), size))
            for promised in (True, False):
                fitted = MaxProbability().fit(drawn, costs, guarantee=level if promised else None, fallback=False)
                within = [_kept(fitted, pool, budget) for budget in budgets]
                kept[promised].append(within)
    made = []
    for promised, style in ((True, RIGHT), (False, WRONG)):
        share = np.mean(kept[promised], axis=0)
        error = np.sqrt(share * (1 - share) / draws)
        name = f"guarantee={level:g}" if promised else "no guarantee"
        made.append({"name": name, "style": style.to_dict(), "values": numbers(share), "errors": numbers(error)})
    return chart(
        "guarantee",
        "Does the guarantee hold?",
        f"{draws} calibration sets of {size} samples are simulated. Bars are the share of them after which the true "
        f"mean cost is within the budget. A guarantee of {level:.0%} must reach its line. Fitted: max probability. A "
        "budget that a set is too small to promise counts as kept.",
        axis(f"budget, of {costs.reference_name}"),
        axis("budget kept", percent=True, limits=(0, 1.05)),
        rules=[{"axis": "y", "at": level, "name": f"promised: {level:.0%}"}],
        kind="bars",
        categories=[f"{budget / costs.reference:.0%}" for budget in budgets],
        stacked=False,
        series=made,
    )


def _kept(fitted: Scheduler, pool: ExitRecords, budget: float) -> bool:
    try:
        policy = fitted.at(budget)
    except InfeasibleBudgetError:
        return True  # nothing was promised
    return bool(policy.replay(pool).mean_cost <= budget * (1 + _ROUNDING))


def dead(replays: Replays) -> list[str]:
    """The exits that say nothing or do not pay, and those at which no scheduler lets any sample exit."""
    run, said = replays.run, []
    fitted_on = run.records if run.calibration is None else run.calibration
    found = dead_exits(fitted_on, run.costs) if fitted_on.utility is not None else ()
    said += [f"{str(one)[0].upper()}{str(one)[1:]}." for one in found]
    for k in range(len(run.costs) - 1):
        used = any(
            replay is not None and (replay.decisions.exits == k).any() for of in replays.of.values() for replay in of
        )
        if not used and k not in {one.exit_index for one in found} and replays.of:
            said.append(f"No scheduler lets any sample exit at {run.exit_titles[k]} at any budget.")
    return said or ["No exit is dead: each is worth its cost for some samples."]
