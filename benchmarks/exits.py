"""Exit heads and loss weightings on CIFAR-10, judged by the frontier they give: accuracy at three budgets.

Two comparisons on the ResNet-56 of recipe cifar10-resnet56-shared. First head designs, trained on cached features of
the frozen backbone (batch norms re-estimated). Then ways of joint training (loss weightings, distillation, gradient
scaling), all from the same heads of the first comparison, on the same images in the same order.

Judged on the recipe's calibration images, 1,500 of the published test file: the published weights have seen every
training image, so that images held out of the training file would flatter the later exits. The other 3,500, on which
the recipe reports, are never read here. Thresholds are searched on one half of the images and judged on the other, both
ways, for several divisions; the budgets are the same FLOPs per image for all, so a costlier head has to earn its cost.

Each finished variant is kept in OUT/work; running the command again goes on after the last one.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eenet
from _exits_report import Row, judge, report
from _exits_variants import BASE, VARIANTS, MakeHead, PooledLinear, Variant
from eenet._files import read_json, write_json
from eenet._timing import describe_machine, machine
from eenet.cli._console import progress, side
from eenet.errors import InvalidInputError
from eenet.experiments.data import Subset, load, loader, three_way_split
from eenet.experiments.recipes import load_recipe
from eenet.models import ConvHead, MultiExitModel
from eenet.networks import resnet56
from eenet.training import TrainResult, load_checkpoint, reestimate_batch_norm, train

RECIPE = "cifar10-resnet56-shared"
BUDGETS = (0.5, 0.65, 0.8)
"""Shares of the plain network's FLOPs."""
FOLDS = 5
BEST = "best.safetensors"
SETTINGS = (
    "images", "validation", "calibration", "head_epochs", "joint_epochs", "joint_rate", "batch_size", "precision",
)  # fmt: skip
"""The options that results depend on: those of one folder were made with the same."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not finished, then print and write the tables."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    # It says of every run that it is in bfloat16.
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    found = machine()
    print(describe_machine(found), flush=True)
    work = options.out / "work"
    settings = {name: getattr(options, name) for name in SETTINGS}
    _same_settings(work, settings)
    chosen = [v for v in VARIANTS if not options.only or v.name in options.only]
    todo = [(seed, v) for seed in range(options.seeds) for v in chosen if not _file(work, v, seed).is_file()]
    if todo:
        study = Study(options, work)
        with progress() as bars:
            update = bars.task("variants", len(todo))
            for number, (seed, variant) in enumerate(todo):
                update(number, what=f"{variant.name}, seed {seed}")
                result = study.run(variant, seed)
                write_json(_file(work, variant, seed), {**result, "machine": found})
                side().print(f"{variant.name}, seed {seed}: {result['summary']}", soft_wrap=True)
    results = {v.name: [read_json(f) for f in sorted((work / v.name).glob("seed*.json"))] for v in VARIANTS}
    command = "python benchmarks/exits.py" + "".join(f" {word}" for word in (sys.argv[1:] if argv is None else argv))
    rows = [Row(v.name, v.what, v.stage, tuple(results[v.name])) for v in VARIANTS if results[v.name]]
    print(report(options.out, rows, settings | {"folds": FOLDS, "base": BASE}, BUDGETS, command))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings of a run; defaults are those of the committed results."""
    shared = Path(os.environ.get("EENET_SHARED", Path(__file__).parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=shared / "datasets", help="folder with cifar10/ in it")
    parser.add_argument("--weights", type=Path, default=shared / "weights" / "cifar10_resnet56.safetensors")
    parser.add_argument("--out", type=Path, default=Path("results/cifar10-exits"), help="(default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[v.name for v in VARIANTS], metavar="NAME", help="these variants")
    parser.add_argument("--images", type=int, default=8000, help="training images (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=1000, help="training images that choose the epoch")
    parser.add_argument("--calibration", type=int, default=1500, help="images of the test file to judge on")
    parser.add_argument("--head-epochs", type=int, default=9, help="of heads on cached features (default: %(default)s)")
    parser.add_argument("--joint-epochs", type=int, default=2, help="of joint training (default: %(default)s)")
    parser.add_argument("--joint-rate", type=float, default=0.001, help="its learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--precision", choices=("32", "bf16"), default="bf16", help="of training (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=2, help="repetitions of each variant (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch (default: %(default)s)")
    return parser.parse_args(argv)


class Study:
    """The data and the cut network, which all variants share."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        recipe = load_recipe(RECIPE, changes=[f"data.calibration=[test, {options.calibration}]"])
        sources = {
            name: load(recipe.data.name, options.data_root, name, **recipe.data.options) for name in ("train", "test")
        }
        parts = three_way_split(
            sources,
            train=recipe.data.train,
            calibration=recipe.data.calibration,
            test=recipe.data.test,
            seed=recipe.seed,
        ).parts(sources)
        if options.images + options.validation > len(parts["train"]):
            raise InvalidInputError(
                f"{options.images} images to train and {options.validation} to validate of {len(parts['train'])}; "
                "ask for fewer"
            )
        self.config = replace(
            recipe.config,
            # As the recipe was when the results were made; it trains heads first, gently and averaged since.
            learning_rate=0.004,
            head_learning_rate=0.004,
            weight_decay=0.05,
            head_epochs=0,
            cache_crops=1,
            ema_decay=None,
            loss_weights="uniform",
            distillation_weight=0.0,
            precision=options.precision,
            accelerator="cpu",
            tensorboard=False,
            progress=False,
        )
        order = np.random.default_rng(recipe.seed).permutation(len(parts["train"]))
        held_out, rest = np.split(order[: options.validation + options.images], [options.validation])
        self.validation = Subset(parts["train"], np.sort(held_out), part="validation", augmentable=False)
        self.images = Subset(parts["train"], np.sort(rest), part="train")
        self.judged = parts["calibration"]
        backbone = resnet56(10, weights=options.weights)
        example = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.staged = eenet.cut(backbone, list(backbone.exit_names), example)
        self.widths = backbone.exit_widths
        batches = min(recipe.train.batch_norm_batches, max(1, options.images // options.batch_size))
        reestimate_batch_norm(self.model(ConvHead, 0), self.loader(self.images, 0, shuffle=True), batches)
        self.published = {name: tensor.clone() for name, tensor in self.staged.backbone.state_dict().items()}
        self.example = example[:1]
        flops = eenet.profile(self.model(PooledLinear, 0), self.example, unit="flops", seconds=0.0)
        # The plain network: what the pooled linear heads add is left out.
        self.plain = flops[-1] - sum(2 * width * 10 for width in self.widths)
        self.teacher = copy.deepcopy(backbone).eval()

    def model(self, make: MakeHead, seed: int) -> MultiExitModel:
        """The cut network with new heads; the backbone is shared and stays as it is."""
        torch.manual_seed(seed)
        heads = [make(width, 10) for width in self.widths]
        return eenet.attach(self.staged, num_classes=10, heads=heads)

    def loader(self, part: Subset, seed: int, *, shuffle: bool = False) -> Any:
        """Batches of a part; an order and an augmentation that only the seed decides."""
        size = self.options.batch_size
        return loader(part, size, shuffle=shuffle, seed=seed, drop_last=shuffle and len(part) > size)

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train a variant, or go on with it, and judge it."""
        start, cpu = time.perf_counter(), time.process_time()
        folder = self._folder(variant, seed)
        model, trained = self._with_heads(variant, seed) if variant.heads else self._jointly(variant, seed)
        taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        records = eenet.collect(model, self.loader(self.judged, 0))
        costs = eenet.profile(model, self.example, unit="flops", seconds=0.0)
        found = judge(records, costs, [share * self.plain for share in BUDGETS], FOLDS)
        for left in folder.iterdir():  # joint training starts from the best weights, the rest is not needed again
            if left.name != BEST:
                left.unlink()
        return {
            **found,
            **taken,
            "exits": records.accuracies.tolist(),
            "validation": list(trained.best.accuracies),
            "costs": (costs.values / self.plain).tolist(),
        }

    def _with_heads(self, variant: Variant, seed: int) -> tuple[MultiExitModel, TrainResult]:
        """New heads, trained on cached features."""
        assert variant.heads is not None
        self.staged.backbone.load_state_dict(self.published)
        model = self.model(variant.heads, seed)
        config = replace(
            self.config,
            epochs=max(1, round(variant.epochs * self.options.head_epochs)),
            freeze_backbone=True,
            cache_dtype="float16",
            seed=seed,
            **variant.settings,
        )
        trained = train(
            model,
            self.loader(self.images.with_transform("eval"), seed),
            self.loader(self.validation, seed),
            config=config,
            out=self._folder(variant, seed),
            resume=True,
            features=self.work / "features",
        )
        return model, trained

    def _jointly(self, variant: Variant, seed: int) -> tuple[MultiExitModel, TrainResult]:
        """The trained heads of `BASE` and the backbone, trained together."""
        base = next(v for v in VARIANTS if v.name == BASE)
        assert base.heads is not None
        best = self._folder(base, seed) / BEST
        # A finished run has its best weights only; one that was killed has its last ones too, and goes on.
        if not best.is_file() or len(list(best.parent.iterdir())) > 1:
            self._with_heads(base, seed)
        model = self.model(base.heads, seed)
        load_checkpoint(model, best)
        rate = self.options.joint_rate
        config = replace(
            self.config,
            epochs=self.options.joint_epochs,
            learning_rate=rate,
            head_learning_rate=rate,
            seed=seed,
            **variant.settings,
        )
        trained = train(
            model,
            self.loader(self.images, seed, shuffle=True),
            self.loader(self.validation, seed),
            config=config,
            out=self._folder(variant, seed),
            resume=True,
            teacher=self.teacher if config.teacher_weight else None,
        )
        return model, trained

    def _folder(self, variant: Variant, seed: int) -> Path:
        return self.work / variant.name / f"run{seed}"


def _file(work: Path, variant: Variant, seed: int) -> Path:
    return work / variant.name / f"seed{seed}.json"


def _same_settings(work: Path, settings: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` where the folder holds variants of other settings; note the settings where not."""
    file = work / "settings.json"
    before = read_json(file) if file.is_file() else dict(settings)
    if before != settings:
        changed = ", ".join(
            f"{k}: {settings[k]} instead of {before.get(k)}" for k in settings if settings[k] != before.get(k)
        )
        raise InvalidInputError(f"{str(work)!r} holds variants of other settings ({changed}); give another --out")
    write_json(file, settings)


if __name__ == "__main__":
    sys.exit(main())
