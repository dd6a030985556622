"""Measuring what each exit costs on the machine at hand.

Stages, heads and the scheduler's decisions are timed separately, in rounds that take turns, so that a machine that
slows down meanwhile slows down all of them.
"""

from __future__ import annotations

import eenet._needs_torch  # noqa: F401  # isort: skip

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eenet._compat import flop_counter
from eenet._progress import by_itself
from eenet._sizes import dynamic_sizes
from eenet._timing import fingerprint as fingerprint
from eenet._timing import in_turns, timed, waiting_for
from eenet._values import array_value
from eenet._warn import warn
from eenet.costs import IN_RUNS, ExitCosts, Runs, costs_at, costs_of_runs
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.models import MultiExitModel, inferring, require_exits
from eenet.models._multi_exit import saying_precisions
from eenet.models._sizes import sizes_refused
from eenet.optimize import batch_of
from eenet.runtime._adaptive import TENSORS
from eenet.runtime._batch_runs import BatchRuns
from eenet.runtime._loop import decide
from eenet.scheduler import DecisionState, ExitHistory, Scheduler, ThresholdPolicy
from eenet.scheduler._forced import at_every_exit
from eenet.scheduler._policy import score_class
from eenet.stages import Example, arguments_of, walk
from eenet.tasks import Task

__all__ = ["measure", "profile"]

UNITS = ("ms", "cpu_ms", "flops")
PERCENTILES = (50, 95, 99)

_NAMES = tuple(f"p{percent}" for percent in PERCENTILES)
_MIN_ROUNDS, _MAX_ROUNDS = 7, 200

Floats = NDArray[np.float64]


@array_value
@dataclass(frozen=True)
class StageProfile:
    """Costs per sample of each exit, and of the plain network, at several batch sizes, in all units.

    `tables[unit]` is (batch sizes, K), cumulative; `spreads[unit]` alike, relative; `parts_ms` (batch sizes, K, parts)
    is the wall time of each stage, head and scheduler step by itself. `plain[unit]` is (batch sizes,);
    `percentiles[unit]` (batch sizes, 3, K + 1) are those of `PERCENTILES`, of the exits and of the plain network, for
    the units of time. Where `runs[unit]` has runs of batches of a size in which samples exited on the way, the tables
    at that size are of batches of which as many samples exit at each exit, all of what happens in a run included;
    elsewhere all samples of a batch go to the same exit.
    """

    batch_sizes: tuple[int, ...]
    tables: Mapping[str, Floats]
    spreads: Mapping[str, Floats]
    parts_ms: Floats
    device: Mapping[str, Any] = field(default_factory=dict)
    includes: tuple[str, ...] = ()
    plain: Mapping[str, Floats] = field(default_factory=dict)
    percentiles: Mapping[str, Floats] = field(default_factory=dict)
    runs: Mapping[str, tuple[Runs, ...]] = field(default_factory=dict)

    def costs(self, unit: str = "ms", batch_size: int = 1) -> ExitCosts:
        """The costs of one unit at one of the measured batch sizes; warns where they are not to be trusted."""
        _require_unit(unit)
        if batch_size not in self.batch_sizes:
            raise InvalidInputError(f"batch size {batch_size} was not measured; there are {list(self.batch_sizes)}")
        return costs_at(self.to_dict(), unit, batch_size)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "batch_sizes": list(self.batch_sizes),
            "costs": {unit: table.tolist() for unit, table in self.tables.items()},
            "spreads": {unit: table.tolist() for unit, table in self.spreads.items()},
            "plain": {unit: values.tolist() for unit, values in self.plain.items()},
            "percentiles": {
                unit: {name: table[:, n].tolist() for n, name in enumerate(_NAMES)}
                for unit, table in self.percentiles.items()
            },
            "parts_ms": self.parts_ms.tolist(),
            "runs": {
                unit: [[list(map(list, run)) for run in runs] for runs in rows] for unit, rows in self.runs.items()
            },
            "device": dict(self.device),
            "includes": list(self.includes),
        }


