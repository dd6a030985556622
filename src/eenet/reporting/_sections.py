"""The sections of a report: which charts each has, and what to say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eenet.reporting._frontier import exit_shares, frontier, resplits
from eenet.reporting._gallery import gallery
from eenet.reporting._leaving import Scores, by_class, by_difficulty, distributions, over_time
from eenet.reporting._paper import paper
from eenet.reporting._replays import Replays
from eenet.reporting._searches import of_search
from eenet.reporting._spending import of_benchmark, slower_systems, spending
from eenet.reporting._trust import trust
from eenet.reporting._versus import runs, versus

Section = dict[str, Any]
Measured = Mapping[str, Sequence[Mapping[str, Any]]]
"""What other commands gave, by kind: "benchmark", "search" and so on."""


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
    elif replays.run.samples.rows is not None:
        notes.append(
            f"Images are the {len(replays.run.samples.rows)} inputs that the run has kept, as the network gets them, "
            "with their brightness stretched."
        )
    return section(
        "leaving",
        "Which samples exit where",
        "Which samples the chosen scheduler lets leave early at the chosen budget, and which it sends on.",
        [*by_class(replays), by_difficulty(replays), over_time(replays), *distributions(replays, scores)],
        notes,
        gallery=gallery(replays, scores),
    )


def can_it_be_trusted(replays: Replays) -> Section:
    """Section 3."""
    charts, notes = trust(replays)
    return section(
        "trust",
        "Can it be trusted?",
        "Whether confidence means what it says, whether the exits agree, and whether budgets and guarantees are kept.",
        charts,
        notes,
    )


def what_it_costs(replays: Replays) -> Section:
    """Section 4."""
    charts, notes = spending(replays.run)
    return section(
        "costs",
        "What it costs",
        "Measured times beside the plain network, which is the line at 100 %: what stages, heads and decisions take, "
        "and where early exit does not pay.",
        charts,
        notes,
    )


def compare_schedulers(replays: Replays) -> Section:
    """Section 5, of one run."""
    charts, notes, tables = versus(replays)
    return section(
        "compare",
        "Compare schedulers",
        "Differences on the same samples at the same mean cost, and the samples that they come from.",
        charts,
        notes,
        tables=tables,
    )


def figures_of_the_paper(replays: Replays) -> Section:
    """Section 6."""
    charts, notes = paper(replays)
    return section(
        "paper",
        "The figures of the paper",
        "The comparison of the EENet paper (WACV 2024) on these records: the methods by the names that it uses.",
        charts,
        notes,
    )


def compare_runs(several: Sequence[Replays], _: Measured) -> Section | None:
    """Section 5, of several runs."""
    charts = runs(several)
    if not charts:
        return None
    paired = any(chart["name"] == "runs-differences" for chart in charts)
    notes = [] if paired else ["No two runs are of the same samples and unit of cost, so none are compared in pairs."]
    return section("runs", "Compare runs", "Every run with its first scheduler.", charts, notes)


def searches(_: Sequence[Replays], measured: Measured) -> Section | None:
    """What searches found among several networks."""
    found = measured["search"]
    if not found:
        return None
    charts: list[Any] = []
    notes: list[str] = []
    tables: list[dict[str, Any]] = []
    for number, one in enumerate(found):
        drawn, said, listed = of_search(one, "" if len(found) == 1 else str(number))
        charts, notes, tables = charts + drawn, notes + said, tables + listed
    about = "For each budget the best of several networks, their exits and their cascades, judged out of fold."
    return section("searches", "The best of several networks", about, charts, notes, tables=tables)


def benchmarks(_: Sequence[Replays], measured: Measured) -> Section | None:
    """What benchmarks measured of whole systems."""
    of_all = measured["benchmark"]
    if not of_all:
        return None
    charts, notes = [], []
    for number, one in enumerate(of_all):
        name = "the benchmark" if len(of_all) == 1 else f"benchmark {number}"
        charts += of_benchmark(one, name)
        notes += [*slower_systems(one, name), *one["verdict"].splitlines()]
    about = "Whole systems on the same samples, run in turns: how fast they really are, and how right."
    return section("benchmarks", "Benchmarks", about, charts, notes)


OF_ONE: tuple[Callable[[Replays], Section | None], ...] = (
    the_frontier,
    who_leaves_where,
    can_it_be_trusted,
    what_it_costs,
    compare_schedulers,
    figures_of_the_paper,
)
"""The sections of each run, in order; None where there is nothing to show."""

OF_ALL: tuple[Callable[[Sequence[Replays], Measured], Section | None], ...] = (
    compare_runs,
    searches,
    benchmarks,
)
"""The sections of all runs, searches and benchmarks together."""
