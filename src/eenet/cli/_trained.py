"""A trained model where a command needs more than its weights: a scheduler of the records beside it, and a bundle."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eenet._extras import missing_of, require_extra
from eenet._files import cache_folder, sha256_of
from eenet._pretrained import DESCRIPTION, find_model, hidden_model
from eenet._timing import processor
from eenet._version import __version__
from eenet._warn import warn
from eenet.cli._console import if_stopped, side, steps
from eenet.cli._data import names_in, preprocessing_of, read_inputs
from eenet.cli._inputs import read_predictions
from eenet.cli._models import ModelFiles, current_folder_importable, load_target, model_files
from eenet.errors import FallbackWarning, InvalidInputError, ReliabilityWarning

if TYPE_CHECKING:
    from eenet.models import MultiExitModel
    from eenet.records import ExitRecords
    from eenet.scheduler import Scheduler

SHARE = 0.65
"""The budget where none is given, as a share of the plain network's cost; another is chosen without fitting again."""

_MANIFEST = "manifest.json"


def records_beside(files: ModelFiles, target: str) -> ExitRecords:
    """The calibration records beside a model; raises `InvalidInputError` where there are none."""
    path = files.calibration()
    if path is None:
        raise InvalidInputError(
            f"{target!r} has no calibration.safetensors beside its weights, which a scheduler is fitted to: write them "
            f"with eenet collect, fit with eenet fit, and export with eenet export --scheduler{hidden_model(target)}"
        )
    return read_predictions(path)[0]


@contextmanager
def without_rules_taken() -> Iterator[None]:
    """No warning of a simple rule in place of a method, or of exits left out, where a command says so in its notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        yield


def policy_notes(scheduler: Scheduler) -> list[str]:
    """What a fit did besides what was asked for: the rule that was taken, and the exits that were left out."""
    taken = [] if scheduler.fallback is None else [f"{scheduler.name}: {scheduler.fallback}"]
    return taken + [f"left out: {dead}" for dead in scheduler.left_out]


def fit_beside(
    model: MultiExitModel, example: Any, records: ExitRecords, *, batch_size: int, threads: int | None = None
) -> Scheduler:
    """EENet fitted to a model's calibration records, in milliseconds that are measured here."""
    import torch

    from eenet.profiling import profile
    from eenet.scheduler import EENet

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)  # of the spread: a bundle is measured again
            costs = profile(model, example, unit="ms", batch_size=batch_size, seconds=0.5)
    finally:
        torch.set_num_threads(before)
    with without_rules_taken():
        fitted = EENet(seed=0).fit(records, costs, min(max(SHARE * costs.reference, costs[0]), costs[-1]))
    for dead in fitted.left_out:
        warn(f"{fitted.name}: left out: {dead}", FallbackWarning)
    return fitted


def bundle_of(target: str | Path, *, threads: int | None, allow: Sequence[str]) -> Path:
    """The folder of the bundle that a command runs; of a trained model one is made, and kept for the next time.

    A model needs its calibration records beside it. The bundle is of ONNX graphs where the extra "export" is installed,
    and of weights otherwise. It is measured where it is made, so it is another one for another number of threads, and
    for other files of the model and other modules in `allow`.
    """
    name = str(target)
    files = model_files(name)
    if files is None:
        return find_model(name, holds=(DESCRIPTION, _MANIFEST))
    records = records_beside(files, name)
    require_extra("torch", f"making a bundle of the model {name!r}")
    backend = "torch" if missing_of("export") else "onnx"
    depends = {
        "files": files.digests(),
        "code": {path: _code_of(path) for path in sorted(allow)},
        "made": [__version__, backend, threads, processor()],
    }
    key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]
    made = cache_folder("bundles") / f"{Path(name).resolve().name}-{key}"
    runtime = "ONNX graphs" if backend == "onnx" else "weights, since the extra 'export' is not installed"
    what = f"a bundle of {runtime}, EENet fitted to the model's {len(records)} calibration records"
    if (made / _MANIFEST).is_file():
        side().print(
            f"{name} is a model; {made} was made of it before (delete it to make it again): {what}", soft_wrap=True
        )
        return made
    side().print(f"{name} is a model; making {made} of it: {what}", soft_wrap=True)
    _make(made, files, name, records, backend=backend, threads=threads, allow=allow)
    return made


def _code_of(path: str) -> str | None:
    """The digest of the module of an import path; None where no file is found, which loading says in its own words."""
    with current_folder_importable():
        try:
            found = importlib.util.find_spec(path.partition(":")[0])
        except (ImportError, ValueError):  # a parent that is none, and what is no name of a module
            return None
    file = None if found is None or not found.has_location else found.origin
    return None if file is None else sha256_of(Path(file))


def _make(
    folder: Path,
    files: ModelFiles,
    name: str,
    records: ExitRecords,
    *,
    backend: str,
    threads: int | None,
    allow: Sequence[str],
) -> None:
    from eenet.bundle import export

    if_stopped("give the same command again")
    model, example = load_target(name, allow=allow)
    samples, classes = files.input("samples.npz"), files.input("classes.txt")
    with steps("exporting") as report:
        report("fitting EENet to the calibration records")
        scheduler = fit_beside(model, example, records, batch_size=files.batch_size(), threads=threads)
        with without_rules_taken():
            bundle = export(
                model,
                scheduler,
                folder,
                example=example if samples is None else read_inputs(model, samples),
                backend=backend,
                preprocessing=preprocessing_of(files.inputs),
                class_names=None if classes is None else names_in(classes),
                records=records,
                threads=threads,
                progress=report,
            )
        for note in policy_notes(bundle.scheduler):
            report(note)