def profile(
    model: MultiExitModel,
    example: Example,
    *,
    unit: str = "ms",
    batch_size: int = 1,
    full_batches: bool = False,
    scheduler: Scheduler | None = None,
    seconds: float = 2.0,
    plain: nn.Module | None = None,
) -> ExitCosts:
    """Measure the cost per sample of each exit, cumulative, and of the plain network, in the same rounds.

    Exit heads on the way are included, and the decisions of a scheduler: those of max probability, or of `scheduler`,
    with which only the heads are included that it observes, since the others do not run. The plain network is what you
    would run without exits: the network that the exits were attached to, called as a whole; where its stages were
    written by hand, all stages without the early heads.

    Parameters
    ----------
    model
        The model, on the device that will run it.
    example
        An input of any batch size, repeated or shortened to `batch_size`, and moved to the model's device. Where the
        model takes inputs of any length, the costs are of the length of this one: give one as long as your inputs are
        on average.
    unit
        "ms" of wall time, "cpu_ms" of CPU time of all threads, or "flops", two for each multiply-add.
    batch_size
        The batch size to measure at; the costs are those of one sample in such a batch. Above 1 batches are run as
        `AdaptiveModel` runs them: samples exit on the way, and deeper stages run on what is left, which takes longer
        for each. The costs then depend on how many samples exit where. These are for as many at each exit,
        `ExitCosts.at_shares` gives others, and `Scheduler.fit` takes those of the policy that it finds for a budget.
    full_batches
        True: of batches whose samples all go to the same exit, for comparing exits. A budget in these is overspent
        where samples of one batch exit at different exits.
    scheduler
        A fitted scheduler, to measure its own decisions in place of those of max probability.
    seconds
        About how long to measure each batch size.
    plain
        Another network to take for the plain one, called with the same inputs: where the exits were attached to
        something else than what you would run without them, such as a cascade.

    Returns
    -------
    ExitCosts
        K costs and that of the plain network, with spread, percentiles and the machine. Warns (`ReliabilityWarning`)
        where rounds differ too much, and of early exits that cost more than the plain network.

    Raises
    ------
    InvalidInputError
        For an unknown unit, an empty example, one that is longer than the network takes, or a scheduler of other exits
        or classes.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    >>> costs = eenet.profile(model, torch.randn(2, 4), unit="flops")
    >>> costs.unit, len(costs), costs.plain < costs[-1]  # on the way to the last exit there is the early head
    ('flops', 2, True)
    >>> in_batches = eenet.profile(model, torch.randn(2, 4), unit="cpu_ms", batch_size=32, seconds=0.1)
    >>> in_batches.includes[3:]
    ('inputs', 'selection', 'outputs')
    """
    _require_unit(unit)
    require_exits(model)
    in_batches = not full_batches and unit != "flops" and isinstance(batch_size, int) and batch_size > 1
    with saying_precisions(model):
        measured = measure(
            model,
            example,
            batch_sizes=[batch_size],
            scheduler=scheduler,
            seconds=seconds,
            plain=plain,
            full_batches=not in_batches,
        )
    costs = measured.costs(unit, batch_size)
    _warn_of_costly_exits(costs, model.exit_names)
    return costs


def _warn_of_costly_exits(costs: ExitCosts, names: Sequence[str]) -> None:
    """Warn of early exits that cost more than the plain network, at which no sample saves anything."""
    costly = [k for k in range(len(costs) - 1) if costs.plain is not None and costs[k] > costs.plain]
    if costly:
        each = ", ".join(f"exit {k} ({names[k]!r}) {costs.in_words(costs[k])}" for k in costly)
        warn(
            f"an early exit costs more than the plain network: {each}. No sample saves anything there: attach smaller "
            "heads (heads=[...]), place exits where more of the network is left out, or take larger batches",
            ReliabilityWarning,
        )


