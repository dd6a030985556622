"""One run: its epochs, and its state, all of which is in the checkpoint after each of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet._extras import install
from eenet._warn import warn
from eenet.costs import ExitCosts
from eenet.errors import EENetError, InvalidInputError, MissingExtraError, ReliabilityWarning
from eenet.models import MultiExitModel
from eenet.models._io import logits_in, unpack
from eenet.profiling import measure
from eenet.scheduler import dead_exits
from eenet.training._averaging import Average
from eenet.training._cache import NotCacheableError
from eenet.training._checkpoint import (
    load_checkpoint,
    not_finite,
    read_header,
    remove_leftovers,
    restore,
    save_checkpoint,
)
from eenet.training._config import TrainConfig, make_optimizer, rate_factor, set_rate
from eenet.training._loss import JointLoss, Moment, TrainingTask, exit_weights
from eenet.training._mixing import mixer_of
from eenet.training._programs import FrozenProgram, HeadsProgram, JointProgram, Program, training_mode
from eenet.training._report import Display, EpochReport, TrainResult, two_fold_frontier, write_history
from eenet.training._seeding import EpochSeeds

LAST, BEST, HISTORY, LOGS, FEATURES = "last.safetensors", "best.safetensors", "metrics.csv", "tensorboard", "features"


class TrainingDivergedError(EENetError, ArithmeticError):
    """The loss or a weight is no longer finite.

    `step` counts optimizer steps from 0, `exit_name` is the first exit whose loss is not finite (None for a weight).

    Examples
    --------
    >>> from eenet.training import TrainingDivergedError
    >>> TrainingDivergedError("the loss of exit 'layer1' is nan", step=7, exit_name="layer1").step
    7
    """

    def __init__(self, message: str, *, step: int, exit_name: str | None) -> None:
        super().__init__(message)
        self.step = step
        self.exit_name = exit_name


@dataclass
class _State:
    """Where a run is: all of it is in the checkpoint."""

    history: list[EpochReport] = field(default_factory=list)
    step: int = 0

    @property
    def epoch(self) -> int:
        return len(self.history)

    @property
    def best(self) -> EpochReport:
        return max(self.history, key=lambda report: (report.score, report.mean, -report.epoch))

    def stale(self) -> int:
        """The epochs since the mean accuracy over the exits was last improved."""
        means = [report.mean for report in self.history]
        return len(means) - 1 - means.index(max(means)) if means else 0


class Run:
    """One call of `train`: `prepare`, `epochs`, `finish`."""

    def __init__(
        self,
        fabric: Any,
        model: MultiExitModel,
        config: TrainConfig,
        folder: Path,
        task: TrainingTask,
        display: Display,
        teacher: nn.Module | None,
        features: Path,
        seeds: EpochSeeds,
    ) -> None:
        self.fabric = fabric
        self.model = model
        self.config = config
        self.folder = folder
        self.features = features
        self.task = task
        self.display = display
        self.teacher = None if teacher is None else fabric.to_device(teacher).eval()
        self.seeds = seeds
        self.average: Average | None = None
        self.mixer = mixer_of(config, task, model.num_classes)
        self.loss = JointLoss(task, config.temperature, config.teacher_weight)
        self.state = _State()
        self.logger: Any = None

    def prepare(
        self,
        train_loader: Any,
        validation_loader: Any,
        costs: ExitCosts | None,
        *,
        resume: bool,
        must_cache: bool = True,
    ) -> None:
        """Find out what there is to resume, count costs, make optimizer and program.

        With `must_cache` false, heads are trained without a cache where features cannot be cached.
        """
        self._infinite = frozenset(not_finite(self.model))  # such as masks of attention, which stay as they are
        self.optimizer = make_optimizer(self.model, self.config)
        if self.config.ema_decay is not None:
            self.average = Average(self.model, self.config.ema_decay)
        header = self._resume() if resume and (self.folder / LAST).is_file() else None
        # Weights first, the cache after: features are those of the weights that the run goes on with.
        self.program: Program
        if self.config.freeze_backbone:
            self.program = self._heads_alone(train_loader, validation_loader, must_cache=must_cache)
        else:
            self.program = JointProgram(self.fabric, self.model, train_loader, validation_loader, self.config)
            # Traced here, outside of mixed precision, which a trace would fix.
            training_mode(self.model)
            _ = self.model.staged.stages
        if header is not None and header["batches"] != self.program.batches:
            raise InvalidInputError(
                f"the run in {str(self.folder)!r} had {header['batches']} batches in an epoch, train_loader has "
                f"{self.program.batches}; resume with the same data and batch size, or choose another `out`"
            )
        self.costs = costs if costs is not None else self._counted(validation_loader)
        self.costs.require_exits(self.model.num_exits)
        counted = "counted FLOPs: costs=... gives measured ones" if costs is None else self.costs.unit
        self.display.say(f"the best epoch is the most accurate in the mean of several budgets, in {counted}")
        if not isinstance(self.config.loss_weights, str):
            exit_weights(self.config.loss_weights, self._moment(0, 1))
        self.module, self.wrapped = self.fabric.setup(self.program.module, self.optimizer)
        if self.fabric.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (LAST, BEST, HISTORY):
                remove_leftovers(self.folder / name)
            if self.config.tensorboard:
                self.logger = _tensorboard(self.folder, self.state.epoch)

    def _heads_alone(self, train_loader: Any, validation_loader: Any, *, must_cache: bool) -> Program:
        parts = (self.fabric, self.model, train_loader, validation_loader, self.config)
        try:
            return FrozenProgram(*parts, self.features, self.display, self.seeds)
        except NotCacheableError as error:
            if must_cache:
                raise
            self.display.say(f"heads are trained without cached features: {error}")
            return HeadsProgram(*parts)

    def epochs(self) -> None:
        """Run the epochs that are left."""
        while not self.finished():
            epoch = self.state.epoch
            self.seeds.start(epoch)
            trained = self._train_epoch(epoch)
            bad = [name for name in not_finite(self.model) if name not in self._infinite]
            if bad:
                raise TrainingDivergedError(
                    f"after epoch {epoch + 1} the weight {bad[0]!r} is not finite; {self._last_good()}",
                    step=self.state.step - 1,
                    exit_name=None,
                )
            with self._averaged() as weights:
                report = self._evaluate(epoch, trained)
                self.state.history.append(report)
                self._save(report, weights)

    @contextmanager
    def _averaged(self) -> Iterator[Mapping[str, Tensor] | None]:
        """The model has its averaged weights within the block, if they are averaged; gives those it was trained to."""
        if self.average is None:
            yield None
        else:
            with self.average.used() as trained:
                yield trained

    def finished(self) -> bool:
        """Whether all epochs are done, or patience has run out."""
        return self.state.epoch >= self.config.epochs or self._out_of_patience()

    def load_best(self) -> None:
        """End the run with the weights of its best epoch."""
        self.fabric.barrier()
        if self.logger is not None:
            self.logger.finalize("success")
        load_checkpoint(self.model, self.folder / BEST)

    def finish(self) -> TrainResult:
        """Load the best weights and give the result."""
        self.load_best()
        best = self.state.best
        if best.dead:
            warn(
                f"after training {'; '.join(best.dead)}. Schedulers let no sample exit there: train longer or "
                "with more weight on these exits, choose another head, or attach it further on",
                ReliabilityWarning,
            )
        return TrainResult(
            history=tuple(self.state.history),
            best=best,
            best_checkpoint=self.folder / BEST,
            last_checkpoint=self.folder / LAST,
            stopped_early=self.state.epoch < self.config.epochs,
            costs=self.costs,
        )

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.state.stale() >= self.config.patience

    def _train_epoch(self, epoch: int) -> _Trained:
        program, config = self.program, self.config
        weights = exit_weights(config.loss_weights, self._moment(epoch, config.epochs))
        distillation_starts = round(self._steps * (1 - config.distillation_part))
        advance = self.display.epoch(epoch, program.batches)
        trained = _Trained(self.model.num_exits)
        self.optimizer.zero_grad()
        start = time.perf_counter()
        for index, (args, kwargs, targets) in enumerate(program.epoch(epoch)):
            # The last group of an epoch may be smaller than the others.
            first = index - index % config.accumulate
            group = min(config.accumulate, program.batches - first)
            complete = index - first + 1 == group
            samples = len(targets)
            if index == first:
                counted, largest = 0, self._reduced(samples, "max")
                trained.rate = set_rate(self.optimizer, rate_factor(config, self.state.step, self._steps))
            if self.mixer is not None:
                args, kwargs, targets = self.mixer(args, kwargs, targets)
            with self.fabric.no_backward_sync(self.module, enabled=not complete):
                logits = self.module(*args, **kwargs)
                if self.mixer is None:
                    self.task.check(logits[-1], targets)
                distils = self.state.step >= distillation_starts
                loss, losses = self.loss(
                    logits,
                    targets,
                    weights,
                    distillation_weight=config.distillation_weight if distils else 0.0,
                    ensemble_weight=config.ensemble_weight if distils else 0.0,
                    teacher=self._teach(args, kwargs),
                )
                self._check_finite(loss, losses, epoch, index)
                counted += samples
                # Batches may be of several sizes, and each sample counts alike; usually the share is 1 / group.
                self.fabric.backward(loss * (samples / (group * largest)))
            if complete:
                self._scale_gradients(group * largest * self.fabric.world_size / self._reduced(counted, "sum"))
                if config.gradient_clip is not None:
                    self.fabric.clip_gradients(
                        self.module, self.wrapped, max_norm=config.gradient_clip, error_if_nonfinite=False
                    )
                self.wrapped.step()
                self.optimizer.zero_grad()
                self.state.step += 1
                if self.average is not None:
                    self.average.update()
            with torch.no_grad():
                utilities = torch.stack([self.task.utility(z, targets) for z in logits])
            advance(trained.add(loss, losses, utilities, samples))
        trained.seconds = time.perf_counter() - start
        if trained.batches != program.batches:
            raise InvalidInputError(
                f"train_loader gave {trained.batches} batches, its length said {program.batches}; correct its length"
            )
        if self.fabric.world_size > 1:
            trained.sums = self.fabric.all_reduce(trained.sums, reduce_op="sum").cpu()
        return trained

    def _reduced(self, value: int, how: str) -> int:
        """The sum or the maximum over the processes."""
        if self.fabric.world_size == 1:
            return value
        tensor = torch.tensor(value, device=self.fabric.device)
        return int(self.fabric.all_reduce(tensor, reduce_op=how))

    def _scale_gradients(self, factor: float) -> None:
        if factor == 1:
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    @property
    def _steps(self) -> int:
        """The optimizer steps of the whole run."""
        return self.config.epochs * -(-self.program.batches // self.config.accumulate)

    def _moment(self, epoch: int, epochs: int) -> Moment:
        history = self.state.history
        relative = [float(c) for c in self.costs.values / self.costs[-1]]
        losses = history[-1].exit_losses if history else ()
        return Moment(self.model.num_exits, epoch / epochs, relative, losses)

    def _teach(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), self.fabric.autocast():
            output = self.teacher(*args, **kwargs)
        if isinstance(self.teacher, MultiExitModel):
            output = output[-1]
        return logits_in(output, self.model.num_classes).float()

    def _check_finite(self, loss: Tensor, losses: Tensor, epoch: int, batch: int) -> None:
        finite = torch.isfinite(torch.cat([losses.float(), loss.detach().float().reshape(1)]))
        everywhere = finite.all().float()
        if self.fabric.world_size > 1:
            # All processes stop together; one that went on alone would wait for the others for ever.
            everywhere = self.fabric.all_reduce(everywhere, reduce_op="min")
        if bool(everywhere):
            return
        bad = torch.nonzero(~finite).flatten().tolist()
        name = next((self.model.exit_names[k] for k in bad if k < len(losses)), None)
        what = f"the loss of exit {name!r} is {float(losses[bad[0]])}" if name else "the joint loss is not finite"
        raise TrainingDivergedError(
            f"{what} at step {self.state.step} (epoch {epoch + 1}, batch {batch + 1}); {self._last_good()}",
            step=self.state.step,
            exit_name=name,
        )

    def _last_good(self) -> str:
        kept = "no epoch was finished before"
        if self.state.epoch:
            kept = f"{str(self.folder / LAST)!r} is of the last good epoch, number {self.state.epoch}"
        return f"{kept}; use a smaller learning_rate, a warm-up, gradient_clip, or precision='32'"

    def _evaluate(self, epoch: int, trained: _Trained) -> EpochReport:
        # One process evaluates, so that the records are those of all the data, each sample once.
        report = None
        if self.fabric.is_global_zero:
            records = self.program.evaluate(self.task)
            judged = two_fold_frontier(records, self.costs, self.config.budgets, seed=self.config.seed)
            accuracies = tuple(float(a) for a in records.accuracies)
            report = EpochReport(
                epoch=epoch,
                step=self.state.step,
                learning_rate=trained.rate,
                loss=trained.loss,
                exit_losses=trained.exit_losses,
                train_accuracies=trained.accuracies,
                accuracies=accuracies,
                mean=sum(accuracies) / len(accuracies),
                budgets=judged.budgets,
                frontier=judged.accuracies,
                frontier_costs=judged.costs,
                score=judged.mean,
                seconds=trained.seconds,
                images_per_second=trained.samples / max(trained.seconds, 1e-9),
                dead=tuple(map(str, dead_exits(records, self.costs))),
            )
        shared: EpochReport = self.fabric.broadcast(report)
        return shared

    def _save(self, report: EpochReport, trained: Mapping[str, Tensor] | None) -> None:
        best = self.state.best is report
        if self.fabric.is_global_zero:
            header = {
                "config": self.config.to_dict(),
                "task": self.task.name,
                "exits": list(self.model.exit_names),
                "num_classes": self.model.num_classes,
                "batches": self.program.batches,
                "step": self.state.step,
                "history": [past.to_dict() for past in self.state.history],
                "precision": self.fabric.strategy.precision.state_dict(),
            }
            # The best first: a run that is killed between the two repeats the epoch and writes the same best again.
            if best:
                save_checkpoint(self.folder / BEST, self.model, header)
            save_checkpoint(self.folder / LAST, self.model, header, self.optimizer, trained)
            write_history(self.folder / HISTORY, self.state.history)
            if self.logger is not None:
                self.logger.log_metrics(report.row(), step=report.epoch + 1)
        self.display.report(report, best=best)
        self.fabric.barrier()

    def _resume(self) -> dict[str, Any]:
        path = self.folder / LAST
        header = read_header(path)
        changed = self.config.differences(TrainConfig.from_dict(header["config"]))
        if header["task"] != self.task.name:
            changed.append(f"task: {self.task.name!r} instead of {header['task']!r}")
        if changed:
            raise InvalidInputError(
                f"the run in {str(self.folder)!r} has other settings ({'; '.join(changed)}); resume with the same, or "
                "choose another `out`"
            )
        trained = restore(self.model, self.optimizer, path)
        if self.average is not None:
            self.average.restore(trained, header["step"])
        self.state.history = [EpochReport.from_dict(past) for past in header["history"]]
        self.state.step = header["step"]
        self.fabric.strategy.precision.load_state_dict(header["precision"])
        if self.fabric.is_global_zero:
            write_history(self.folder / HISTORY, self.state.history)
        self.display.say(f"resuming after epoch {self.state.epoch} of {self.config.epochs}")
        return header

    def _counted(self, loader: Iterable[Any]) -> ExitCosts:
        """FLOPs per sample: the same on every machine, so that the same checkpoint is chosen."""
        for batch in loader:
            args, kwargs, _ = unpack(batch)
            args, kwargs = self.fabric.to_device((args, kwargs))
            # Not `profile`, whose warning of exits that cost too much belongs to the costs that the user asks for.
            return measure(self.model, kwargs or args, batch_sizes=(1,), seconds=0.0).costs("flops", 1)
        raise InvalidInputError("the validation loader gave no batch; expected at least one")


class _Trained:
    """Sums over the samples of an epoch: their number, the joint loss, and of each exit loss, utility and how many."""

    def __init__(self, exits: int) -> None:
        self.sums = torch.zeros(2 + 3 * exits, dtype=torch.float64)
        self.batches = 0
        self.rate = 0.0
        self.seconds = 0.0

    def add(self, loss: Tensor, losses: Tensor, utilities: Tensor, samples: int) -> list[float]:
        """Count one batch, of utilities (K, N); gives their means over its samples, NaN where no label tells any."""
        means = torch.cat([loss.detach().reshape(1), losses]).cpu().double()
        worth = utilities.cpu().double()
        self.sums += torch.cat([torch.tensor([1.0]), means, torch.zeros(2 * len(losses))]) * samples
        self.sums[1 + len(means) :] += torch.cat([worth.nansum(dim=1), (~worth.isnan()).sum(dim=1)])
        self.batches += 1
        values: list[float] = utilities.nanmean(dim=1).tolist()
        return values

    @property
    def samples(self) -> int:
        return int(self.sums[0])

    @property
    def loss(self) -> float:
        return float(self.sums[1] / self.sums[0])

    @property
    def exit_losses(self) -> tuple[float, ...]:
        return tuple((self._of_exits(0) / self.sums[0]).tolist())

    @property
    def accuracies(self) -> tuple[float, ...]:
        """NaN where no label tells any."""
        return tuple((self._of_exits(1) / self._of_exits(2)).tolist())

    def _of_exits(self, which: int) -> Tensor:
        return self.sums[2:].reshape(3, -1)[which]


def _tensorboard(folder: Path, epochs: int) -> Any:
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    # What a killed run logged after its last finished epoch is hidden.
    return TensorBoardLogger(folder, name=LOGS, version="", purge_step=epochs + 1 if epochs else None)


def require_tensorboard() -> None:
    """Raise MissingExtraError where logs cannot be written, before anything is trained or cached."""
    if not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise MissingExtraError(
            f"TensorBoard logs need tensorboard, which is not installed: {install('train')}, or set tensorboard=False"
        )
