"""
A guarantee, simulated
======================

A budget is met on the calibration samples. On fresh samples the mean cost is above it about half of the time, by
chance. ``guarantee=0.95`` chooses a policy of which, with probability 0.95 over the calibration samples, the mean
cost on fresh ones stays within the budget ("Learn then Test": Angelopoulos, Bates, Candes, Jordan and Lei, 2021).
Here the promise is tested: 150 times a scheduler is fitted to new calibration samples, and its cost is taken over a
large population.
"""

# %%
# A population
# ------------
# Made-up records of three exits. 40,000 samples stand for the traffic; calibration sets of 400 are drawn from others.

import matplotlib.pyplot as plt
import numpy as np

import eenet
from eenet.testing import toy_costs, toy_records

costs = toy_costs()
population = toy_records(40_000, seed=1)
budget = 2.0
rng = np.random.default_rng(0)
source = toy_records(40_000, seed=2)

# %%
# The simulation
# --------------

found = {"plain": [], "guarantee=0.95": []}
accuracy = {"plain": [], "guarantee=0.95": []}
for _ in range(150):
    calibration = source.subset(rng.choice(len(source), 400, replace=False))
    for name, options in (("plain", {}), ("guarantee=0.95", {"guarantee": 0.95})):
        scheduler = eenet.MaxProbability().fit(calibration, costs, budget, fallback=False, **options)
        decisions = scheduler.replay(population)
        found[name].append(decisions.mean_cost)
        accuracy[name].append(decisions.accuracy)

broken = {name: float(np.mean(np.array(values) > budget)) for name, values in found.items()}
for name in found:
    print(f"{name}: above the budget in {broken[name]:.0%}, mean cost {np.mean(found[name]):.3f}, ", end="")
    print(f"accuracy {np.mean(accuracy[name]):.2%}")

# %%
# What it costs
# -------------
# The promise is kept by spending a little less. The more calibration samples, the less of the budget stays unspent.

fig, ax = plt.subplots(figsize=(6, 3.5))
bins = np.linspace(1.75, 2.2, 46)
for name, values in found.items():
    ax.hist(values, bins, alpha=0.6, label=f"{name}: above the budget in {broken[name]:.0%}")
ax.axvline(budget, color="black", linestyle=":", label="budget")
ax.set(xlabel="mean cost on fresh samples", ylabel="calibration sets")
ax.legend()
plt.show()

# %%
# What this page claims is checked where it is built.

assert 0.3 < broken["plain"] < 0.7
assert broken["guarantee=0.95"] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)