def measure(
    model: MultiExitModel,
    example: Example,
    *,
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32),
    scheduler: Scheduler | None = None,
    seconds: float = 2.0,
    progress: Callable[[int], None] | None = None,
    plain: nn.Module | None = None,
    full_batches: bool = False,
) -> StageProfile:
    """Profile a model at several batch sizes, about `seconds` for each; `progress` is called with each that is done.

    Milliseconds are medians over interleaved rounds after a warm-up; FLOPs are counted on the stages themselves, two
    for each multiply-add. The plain network takes its turn in every round.

    Parameters
    ----------
    model : MultiExitModel
        The model, on the device that will run it.
    example : Tensor, tuple or mapping
        An input of any batch size.
    batch_sizes : sequence of int
        What to measure.
    scheduler : Scheduler, optional
        A fitted scheduler, to measure its own decisions in place of those of max probability.
    seconds : float
        About how long each batch size is measured.
    progress : callable, optional
        Called with each batch size.
    plain : Module, optional
        Another network to take for the plain one.
    full_batches : bool
        True: at all batch sizes all samples of a batch go to the same exit; see `profile`.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    >>> measured = eenet.profiling.measure(model, torch.randn(2, 4), batch_sizes=[1], seconds=0.05)
    >>> len(measured.costs("cpu_ms", 1))
    2
    """
    if not batch_sizes or not all(isinstance(size, int) and size >= 1 for size in batch_sizes):
        raise InvalidInputError(f"batch sizes {list(batch_sizes)}: expected at least one, each a whole number from 1")
    if scheduler is not None:
        scheduler.policy.require(model.num_exits, model.num_classes, "the model has")
    policy = _max_probability(model) if scheduler is None else scheduler.policy
    args, kwargs = arguments_of(example)
    inputs = model.staged.flatten_inputs(*args, **kwargs)
    if model.staged.batch_size_of(inputs) == 0:
        raise InvalidInputError("the example has batch size 0; give at least one sample, which is repeated as needed")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type != "meta":  # nothing can be run and compared there
        model.staged.check_current()
    inputs = tuple([tensor.to(device) for tensor in inputs])
    sizes = dynamic_sizes(model.staged.inference_stages[0].inputs, [tensor.shape for tensor in inputs])
    tables: dict[str, list[Floats]] = {unit: [] for unit in UNITS}
    spreads: dict[str, list[Floats]] = {unit: [] for unit in UNITS}
    parts = []
    whole: dict[str, list[float]] = {unit: [] for unit in UNITS}
    percentiles: dict[str, list[Floats]] = {"ms": [], "cpu_ms": []}
    runs: dict[str, list[Runs]] = {"ms": [], "cpu_ms": []}
    network = model.plain if plain is None else plain
    with (
        inferring(model),
        inferring(network),
        by_itself("measuring batch sizes", len(batch_sizes), given=progress) as show,
    ):
        with sizes_refused(model, inputs):
            flops = _count_flops(_steps(model, inputs, 1, policy))
            flops_of_plain = _plain_flops(model, inputs, None if network is model.backbone else network)
        for done, size in enumerate(batch_sizes):
            show(done)
            steps = _steps(model, inputs, size, policy)
            batches = None
            if size > 1 and not full_batches and device.type != "meta":
                # Of one that looks at no early exit, and so lets no sample exit, the runs would say nothing.
                looks = any(policy.observes(k) for k in range(model.num_exits - 1))
                batches = BatchRuns(model, inputs, size, policy if looks else at_every_exit(policy))
            wall, cpu = _time_rounds(steps, batches, _call(network, model, inputs, size), device, seconds)
            for unit, (times, took, alone) in (("ms", wall), ("cpu_ms", cpu)):
                cumulative = times.sum(axis=2).cumsum(axis=1) / size
                median = np.median(times, axis=0).sum(axis=1).cumsum() / size
                found: Runs = ()
                if batches is not None:
                    equal, samples = np.full(len(steps), 1 / len(steps)), np.array(batches.samples)
                    cumulative = costs_of_runs(samples, took, size, equal)
                    typical = np.median(took, axis=0)
                    median = costs_of_runs(samples, typical[None], size, equal)[0]
                    found = tuple((one, tuple(row)) for one, row in zip(batches.samples, typical.tolist(), strict=True))
                runs[unit].append(found)
                low, high = np.quantile(cumulative, [0.25, 0.75], axis=0)
                tables[unit].append(median)
                spreads[unit].append((high - low) / np.maximum(median, 1e-9))
                # Above 0, since a clock of the processor that ticks coarsely may not see a small network at all.
                whole[unit].append(max(float(np.median(alone)) / size, 1e-9))
                ways = np.concatenate([cumulative, alone[:, None] / size], axis=1)
                percentiles[unit].append(np.percentile(ways, PERCENTILES, axis=0))
            tables["flops"].append(flops)
            whole["flops"].append(flops_of_plain)
            spreads["flops"].append(np.zeros(len(flops)))
            parts.append(np.median(wall[0], axis=0) / size)
            if progress is not None:
                progress(size)
    return StageProfile(
        tuple(batch_sizes),
        {unit: np.stack(rows) for unit, rows in tables.items()},
        {unit: np.stack(rows) for unit, rows in spreads.items()},
        np.stack(parts),
        fingerprint(device) | ({"sizes": sizes} if sizes else {}),
        ("stages", "heads", "scheduler", *(IN_RUNS if any(runs["ms"]) else ())),
        {unit: np.array(values) for unit, values in whole.items()},
        {unit: np.stack(rows) for unit, rows in percentiles.items()},
        {unit: tuple(rows) for unit, rows in runs.items()} if any(runs["ms"]) else {},
    )


Step = Callable[[], Any]


