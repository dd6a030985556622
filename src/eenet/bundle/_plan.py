"""Planning a bundle's budget in the costs that were measured where it runs, from the calibration records it carries."""

from __future__ import annotations

import copy
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._files import write_json
from eenet._progress import by_itself
from eenet._sizes import not_of_length, of_length, stand_ins, undescribed
from eenet._warn import warn
from eenet.bundle._load import LoadedBundle, load
from eenet.bundle._manifest import MANIFEST, OF_LAST, OF_PLAIN, read_manifest, sealed
from eenet.bundle._measure import (
    BATCH_SIZES,
    UNITS,
    device_of,
    measured,
    remaining,
)
from eenet.costs import Budget, ExitCosts, costs_at, parse_budget
from eenet.errors import FallbackWarning, InfeasibleBudgetError, InvalidInputError, ReliabilityWarning
from eenet.records import ExitRecords, missing_classes, require_same_network, warn_of_missing_classes
from eenet.runtime import Live
from eenet.scheduler import Fallback, PolicyTable, Scheduler

MOST_RECORD_BYTES = 32 * 1024 * 1024
RECORDS = "records.safetensors"

_SMALLEST = 1e-100
_LOST, _MOVED = 0.01, 0.25  # of the accuracy, and of the samples: what is worth a warning
_AS_FITTED = " where it was fitted"

Progress = Callable[[str], None]


