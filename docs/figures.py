"""The figures of the explanations: `python docs/figures.py` writes them into `docs/_static`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import eenet
from eenet.errors import ReliabilityWarning
from eenet.evaluation import oracle, random_mixture
from eenet.testing import toy_costs, toy_records

HERE = Path(__file__).resolve().parent / "_static"
RESULTS = Path(__file__).resolve().parents[1] / "results"
_PARTS = ("calibration", "test")


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


def readme() -> None:
    """Two trained networks on test samples: one exit for all, EENet at every budget, and the network without exits."""
    shown = {"cifar10-resnet56-shared": ("CIFAR-10, ResNet-56", 0.75), "agnews-25k-minilm": ("AG News, MiniLM", 0.4)}
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for ax, (name, (title, share)) in zip(axes, shown.items(), strict=True):
        calibration, test = (eenet.ExitRecords.load(RESULTS / name / f"{part}.safetensors") for part in _PARTS)
        measured = json.loads((RESULTS / name / "costs.json").read_text("utf-8"))
        at = measured["batch_sizes"].index(32)
        costs, plain = eenet.ExitCosts(measured["costs"]["cpu_ms"][at], unit="cpu_ms"), measured["plain"]["cpu_ms"][at]
        scheduler = eenet.EENet().fit(calibration, costs)
        found = [scheduler.at(budget).replay(test) for budget in np.linspace(costs[0] * 1.001, costs[-1], 31)]
        found.sort(key=lambda one: one.mean_cost)
        ax.plot(list(costs), 100 * test.accuracies, "s--", color="#6b6b6b", label="one exit for all inputs", lw=1)
        ax.plot([d.mean_cost for d in found], [100 * d.accuracy for d in found], color="#0072B2", label="EENet", lw=2)
        ax.plot(plain, 100 * test.accuracies[-1], "k*", ms=10, label="the network without exits")
        one = scheduler.at(share * plain).replay(test)
        ax.annotate(
            f"a budget of {share:.0%}: {100 * one.accuracy:.1f} %\n"
            f"instead of {100 * test.accuracies[-1]:.1f} %, {plain / one.mean_cost:.1f} times as fast",
            (one.mean_cost, 100 * one.accuracy),
            xytext=(18, -62),
            textcoords="offset points",
            arrowprops={"arrowstyle": "->", "color": "#0072B2"},
            color="#0072B2",
        )
        ax.set(title=title, xlabel="mean time per input (CPU ms, batches of 32)", ylim=(82, 92.5))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].legend(frameon=False, loc="lower right")
    fig.tight_layout()
    fig.savefig(HERE / "readme.svg", metadata={"Date": None})
    plt.close(fig)


if __name__ == "__main__":
    warnings.simplefilter("ignore", ReliabilityWarning)  # budgets above what pays are drawn on purpose
    mpl.rcParams["svg.hashsalt"] = "eenet"  # the same file for the same figure
    frontier()
    readme()
