"""
EENet and the methods that it is compared with
==============================================

The paper of EENet (Ilhan et al., WACV 2024) compares its scheduler with those of BranchyNet (entropy), MSDNet (max
probability) and PABEE (patience). This page does so on the records of one network of this repository, a ResNet-56
with three exits on CIFAR-10, at equal realized cost and with standard errors. All networks and methods are in the
folder ``results``.
"""

# %%
# Records and costs
# -----------------
# The calibration records are divided at random, three times: schedulers are fitted on two thirds and judged on the
# rest.

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import eenet
from eenet.evaluation import compare, oracle, random_mixture

folder = Path("../../results/cifar10-resnet56-shared")  # from the folder of this script
records = eenet.ExitRecords.load(folder / "calibration.safetensors")
measured = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
costs = eenet.ExitCosts(measured["costs"]["cpu_ms"][0], unit="cpu_ms")  # at batch size 1
print(records, records.accuracies.round(3))

# %%
# The comparison
# --------------
# Two schedulers with one budget differ in what they really spend, and one that spends more should not win by it. So
# each is compared with the reference at the cost that it really had.

budgets = [share * costs[-1] for share in (0.5, 0.6, 0.7, 0.8, 0.9)]
comparison = compare(records, costs, ["max_prob", "eenet", "entropy", "patience"], budgets, resplits=3)
print(comparison.to_text())

# %%
# The figure
# ----------
# The methods lie close together, and far above exits drawn at random. That there is a scheduler matters more than
# which.

fig, ax = plt.subplots(figsize=(6.5, 4))
for name, marker in zip(comparison.schedulers, "osD^", strict=True):
    curves = [comparison.curve(name, resplit) for resplit in range(comparison.resplits)]
    grid = np.linspace(budgets[0], budgets[-1], 20)
    mean = np.mean([np.interp(grid, *curve) for curve in curves], axis=0)
    ax.plot(grid, mean, marker=marker, markevery=4, label=name)
grid = np.linspace(costs[0], costs[-1], 20)
ax.plot(grid, [random_mixture(records, costs, float(cost)).accuracy for cost in grid], "k--", label="random mixture")
ax.plot(grid, [oracle(records, costs, float(cost)).accuracy for cost in grid], "k:", label="oracle")
ax.set(xlabel="mean cost, CPU ms", ylabel="held-out accuracy")
ax.legend(fontsize="small", ncols=2)
plt.show()

# %%
# What this page claims is checked where it is built.

for name in comparison.schedulers:
    for resplit in range(comparison.resplits):
        accuracy = np.interp(budgets[2], *comparison.curve(name, resplit))
        assert accuracy > random_mixture(records, costs, budgets[2]).accuracy, f"{name} is above the random mixture"
