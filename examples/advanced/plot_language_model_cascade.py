"""
A cascade of language models, from cached answers
=================================================

A small language model answers first; a large one is asked where the small one is not sure. A scheduler needs what
each said of the same texts, and what a question costs, here in cents. **No language model is asked here**: this
example makes the answers itself, as a cache would hold them, and says so. With a service of your own, replace
``ask``. ``pip install eenet`` is enough.
"""

# %%
# Answers in a cache
# ------------------
# 3,000 messages of a help desk, to be sorted into four classes. A made-up message is hard or easy. Each model gives
# probabilities of the classes, as an API gives log probabilities of the answers "A" to "D". The large one is right
# more often on hard messages.

import asyncio

import matplotlib.pyplot as plt
import numpy as np

import eenet

rng = np.random.default_rng(0)
topics = ["invoice", "delivery", "login", "other"]
labels = rng.integers(0, 4, 3000)
hard = rng.random(3000)
texts = [f"message {number} about {topics[label]}" for number, label in enumerate(labels)]


def made_up_answers(strength: float) -> dict[str, np.ndarray]:
    """A cache: for each text the probabilities of the four classes."""
    logits = rng.normal(size=(3000, 4))
    logits[np.arange(3000), labels] += strength * (1.6 - hard)
    exact = np.exp(logits - logits.max(axis=1, keepdims=True))
    return dict(zip(texts, exact / exact.sum(axis=1, keepdims=True), strict=True))


caches = {"small": made_up_answers(2.2), "large": made_up_answers(4.5)}
cents = {"small": 0.02, "large": 0.9}


def ask(model: str):
    async def member(messages: list[str]) -> np.ndarray:
        await asyncio.sleep(0)  # a service would be waited for here, and asked again if it does not answer
        return np.stack([caches[model][text] for text in messages])

    return member


# %%
# A budget in cents
# -----------------
# Both models answer 2,000 labeled messages once. 40 % of what the large model alone would cost may be spent, on
# average. With two members there is one threshold to set, so the simplest method will do.


def records(part: slice) -> eenet.ExitRecords:
    members = [np.stack([caches[model][text] for text in texts[part]]) for model in caches]
    return eenet.ExitRecords.cascade([eenet.ExitRecords.from_probabilities(p, labels[part]) for p in members])


calibration, test = slice(0, 2000), slice(2000, 3000)
costs = eenet.ExitCosts.cascade([cents["small"], cents["large"]], unit="cents")
scheduler = eenet.MaxProbability().fit(records(calibration), costs, budget="40%")
print(eenet.evaluation.evaluate(scheduler, records(test)))

# %%
# Running it
# ----------
# The members are coroutine functions, so the cascade is awaited. It asks the large model about the open messages
# only.

cascade = eenet.CallCascade([ask("small"), ask("large")], scheduler)


async def main() -> eenet.AdaptiveOutput:
    return await cascade.call_async(texts[test])


out = asyncio.run(main())
right = out.predictions == labels[test]
spent = costs.values[out.exits].sum()
print(f"{right.mean():.1%} right for {spent:.0f} cents; the large model alone: {900:.0f} cents")
assert (out.exits == scheduler.replay(records(test)).exits).all(), "what runs is what was replayed"

# %%
# When a service fails
# --------------------
# What was answered until then is in the error, so that nothing is paid for twice.


def broken(_messages: list[str]) -> np.ndarray:
    raise TimeoutError("no answer within 30 s")


try:
    eenet.CallCascade([lambda messages: np.stack([caches["small"][t] for t in messages]), broken], scheduler)(
        texts[test]
    )
except eenet.errors.MemberError as error:
    print(error)
    answered = error.output.exits >= 0
    print(f"{answered.sum()} messages are answered; ask again about the other {(~answered).sum()}")

# %%
# What a budget buys

fig, ax = plt.subplots(figsize=(5.5, 3.5))
budgets = np.linspace(5, 100, 20)
rows = [scheduler.at(f"{budget:.0f}%").replay(records(test)) for budget in budgets]
ax.plot([row.mean_cost for row in rows], [row.accuracy for row in rows], marker=".", label="the cascade")
for k, model in enumerate(cents):
    ax.scatter(cents[model], records(test).accuracies[k], marker="s", label=f"the {model} model alone")
ax.set(xlabel="cents per message", ylabel="accuracy", title="Made-up answers")
ax.legend()
plt.tight_layout()
plt.show()

assert right.mean() > records(test).accuracies[0] + 0.05
assert spent < 0.42 * 900