def measure(
    folder: str | Path,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    batch_size: int | None = None,
    seconds: float = 1.0,
    length: int | None = None,
    threads: int | None = None,
    budget: Budget | None = None,
    records: ExitRecords | None = None,
    update: bool = False,
    allow: Iterable[str] = (),
    progress: Progress | None = None,
) -> LoadedBundle:
    """Measure what a bundle costs here, in the runtime that runs it, and plan its budget in these costs.

    The plain network takes its turn in every round, so that percentages are of it. A bundle of ONNX graphs needs no
    PyTorch for this.

    Parameters
    ----------
    folder
        The bundle.
    batch_sizes
        The batch sizes to measure.
    batch_size
        The one to plan at; by default that of the bundle's costs, or 1.
    seconds
        About how long to measure each batch size.
    length
        Of a network that takes inputs of any length: the one to measure at, such as the mean length of your texts. By
        default that of the example, or what was measured last.
    threads
        As for `load`.
    budget
        Such as "60%" of the plain network, or "3ms". By default the share that was asked for when it was exported, or
        with the last `update` with a budget, even where a measurement in between could not meet it.
    records
        Calibration records; by default those that the bundle carries. Without any, its policies stay as they are, each
        with what it costs here.
    update
        Whether to write the costs, the records where they are given, and the scheduler to the bundle.
    allow, progress
        As for `load`; called with what is being done.

    Returns
    -------
    LoadedBundle
        The bundle with the costs and the policy of here; `manifest.data["profile"]` has the costs of all batch sizes.

    Raises
    ------
    InfeasibleBudgetError
        For a budget that cannot be met here; it names the smallest that can.
    InvalidInputError
        For records of other exits or classes, and where a bundle of an earlier eenet cannot be planned again.

    Examples
    --------
    >>> import eenet
    >>> bundle = eenet.bundle.measure("bundle/", threads=2, update=True)  # doctest: +SKIP
    >>> bundle.costs_from  # doctest: +SKIP
    'measured in ONNX Runtime 1.23.2, batches of 8, 2 threads, AMD EPYC 9354'
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # that it was measured elsewhere
        bundle = load(folder, threads=threads, allow=allow)
    require_readable(bundle.scheduler, budget, [*batch_sizes, *([] if batch_size is None else [batch_size])])
    if records is not None:
        require_fitting(records, bundle.scheduler, bundle.manifest.data.get("network"))
        warn_of_missing_classes(records.labels, records.num_classes)
    manifest = bundle.manifest
    if length is not None:
        example = _example_of(bundle, length)
        _require_taken(bundle, length)
        manifest = replace(manifest, data={**manifest.data, "example": example})
        bundle = LoadedBundle(manifest, bundle.backend, bundle.scheduler, threads=threads)
    plain = manifest.data.get("plain")
    asked = manifest.data.get("asked")
    if budget is None and asked is None and bundle.scheduler._fitted_state().policy is not None:
        asked = asked_of(bundle.scheduler)  # a bundle of an eenet that did not keep it
    with by_itself("measuring", given=progress) as show:
        scheduler, profile = plan_here(
            bundle,
            bundle.scheduler,
            bundle.records if records is None else records,
            plain=None if plain is None else manifest.read(plain),
            budget=budget,
            asked=asked,
            batch_size=batch_size,
            batch_sizes=batch_sizes,
            seconds=seconds,
            progress=progress or (lambda step: show(0, what=step)),
        )
    data = {**manifest.data, "profile": profile, "costs": scheduler.costs.to_dict(), "budgets": budgets_of(scheduler)}
    data["asked"] = asked if budget is None else asked_of(scheduler)
    if update:
        data = _written(manifest.root, data, scheduler, records)
    return LoadedBundle(replace(manifest, data=data), bundle.backend, scheduler, threads=threads)


def _example_of(bundle: LoadedBundle, length: int) -> list[dict[str, Any]]:
    """The description of inputs of another length."""
    most = getattr(bundle.preprocessing, "max_length", None)
    if not isinstance(length, int) or length < 1 or (most is not None and length > most):
        to = "" if most is None else f" to {most}, the tokens that texts are cut at"
        raise InvalidInputError(f"length is {length!r}, expected a whole number from 1{to}")
    known = bundle.manifest.data.get("example") or undescribed(bundle.inputs)
    return of_length(bundle.inputs, known, length)


def _require_taken(bundle: LoadedBundle, length: int) -> None:
    """Raise `InvalidInputError`, which names the longest that it takes, where the network fails on this length."""
    sizes = bundle._sizes

    def failure(length: int) -> str | None:
        return sizes.failure(dict.fromkeys(sizes.usual, length))

    why = failure(length)
    if why is not None:
        raise InvalidInputError(not_of_length(length, max(sizes.usual.values()), lambda n: failure(n) is None, why))


def _written(root: Path, data: dict[str, Any], scheduler: Scheduler, records: ExitRecords | None) -> dict[str, Any]:
    """Write a scheduler to a bundle: under a new name, until the manifest that names it is there, as a whole."""
    files, earlier = dict(data["files"]), dict(data["files"])

    def added(name: str, save: Callable[[Path], None]) -> str:
        path = root / f".{name}"
        save(path)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        stem, _, ending = name.partition(".")
        name = f"{stem}-{digest[:8]}.{ending}"
        path.replace(root / name)
        files[name] = {"bytes": len(content), "sha256": digest}
        return name

    changed = {"scheduler": added("scheduler.safetensors", scheduler.save)}
    if records is not None:
        changed["records"] = added(RECORDS, compact(records, labels=True).save)
    for name in {data["scheduler"], *([data["records"]] if records is not None and data.get("records") else [])}:
        if name not in changed.values():
            del files[name]
    data = {**data, **changed, "files": dict(sorted(files.items()))}
    write_json(root / MANIFEST, sealed(data))
    for name in earlier.keys() - files.keys():
        (root / name).unlink(missing_ok=True)
    return dict(read_manifest(root).data)


def plan_here(
    bundle: LoadedBundle,
    scheduler: Scheduler,
    records: ExitRecords | None,
    *,
    plain: bytes | None,
    budget: Budget | None,
    asked: Mapping[str, Any] | None,
    batch_size: int | None,
    batch_sizes: Sequence[int],
    seconds: float,
    progress: Progress | None,
) -> tuple[Scheduler, dict[str, Any]]:
    """Measure a bundle's stages, and plan a scheduler of theirs in these costs.

    `plain` is a graph of the network, and `asked` the share that is the budget where none is given.
    """
    if scheduler.table.shares is None and records is None:
        _priced_again(scheduler, scheduler.costs, None)  # says so before measuring
    unit = _unit(scheduler)
    size = batch_size or scheduler.costs.batch_size or 1
    sizes = sorted({*batch_sizes, size})
    specs, backend = bundle.inputs, bundle.backend
    known = bundle.manifest.data.get("example") or undescribed(specs)

    def without_exits(live: Live) -> None:
        for k in range(backend.num_exits):
            live, _ = backend.run(k, live, observe=False)

    own = getattr(backend, "run_plain", without_exits)  # of stages in PyTorch, which know a cascade's last member
    whole: Any = own if plain is None else backend.whole(plain)  # type: ignore[attr-defined]

    def profile(sizes: Sequence[int], shares: Sequence[float]) -> dict[str, Any]:
        return measured(
            backend,
            bundle.task,
            scheduler.policy,
            lambda n: stand_ins(specs, known, n),
            observed=observed_exits(scheduler),
            shares=shares,
            plain=whole,
            batch_sizes=sizes,
            seconds=seconds,
            progress=progress,
        ) | {
            "exits": list(bundle.exit_names),
            "device": device_of(bundle.runtime, bundle._threads_used, specs, known),
            "plain_is": "its stages without exits" if plain is None else "one graph",
        }

    def fitted(data: dict[str, Any], before: Scheduler) -> Scheduler:
        if progress is not None:
            progress("planning the budget")
        return planned_again(scheduler, costs_at(data, unit, size), records, budget, before=before, asked=asked)

    shares = shares_of(scheduler, records)
    data = profile(sizes, shares)
    made = fitted(data, scheduler)
    found = shares_of(made, records)
    if remaining(found, size) != remaining(shares, size):
        # Deeper stages run on other numbers of samples than was measured.
        again, row = profile([size], found), sizes.index(size)
        for name in ("costs", "spreads", "plain"):
            for of in UNITS:
                data[name][of][row] = again[name][of][0]
        for of in UNITS:
            for name, values in data["percentiles"][of].items():
                values[row] = again["percentiles"][of][name][0]
        data["shares"] = again["shares"]
        made = fitted(data, made)
    if budget is None and scheduler._fitted_state().policy is not None:
        _warn_of_other_exits(scheduler, made, records)
    return made, data | {"unit": unit, "batch_size": size}


def _warn_of_other_exits(before: Scheduler, made: Scheduler, records: ExitRecords | None) -> None:
    """Say where the same budget, in the costs of this runtime, leaves much less accuracy, or quite other exits."""
    shares = [np.asarray(shares_of(one, records)) for one in (before, made)]
    moved = float(np.abs(shares[1] - shares[0]).sum()) / 2
    lost, accuracies = 0.0, ""
    if records is not None and records.utility is not None:
        earlier, now = (one.replay(records).accuracy for one in (before, made))
        lost = earlier - now
        accuracies = f", and the accuracy on the calibration records goes from {earlier:.1%} to {now:.1%}"
    if lost > _LOST or (not accuracies and moved > _MOVED):
        costs, exits = (
            ["/".join(f"{value:.0%}" for value in values) for values in both]
            for both in ((one.costs.values / one.costs.reference for one in (before, made)), shares)
        )
        _warn(
            f"the exits cost {costs[1]} of {made.costs.reference_name} here, where the scheduler was fitted at "
            f"{costs[0]}: at the same budget {exits[1]} of the samples leave at the exits, before {exits[0]}"
            f"{accuracies}. Give a higher budget, or make deep exits cheaper: fewer of them (keep_exits), smaller heads"
        )


def budgets_of(scheduler: Scheduler) -> list[dict[str, Any]]:
    """What a bundle can be run at, by the scheduler's table; accuracies are those of the calibration records."""
    return [
        {
            "budget": point.budget,
            "planned_cost": point.planned_cost,
            "accuracy": point.accuracy,
            **({} if point.handed_back is None else {"handed_back": point.handed_back}),
        }
        for point in scheduler.frontier()
    ]


