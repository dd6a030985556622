"""What budgets, guarantees and the budget controller are worth on shifted test images, which nothing was calibrated on.

RUN is the folder of `eenet train` or `eenet reproduce` with a CIFAR-10 recipe (model and split); costs are those that
`results/` has of the recipe. The calibration images are left as they are. The test images are shifted by one of four
corruptions at three strengths, the same for the same seed: Gaussian blur (radius in pixels), Gaussian noise (standard
deviation, of 255), JPEG (quality), contrast (what is left of it). For each shift, and for the images as they are:

- what is spent of a promised budget, mean and worst over eight budgets between the first and the last exit's cost;
- whether the guarantee of 0.95 on the cost is kept at four of them, and a guaranteed accuracy at the last exit's less
  a drop;
- what the controller holds over a stream of images drawn from them, what the policy alone would spend, whether the
  drift test gives an alarm and after how many images, and how many points of accuracy it is above or below the fixed
  policies of the same table at the same cost.

Writes `results/shift/README.md`, and rows for `frontier.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import eenet
from eenet._files import atomic_path
from eenet._timing import describe_machine, machine
from eenet.cli._console import progress
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.scheduler import replay
from frontier import BUDGETS, compared, rows_of, write_csv

ROOT = Path(__file__).resolve().parents[1]
SHIFTS: dict[str, tuple[float, ...]] = {
    "blur": (0.5, 0.75, 1.0),
    "noise": (8, 16, 32),
    "jpeg": (40, 20, 10),
    "contrast": (0.6, 0.4, 0.2),
}
PLAIN = "as they are"
METHODS = {"max_prob": eenet.MaxProbability, "stopping": eenet.OptimalStopping}
ROWS = ("max_prob", "stopping", "eenet")  # in the rows for frontier.csv
LEVEL = 0.95
DROPS = (0.01, 0.02, 0.03)
STREAM, BATCH, SETTLED = 20_000, 32, 2_000

Images = NDArray[np.uint8]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="of eenet train or reproduce, with work/model")
    parser.add_argument("--recipe", default="cifar10-resnet20-shared", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--made-by", default="", metavar="COMMAND", help="what made RUN, for the page")
    parser.add_argument("--data-root", type=Path, default=ROOT.parent / "shared" / "datasets", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "shift", metavar="FOLDER")
    parser.add_argument("--limit", type=int, help="test images; all of the run's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    commands = [line for line in (options.made_by, f"python benchmarks/shift.py RUN --recipe {options.recipe}") if line]
    found = machine()
    print(describe_machine(found) + "\n", flush=True)
    material = Material.of(options.run, options.data_root, options.limit, options.recipe)
    calibration = material.collect(material.calibration, *material.calibration_labels)
    sets: dict[str, eenet.ExitRecords] = {}
    with progress() as bars:
        update = bars.task("shifts", 1 + sum(map(len, SHIFTS.values())))
        for number, (name, images) in enumerate(shifted(material.test, options.seed), start=1):
            sets[name] = material.collect(images, *material.test_labels)
            update(number)
    rows: list[dict[str, Any]] = []
    for name, test in sets.items():
        if name != PLAIN:
            named = {"recipe": f"shift/{material.name}", "test_set": name, "machine": material.where}
            comparison = compared(calibration, test, material.costs, ROWS)
            rows += rows_of(comparison, test, named, round(comparison.fraction * len(calibration)))
    write_csv(options.out / "frontier.csv", rows)
    tables = [table(method, calibration, sets, material.costs, options.seed) for method in METHODS]
    text = "\n".join([*head(material, calibration, sets, commands, found), *exits(sets), *tables])
    print(text)
    with atomic_path(options.out / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


# Images and records.


def shifted(images: Images, seed: int) -> Iterator[tuple[str, Images]]:
    """The images (N, 3, H, W) as they are, and under each shift and strength, with its name."""
    yield PLAIN, images
    for number, (kind, strengths) in enumerate(SHIFTS.items()):
        for place, strength in enumerate(strengths):
            yield f"{kind} {strength:g}", shift(images, kind, strength, np.random.default_rng([seed, number, place]))


def shift(images: Images, kind: str, strength: float, rng: np.random.Generator) -> Images:
    """All images under one shift."""
    if kind == "noise":
        return clipped(images + strength * rng.standard_normal(images.shape))
    if kind == "contrast":
        means = images.mean(axis=(1, 2, 3), keepdims=True)
        return clipped(means + strength * (images - means))
    return np.stack([_filtered(image, kind, strength) for image in images])


def clipped(values: NDArray[np.float64]) -> Images:
    """As pixels."""
    pixels: Images = np.rint(values).clip(0, 255).astype(np.uint8)
    return pixels


def _filtered(pixels: Images, kind: str, strength: float) -> Images:
    image = Image.fromarray(np.moveaxis(pixels, 0, 2))
    if kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(strength))
    else:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=int(strength))
        image = Image.open(packed)
    return np.moveaxis(np.asarray(image), 2, 0)


@dataclass(frozen=True)
class Material:
    """The images, the network and the costs of a run."""

    name: str
    model: Any
    costs: eenet.ExitCosts
    where: str
    calibration: Images
    calibration_labels: tuple[Any, Any]
    test: Images
    test_labels: tuple[Any, Any]

    @classmethod
    def of(cls, run: Path, data_root: Path, limit: int | None, recipe: str) -> Material:
        """Read what a run has left."""
        from eenet.experiments.data import ThreeWaySplit, load
        from eenet.models import MultiExitModel

        results = ROOT / "results" / recipe
        metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
        measured = json.loads((results / "costs.json").read_text(encoding="utf-8"))
        values = measured["costs"]["cpu_ms"][measured["batch_sizes"].index(1)]
        options = {k: metrics["settings"]["data"]["options"][k] for k in ("mean", "std")}
        split = ThreeWaySplit.load(run / "split.json")
        source: Any = load("cifar10", str(data_root), split="test", **options)
        rows = {part: split.indices[part] for part in ("calibration", "test")}
        rows["test"] = rows["test"][:limit]
        return cls(
            recipe,
            MultiExitModel.from_pretrained(run / "work" / "model").eval(),
            eenet.ExitCosts(values, "cpu_ms", batch_size=1),
            f"{metrics['machine']['processor']}, {metrics['machine']['threads']} thread(s)",
            source.images[rows["calibration"]],
            (source.labels[rows["calibration"]], source.normalize),
            source.images[rows["test"]],
            (source.labels[rows["test"]], source.normalize),
        )

    def collect(self, images: Images, labels: NDArray[np.int64], normalize: Any) -> eenet.ExitRecords:
        """What the exits say of images."""
        import torch

        batches = (
            (normalize(images[at : at + 100]), torch.as_tensor(labels[at : at + 100]))
            for at in range(0, len(images), 100)
        )
        return eenet.collect(self.model, batches)


# Tables.


def head(
    material: Material,
    calibration: eenet.ExitRecords,
    sets: dict[str, eenet.ExitRecords],
    commands: Sequence[str],
    found: dict[str, Any],
) -> list[str]:
    """What the tables are of."""
    costs = ", ".join(f"{value:.3f}" for value in material.costs.values)
    return [
        "# Shifted test images",
        "",
        f"{material.name}, CIFAR-10 as JPEG copies: {len(calibration):,} images as they are to calibrate on, "
        f"{len(sets[PLAIN]):,} others to judge. Exits cost {costs} CPU ms ({material.where}). Blur is Gaussian, by its "
        "radius in pixels; noise is Gaussian, by its standard deviation of 255; JPEG by its quality; contrast by what "
        "is left of it. Made by:",
        "",
        "```",
        *commands,
        "```",
        "",
        f"{describe_machine(found).splitlines()[-1]}; seeded, no times are measured.",
        "",
    ]


def exits(sets: dict[str, eenet.ExitRecords]) -> list[str]:
    """Accuracies of all exits."""
    count = sets[PLAIN].num_exits
    lines = ["## Accuracy of the exits, in %", "", "| images | " + " | ".join(f"exit {k}" for k in range(count)) + " |"]
    lines.append("|---|" + "---|" * count)
    for name, records in sets.items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in records.accuracies) + " |")
    return [*lines, ""]


def table(
    method: str, calibration: eenet.ExitRecords, sets: dict[str, eenet.ExitRecords], costs: eenet.ExitCosts, seed: int
) -> str:
    """Budgets, guarantees and the controller for one method."""
    budgets = np.linspace(costs[0], costs[-1], BUDGETS + 2)[1:-1].tolist()
    promised = budgets[1::2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        plain = METHODS[method]().fit(calibration, costs)
        sure = METHODS[method]().fit(calibration, costs, guarantee=LEVEL)
        plainly, surely = [plain.at(b) for b in budgets], [sure.at(b) for b in promised]
        drop, accurate = guaranteed_accuracy(method, calibration, costs)
        lines = [
            f"## {type(plain).__name__}",
            "",
            f"`spent` is of the promised budget. The cost is guaranteed at {LEVEL:g} for {len(promised)} budgets. "
            "For the accuracy, "
            + (
                f"it promises at most {100 * drop:g} points less than the last exit and plans "
                f"{accurate.planned_cost / costs[-1]:.0%} of its cost. "
                if accurate is not None
                else "it was refused: too few samples. "
            )
            + f"The controller has a stream of {STREAM:,} images and the budget {budgets[4] / costs[-1]:.0%} of the "
            f"last exit's cost; `far` is how far its running mean is from it at worst, from {SETTLED:,} images on.",
            "",
            "| images | spent, mean | spent, worst | cost kept | accuracy lost, kept | policy alone spends | "
            "controller spends | far | points to fixed policies | alarm after |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, test in sets.items():
            spent = [at.replay(test).mean_cost / b for b, at in zip(budgets, plainly, strict=True)]
            kept = [at.replay(test).mean_cost <= b for b, at in zip(promised, surely, strict=True)]
            lost = "refused"
            if accurate is not None:
                points = 100 * (float(test.accuracies[-1]) - accurate.replay(test).accuracy)
                lost = f"{points:+.1f}, {'yes' if points <= 100 * drop + 1e-9 else 'no'}"
            stream = followed(plain, test, budgets[4], seed)
            lines.append(
                f"| {name} | {np.mean(spent):.3f} | {max(spent):.3f} | {sum(kept)} of {len(kept)} | {lost} | "
                f"{stream['alone']:.3f} | {stream['controlled']:.3f} | {stream['far']:.1%} | {stream['points']:+.2f} | "
                f"{stream['alarm'] or '-'} |"
            )
    return "\n".join([*lines, ""])


def guaranteed_accuracy(
    method: str, calibration: eenet.ExitRecords, costs: eenet.ExitCosts
) -> tuple[float, eenet.Scheduler | None]:
    """The smallest of DROPS that can be promised, and the scheduler that promises it."""
    for drop in DROPS:
        try:
            fitted = METHODS[method]().fit(calibration, costs, max_accuracy_drop=drop, guarantee=LEVEL)
        except InvalidInputError:
            continue
        return drop, fitted
    return DROPS[-1], None


def followed(scheduler: eenet.Scheduler, test: eenet.ExitRecords, budget: float, seed: int) -> dict[str, Any]:
    """A stream of samples drawn from records, under the controller."""
    policies, costs = scheduler.table.policies, scheduler.costs
    taken = np.stack([replay(policy, test, costs).exits for policy in policies])
    row = {id(policy): number for number, policy in enumerate(policies)}
    utility = test.require_utility()
    samples = np.random.default_rng(seed).integers(0, len(test), STREAM)
    controller = eenet.BudgetController(scheduler, budget)
    left = np.empty(STREAM, dtype=np.intp)
    for start in range(0, STREAM, BATCH):
        now = slice(start, start + BATCH)
        left[now] = taken[row[id(controller.policy)], samples[now]]
        controller.observe(left[now])
    running = np.cumsum(costs.values[left]) / np.arange(1, STREAM + 1) / controller.budget
    fixed_costs = costs.values[taken[:, samples]].mean(axis=1)
    fixed = utility[taken[:, samples], samples].mean(axis=1)
    order = np.argsort(fixed_costs, kind="stable")
    equal = float(np.interp(controller.mean_cost, fixed_costs[order], fixed[order]))
    return {
        "alone": float(fixed_costs[scheduler.table.index(controller.budget)]) / controller.budget,
        "controlled": float(running[-1]),
        "far": float(np.abs(running[SETTLED - 1 :] - 1).max()),
        "points": 100 * (float(utility[left, samples].mean()) - equal),
        "alarm": controller.drift().alarm_at,
    }


if __name__ == "__main__":
    sys.exit(main())
