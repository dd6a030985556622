"""
Reading the figures of a report
===============================

``eenet report`` writes one page about a run: what accuracy each budget buys, where samples leave, whether the exits
can be trusted, and what they cost. Each figure of the page can be drawn with Matplotlib too. This page reads four of
them, for a ResNet-56 with three exits on CIFAR-10, whose records are in the repository.
"""

# %%
# A report
# --------
# Records of test images, the costs, and schedulers fitted on calibration images. ``draws`` are the resplits for the
# bands.

import json
from pathlib import Path

import matplotlib.pyplot as plt

import eenet
from eenet.reporting import figures

folder = Path("../../results/cifar10-resnet56-shared")  # from the folder of this script
calibration = eenet.ExitRecords.load(folder / "calibration.safetensors")
test = eenet.ExitRecords.load(folder / "test.safetensors")
measured = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
costs = eenet.ExitCosts(measured["costs"]["cpu_ms"][0], unit="cpu_ms")  # at batch size 1
schedulers = {
    "max_prob": eenet.MaxProbability().fit(calibration, costs, fallback=False),
    "entropy": eenet.Entropy().fit(calibration, costs, fallback=False),
}
made = eenet.report(test, costs=costs, calibration=calibration, schedulers=schedulers, budgets=12, draws=0)
charts = dict(made.charts)
print(made)
print(", ".join(charts))

# %%
# ``made.write("report.html")`` writes the page, ``made.write_figures("figures")`` every figure.
#
# The frontier
# ------------
# Accuracy against mean cost. A scheduler is worth something where its line is above the random mixture, which is what
# exits drawn by lot can do. The distance to the oracle, which knows the labels, is what no scheduler can get fully.

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
figures.draw(charts["frontier"], ax=ax)
plt.show()

# %%
# Where samples leave
# -------------------
# Each row is a class, each column an exit: of the images of this class the share that leaves there. A class that
# never leaves early needs the deep layers, or its early head is weak.

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
figures.draw(charts["exits-by-class"], ax=ax)
plt.show()

# %%
# Can a probability be trusted?
# -----------------------------
# Of the answers with a confidence of 0.8, are 80 % right? Below the diagonal an exit is too sure of itself. For
# thresholds only the order counts, so a scheduler works on such an exit too; a fixed threshold from a paper does not.

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
figures.draw(charts["reliability"], ax=ax)
plt.show()

# %%
# Is the budget kept?
# -------------------
# Planned against realized cost. Differences on test images are chance, and shrink with the number of calibration
# samples.

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
figures.draw(charts["adherence"], ax=ax)
plt.show()

# %%
# What this page claims is checked where it is built.

mixture = eenet.evaluation.random_mixture(test, costs, "70%")
decisions = schedulers["max_prob"].at("70%").replay(test)
assert decisions.accuracy > mixture.accuracy, "the scheduler is above the random mixture"
assert abs(decisions.mean_cost / costs[-1] - 0.7) < 0.05
