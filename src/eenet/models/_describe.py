"""A table of a model's stages: what crosses between them, what they hold, and what they cost."""

from __future__ import annotations

import io
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from eenet._compat import flop_counter
from eenet.models._io import inferring
from eenet.models._multi_exit import MultiExitModel
from eenet.stages import LiveTensor, StagedModel


@dataclass(frozen=True)
class StageRow:
    """One stage: `live` are the tensors it is called with, parameters are counted where they are used first.

    FLOPs are those of one sample, two for each multiply-add; `share` is that of the stage and its head in all
    FLOPs.
    """

    name: str
    live: tuple[str, ...]
    parameters: int
    flops: int
    head: str | None
    head_parameters: int
    head_flops: int
    share: float

    def cells(self) -> tuple[str, ...]:
        """The row as text, one string for each column of the table."""
        head = (self.head, _short(self.head_parameters), _short(self.head_flops)) if self.head else ("-", "-", "-")
        live = ", ".join(self.live)
        return (self.name, live, _short(self.parameters), _short(self.flops), *head, f"{self.share:.1%}")


@dataclass(frozen=True)
class Description:
    """What `describe` found; print it, or take `rows` and the totals."""

    network: str
    rows: tuple[StageRow, ...]
    unused_parameters: int
    placement: str = ""

    @property
    def parameters(self) -> int:
        """All parameters, heads included."""
        return sum(row.parameters + row.head_parameters for row in self.rows) + self.unused_parameters

    @property
    def flops(self) -> int:
        """FLOPs of one sample that reaches the last exit, heads included."""
        return sum(row.flops + row.head_flops for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "network": self.network,
            "stages": [asdict(row) | {"live": list(row.live)} for row in self.rows],
            "parameters": self.parameters,
            "unused_parameters": self.unused_parameters,
            "flops": self.flops,
        }

    def to_text(self, *, width: int | None = None) -> str:
        """A table that is at most `width` characters wide, by default as the terminal, or 80 where there is none."""
        width = shutil.get_terminal_size().columns if width is None else width
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("stage", "live tensors", "params", "FLOPs", "head", "params", "FLOPs", "of FLOPs"):
            folds = heading in ("stage", "live tensors", "head")
            table.add_column(heading, justify="left" if folds else "right", no_wrap=not folds, overflow="fold")
        for row in self.rows:
            table.add_row(*row.cells())
        text = io.StringIO()
        Console(file=text, width=width, color_system=None, markup=False, emoji=False, highlight=False).print(table)
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        unused = f", {_short(self.unused_parameters)} of them not used" if self.unused_parameters else ""
        lines += textwrap.wrap(
            f"{self.network}: {len(self.rows)} stages, {_short(self.parameters)} parameters{unused}, "
            f"{_short(self.flops)} FLOPs per sample",
            width,
        )
        lines += [part for line in self.placement.splitlines() for part in textwrap.wrap(line, width)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()


def describe(model: MultiExitModel | StagedModel) -> Description:
    """The stages of a model, for inference: live tensors, parameters, FLOPs, the cost of the heads, shares of the cost.

    Parameters
    ----------
    model
        A model with exits, or a network that was cut. It is left as it was.

    Returns
    -------
    Description
        One row for each stage; it prints as a table. FLOPs are those of one sample, two for each multiply-add, counted
        by running the example that the model was cut with, on the device of the model.

    Examples
    --------
    >>> import torch, eenet
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> description = eenet.describe(eenet.attach(network, ["1"], example=torch.randn(2, 4)))
    >>> [(row.name, row.flops) for row in description.rows]
    [('1', 64), ('output', 48)]
    """
    staged = model.staged if isinstance(model, MultiExitModel) else model
    heads: list[nn.Module | None] = [*model.heads, None] if isinstance(model, MultiExitModel) else []
    heads = heads or [None] * (len(staged.at) + 1)
    names = model.exit_names if isinstance(model, MultiExitModel) else [one.name for one in staged.inference_stages]
    args, kwargs = staged.example
    seen: set[int] = set()
    measured = []
    with inferring(model):
        live = staged.flatten_inputs(*args, **kwargs)
        live = staged.compact(live, torch.zeros(1, dtype=torch.long, device=live[0].device), 0)
        steps = staged.walk(live, staged.inference_stages)
        for stage, head in zip(staged.inference_stages, heads, strict=True):
            flops, step = _counted(next, steps)
            head_flops = _counted(head, step.feature)[0] if head is not None else 0
            own, of_head = _new_parameters(stage.module, seen), _new_parameters(head, seen)
            measured.append((stage, head, own, flops, of_head, head_flops))
    total = max(sum(flops + head_flops for _, _, _, flops, _, head_flops in measured), 1)
    rows = tuple(
        StageRow(
            name,
            tuple(_live(one) for one in stage.inputs),
            own,
            flops,
            None if head is None else type(head).__name__,
            of_head,
            head_flops,
            (flops + head_flops) / total,
        )
        for name, (stage, head, own, flops, of_head, head_flops) in zip(names, measured, strict=True)
    )
    unused = _new_parameters(staged.backbone, seen)
    placement = model.placement if isinstance(model, MultiExitModel) else None
    return Description(type(staged.backbone).__name__, rows, unused, "" if placement is None else str(placement))


def _counted(function: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    with flop_counter() as counter:
        result = function(*args)
    return int(counter.get_total_flops()), result


def _new_parameters(module: nn.Module | None, seen: set[int]) -> int:
    """The number of values in the parameters that no stage before has used."""
    count = 0
    for parameter in module.parameters() if module is not None else ():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            count += parameter.numel()
    return count


def _live(live: LiveTensor) -> str:
    return f"{live.name} {'x'.join(str(size) for size in live.shape) or 'scalar'}"


def _short(count: int) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            return f"{count / (1e3 if unit == 'k' else limit):.4g} {unit}"
    return str(count)
