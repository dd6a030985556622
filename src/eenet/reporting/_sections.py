"""The sections of a report: which charts each has, and what to say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eenet.reporting._frontier import exit_shares, frontier, resplits
from eenet.reporting._gallery import gallery
from eenet.reporting._leaving import Scores, by_class, by_difficulty, distributions, over_time
from eenet.reporting._replays import Replays

Section = dict[str, Any]


def section(id_: str, title: str, about: str, charts: Sequence[Any], notes: Sequence[str] = (), **more: Any) -> Section:
    """A section of a report; charts that are None are left out."""
    drawn = [chart for chart in charts if chart is not None]
    return {"id": id_, "title": title, "about": about, "charts": drawn, "notes": list(notes), **more}


def the_frontier(replays: Replays) -> Section:
    """Section 1."""
    charts: list[Any] = [exit_shares(replays)]
    notes: list[str] = []
    if replays.utility is None:
        notes.append("The records have no labels, so accuracy is not known; costs and exit shares are.")
    else:
        charts = [frontier(replays), resplits(replays), *charts]
    if not replays.run.fresh:
        notes.append(
            "The schedulers were fitted on these very samples, so accuracies here are better than on fresh samples: "
            "give records of other samples to judge them on."
        )
    if replays.run.comparison is None and replays.utility is not None:
        notes.append(
            "There are no resplits in these results. They show how much depends on the calibration samples: "
            "eenet reproduce makes them, and eenet compare does for records."
        )
    return section(
        "frontier",
        "The frontier",
        "What a budget buys. Choose a scheduler and a budget above: every figure of this page shows what it does then.",
        charts,
        notes,
    )


def who_leaves_where(replays: Replays) -> Section:
    """Section 2."""
    scores = Scores(replays)
    notes = []
    if not replays.run.ordered:
        notes.append(
            "There is no figure over time, since it is not known whether the records are in the order of their time: "
            "say so with --ordered."
        )
    if replays.run.samples is None:
        notes.append("Samples are shown by their numbers: give --images or --texts to see them.")
    return section(
        "leaving",
        "Who leaves where",
        "Which samples the chosen scheduler lets leave early at the chosen budget, and which it sends on.",
        [*by_class(replays), by_difficulty(replays), over_time(replays), *distributions(replays, scores)],
        notes,
        gallery=gallery(replays, scores),
    )


OF_ONE: tuple[Callable[[Replays], Section | None], ...] = (the_frontier, who_leaves_where)
"""The sections of each run, in order; None where there is nothing to show."""

OF_ALL: tuple[Callable[[Sequence[Replays], Sequence[Mapping[str, Any]]], Section | None], ...] = ()
"""The sections of all runs and benchmarks together."""
