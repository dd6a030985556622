"""The figures of the explanations: `python docs/figures.py` writes them into `docs/_static`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import eenet
from eenet.evaluation import oracle, random_mixture
from eenet.testing import toy_costs, toy_records

HERE = Path(__file__).resolve().parent / "_static"


def frontier() -> None:
    """Exits, the random mixture, a scheduler and the oracle on made-up records."""
    costs, calibration, fresh = toy_costs(), toy_records(4000), toy_records(4000, seed=1)
    scheduler = eenet.OptimalStopping().fit(calibration, costs, fallback=False)
    budgets = np.linspace(costs[0], costs[-1], 41)
    fig, ax = plt.subplots(figsize=(6, 3.8))
    found = [scheduler.at(budget).replay(fresh) for budget in budgets[1:]]
    for of, label, style in (
        ([oracle(fresh, costs, budget) for budget in budgets], "oracle, which knows the labels", ":"),
        ([random_mixture(fresh, costs, budget) for budget in budgets], "exits drawn at random", "--"),
    ):
        ax.plot([one.cost for one in of], [one.accuracy for one in of], style, label=label)
    ax.plot([one.mean_cost for one in found], [one.accuracy for one in found], label="a scheduler")
    ax.plot(list(costs), fresh.accuracies, "ko", label="one exit for all inputs")
    ax.set(xlabel="mean cost", ylabel="accuracy on fresh inputs")
    ax.legend(frameon=False)
    fig.tight_layout()
    fig.savefig(HERE / "frontier.svg", metadata={"Date": None})
    plt.close(fig)


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "eenet"  # the same file for the same figure
    frontier()