def compact(records: ExitRecords, *, labels: bool) -> ExitRecords:
    """The records that a bundle carries: outputs as they are, of as many samples as `MOST_RECORD_BYTES` hold.

    Without `labels` nothing of what is right is kept, and with it no accuracy.
    """
    kept = copy.copy(records)
    kept.pixel_counts = None
    if not labels:
        kept.labels, kept.utility = None, None
    arrays: list[NDArray[Any]] = [kept.probabilities, kept.predictions, *kept.pooled.values()]
    each = sum(array[:, :1].nbytes for array in arrays) + 12 * kept.num_exits
    most = max(MOST_RECORD_BYTES // each, 1)
    if most >= len(kept):
        return kept
    return kept.subset(np.sort(np.random.default_rng(0).permutation(len(kept))[:most]))


def require_fitting(records: ExitRecords, scheduler: Scheduler, network: str | None) -> None:
    """Raise `InvalidInputError` unless the records are of the scheduler's exits and classes, and of this network.

    Records that do not say of which network they are pass, and so do all where the network's digest is not known.
    """
    policy = scheduler.table.policies[0]
    found, expected = (records.num_exits, records.num_classes), (policy.num_exits, policy.num_classes)
    if found != expected:
        raise InvalidInputError(
            f"the calibration records have {found[0]} exits and {found[1]} classes, the bundle's network has "
            f"{expected[0]} and {expected[1]}: they are of another network; collect records of this one"
        )
    require_same_network("the calibration records are", records.network, network)


def require_readable(scheduler: Scheduler, budget: Budget | None, batch_sizes: Sequence[int]) -> None:
    """Raise `InvalidInputError` for a budget or batch sizes that are wrong whatever is measured: before measuring."""
    sizes = list(batch_sizes)
    if not all(isinstance(one, int) and one >= 1 for one in sizes):
        raise InvalidInputError(f"batch sizes {sizes}: expected whole numbers from 1")
    if budget is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)  # above the last exit's cost, which is not known yet
            parse_budget(budget, ExitCosts([_SMALLEST, 10.0], _unit(scheduler), plain=10.0))


