"""Cascades, exits and int8 on real data: what `eenet.search` finds, judged held out and timed by real runs.

    python benchmarks/cascades.py digits
    python benchmarks/cascades.py imagenet --models weights
    python benchmarks/cascades.py summary

One part of the samples chooses and fits, the other judges. All candidates of a set run on this machine, in one
runtime, on one thread; costs are CPU milliseconds per sample, measured in turns. The systems that are chosen then run
for real, in turns, batch by batch. Data sets are read in ../shared, or in the folder that EENET_SHARED names.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import _cascade_sets as sets
from _cascade_proof import Proof, records_of
from _cascade_systems import BATCHES, Candidate, answers, measure
from _cascade_tables import goals, joined, readme, summary
from eenet._extras import require
from eenet._timing import describe_machine, machine
from eenet.errors import ReliabilityWarning

ROOT = Path(__file__).resolve().parents[1]
SETS: dict[str, Callable[..., sets.Setting]] = {
    **{name: partial(sets.texts, name) for name in sets.TEXTS},
    "cifar10": sets.cifar10,
    "imagenet": sets.imagenet,
    "digits": sets.digits,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof of a set, print its tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=[*SETS, "summary"], help="the data set, or a summary of all results")
    parser.add_argument("--models", type=Path, default=ROOT / "work" / "models", help="the folder of trained networks")
    parser.add_argument("--work", type=Path, help="keeps graphs and answers here, and reads what is there")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=BATCHES, help="the batch sizes; results of others in --out stay"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="about how long costs are measured at a batch size")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write results.json and README.md")
    options = parser.parse_args(argv)
    if options.set == "summary":
        print(summary(options.out or ROOT / "results" / "cascades"))
        return 0
    begun = time.time()
    shared = Path(os.environ.get("EENET_SHARED", ROOT.parent / "shared"))
    work = options.work or ROOT / "work" / "cascades" / options.set
    work.mkdir(parents=True, exist_ok=True)

    def report(what: str) -> None:
        print(f"[{time.time() - begun:5.0f} s] {what}", file=sys.stderr, flush=True)

    try:
        setting = SETS[options.set](shared, options.models, work, report)
    except sets.SetError as error:
        print(error, file=sys.stderr)
        return 2
    found = machine() | {"onnxruntime": require("onnxruntime", "export").__version__}

    def answered(one: Candidate, part: str) -> Any:
        kept = work / f"{one.name.replace(' ', '-')}.{part}.npy"
        if not kept.is_file():
            report(f"answers of {one.name}, {part}")
            np.save(kept, answers(one, setting.samples[part]))
        return np.load(kept)

    records_of(setting, answered)
    measure(
        list(setting.candidates.values()),
        setting.samples["calibration"][:256],
        options.batches,
        options.seconds,
        report,
    )
    data: dict[str, Any] = {
        "set": options.set, "title": setting.title, "about": setting.about, "machine": found,
        "samples": {part: len(labels) for part, labels in setting.labels.items()},
        "plain": setting.plain,
        "candidates": [_described(one) for one in setting.candidates.values()], "batches": {},
    }  # fmt: skip
    for size in options.batches:
        proof = Proof(setting, size, report)
        data["batches"][str(size)] = {
            "reference": proof.reference,
            "smaller": proof.smaller,
            "search": {which: result.to_dict() for which, result in proof.found.items()},
            "frontier": proof.frontier(),
            "timed": proof.timed(report),
            "methods": proof.methods(),
            "goals": goals(proof),
        }
    data["seconds"] = time.time() - begun
    text = readme(data, describe_machine(found))
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        kept = options.out / "results.json"
        if kept.is_file():
            data = joined(json.loads(kept.read_text(encoding="utf-8")), data)
            text = readme(data, describe_machine(found))
        kept.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (options.out / "README.md").write_text(text + "\n", encoding="utf-8")
    return 0


def _described(one: Candidate) -> dict[str, Any]:
    return {
        "name": one.name,
        "int8": one.int8,
        "exits": one.number,
        "calibration": one.records["calibration"].accuracies.tolist(),
        "test": one.records["test"].accuracies.tolist(),
        "costs": {
            str(size): costs if isinstance(costs, float) else [*costs.values.tolist(), costs.reference]
            for size, costs in one.costs.items()
        },
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore", ReliabilityWarning)
    sys.exit(main())
