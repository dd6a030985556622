"""Which system is best at a budget: a network, one of its exits, a network with a scheduler, or a cascade."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from eenet._progress import by_itself
from eenet.costs import Budget, ExitCosts
from eenet.errors import InvalidInputError, kind_of
from eenet.evaluation._search_result import SearchResult, budget_of
from eenet.evaluation._systems import Judge, Member, PlainCosts, labeled
from eenet.records import ExitRecords
from eenet.scheduler import MaxProbability, OptimalStopping, Scheduler

_GRID, _SHOWN = 9, 8
_FOLDS, _FEWEST = 3, 30


def search(
    candidates: Mapping[str, ExitRecords],
    costs: Mapping[str, ExitCosts | float],
    budgets: Sequence[Budget] | None = None,
    *,
    scheduler: Scheduler | None = None,
    max_members: int = 3,
    unit: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """Find the best system for each budget: a plain network, one exit, a network with a scheduler, or a cascade.

    Candidates are networks, with or without exits, of any precision, by what they say of the same held-out samples.
    Cascades of them grow one member at a time from the systems that are best at some budget, as long as that is better
    at any. A candidate whose every exit is less accurate than what another gives for no more is dropped beforehand.

    Searching does not make a result look better than it is. The samples are divided into three folds. A scheduler is
    judged on the fold that it was not fitted to, all systems are compared at equal realized cost, and the accuracy
    of a budget is that of the systems which the *other* folds choose, with everything that is dropped or grown.

    Parameters
    ----------
    candidates : mapping of str to ExitRecords
        Records of each candidate by its name, all of the same samples in the same order, which no candidate was
        trained on. Labels are needed in one.
    costs : mapping of str to ExitCosts or float
        What each candidate costs by itself, all in one unit: a number for a plain network.
    budgets : sequence of float or str, optional
        Mean costs per sample; "60%" is of the most accurate candidate by itself. By default eight, from the cheapest
        exit to the most expensive candidate.
    scheduler : Scheduler, optional
        The method of all systems that have a choice; by default `OptimalStopping()`, and `MaxProbability()` for
        cascades where each pixel has a class: on how many pixels exits agree their records do not say, and a method
        that counts it leaves them out, with a note.
    max_members : int
        The most members of a cascade; 1 for none.
    unit : str, optional
        Of the costs, where all are numbers; by default "ms".
    seed : int
        Of the folds.
    progress : callable, optional
        Called with the number of systems that are judged, and of those that are known to be wanted so far.

    Returns
    -------
    SearchResult
        The systems of the budgets; its `at` gives that of any budget, with a scheduler that is ready to use.

    Raises
    ------
    InvalidInputError
        If candidates are of other samples, classes or tasks, have no labels or other exits than costs, or are fewer
        than 30 samples.
    InfeasibleBudgetError
        If a budget is below the cheapest exit; it names that.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_logits
    >>> logits, labels = toy_logits(samples=900)
    >>> small, big = eenet.ExitRecords.from_logits(logits[:2], labels), eenet.ExitRecords.from_logits(logits[2])
    >>> costs = {"small": eenet.ExitCosts([1.0, 2.0]), "big": 9.0}
    >>> found = eenet.search({"small": small, "big": big}, costs, ["60%"])
    >>> best = found.at("60%")
    >>> best.name, best.cost <= 5.4
    ('small + big', True)
    >>> fresh, _ = toy_logits(samples=900, seed=1)
    >>> best.replay({"small": eenet.ExitRecords.from_logits(fresh[:2]), "big": eenet.ExitRecords.from_logits(fresh[2])})
    Decisions(900 samples, no labels, mean_cost=..., exit_shares=...)
    """
    if scheduler is not None and not isinstance(scheduler, Scheduler):
        raise InvalidInputError(f"scheduler is {scheduler!r}, expected one such as eenet.OptimalStopping(), not fitted")
    if not isinstance(max_members, int) or max_members < 1:
        raise InvalidInputError(f"max_members is {max_members!r}, expected a whole number from 1 on")
    members = _members(candidates, costs, unit)
    whole = max(members.values(), key=lambda m: (m.accuracy, -m.reference))
    least, most = min(m.costs[0] for m in members.values()), max(m.most for m in members.values())
    unit = whole.costs.unit
    scale = ExitCosts([least, most], unit, plain=whole.reference) if least < most else PlainCosts(most, unit)
    grid = np.geomspace(scale[0], scale[-1], _GRID).tolist()
    if budgets is None:
        asked = np.geomspace(scale[0], scale[-1], _SHOWN).tolist()
    else:
        if isinstance(budgets, (str, float, int)) or not len(budgets):
            raise InvalidInputError(f"budgets are {budgets!r}, expected a list such as ['40%', '60%']")
        asked = [budget_of(budget, scale, list(members.values())) for budget in budgets]
    asked = sorted(set(asked))
    if scheduler is None:
        joined = max_members > 1 and len(members) > 1
        scheduler = MaxProbability() if joined and whole.records.pooled else OptimalStopping(seed=seed)
    with by_itself("trying systems", given=progress) as show:
        judge = Judge(
            members,
            scheduler,
            sorted({*asked, *grid}),
            max_members=max_members,
            folds=_FOLDS,
            seed=seed,
            progress=progress or show,
        )
        return SearchResult.of(judge, asked, scale, whole)


def _members(
    candidates: Mapping[str, ExitRecords], costs: Mapping[str, ExitCosts | float], unit: str | None
) -> dict[str, Member]:
    """The candidates, all with the same labels; raises `InvalidInputError` for what cannot be searched."""
    for what, given in (("candidates", candidates), ("costs", costs)):
        if not isinstance(given, Mapping) or not given:
            raise InvalidInputError(
                f"{what} are {'empty' if isinstance(given, Mapping) else kind_of(given)}, expected a "
                "mapping: {'small': ..., 'big': ...}"
            )
    if set(candidates) != set(costs):
        raise InvalidInputError(
            f"candidates are {sorted(candidates)}, costs are of {sorted(costs)}; give the costs of each by its name"
        )
    for name, one in candidates.items():
        if not isinstance(one, ExitRecords):
            raise InvalidInputError(
                f"candidate {name!r} is {kind_of(one)}, expected ExitRecords: eenet.collect(model, loader) "
                "makes them of a model, ExitRecords.from_probabilities of predictions"
            )
    known = labeled(candidates)
    first = next(iter(known.values()))
    if first.utility is None:
        raise InvalidInputError("no candidate has labels: pass labels=... when making the records of one")
    if len(first) < _FEWEST:
        raise InvalidInputError(
            f"there are {len(first)} samples, expected at least {_FEWEST}: a third of them judges what the others "
            "choose"
        )
    units = {one.unit for one in costs.values() if isinstance(one, ExitCosts)} | ({unit} if unit else set())
    if len(units) > 1:
        raise InvalidInputError(f"costs are in {sorted(units)}; give all in one unit")
    sizes = {c.batch_size for c in costs.values() if isinstance(c, ExitCosts) and c.batch_size is not None}
    if len(sizes) > 1:
        raise InvalidInputError(f"costs are of batch sizes {sorted(sizes)}; give all of one")
    common = units.pop() if units else "ms"
    members = {}
    for name, one in known.items():
        own = costs[name]
        try:
            own = own if isinstance(own, ExitCosts) else PlainCosts(own, common)
            own.require_exits(one.num_exits)
        except (InvalidInputError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"candidate {name!r} has {one.num_exits} exit{'' if one.num_exits == 1 else 's'} and costs "
                f"{costs[name]!r}: give ExitCosts with a cost "
                "for each exit, or of a plain network one positive, finite number"
            ) from error
        members[name] = Member(name, one, own)
    return members