def _unit(scheduler: Scheduler) -> str:
    """The unit that a bundle is planned in: time, and that of the processor where the scheduler was fitted to it."""
    return scheduler.costs.unit if scheduler.costs.unit in UNITS else "ms"


def planned_again(
    scheduler: Scheduler,
    costs: ExitCosts,
    records: ExitRecords | None,
    budget: Budget | None = None,
    *,
    before: Scheduler | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Scheduler:
    """The scheduler for other costs of the same exits.

    With records it is fitted again. Without them, or where its method needs labels and they have none, its policies
    stay, each with the mean cost that it now has; so does the policy in force, unless there is a budget.

    Without a budget it keeps to the share that was `asked` for, by default the one it had: of the plain network, or
    where that was not known, of the last exit. What fell back already in `before`, by default `scheduler`, is not
    warned of again.
    """
    if records is None or scheduler._refused is not None:
        return _priced_again(scheduler, costs, budget)
    implied = budget is None
    limit = _same_share(asked or asked_of(scheduler), costs) if budget is None else parse_budget(budget, costs)
    fresh = scheduler._copy()
    known = inspect.signature(Scheduler.fit).parameters
    state = scheduler._fitted_state()
    promises: dict[str, Any] = {name: value for name, value in state.promises.items() if name in known}
    promises["fallback"] = not state.as_it_is
    # The cheapest policy that keeps the accuracy, at whatever it costs here, unless there is a budget too.
    amount = None if "max_accuracy_drop" in promises and implied else limit
    before = scheduler if before is None else before
    try:
        try:
            return _fitted(fresh, records, costs, amount, promises, before)
        except InfeasibleBudgetError as error:
            if not implied or amount is None:
                raise
            _warn(
                f"{limit:.4g} {costs.unit}, the same share as before, is too little here: planned for the smallest "
                f"feasible budget, {error.smallest:.4g} {costs.unit}"
            )
            return _fitted(fresh, records, costs, error.smallest, promises, before)
    except InvalidInputError as error:
        if isinstance(error, InfeasibleBudgetError) or records.utility is not None:
            raise
        return _priced_again(scheduler, costs, budget)


def _fitted(
    fresh: Scheduler,
    records: ExitRecords,
    costs: ExitCosts,
    budget: Budget | None,
    promises: dict[str, Any],
    before: Scheduler,
) -> Scheduler:
    """`fresh`, fitted; a fallback that `before` has too was said when that was fitted, and is not said twice."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fresh.fit(records, costs, budget, **promises)
    known = _what_fell_back(fresh) == _what_fell_back(before)
    missing = missing_classes(records.labels, records.num_classes)  # said where the records were first given
    for one in said:
        if str(one.message) != missing and not (known and issubclass(one.category, FallbackWarning)):
            warn(one.message, one.category)
    return fresh


def _what_fell_back(scheduler: Scheduler) -> tuple[Any, ...]:
    """The rule that was taken and why, and the exits that were left out."""
    taken = scheduler.fallback
    left_out = [dead.exit_index for dead in scheduler.left_out]
    return None if taken is None else (taken.taken, taken.reason), left_out


def asked_of(scheduler: Scheduler) -> dict[str, Any]:
    """What share a scheduler's budget is, of the plain network or the last exit, as a manifest keeps it."""
    costs, limit = scheduler.costs, scheduler.budget
    of_plain = costs.plain is not None and limit <= costs.plain
    return {"share": limit / (costs.reference if of_plain else costs[-1]), "of": OF_PLAIN if of_plain else OF_LAST}


def _same_share(asked: Mapping[str, Any], costs: ExitCosts) -> float:
    """The budget that is the share that was asked for, of the plain network or of the last exit."""
    share, of_plain = float(asked["share"]), asked["of"] == OF_PLAIN and costs.plain is not None
    whole = costs.reference if of_plain else costs[-1]
    if share * whole < costs[0]:
        _warn(
            f"the budget of {share:.0%} of {'the plain network' if of_plain else 'the last exit'} is less than the "
            f"first exit takes here: planned for the smallest feasible budget, {costs[0]:.4g} {costs.unit}"
        )
    return min(max(share * whole, costs[0]), costs[-1])


def _priced_again(scheduler: Scheduler, costs: ExitCosts, budget: Budget | None) -> Scheduler:
    """The same policies with the mean costs that they have now, by where the calibration samples exited."""
    state, table = scheduler._fitted_state(), scheduler.table
    if table.shares is None:
        raise InvalidInputError(
            f"{scheduler.name} is from a file that does not say where the calibration samples exited, so that its "
            "budgets cannot be planned in other costs: give the calibration records"
        )
    spent = table.shares @ costs.values
    order = np.argsort(spent, kind="stable")
    order = order[np.concatenate([[True], np.diff(spent[order]) > 0])]
    priced = _rows(table, order, budgets=spent[order], planned_costs=spent[order], costs=costs)
    promises = dict(state.promises)
    if "guarantee" in promises and "max_accuracy_drop" not in promises:
        del promises["guarantee"]
        _warn("the guaranteed budget was one in other costs and is none in these: give the calibration records")
    priced = replace(priced, fallbacks=tuple(map(_as_fitted, priced.fallbacks)))
    state = replace(state, fallback=_as_fitted(state.fallback))
    made = scheduler._copy()
    if budget is not None:
        limit = parse_budget(budget, costs)
        planned = priced.plan(limit)
        state = replace(state, fallback=planned.fallback)
        numbers = {"budget": limit, "planned_cost": planned.planned_cost, "calibration_cost": planned.calibration_cost}
        numbers |= {} if planned.accuracy is None else {"calibration_accuracy": planned.accuracy}
        numbers |= {} if planned.handed_back is None else {"handed_back": planned.handed_back}
        made._state = replace(state, fitted=priced, policy=planned.policy, numbers=numbers, promises=promises)
        return made
    now = float(np.asarray(shares_of(scheduler, None)) @ costs.values)
    numbers = {**state.numbers, "budget": now, "planned_cost": now, "calibration_cost": now}
    made._state = replace(state, fitted=priced, numbers=numbers, promises=promises)
    return made


def _as_fitted(taken: Fallback | None) -> Fallback | None:
    """What was taken, and that its figures are those of the fit: in the costs of here they are not known."""
    if taken is None or taken.unit.endswith(_AS_FITTED):
        return taken
    return replace(taken, unit=taken.unit + _AS_FITTED)


def _rows(table: PolicyTable, rows: NDArray[np.intp], **changed: Any) -> PolicyTable:
    """Some rows of a table of policies, in this order."""
    for field in fields(table):
        values = getattr(table, field.name)
        if field.name in changed or not isinstance(values, np.ndarray | tuple) or len(values) != len(table):
            continue
        picked = values[rows] if isinstance(values, np.ndarray) else tuple(values[row] for row in rows.tolist())
        changed[field.name] = picked
    return replace(table, **changed)


def shares_of(scheduler: Scheduler, records: ExitRecords | None) -> Sequence[float]:
    """What part of the samples exits at each exit, (K,); where nothing says so, all at the last."""
    shares: Any = None
    if records is not None:
        shares = scheduler.replay(records).exit_shares
    else:
        state = scheduler._fitted_state()
        shares = state.fitted.plan(scheduler.budget).shares
    exits = len(scheduler.costs)
    return [0.0] * (exits - 1) + [1.0] if shares is None else [float(share) for share in shares]


def observed_exits(scheduler: Scheduler) -> list[bool]:
    """At which early exits a policy of the scheduler looks, for any of its budgets."""
    return [any(policy.observes(k) for policy in scheduler.table.policies) for k in range(len(scheduler.costs) - 1)]


def _warn(message: str) -> None:
    warn(message, ReliabilityWarning)
