"""Which stages and heads of a bundle run in int8: as asked, or chosen by measuring times and accuracies here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from eenet._extras import require
from eenet._timing import in_turns, timed
from eenet.bundle._calibration import Samples, boundaries_of, warned
from eenet.bundle._choosing import Chooser, PartTime, Utility
from eenet.bundle._frontier import Ahead, Frontier, folded
from eenet.bundle._graphs import Graphs
from eenet.bundle._onnx import Session
from eenet.bundle._quantize import Quantized, quantized
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.models import MultiExitModel
from eenet.models._collect import Gathering
from eenet.records import ExitRecords
from eenet.runtime._backend import Array, Live, StageBackend
from eenet.tasks import Task

FP32, INT8 = "fp32", "int8"
AUTO = "auto"
Precision = str | Mapping[str, str]
MAX_EXIT_DROP = 0.005

_MOST_DROP = 0.1
_STEP = 0.005  # of the limits that are named
_WORTH_NAMING = 1.05  # times as fast at equal accuracy: a looser limit that gives less is not named
_FEWEST, _COMPARED = 100, 4096  # how many samples makes are compared on at equal cost
_AGAIN = 2  # more measurements of the parts whose times leave it open whether int8 is faster

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Choice:
    """What a bundle is made of: graphs in which some parts are int8, the plain network in int8, samples and figures.

    `precision` has each part's, `report` says how they were chosen; `judged` are the batches, with labels, that gave
    the quantizer no ranges where there were enough.
    """

    graphs: Graphs
    precision: dict[str, str]
    report: dict[str, Any]
    judged: list[tuple[Live, Any]]
    plain: bytes | None = None

    @property
    def any_int8(self) -> bool:
        """Whether anything answers differently than the model."""
        return INT8 in self.precision.values()

    def records(self, backend: StageBackend, task: Task) -> ExitRecords:
        """What the exits of the bundle itself say of the samples that judge."""
        gathered = Gathering(task)
        for live, labels in self.judged:
            logits = []
            for k in range(backend.num_exits):
                live, answers = backend.run(k, live, observe=True)
                logits.append(torch.from_numpy(np.asarray(answers)))
            gathered.add(logits, labels)
        return gathered.records()


@dataclass(frozen=True)
class Options:
    """What was asked of the precision of a bundle."""

    precision: Precision
    max_exit_drop: float = MAX_EXIT_DROP
    guarantee: float | None = None

    def check(self, model: MultiExitModel, backend: str, calibration: Any) -> None:
        """Raise `InvalidInputError` for what cannot be done, before anything is."""
        asked, names = self.precision, parts_of(model.num_exits)
        if not isinstance(asked, (str, Mapping)):
            raise InvalidInputError(f"precision is {asked!r}, expected a word such as 'auto', or a mapping of parts")
        if not isinstance(asked, str):
            unknown = [name for name in asked if name not in names]
            if unknown:
                raise InvalidInputError(
                    f"precision names {unknown[0]!r}, which is no part; expected some of {', '.join(names)}. "
                    f"{_ends(model)}"
                )
            wrong = [value for value in asked.values() if value not in (FP32, INT8)]
            if wrong:
                raise InvalidInputError(f"precision has {wrong[0]!r} for a part, expected {FP32!r} or {INT8!r}")
        elif asked not in (FP32, INT8, AUTO):
            raise InvalidInputError(
                f"precision is {asked!r}, expected {FP32!r}, {INT8!r}, {AUTO!r}, or a mapping such as "
                f"{{'stages.0': 'int8'}}"
            )
        if isinstance(self.max_exit_drop, bool) or not isinstance(self.max_exit_drop, (int, float, np.number)):
            raise InvalidInputError(
                f"max_exit_drop is {self.max_exit_drop!r}, expected a number from 0 to {_MOST_DROP:g}: half a point is "
                "0.005"
            )
        if not 0 <= self.max_exit_drop <= _MOST_DROP:
            raise InvalidInputError(
                f"max_exit_drop is {self.max_exit_drop:g}, that is {100 * self.max_exit_drop:g} points of accuracy; "
                f"expected 0 to {_MOST_DROP:g}: half a point is 0.005"
            )
        if self.guarantee is not None and not (
            isinstance(self.guarantee, (float, np.floating)) and 0 < self.guarantee < 1
        ):
            raise InvalidInputError(f"exit_drop_guarantee is {self.guarantee!r}, expected a probability such as 0.95")
        if self.guarantee is not None and asked != AUTO:
            raise InvalidInputError(
                f"exit_drop_guarantee is {self.guarantee:g}, and precision {asked!r}: parts that are asked for by hand "
                "are taken whatever they lose; give precision='auto', or no guarantee"
            )
        if not self.wanted(model.num_exits):
            return
        if backend != "onnx":
            raise InvalidInputError(
                f"precision is {asked!r} and backend {backend!r}: int8 stages run in ONNX Runtime alone; leave backend "
                "at 'onnx'"
            )
        if calibration is None:
            raise InvalidInputError(
                f"precision is {asked!r}, and there is no calibration data to take ranges from and to judge accuracy "
                "on; give calibration=loader, batches of (inputs, labels) that the model was not trained on"
            )
        require("onnxruntime.quantization", "export", "int8")

    def wanted(self, exits: int) -> set[str]:
        """The parts that may become int8."""
        if isinstance(self.precision, str):
            return set() if self.precision == FP32 else set(parts_of(exits))
        return {name for name, value in self.precision.items() if value == INT8}


def parts_of(exits: int) -> list[str]:
    """The names of the stages and heads of a network with K exits; the last stage needs no head."""
    return [*(f"stages.{k}" for k in range(exits)), *(f"heads.{k}" for k in range(exits - 1))]


def _ends(model: MultiExitModel) -> str:
    """Which modules the stages end at."""
    ends = [f"stages.{k} ends at {name!r}" for k, name in enumerate(model.exit_names[:-1])]
    return f"Of this network {', '.join(ends)}; stages.{len(ends)} is the rest, and heads.k is the head of exit k"


def choose(
    model: MultiExitModel,
    graphs: Graphs,
    plain: bytes | None,
    samples: Samples,
    options: Options,
    *,
    remaining: Sequence[int],
    seconds: float,
    threads: int | None,
    progress: Progress,
) -> Choice:
    """Quantize the parts that are asked for, or of all parts those that are faster in int8 and cost no accuracy.

    `remaining` says how many samples of a batch reach each stage, (K,): stages are timed on that many.
    """
    samples.note(options.max_exit_drop)
    parts = _Parts(model, graphs, threads)
    parts.quantize(options.wanted(model.num_exits), samples.ranges, progress)
    judge = _Judge(parts, samples, model.task, progress)
    chooser = Chooser(judge, options.max_exit_drop, options.guarantee)
    times: dict[str, PartTime] = {}
    looser = None
    if options.precision == AUTO:
        times = parts.times(remaining, seconds, progress)
        compared = _Compared(parts, judge, times, remaining)
        chosen = compared.kept(chooser, chooser.chosen(times))
        looser = compared.looser(chooser, chosen, options.guarantee)
    else:
        chosen = frozenset(parts.int8)
    report = _report(options, parts, samples, chooser, times, chosen) | {"looser": looser}
    whole = None
    if plain is not None:
        progress("quantizing the plain network")
        whole = _plain(plain, samples, model.task, threads, report)
    if options.precision != AUTO:
        _warn_of(report, options.max_exit_drop)
    stages, files = [], dict(graphs.files)
    for k, stage in enumerate(graphs.stages):
        for name, file in ((f"stages.{k}", stage.graph), (f"heads.{k}", stage.head)):
            if name in chosen:
                assert file is not None
                made = file.replace(".onnx", "-int8.onnx")
                files[made] = parts.int8[name]
                del files[file]
                stage = replace(stage, graph=made) if file == stage.graph else replace(stage, head=made)
        stages.append(stage)
    precision = {name: INT8 if name in chosen else FP32 for name in parts_of(model.num_exits)}
    return Choice(Graphs(tuple(stages), files), precision, report, samples.judged, whole)


class _Parts:
    """The stages and heads as sessions, in fp32 and, where they could be quantized, in int8."""

    def __init__(self, model: MultiExitModel, graphs: Graphs, threads: int | None) -> None:
        self._stages, self._boundaries = graphs.stages, boundaries_of(model)
        self._threads = threads
        self.fp32: dict[str, bytes] = {}
        for k, stage in enumerate(graphs.stages):
            for name, file in ((f"stages.{k}", stage.graph), (f"heads.{k}", stage.head)):
                if file is not None:
                    self.fp32[name] = graphs.files[file]
        self.int8: dict[str, bytes] = {}
        self.not_int8: dict[str, str] = {}
        self.kept: dict[str, tuple[str, ...]] = {}
        self._sessions: dict[tuple[str, str], Session] = {}
        self._timed: dict[str, Live] = {}
        self._fp32_times: dict[str, float] = {}

    @property
    def num_exits(self) -> int:
        return len(self._stages)

    def run(self, name: str, precision: str, live: Live) -> list[Any]:
        """What a part gives."""
        return self.session(name, precision)(live)

    def session(self, name: str, precision: str) -> Session:
        """A part in ONNX Runtime."""
        key = (name, precision)
        if key not in self._sessions:
            content = self.fp32[name] if precision == FP32 else self.int8[name]
            self._sessions[key] = Session(require("onnxruntime", "onnx"), content, name, self._threads)
        return self._sessions[key]

    def stage(self, k: int, precision: str, live: Live) -> tuple[Live, Array]:
        """The live tensors before stage k + 1 and the feature; of the last stage the logits in its place."""
        outputs = self.run(f"stages.{k}", precision, live)
        if k == self.num_exits - 1:
            return (), outputs[0]
        passed = tuple(outputs[: len(self._stages[k + 1].inputs)])
        index = self._stages[k].passed_feature
        return passed, outputs[-1] if index is None else passed[index]

    def quantize(self, wanted: set[str], lives: list[Live], progress: Progress) -> None:
        """Make the parts int8 that can be, each with the ranges of what it is given in fp32."""
        for k in range(self.num_exits):
            self._quantize(f"stages.{k}", wanted, lives, progress)
            after = [self.stage(k, FP32, live) for live in lives]
            if k < self.num_exits - 1:
                self._quantize(f"heads.{k}", wanted, [(feature,) for _, feature in after], progress)
                lives = [passed for passed, _ in after]

    def _quantize(self, name: str, wanted: set[str], lives: list[Live], progress: Progress) -> None:
        self._timed[name] = lives[0]
        if name not in wanted:
            return
        progress(f"quantizing {name}")
        names = self.session(name, FP32).inputs
        made: Quantized = quantized(self.fp32[name], [dict(zip(names, live, strict=True)) for live in lives])
        if made.content is None:
            self.not_int8[name] = made.reason
        else:
            self.int8[name], self.kept[name] = made.content, made.kept

    def times(self, remaining: Sequence[int], seconds: float, progress: Progress) -> dict[str, PartTime]:
        """The times of the parts that can be int8, in turns, on as many samples as reach each in a batch."""
        progress("timing the parts in fp32 and int8")
        live = {name: self._reaching(name, remaining) for name in self.fp32}
        measured = self._in_turns(live, seconds)
        for _ in range(_AGAIN):
            undecided = [name for name, time in measured.items() if time.open]
            if not undecided:
                break
            progress(f"timing {', '.join(undecided)} again: fp32 and int8 take about the same")
            again = self._in_turns({name: live[name] for name in undecided}, seconds)
            measured |= {name: _joined(measured[name], again[name]) for name in undecided}
        return measured

    def cost(self, name: str, time: PartTime | None, *, int8: bool) -> float:
        """Seconds of a part in one of its precisions, once `times` has run."""
        return self._fp32_times[name] if time is None else time.int8 if int8 else time.fp32

    def _reaching(self, name: str, remaining: Sequence[int]) -> Live:
        kind, _, k = name.partition(".")
        rows, live = np.arange(remaining[int(k)]), self._timed[name]
        if kind == "heads":
            return tuple(one[rows % len(one)] for one in live)
        return self._boundaries.take(int(k), live, rows % self._boundaries.size(int(k), live))

    def _in_turns(self, live: Mapping[str, Live], seconds: float) -> dict[str, PartTime]:
        """The median times, and what a part takes in int8 of its time in fp32 in the same round."""
        ways = [(name, p) for name in live for p in (FP32, INT8) if p == FP32 or name in self.int8]
        clocks = [partial(timed, self.session(name, precision), live[name]) for name, precision in ways]
        wall = in_turns(clocks, seconds=seconds, least=15, warm_up=2).wall
        columns = {way: wall[:, n] for n, way in enumerate(ways)}
        found = {}
        for name in live:
            fp32 = columns[name, FP32]
            if name not in self.int8:
                self._fp32_times[name] = float(np.median(fp32))
                continue
            int8 = columns[name, INT8]
            ratios, at_fp32 = int8 / fp32, float(np.median(fp32))
            spread = float(np.median(np.abs(ratios - np.median(ratios))))
            # On a busy machine medians differ by chance where the shortest times do not: faster is what is so by both.
            ratio = max(float(np.median(ratios)), float(int8.min() / fp32.min()))
            # Of a median, from the median deviation: one round that was disturbed changes neither.
            error = 1.2533 * 1.4826 * spread / np.sqrt(len(ratios))
            found[name] = PartTime(at_fp32, ratio * at_fp32, float(error))
        return found


def _joined(one: PartTime, other: PartTime) -> PartTime:
    """Two measurements of a part as one, by their errors."""
    first, second = (1 / max(time.error, 1e-9) ** 2 for time in (one, other))
    share = first / (first + second)
    fp32 = share * one.fp32 + (1 - share) * other.fp32
    ratio = share * one.ratio + (1 - share) * other.ratio
    return PartTime(fp32, ratio * fp32, float((first + second) ** -0.5))


class _Compared:
    """Makes of the network, with other parts in int8, at equal cost: the sum of the times of the parts."""

    def __init__(self, parts: _Parts, judge: _Judge, times: Mapping[str, PartTime], remaining: Sequence[int]) -> None:
        self._parts, self._judge, self._times, self._remaining = parts, judge, times, remaining
        self._frontiers: dict[frozenset[str], Frontier] = {}
        self._enough = judge.samples >= _FEWEST

    def kept(self, chooser: Chooser, chosen: frozenset[str]) -> frozenset[str]:
        """What was chosen; nothing where that is less accurate than fp32 at equal cost, beyond chance."""
        if chosen and self._enough and self._ahead(chosen, frozenset()).behind:
            chooser.why |= dict.fromkeys(chosen, "with it exits are less accurate at equal cost than in fp32")
            return frozenset()
        return chosen

    def looser(self, chooser: Chooser, chosen: frozenset[str], guarantee: float | None) -> dict[str, Any] | None:
        """The limit that allows all faster stages in int8, where that is better than what was chosen; JSON-ready."""
        found = chooser.looser(self._times, _MOST_DROP, _STEP) if self._enough else None
        if found is None or not found[1] - chosen or found[0] <= chooser.max_exit_drop:
            return None
        limit, wanted = found
        ahead = self._ahead(wanted, chosen)
        if not ahead.certain or ahead.speed is None or ahead.speed < _WORTH_NAMING:
            return None
        more = [name for name in parts_of(self._parts.num_exits) if name in wanted - chosen]
        text = (
            f"With {_listed(more)} in int8{' too' if chosen else ''} it would be {ahead.speed:.2g} times as fast at "
            f"equal accuracy, and {100 * ahead.mean:+.1f} ± {100 * ahead.error:.1f} points at equal cost"
        )
        mine, now = ahead.most
        if mine < now:
            text += f", up to {100 * mine:.1f} % in place of {100 * now:.1f} %"
        allows = "allows it" if guarantee is None else "may allow it: its guarantee has to be shown"
        return {
            "max_exit_drop": limit,
            "parts": more,
            "times_as_fast": ahead.speed,
            "gain": ahead.mean,
            "gain_error": ahead.error,
            "text": f"{text}; max_exit_drop={limit:g} {allows}.",
        }

    def _ahead(self, one: frozenset[str], other: frozenset[str]) -> Ahead:
        return self._frontier(one).ahead_of(self._frontier(other))

    def _frontier(self, int8: frozenset[str]) -> Frontier:
        if int8 not in self._frontiers:
            self._frontiers[int8] = Frontier(self._judge.records(int8), self._costs(int8), self._folds)
        return self._frontiers[int8]

    @cached_property
    def _folds(self) -> list[NDArray[np.intp]]:
        """Those of the records in fp32, for all makes."""
        return folded(self._judge.records(frozenset()))

    def _costs(self, int8: frozenset[str]) -> ExitCosts:
        """Milliseconds of a sample to each exit."""
        spent, values = 0.0, []
        for k, samples in enumerate(self._remaining):
            for name in (f"stages.{k}", f"heads.{k}"):
                if name in self._parts.fp32:
                    seconds = self._parts.cost(name, self._times.get(name), int8=name in int8)
                    spent += 1000 * seconds / samples
            values.append(spent)
        return ExitCosts(values, "ms")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class _Judge:
    """Runs the parts on the samples that judge; what is known is not run again."""

    def __init__(self, parts: _Parts, samples: Samples, task: Task, progress: Progress) -> None:
        self._parts, self._samples, self._task, self._progress = parts, samples, task, progress
        self._known: dict[frozenset[str], tuple[Utility, Utility]] = {}

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(len(labels) for _, labels in self._samples.judged)

    def __call__(self, stages: frozenset[str]) -> tuple[Utility, Utility]:
        """The worth of all exits with these stages in int8: with heads in fp32, and with heads in int8."""
        if stages not in self._known:
            self._progress(f"judging with {', '.join(sorted(stages)) or 'no stage'} in int8")
            with_fp32, with_int8 = Gathering(self._task), Gathering(self._task)
            for live, labels in self._samples.judged:
                plain, heads = self._answers(live, stages)
                with_fp32.add(plain, labels)
                with_int8.add(heads, labels)
            self._known[stages] = (_utility(with_fp32), _utility(with_int8))
        return self._known[stages]

    def records(self, int8: frozenset[str]) -> ExitRecords:
        """What the exits say with exactly these parts in int8, of at most `_COMPARED` samples."""
        self._progress(f"comparing at equal cost with {', '.join(sorted(int8)) or 'nothing'} in int8")
        gathered, count = Gathering(self._task), 0
        for n in np.random.default_rng(0).permutation(len(self._samples.judged)).tolist():
            live, labels = self._samples.judged[n]
            plain, heads = self._answers(live, int8)
            gathered.add([heads[k] if f"heads.{k}" in int8 else plain[k] for k in range(len(plain))], labels)
            count += len(labels)
            if count >= _COMPARED:
                break
        return gathered.records()

    def _answers(self, live: Live, stages: frozenset[str]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        plain, quantized_heads = [], []
        for k in range(self._parts.num_exits):
            name = f"stages.{k}"
            live, feature = self._parts.stage(k, INT8 if name in stages else FP32, live)
            head = f"heads.{k}"
            if k == self._parts.num_exits - 1:
                plain.append(torch.from_numpy(feature))
                quantized_heads.append(plain[-1])
                break
            plain.append(torch.from_numpy(self._parts.run(head, FP32, (feature,))[0]))
            in_int8 = head in self._parts.int8
            quantized_heads.append(
                torch.from_numpy(self._parts.run(head, INT8, (feature,))[0]) if in_int8 else plain[-1]
            )
        return plain, quantized_heads


def _report(
    options: Options,
    parts: _Parts,
    samples: Samples,
    chooser: Chooser,
    times: Mapping[str, PartTime],
    chosen: frozenset[str],
) -> dict[str, Any]:
    """What was asked, found and chosen, JSON-ready."""
    before, after = chooser.judged(frozenset())[0].mean(axis=1), chooser.worth(chosen).mean(axis=1)
    asked = options.precision
    rows = []
    for name in parts_of(parts.num_exits):
        row: dict[str, Any] = {"part": name, "precision": INT8 if name in chosen else FP32}
        if name in times:
            time = times[name]
            row |= {"fp32_ms": 1000 * time.fp32, "int8_ms": 1000 * time.int8, "ratio_error": time.error}
        if name in parts.not_int8:
            row["why"] = f"cannot be quantized: {parts.not_int8[name]}"
        elif name in chooser.why and name not in chosen:
            row["why"] = chooser.why[name]
        if name in chosen and parts.kept[name]:
            row["operators_in_fp32"] = list(parts.kept[name])
        rows.append(row)
    return {
        "asked": asked if isinstance(asked, str) else dict(asked),
        "max_exit_drop": float(options.max_exit_drop),
        "guarantee": None if options.guarantee is None else float(options.guarantee),
        "samples": {
            "ranges": sum(_rows(live) for live in samples.ranges),
            "judged": sum(len(labels) for _, labels in samples.judged),
            "apart": samples.apart,
        },
        "parts": rows,
        "accuracies": {"fp32": before.tolist(), "bundle": after.tolist()},
    }


def _warn_of(report: Mapping[str, Any], max_exit_drop: float) -> None:
    """Warn of what was asked by hand and could not be done, or costs an exit more than it may lose."""
    for row in report["parts"]:
        if row.get("why"):
            warned(f"{row['part']} stays fp32: it {row['why'].removeprefix('it ')}")
    accuracies = report["accuracies"]
    for k, (before, after) in enumerate(zip(accuracies["fp32"], accuracies["bundle"], strict=True)):
        if before - after > max_exit_drop:
            warned(
                f"exit {k} has {100 * after:.1f} % with these parts in int8, {100 * before:.1f} % in fp32, on "
                f"{report['samples']['judged']} calibration samples: it loses more than max_exit_drop="
                f"{max_exit_drop:g}; precision='auto' leaves in fp32 what costs that"
            )


def _plain(content: bytes, samples: Samples, task: Task, threads: int | None, report: dict[str, Any]) -> bytes | None:
    """The plain network in int8, the alternative to exits; its accuracies go into the report."""
    runtime = require("onnxruntime", "onnx")
    sessions = {FP32: Session(runtime, content, "the plain network", threads)}
    names = sessions[FP32].inputs
    made = quantized(content, [dict(zip(names, live, strict=True)) for live in samples.ranges])
    if made.content is None:
        return None
    sessions[INT8] = Session(runtime, made.content, "the plain network in int8", threads)
    found = {}
    for precision, session in sessions.items():
        gathered = Gathering(task)
        for live, labels in samples.judged:
            gathered.add([torch.from_numpy(session(live)[0])] * 2, labels)  # records have two exits at least
        found[precision] = float(_utility(gathered).mean())
    report["plain"] = found
    return made.content


def _utility(gathered: Gathering) -> Utility:
    utility = gathered.records().utility
    assert utility is not None, "all calibration batches have labels"
    return cast(Utility, utility.astype(np.float64))


def _rows(live: Live) -> int:
    return len(live[0])
