"""From a request that was answered to what is sent."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from eenet.serving.engine._request import Request
from eenet.serving.engine._servable import Servable
from eenet.tasks import softmax


def answers_json(request: Request, servable: Servable, milliseconds: float) -> dict[str, Any]:
    """Class, probability, exit and cost of each sample; for a class per pixel, the shares of the classes."""
    logits = request.logits
    assert logits is not None, "an answered request has logits"
    dense = logits.ndim > 2
    if dense:
        labels = logits.argmax(axis=1).reshape(len(logits), -1)
        shares = np.stack([np.bincount(row, minlength=logits.shape[1]) / len(row) for row in labels])
    else:
        shares = softmax(logits).astype(np.float64)
    names = servable.class_names
    costs = servable.costs
    predictions = []
    for n, (row, k) in enumerate(zip(shares, request.exits.tolist(), strict=True)):
        best = int(row.argmax()) if dense else int(logits[n].argmax())
        value = float(row[best])
        predictions.append(
            {
                "class": best,
                "name": None if names is None else names[best],
                "share" if dense else "probability": value if np.isfinite(value) else None,
                "exit": k,
                "cost": costs[k],
            }
        )
    return {
        "predictions": predictions,
        "cost_unit": costs.unit,
        "full_cost": costs[-1],
        "milliseconds": milliseconds,
    }


def answers_npy(request: Request) -> bytes:
    """The logits (n, C, ...) as an .npy file."""
    assert request.logits is not None, "an answered request has logits"
    file = io.BytesIO()
    np.save(file, request.logits, allow_pickle=False)
    return file.getvalue()
