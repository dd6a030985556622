"""What the demo found: one row for each way of answering, and what has to be said about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from eenet.costs import ExitCosts


@dataclass(frozen=True)
class Row:
    """One way of answering the test set.

    `budget`, `planned`, `calibration` and `held_out` are mean costs per sample in the unit of the cost table, None
    where there is no such thing. `wall` and `speed_up` (against the plain network) are by batch size. `replay_differs`
    is the number of samples, over both batch sizes, that left at another exit than in the replay.
    """

    kind: Literal["plain", "exit", "policy"]
    name: str
    accuracy: float
    wall: dict[int, dict[str, Any]]
    speed_up: dict[int, dict[str, Any]]
    percent: int | None = None
    budget: float | None = None
    planned: float | None = None
    calibration: float | None = None
    held_out: float | None = None
    exit_shares: tuple[float, ...] | None = None
    replay_differs: int = 0

    @property
    def overspend(self) -> float | None:
        """Held-out cost over the budget, less 1; below 0 where the budget was kept."""
        if self.budget is None or self.held_out is None:
            return None
        return self.held_out / self.budget - 1


@dataclass(frozen=True)
class Results:
    """All rows of a run, the cost table its policies were fitted on, and the budgets that were left out."""

    rows: tuple[Row, ...]
    costs: ExitCosts
    samples: int
    skipped: tuple[str, ...]
    unreliable: tuple[str, ...] = ()

    @property
    def plain(self) -> Row:
        """The row of the plain network."""
        return next(row for row in self.rows if row.kind == "plain")

    @property
    def policies(self) -> list[Row]:
        """The rows with a budget."""
        return [row for row in self.rows if row.kind == "policy"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "schema": 1,
            "unit": self.costs.unit,
            "samples": self.samples,
            "costs": self.costs.to_dict(),
            "rows": [{**asdict(row), "overspend": row.overspend} for row in self.rows],
            "skipped": list(self.skipped),
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """What a reader of the table should know, the unwelcome included."""
        size = self.costs.batch_size
        assert size is not None
        notes = [
            f"Budgets and costs are wall milliseconds per sample in batches of {size}, exit heads and the scheduler's "
            "steps (EENet's, the dearest) included; a percentage is of the last exit's cost. In a batch whose samples "
            "part ways, the fixed time of the later stages is paid as long as one sample goes on: all policies are "
            "fitted on a cost table that counts this. The rows of single exits show what a full batch costs there.",
            "Measured times are medians over interleaved rounds, ± half the range of the rounds; the speed is against "
            f"the plain network, which has no exits, at batch {size}. Policies are meant for that batch size; batch 1 "
            "shows what the same policy takes there.",
        ]
        notes += [*self.skipped, *self.unreliable]
        notes += [note for note in (self._headline(), self._overspend(), self._gap(), self._losses()) if note]
        differs = sum(row.replay_differs for row in self.rows)
        notes.append(
            "Every sample left at the exit that the replay of the records says."
            if differs == 0
            else f"{differs} samples left at another exit than in the replay of the records: this should not happen; "
            "please report it."
        )
        return notes

    def _headline(self) -> str | None:
        row = next((r for r in self.policies if r.name == "EENet" and r.percent == 60), None)
        size = self.costs.batch_size
        if row is None or size is None:
            return None
        speed = row.speed_up[size]
        error = 100 * math.sqrt(self.plain.accuracy * (1 - self.plain.accuracy) / self.samples)
        return (
            f"EENet at a 60 % budget: {speed['times']:.2f} times as fast as the plain network at batch {size} "
            f"(rounds: {', '.join(f'{times:.2f}' for times in speed['rounds'])}), accuracy "
            f"{100 * (row.accuracy - self.plain.accuracy):+.1f} points (one standard error of an accuracy: "
            f"{error:.1f} points)."
        )

    def _overspend(self) -> str | None:
        over = [row for row in self.policies if (row.overspend or 0) > 0]
        if not over:
            return "No policy overspent its budget on held-out data."
        worst = max(over, key=lambda row: row.overspend or 0)
        return (
            f"{len(over)} of {len(self.policies)} policies overspent on held-out data, the worst by "
            f"{worst.overspend:.1%} ({worst.name} at {worst.percent} %): a budget is met on the calibration set, and "
            "fresh samples differ."
        )

    def _gap(self) -> str | None:
        size = self.costs.batch_size
        assert size is not None
        gaps = [row.wall[size]["ms"] / row.held_out - 1 for row in self.policies if row.held_out]
        last = [row for row in self.rows if row.kind == "exit"][-1]
        if not gaps or not last.held_out:
            return None
        return (
            f"Measured time at batch {size} against held-out cost: {min(gaps):+.0%} to {max(gaps):+.0%} over the "
            f"policies, {last.wall[size]['ms'] / last.held_out - 1:+.0%} for {last.name}, which shows how far the "
            "pace of the machine has changed since the costs were measured."
        )

    def _losses(self) -> str | None:
        sentences = []
        for size in sorted(self.plain.wall):
            slower = [_title(row) for row in self.rows if row.kind != "plain" and row.speed_up[size]["times"] < 1]
            if slower:
                sentences.append(f"Slower than the plain network at batch {size}: {', '.join(slower)}.")
        return " ".join(sentences) or None


def _title(row: Row) -> str:
    return row.name if row.percent is None else f"{row.name} at {row.percent} %"


def shares_text(shares: Sequence[float]) -> str:
    """Exit shares in percent, first exit first: "24/23/22/31"."""
    return "/".join(f"{100 * share:.0f}" for share in shares)