def _max_probability(model: MultiExitModel) -> ThresholdPolicy:
    """The policy whose decisions are measured where no scheduler is given: it looks at every exit."""
    early = model.num_exits - 1
    score = score_class("max_prob")()
    return at_every_exit(ThresholdPolicy(score, np.zeros(early), np.ones(early, dtype=np.bool_), model.num_classes))


def _steps(
    model: MultiExitModel, inputs: tuple[Tensor, ...], size: int, policy: ThresholdPolicy
) -> list[tuple[Step, ...]]:
    """For each exit what is timed separately: the stage, its head and the policy's decision."""
    live = batch_of(model, inputs, size)
    steps: list[tuple[Step, ...]] = []
    history, task = ExitHistory(), model.task
    for k, step in enumerate(walk(model.staged.inference_stages, live)):
        run_stage = partial(step.stage, *live)
        last = k == model.num_exits - 1
        on = last or policy.observes(k)  # the head of an exit that is off does not run
        logits = model.final_logits(step.outputs) if last else model.heads[k](step.feature) if on else step.feature
        run_head = partial(model.heads[k], step.feature) if on and not last else _nothing
        before = ExitHistory(history.evidence, history.scores)
        decision = _decision(policy, task, size, logits, before) if on else _nothing
        steps.append((run_stage, run_head, decision))
        if not on:
            history.skip(size, model.num_classes)
        elif not last and logits.device.type != "meta":
            history.evidence.append(task.evidence(TENSORS.to_host(task.shown(logits)), history.evidence))
            policy.leaves(history)
        live = step.live
    return steps


def _decision(policy: ThresholdPolicy, task: Task, size: int, logits: Tensor, before: ExitHistory) -> Step:
    """What the decision loop does at an exit, between the head and the compaction."""
    if logits.device.type == "meta":
        return _nothing

    def step() -> None:
        state = DecisionState.onward(policy, size, ExitHistory(before.evidence, before.scores))
        decide(state, task, logits, arrays=TENSORS)

    return step


def _nothing() -> None:
    return None


def _call(network: nn.Module, model: MultiExitModel, inputs: tuple[Tensor, ...], size: int) -> Step:
    """The plain network called on a batch."""
    args, kwargs = model.staged.call_of(batch_of(model, inputs, size))
    return partial(network, *args, **kwargs)


Rounds = tuple[Floats, Floats, Floats]
"""Of parts (rounds, K, parts), of stages in runs of batches (rounds, runs, K), of the plain network (rounds,)."""


def _time_rounds(
    steps: list[tuple[Step, ...]], batches: BatchRuns | None, plain: Step, device: torch.device, seconds: float
) -> tuple[Rounds, Rounds]:
    """Wall and CPU milliseconds."""
    wait = waiting_for(device)
    timing = in_turns(
        [
            *(partial(timed, step, wait=wait) for parts in steps for step in parts),
            *([] if batches is None else batches.steps),
            partial(timed, plain, wait=wait),
        ],
        seconds=seconds,
        least=_MIN_ROUNDS,
        most=_MAX_ROUNDS,
        warm_up=3,
    )

    def split(times: Floats) -> Rounds:
        exits, parts = len(steps), len(steps[0])
        own, rest = times[:, : exits * parts], times[:, exits * parts : -1].reshape(len(times), -1, exits + 1)
        return own.reshape(-1, exits, parts), rest[:, :, 1:], times[:, -1]

    return split(timing.wall * 1e3), split(timing.cpu * 1e3)


def _count_flops(steps: Sequence[tuple[Step, ...]]) -> Floats:
    """Cumulative FLOPs of one sample, one number for each tuple of steps."""
    counts = []
    for parts in steps:
        with flop_counter() as counter:
            for step in parts:
                step()
        counts.append(counter.get_total_flops())
    # A stage without a counted operation must still cost something for the exits to be in order.
    return np.maximum(np.array(counts, dtype=np.float64), 1.0).cumsum()


def _plain_flops(model: MultiExitModel, inputs: tuple[Tensor, ...], plain: nn.Module | None) -> float:
    """FLOPs of one sample in the plain network.

    They are counted on the stages, as those of the exits are: the network itself may run fused kernels, such as those
    of `nn.TransformerEncoder`, of which the counter knows nothing.
    """
    if plain is not None:
        return float(_count_flops([(_call(plain, model, inputs, 1),)])[0])
    return float(_count_flops([tuple(stage for stage, *_ in _steps(model, inputs, 1, _max_probability(model)))])[0])


def _require_unit(unit: str) -> None:
    if unit not in UNITS:
        raise InvalidInputError(f"unit {unit!r} cannot be measured; choose from {list(UNITS)}")
