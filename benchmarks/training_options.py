"""What each option of training is worth on CIFAR-10, alone and together, by the frontier: accuracy at three budgets.

The ResNet-20 of recipe cifar10-resnet20-shared, published weights, batch norms re-estimated, is fine-tuned for a few
epochs with exits whose heads are `DownsamplingHead` of depth 3, in each variant on the same images of the training file
in the same order. A seed decides the heads' first weights, the order and the augmentation; variants of one seed are
compared with the variant "none" of that seed.

Judged on the recipe's calibration images, which are of the published test file: the published weights have seen every
training image. The rest of the test file is never read here. Thresholds are searched on one half of the images and
judged on the other, both ways, for several divisions; budgets are the same FLOPs for all.

A run that is interrupted goes on after its last epoch, and finished ones are kept in OUT/work: the same command
resumes. `--minutes` stops after the variant that is running then.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eenet
from _exits_report import Row, difference, judge
from eenet._files import atomic_path, read_json, write_json
from eenet._timing import describe_machine, machine
from eenet.errors import InvalidInputError
from eenet.experiments.data import Subset, load, loader, three_way_split
from eenet.experiments.recipes import load_recipe
from eenet.models import DownsamplingHead, MultiExitModel
from eenet.networks import resnet20
from eenet.training import TrainConfig, reestimate_batch_norm, train, training_device

RECIPE = "cifar10-resnet20-shared"
BUDGETS = (0.5, 0.65, 0.8)
"""Shares of the plain network's FLOPs."""
FOLDS = 5
SETTINGS = ("images", "validation", "epochs", "rate", "batch_size", "precision", "accelerator")
"""The options that results depend on: those of one folder were made with the same."""


