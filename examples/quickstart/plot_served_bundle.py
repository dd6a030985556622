"""
From a trained model to a served bundle
=======================================

A model and its scheduler become a folder of ONNX graphs. The folder runs with numpy and ONNX Runtime, without
PyTorch, and a server answers requests from it. The server runs inside this page: the request and the answer are real,
but no port is opened.
"""

# %%
# A trained model with exits
# --------------------------
# A network for the 8 x 8 digits of scikit-learn. How exits get onto your own network and how they are trained is in
# :ref:`sphx_glr_tutorials_quickstart_plot_own_cnn.py`.

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import eenet

torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.images))
images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
labels = torch.tensor(digits.target)[order]
train, calibration, test = slice(0, 800), slice(800, 1300), slice(1300, None)


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


network = nn.Sequential(
    block(1, 12),
    nn.Sequential(block(12, 64), block(64, 64), block(64, 64), block(64, 64)),
    nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
)
head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(192, 10))  # a small one, for a small network
model = eenet.attach(network, exits=["0"], heads=[head], example=images[:2])

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model.train()
for _ in range(6):
    for rows in torch.randperm(800).split(50):
        optimizer.zero_grad()
        model(images[rows], labels=labels[rows])["loss"].backward()
        optimizer.step()
model.eval()

records = eenet.collect(model, [(images[calibration], labels[calibration])])
costs = eenet.profile(model, images[:8], unit="flops", batch_size=8)  # a bundle is measured when it is exported
scheduler = eenet.MaxProbability().fit(records, costs, budget="60%")
print("accuracy of each exit:", records.accuracies.round(3))

# %%
# A bundle
# --------
# ``export`` writes the folder and checks it before it appears: on all images of ``example`` the bundle must give the
# model's logits and take the exits of the replay. It measures what the bundle costs in ONNX Runtime, and plans the
# budget in these milliseconds; on a quiet machine leave ``seconds`` at its default.

folder = Path(tempfile.mkdtemp()) / "digits-bundle"
bundle = eenet.export(
    model,
    scheduler,
    folder,
    example=images[test],
    class_names=[str(digit) for digit in range(10)],
    batch_sizes=[1, 8],
    seconds=0.3,
    threads=1,
)
print(bundle.costs)
for path in sorted(folder.rglob("*")):
    if path.is_file():
        print(f"{path.stat().st_size / 1000:8.1f} kB  {path.relative_to(folder)}")

# %%
# Running it without PyTorch
# --------------------------
# This is all that another machine needs: ``pip install ".[onnx]"`` in a clone of eenet and the folder.

import eenet.bundle.onnx

loaded = eenet.bundle.onnx.load(folder, threads=1)
answers = loaded(images[test].numpy())
print("exit shares", np.bincount(answers.exits, minlength=2) / len(answers.exits))
cheaper = loaded.at(1.2 * loaded.costs[0])  # the same graphs under another budget
print("for less:   ", np.bincount(cheaper(images[test].numpy()).exits, minlength=2) / len(answers.exits))

first, last = loaded.costs[0], loaded.costs[-1]
budgets = [first + share * (last - first) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
shares = [(loaded.at(budget)(images[test].numpy()).exits == 0).mean() for budget in budgets]
fig, ax = plt.subplots(figsize=(5, 3))
ax.plot([budget / last for budget in budgets], shares, "o-")
ax.set(xlabel="budget, of the last exit's cost", ylabel="share that leaves at exit 0", ylim=(0, 1))
plt.tight_layout()
plt.show()

# %%
# Serving it
# ----------
# ``eenet serve digits-bundle`` starts the server. In Python the application can be called without a port, which is
# what tests of your own service do.

from fastapi.testclient import TestClient

from eenet.serving.http import ServerOptions, make_server

server = make_server(loaded, ServerOptions())
with TestClient(server.config.app) as client:
    reply = client.post("/predict", json={"inputs": images[test][:5].tolist()}).json()
    info = client.get("/info").json()
for answer, truth in zip(reply["predictions"], labels[test][:5].tolist(), strict=True):
    print(json.dumps(answer), "truth:", truth)
print({name: info[name] for name in ("budget", "costs_from") if name in info})

# %%
# What this page claims is checked where it is built.

assert (bundle(images[test].numpy()).exits == answers.exits).all()
# A server holds its budget over its traffic, by a controller: a request's exits need not be those of one call.
assert [one["exit"] in (0, 1) for one in reply["predictions"]] == [True] * 5
assert (answers.logits.argmax(axis=1) == labels[test].numpy()).mean() > records.accuracies[0] - 0.03
