"""Choosing how many threads torch should use on a machine that others may be using too."""

from __future__ import annotations

import time

import torch

from eenet.experiments.demo._model import example_input
from eenet.models import MultiExitModel

_BATCH = 32
_TRIES = 5


def choose_threads(model: MultiExitModel) -> int:
    """Set torch's threads to one or to its own choice, whichever runs the network faster now, and return them.

    Threads wait for each other at every layer: where other programs hold a core, more of them can be many times slower.
    """
    usual = torch.get_num_threads()
    example = example_input(_BATCH)
    seconds: dict[int, list[float]] = {count: [] for count in {1, usual}}
    model.eval()
    with torch.inference_mode():
        for attempt in range(_TRIES + 1):
            for count, taken in seconds.items():
                torch.set_num_threads(count)
                start = time.perf_counter()
                model(example)
                if attempt:  # the first is a warm-up
                    taken.append(time.perf_counter() - start)
    best = min(seconds, key=lambda count: sorted(seconds[count])[_TRIES // 2])
    torch.set_num_threads(best)
    return best
