"""Answers as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.bundle import LoadedBundle
from eenet.errors import InvalidInputError
from eenet.tasks import softmax

Columns = dict[str, list[Any]]


def rows_of(bundle: LoadedBundle, names: Sequence[str], items: Sequence[Any]) -> Columns:
    """The answers to some raw inputs as columns, a row for each, in their order.

    `id`, `exit` (from 0), `prediction` (the class), `class_name` where the bundle has names, `confidence` (its
    probability) and `error`: what is wrong with an item that cannot be read, which then has no answer. Where each pixel
    has a class, `label_map` (height x width) in place of a prediction.
    """
    dense = bundle.task.name == "segmentation"
    named = not dense and bundle.class_names is not None
    columns: Columns = {"id": list(names), "exit": [None] * len(items)}
    columns["label_map" if dense else "prediction"] = [None] * len(items)
    if named:
        columns["class_name"] = [None] * len(items)
    columns |= {"confidence": [None] * len(items), "error": [None] * len(items)}
    for rows, inputs in _groups(bundle, items, columns["error"]):
        answers = bundle(inputs)
        predictions = answers.logits.argmax(axis=1)
        likely = softmax(np.moveaxis(answers.logits, 1, -1)).max(axis=-1).reshape(len(rows), -1).mean(axis=1)
        for n, row in enumerate(rows):
            columns["exit"][row] = int(answers.exits[n])
            columns["confidence"][row] = float(likely[n]) if np.isfinite(likely[n]) else None
            if dense:
                columns["label_map"][row] = predictions[n].tolist()
            else:
                columns["prediction"][row] = int(predictions[n])
            if named and bundle.class_names is not None:
                columns["class_name"][row] = bundle.class_names[int(predictions[n])]
    return columns


def _groups(
    bundle: LoadedBundle, items: Sequence[Any], errors: list[str | None]
) -> Iterator[tuple[list[int], dict[str, NDArray[Any]]]]:
    """The items that can be read, as batches: all in one where that is possible, else each by itself.

    What is wrong with the others goes into `errors`.
    """
    everything = _prepared(bundle, items)
    if not isinstance(everything, str):
        yield list(range(len(items))), everything
        return
    for row, item in enumerate(items):
        inputs = _prepared(bundle, [item])
        if isinstance(inputs, str):
            errors[row] = inputs
        else:
            yield [row], inputs


def _prepared(bundle: LoadedBundle, items: Sequence[Any]) -> dict[str, NDArray[Any]] | str:
    """The network's inputs for some items, or what is wrong with one of them."""
    try:
        inputs = bundle.preprocessing(items)
        bundle.backend.enter(inputs)
    except InvalidInputError as error:
        return str(error)
    return inputs
