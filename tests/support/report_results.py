"""A folder of results as `eenet reproduce` leaves it, made of toy records in a moment, for tests of reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import eenet
from eenet.evaluation import compare
from eenet.scheduler import SCHEDULERS
from eenet.testing import toy_records

COSTS = eenet.ExitCosts([1.0, 2.0, 3.0], unit="ms", batch_size=1, plain=2.5)
METHODS = ("margin", "max_prob", "entropy")


def profile(*, plain: bool = True, decisions: bool = True) -> dict[str, Any]:
    """What `eenet profile --json` prints: three exits at three batch sizes."""
    sizes = [1, 8, 32]
    stage, head, decision = [1.0, 0.5, 0.4], [0.2, 0.05, 0.03], [0.1, 0.01, 0.005]
    times, parts = [], []
    for s, h, d in zip(stage, head, decision, strict=True):
        steps = [(s, h), (s, h), (s, 0.0)]
        parts.append([[*step, d] if decisions else list(step) for step in steps])
        way = [sum(sum(step) for step in parts[-1][: k + 1]) for k in range(3)]
        times.append(way)
    made: dict[str, Any] = {
        "schema": 1,
        "exits": ["a", "b", "output"],
        "batch_sizes": sizes,
        "costs": {"ms": times, "cpu_ms": times, "flops": [[100.0, 200.0, 300.0]] * 3},
        "spreads": {"ms": [[0.1, 0.1, 0.2]] * 3, "cpu_ms": [[0.0] * 3] * 3, "flops": [[0.0] * 3] * 3},
        "parts_ms": parts,
        "device": {},
        "includes": ["stages", "heads"],
    }
    if plain:
        made["plain"] = {"ms": [2.9, 1.45, 1.2], "cpu_ms": [2.9, 1.45, 1.2], "flops": [290.0] * 3}
    return made


def write_results(folder: Path, *, samples: int = 200, resplits: int = 3, **more: Any) -> dict[str, Any]:
    """Write records, costs, two schedulers and metrics; give the metrics. `more` is added to them."""
    folder.mkdir(parents=True, exist_ok=True)
    calibration, test = toy_records(samples), toy_records(samples, seed=1)
    calibration.save(folder / "calibration.safetensors")
    test.save(folder / "test.safetensors")
    for method in ("max_prob", "entropy"):
        scheduler = SCHEDULERS[method]().fit(calibration, COSTS, fallback=False)
        (folder / "schedulers").mkdir(exist_ok=True)
        scheduler.save(folder / "schedulers" / f"{method}-60.safetensors")
    comparison = compare(
        calibration, COSTS, METHODS, [1.5, 2.0, 2.5], held_out=test, resplits=resplits, fraction=0.6
    ).to_dict("margin")
    metrics = {
        "recipe": "toys",
        "title": "Toys",
        "costs": COSTS.to_dict(),
        "exits": [{"name": name} for name in ("a", "b", "output")],
        "data": {"classes": ["cat", "dog", "cow", "<script>alert(1)</script>", "hen"]},
        "comparison": comparison,
        "published": comparison,
        "published_budgets": [2.0],
        "settings": {"evaluation": {"budgets": ["60%", "80%"]}},
        "measured": None,
        **more,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "costs.json").write_text(json.dumps(profile()))
    return metrics