@dataclass(frozen=True)
class Variant:
    """Options of `TrainConfig`, and of the data set, under a name."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    augment: str | None = None

    @property
    def what(self) -> str:
        """The options as they are written in a recipe."""
        options = dict(self.options) | ({} if self.augment is None else {"data augment": self.augment})
        return ", ".join(f"{key} {value}" for key, value in options.items()) or "joint training from new heads"


_GENTLE = {"ema_decay": 0.99, "layer_decay": 0.7, "ensemble_weight": 0.5, "distillation_part": 1.0, "head_epochs": 5}
VARIANTS = (
    Variant("none"),
    Variant("average", {"ema_decay": 0.99}),
    Variant("smoothing", {"label_smoothing": 0.1}),
    Variant("mixup", {"mixup": 0.2}),
    Variant("cutmix", {"cutmix": 1.0}),
    Variant("rand", augment="rand"),
    Variant("trivial", augment="trivial"),
    Variant("rates by stage", {"layer_decay": 0.7}),
    Variant("last exit teaches", {"distillation_weight": 0.5, "distillation_part": 1.0}),
    Variant("ensemble teaches", {"ensemble_weight": 0.5, "distillation_part": 1.0}),
    Variant("heads first", {"head_epochs": 5}),
    Variant("heads first, crops", {"head_epochs": 5, "cache_crops": 3}),
    Variant("gentle ones together", _GENTLE),
    Variant("all together", {**_GENTLE, "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0}, augment="trivial"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not finished, then print and write the table."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    # It says of every run that it is in bfloat16.
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    work = options.out / "work"
    settings = {name: getattr(options, name) for name in SETTINGS}
    note = work / "settings.json"
    if note.is_file() and read_json(note) != settings:
        raise InvalidInputError(f"{str(work)!r} holds runs of other settings ({read_json(note)}); give another --out")
    write_json(note, settings)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    todo = [(seed, v) for seed in seeds for v in VARIANTS if not _file(work, v, seed).is_file()]
    begun = time.monotonic()
    study = Study(options, work) if todo else None
    for seed, variant in todo:
        if study is None or (options.minutes and time.monotonic() - begun > 60 * options.minutes):
            break
        result = study.run(variant, seed)
        write_json(_file(work, variant, seed), result)
        print(f"{variant.name}, seed {seed}: {result['summary']}, {result['cpu_seconds']:.0f} s", flush=True)
    rows = [
        Row(v.name, v.what, "", tuple(read_json(f) for f in sorted((work / _folder(v)).glob("seed*.json"))))
        for v in VARIANTS
    ]
    command = "python benchmarks/training_options.py" + "".join(
        f" {word}" for word in (sys.argv[1:] if argv is None else argv)
    )
    print(report(options.out, [row for row in rows if row.runs], settings, command))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings of a run; defaults are those of the committed results."""
    shared = Path(os.environ.get("EENET_SHARED", Path(__file__).parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=shared / "datasets", help="folder with cifar10/ in it")
    parser.add_argument("--weights", type=Path, default=shared / "weights" / "cifar10_resnet20.safetensors")
    parser.add_argument("--out", type=Path, default=Path("results/training-options"), help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=6000, help="training images (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=1000, help="training images that choose the epoch")
    parser.add_argument("--epochs", type=int, default=4, help="of joint training (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.001, help="its learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("32", "bf16"), default="bf16", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of each variant (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="so that several can run side by side")
    parser.add_argument("--accelerator", default="cpu", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0, help="start no variant after these; 0 is no limit")
    return parser.parse_args(argv)


class Study:
    """The data and the network, which all variants start from."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.recipe = load_recipe(RECIPE)
        data = self.recipe.data
        self.sources: dict[str | None, dict[str, Any]] = {
            augment: {name: load(data.name, options.data_root, name, **data.options, augment=augment) for name in names}
            for augment, names in ((None, ("train", "test")), ("rand", ("train",)), ("trivial", ("train",)))
        }
        split = three_way_split(
            self.sources[None], train=data.train, calibration=data.calibration, test=data.test, seed=self.recipe.seed
        )
        parts = split.parts(self.sources[None])
        order = np.random.default_rng(self.recipe.seed).permutation(len(parts["train"]))
        held_out, rest = np.split(order[: options.validation + options.images], [options.validation])
        self.indices = parts["train"].indices[np.sort(rest)]
        self.validation = Subset(parts["train"], np.sort(held_out), part="validation", augmentable=False)
        self.judged = parts["calibration"]
        self.example = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        model = self.model(0)
        reestimate_batch_norm(model, self.images(None, 0), min(40, options.images // options.batch_size))
        self.start = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
        self.costs = eenet.profile(model, self.example[:1], unit="flops", seconds=0.0)
        assert self.costs.plain is not None
        self.budgets = [share * self.costs.plain for share in BUDGETS]

    def model(self, seed: int) -> MultiExitModel:
        """The network with new heads."""
        torch.manual_seed(seed)
        backbone = resnet20(10, weights=self.options.weights)
        made = [DownsamplingHead(width, 10, depth=3) for width in backbone.exit_widths]
        return eenet.attach(backbone, list(backbone.exit_names), 10, self.example, heads=made)

    def images(self, augment: str | None, seed: int) -> Any:
        """Batches of the training images, in an order and with an augmentation that the seed and the epoch decide."""
        part = Subset(self.sources[augment]["train"], self.indices, part="train").with_transform("train")
        return loader(part, self.options.batch_size, shuffle=True, seed=seed, drop_last=True)

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train a variant, or go on with it, and judge it."""
        device = training_device(TrainConfig(accelerator=self.options.accelerator))
        found, start = machine(device), time.process_time()
        folder = self.work / _folder(variant) / f"run{seed}"
        model = self.model(seed)
        model.backbone.load_state_dict(self.start)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        base = {
            "epochs": self.options.epochs, "learning_rate": self.options.rate, "distillation_weight": 0.0,
            "head_learning_rate": 4 * self.options.rate, "freeze_backbone": False, "precision": self.options.precision,
            "warmup_epochs": 0.3, "accelerator": self.options.accelerator, "tensorboard": False, "progress": False,
            "seed": seed,
        }  # fmt: skip
        config = replace(self.recipe.config, **(base | dict(variant.options)))
        trained = train(
            model,
            self.images(variant.augment, seed),
            loader(self.validation, 250),
            config=config,
            out=folder,
            resume=True,
            costs=self.costs,
        )
        records = eenet.collect(model, loader(self.judged, 250))
        shutil.rmtree(folder)
        return {
            **judge(records, self.costs, self.budgets, FOLDS),
            "exits": records.accuracies.tolist(),
            "best_epoch": trained.best.epoch,
            "cpu_seconds": time.process_time() - start,
            "machine": found,
        }


def report(out: Path, rows: Sequence[Row], settings: Mapping[str, Any], command: str) -> str:
    """Write `results.json` and `README.md` to a folder; gives the table."""
    plain = next((row for row in rows if row.name == "none"), None)
    lines = [
        "| variant | options | exits 0, 1, 2 | mean | seeds | difference | of each seed | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    written = []
    for row in rows:
        found = difference(row, plain)
        seeds = [] if plain is None else [100 * (a - b) for a, b in zip(row.means, plain.means, strict=False)]
        cells = [
            row.name,
            row.what,
            " ".join(
                f"{100 * statistics.fmean(of):.1f}" for of in zip(*(run["exits"] for run in row.runs), strict=True)
            ),
            f"{100 * statistics.fmean(row.means):.2f}",
            str(len(row.runs)),
            "reference" if found is None else f"{100 * found[0]:+.2f} ± {100 * _error(row, plain, found[1]):.2f}",
            "" if found is None else " ".join(f"{value:+.2f}" for value in seeds),
            f"{statistics.fmean(run['cpu_seconds'] for run in row.runs):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        error = None if found is None else _error(row, plain, found[1])
        written.append(
            {
                "name": row.name,
                "options": row.what,
                "difference": None if found is None else found[0],
                "error": error,
                "runs": [{key: run[key] for key in run if key not in ("right", "summary")} for run in row.runs],
            }
        )
    table = "\n".join(lines)
    budgets = list(BUDGETS)
    content = {"schema": 1, "command": command, "settings": dict(settings), "budgets": budgets, "variants": written}
    write_json(out / "results.json", content)
    found_on = {
        describe_machine({k: v for k, v in run["machine"].items() if k != "load_before"}) for run in rows[0].runs
    }
    text = f"""# Options of training on CIFAR-10, alone and together

```
{command}
```

{"; ".join(" ".join(one.split()) for one in sorted(found_on))}. Other programs ran beside it: CPU seconds, not time.

The network is the ResNet-20 of `recipes/{RECIPE}.yaml`: published weights, batch norms re-estimated, heads at exits 0
and 1. {settings["images"]:,} training images of the JPEG copies, cropped and flipped at random;
{settings["validation"]:,} more chose the epoch. {settings["epochs"]} epochs of joint training with equal weights of the
exits.

**Judged on 3,333 images of the published test file**, the calibration part of the recipe. `mean` is the accuracy in %
over budgets of {", ".join(f"{share:.0%}" for share in BUDGETS)} of the plain network's FLOPs, thresholds of the largest
probability searched on one half of the images and judged on the other, both ways, {FOLDS} times. `difference` is to the
first row, in points, on the same images and seeds; its standard error is that over the images and, with two seeds or
more, that over the seeds, combined.

{table}
"""
    with atomic_path(out / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return table


def _error(row: Row, plain: Row | None, over_images: float) -> float:
    """The standard error of a difference: over the images, and over the seeds where there are several."""
    assert plain is not None
    pairs = [a - b for a, b in zip(row.means, plain.means, strict=False)]
    over_seeds = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0
    return math.hypot(over_images, over_seeds)


def _folder(variant: Variant) -> str:
    return variant.name.replace(",", "").replace(" ", "-")


def _file(work: Path, variant: Variant, seed: int) -> Path:
    return work / _folder(variant) / f"seed{seed}.json"


if __name__ == "__main__":
    sys.exit(main())
