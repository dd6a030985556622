"""`eenet benchmark`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet._extras import require, require_extra
from eenet._files import existing_file
from eenet._pretrained import find_model
from eenet.cli._console import if_stopped, output, print_json, progress, show_warning, side, stopped_code, waiting
from eenet.cli._data import (
    TABLES,
    arrays_in,
    class_names,
    class_numbers,
    labels_in,
    names_in,
    preprocessing_of,
    refuse_columns,
    samples_in,
    table_labels,
)
from eenet.cli._inputs import sizes_of
from eenet.cli._models import ModelFiles, current_folder_importable, function_at, load_saved, model_files
from eenet.cli._options import Allow, Labels, Seconds, share
from eenet.cli._trained import fit_beside, records_beside
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.benchmarking._samples import Samples
    from eenet.models import MultiExitModel
    from eenet.preprocessing import Preprocessing
    from eenet.scheduler import Scheduler

_REGISTRIES = ("torchvision", "timm", "eenet")
_PLAIN = "plain:"
_EXIT = re.compile(r"exit(\d+):(?=.)")
_NUMBERS = "give --labels FILE with class numbers, or a bundle that eenet export --classes made"
_BUDGETS = ("50%", "65%", "80%")


def benchmark(
    systems: Annotated[list[str], typer.Argument(metavar="SYSTEM...", help="[NAME=]WHAT[+FILE][@BUDGETS], see below.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Inputs: .npz or .npy; or, for a bundle that takes them, images, .parquet, .txt, .csv, .tsv or .jsonl."
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of the inputs in a table.", show_default="a usual name, such as text")
    ] = None,
    labels: Labels = None,
    batch_sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--batch-sizes", "--batch-size", help="Samples in a call: a list; may be given again.", show_default="1,32"
        ),
    ] = None,
    seconds: Seconds = 10.0,
    threads: Annotated[int, typer.Option(min=0, help="Threads for each system; 0 leaves them the choice.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Use this many of the samples, evenly spaced; 0: all.")] = 0,
    max_accuracy_drop: Annotated[
        float,
        typer.Option(parser=share, help="The loss of accuracy, 0.01 or 1%, at which faster is still called worth it."),
    ] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of turns.")] = 0,
    allow: Allow = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="[FILE]", help="Machine-readable; with a FILE, written to it.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the rows to this file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw accuracy against time, as PNG.")] = None,
) -> None:
    """Say whether early exit is worth it here: systems on the same samples, in turns.

    Accuracy with its error, latencies, throughput, CPU time, exits, planned and realized cost of each SYSTEM:

    - a folder that eenet export wrote; `BUNDLE@40%,60%` for several budgets; one with stages in int8 brings its plain
    network, in fp32 and in int8

    - `FOLDER+SCHEDULER`: a saved model with what eenet fit --out saved; `@40%,60%` too

    - a folder of eenet demo: its model with its own schedulers

    - `digits` or another trained model that ships: with EENet, fitted here to the records beside it

    - `plain:FOLDER`: the network of a saved model, without exits

    - `exit0:WHAT`: one exit alone, for all samples, of a bundle, a saved model, a trained model that ships or a
    function that gives a model with exits; exits count from 0

    - `FILE.onnx`: a network as one ONNX graph

    - `torchvision:resnet18+WEIGHTS`: a network by name (timm:, eenet:) with weights as .safetensors; without any, its
    times alone count

    - `package.module:function`: what your function gives. Its code is run: name only what you trust

    The others are compared with the first. If that has exits, its network without exits goes before it. A folder of
    eenet demo, train or reproduce, and a model that ships, bring test inputs and labels, unless there is --data. Ctrl-C
    shows what was measured until then.

    Examples:

        eenet benchmark digits --threads 1

        eenet benchmark plain:model early=model+sched.safetensors@50%,70% small=mypackage:small_network
        --data test.npz --threads 1 --figure worth.png

        eenet benchmark bundle --data photos --batch-sizes 1,8

        eenet benchmark digits exit0:digits exit1:digits
    """
    from eenet.benchmarking import benchmark as run

    if figure is not None:
        require("matplotlib.figure", "report", "a figure")  # now, not after the measurement
    made: dict[str, Any] = {}
    untrained: list[str] = []
    for word in systems:
        name, what, file, budgets = _read_word(word)
        for key, value in _made(name, what, file, budgets, allow or (), threads or None, untrained).items():
            if key in made:
                raise InvalidInputError(f"two systems are called {key!r}; name them: NAME={what}")
            made[key] = value
    classes = next((count for count in map(_classes, made.values()) if count is not None), None)
    made = {name: value(classes) if isinstance(value, _Untrained) else value for name, value in made.items()}
    samples = _samples(data, column, labels, limit, systems, made)
    if_stopped("nothing was measured yet; give the same command again")
    with progress() as bars:
        update = bars.task("running", total=1)
        result = run(
            made,
            samples,
            batch_sizes=sizes_of(",".join(batch_sizes or ("1", "32"))),
            seconds=seconds,
            threads=threads or None,
            max_accuracy_drop=max_accuracy_drop,
            untrained=untrained,
            seed=seed,
            progress=lambda what, done: update(done, what=what),
        )
    if json_file == "-":
        print_json(result.to_dict())
    else:
        output().print(result)
    if json_file not in (None, "-"):
        result.write_json(str(json_file))
    if csv_file is not None:
        result.write_csv(csv_file)
    if figure is not None:
        result.write_figure(figure)
    if result.stopped:
        show_warning("stopped: this is what was measured until then")
        raise typer.Exit(stopped_code())


def _read_word(word: str) -> tuple[str, str, str | None, list[str] | None]:
    """The name, what it is, the file after a plus and the budgets of a SYSTEM."""
    match = re.fullmatch(r"([^=/\\]+)=(.+)", word)
    what = match[2] if match else word
    what, budgets = _split(what, "@")
    what, file = _split(what, "+")
    name = match[1] if match else Path(_source(what)).name or what
    alone = _EXIT.match(what)
    if match is None and (alone or what.startswith(_PLAIN)):
        name = f"{name}, exit {int(alone[1])}" if alone else f"{name}, plain"
    listed = None if budgets is None else [budget.strip() for budget in budgets.split(",")]
    return name, what, file, listed


def _source(what: str) -> str:
    """What a SYSTEM is made of: that after plain: or exit0:."""
    return _EXIT.sub("", what.removeprefix(_PLAIN), count=1)


def _split(text: str, mark: str) -> tuple[str, str | None]:
    """Before and after the last mark, unless there is none or the text is a path that exists."""
    before, found, after = text.rpartition(mark)
    return (before, after) if found and not Path(_source(text)).exists() else (text, None)


def _made(
    name: str,
    what: str,
    file: str | None,
    budgets: list[str] | None,
    allow: Sequence[str],
    threads: int | None,
    untrained: list[str],
) -> dict[str, Any]:
    """The systems, by name, of a SYSTEM."""
    alone = _EXIT.match(what)
    if alone is not None:
        return {name: (_with_exits(_source(what), what, file, budgets, allow, threads), int(alone[1]))}
    folder = Path(what)
    prefix = what.partition(":")[0]
    if (folder / "manifest.json").is_file() or folder.suffix == ".onnx":
        if file is not None:
            raise InvalidInputError(f"{what!r} has its scheduler in it; leave out +{file}")
        from eenet.bundle import load

        if folder.suffix == ".onnx":
            return {name: existing_file(folder)}
        with current_folder_importable():
            bundle = load(folder, threads=threads, allow=allow)
        return {name: bundle if budgets is None else (bundle, budgets)}
    require_extra("torch", f"the system {what!r}")
    if what.startswith(_PLAIN):
        return {name: _model(what.removeprefix(_PLAIN), allow).backbone}
    if prefix in _REGISTRIES and not folder.exists():
        return {name: _named_network(name, what, file, untrained)}
    if ":" in what and not folder.is_dir():
        made = function_at(what)()
        return {name: made if file is None else (made, _scheduler(file), *([budgets] if budgets else []))}
    model = _model(what, allow)
    if file is not None:
        return {name: (model, _scheduler(file), *([budgets] if budgets else []))}
    saved = sorted((folder / "schedulers").glob("eenet-*.safetensors"))
    if not saved:
        return {name: (model, _fitted(model, what, threads), budgets or list(_BUDGETS))}
    shares = sorted(int(path.stem.removeprefix("eenet-")) for path in saved)
    return {name: (model, _scheduler(saved[-1]), budgets or [f"{share}%" for share in shares])}


def _with_exits(
    source: str, what: str, file: str | None, budgets: list[str] | None, allow: Sequence[str], threads: int | None
) -> Any:
    """The model or bundle of which one exit is run alone, which takes no scheduler and no budget."""
    if file is not None or budgets is not None:
        raise InvalidInputError(
            f"{what!r} is one exit alone, at which all samples leave; leave out "
            f"{f'+{file}' if file is not None else '@' + ','.join(budgets or ())}"
        )
    if (Path(source) / "manifest.json").is_file():
        from eenet.bundle import load

        with current_folder_importable():
            return load(source, threads=threads, allow=allow)
    require_extra("torch", f"the system {what!r}")
    if ":" not in source or Path(source).is_dir():
        return _model(source, allow)
    made = function_at(source)()
    return made[0] if isinstance(made, tuple) else made


def _fitted(model: MultiExitModel, what: str, threads: int | None) -> Scheduler:
    """A scheduler fitted here to the calibration records beside a model."""
    files = model_files(what)
    if files is None or files.calibration() is None:
        raise InvalidInputError(
            f"{what!r} is a model without a scheduler; write {what}+SCHEDULER, the file that eenet fit --out saved, or "
            f"{_PLAIN}{what} for the network without exits"
        )
    records = records_beside(files, what)
    args, kwargs = model.staged.example
    with waiting(f"fitting EENet to the {len(records)} calibration records of {what}, in costs measured here"):
        return fit_beside(model, args or kwargs, records, batch_size=files.batch_size(), threads=threads)


def _scheduler(path: str | Path) -> Any:
    from eenet.scheduler import load_scheduler

    return load_scheduler(existing_file(path))


def _model(folder: str, allow: Sequence[str]) -> Any:
    files = model_files(folder)
    if files is not None:
        return load_saved(files.model, allow)
    others = (
        f", nor another system: a bundle, a saved model (FOLDER+SCHEDULER or {_PLAIN}FOLDER), a .onnx file, a name "
        "such as torchvision:resnet18, or package.module:function"
    )
    return load_saved(find_model(folder, expected=others), allow)


@dataclass(frozen=True)
class _Untrained:
    """A network with random weights, made when it is known how many classes the others have."""

    what: str

    def __call__(self, classes: int | None) -> Any:
        from eenet.models import build_network

        return build_network(self.what) if classes is None else build_network(self.what, num_classes=classes)


def _classes(value: Any) -> int | None:
    """The number of classes of a model with exits or a bundle."""
    one = value[0] if isinstance(value, tuple) else value
    found: int | None = getattr(getattr(one, "manifest", one), "num_classes", None)
    return found


def _named_network(name: str, what: str, file: str | None, untrained: list[str]) -> Any:
    """A network by name; its weights tell the number of classes, without them only its times count."""
    from eenet.models import build_network

    if file is None:
        untrained.append(name)
        return _Untrained(what)
    from safetensors.torch import load_file

    from eenet._files import require_safetensors

    source = existing_file(file)
    require_safetensors(source)
    weights = load_file(source)
    network = build_network(what)
    # The one layer of another size than by default is the last, which has the classes.
    usual = network.state_dict()
    sizes = {
        len(tensor) for key, tensor in weights.items() if key in usual and usual[key].shape[:1] != tensor.shape[:1]
    }
    try:
        if len(sizes) == 1:
            network = build_network(what, num_classes=sizes.pop())
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidInputError(
            f"the weights in {file!r} are not those of {what!r} ({reason}); save its state_dict()"
        ) from error
    return network


# Data


def _samples(
    data: Path | None,
    column: str | None,
    labels: Path | None,
    limit: int,
    words: Sequence[str],
    made: dict[str, Any],
) -> Samples:
    """The samples of --data, or those that a run folder brings."""
    import numpy as np

    from eenet.benchmarking._samples import Samples

    found = [model_files(_source(_read_word(word)[1])) for word in words]
    files = next((one for one in found if one is not None and one.input("samples.npz") is not None), None)
    known = _class_names(made, files)
    truth = None if labels is None else labels_in(labels, known, _NUMBERS)
    if data is None:
        if files is None:
            raise InvalidInputError(
                "there are no samples: give --data, a .npz with inputs and labels, or what a bundle takes"
            )
        data = files.inputs / "samples.npz"
        truth = truth if truth is not None else _labels_of_run(files.inputs, data)
    refuse_columns(data, "--column", column)
    if data.suffix in (".npy", ".npz"):
        arrays, held = arrays_in(data)
        if truth is None and held is not None:
            truth = class_numbers(held, known, f"'labels' of {str(data)!r}", _NUMBERS)
    else:
        arrays, held = _prepared(data, column, limit, _preprocessing(data, made, files), known, labeled=truth is None)
        truth, limit = truth if truth is not None else held, 0
    count = samples_in(arrays, data)
    if truth is not None and len(truth) != count:
        raise InvalidInputError(f"there are {len(truth)} labels for {count} samples; give one for each sample")
    if 0 < limit < count:
        rows = np.arange(limit) * count // limit
        arrays = {name: array[rows] for name, array in arrays.items()}
        truth = None if truth is None else truth[rows]
    names = tuple(arrays) if len(arrays) > 1 else ()
    return Samples(tuple(arrays.values()), names, truth)


def _labels_of_run(work: Path, samples: Path) -> Any:
    """Those of the evenly spaced test samples that a run keeps for `eenet export`."""
    import numpy as np

    from eenet.records import ExitRecords

    if not (work / "test.safetensors").is_file():
        return None
    labels = ExitRecords.load(work / "test.safetensors").labels
    count = len(next(iter(arrays_in(samples)[0].values())))
    return None if labels is None else labels[np.arange(count) * len(labels) // count]


def _preprocessing(data: Path, made: dict[str, Any], files: ModelFiles | None) -> Preprocessing:
    """What makes inputs of files: that of a bundle, or of a run folder."""
    if not data.exists():
        raise InvalidInputError(f"there is no {str(data)!r}; give a folder or a file")
    bundles = (value[0] if isinstance(value, tuple) else value for value in made.values())
    found: Preprocessing | None = next((b.preprocessing for b in bundles if hasattr(b, "preprocessing")), None)
    if found is None and files is not None:
        found = preprocessing_of(files.inputs)
    if found is None:
        raise InvalidInputError(
            f"{str(data)!r} is neither .npz nor .npy, and no system says how such files become inputs: name a bundle "
            "that takes images or texts, or give arrays"
        )
    return found


def _prepared(
    data: Path,
    column: str | None,
    limit: int,
    preprocessing: Preprocessing,
    names: Sequence[str] | None,
    *,
    labeled: bool,
) -> tuple[dict[str, Any], Any]:
    """The inputs that a bundle's preprocessing makes of files, and, where asked for, labels that the files have."""
    import numpy as np

    from eenet.predict import open_items

    items = open_items(data, preprocessing.kind, column=column)
    count = min(limit or len(items), len(items))
    rows = np.arange(count) * len(items) // count
    truth = table_labels(data, names, way_out=_NUMBERS) if labeled and data.suffix in TABLES else None
    chosen = set(rows.tolist())
    parts: list[dict[str, Any]] = []
    ids: list[str] = []
    with waiting("reading the data"):
        for start, (some, inputs) in enumerate(items.batches(64, 0)):
            kept = [n for n in range(len(some)) if start * 64 + n in chosen]
            ids += [some[n] for n in kept]
            if kept:
                parts.append(preprocessing([inputs[n] for n in kept]))
    from eenet.benchmarking._samples import joined

    pads = preprocessing.kind == "text"
    arrays = {name: joined([part[name] for part in parts], pads=pads) for name in parts[0]}
    if data.is_dir() and labeled:
        return arrays, _folder_labels(data, ids, names)
    return arrays, None if truth is None else truth[rows]


def _class_names(made: dict[str, Any], files: ModelFiles | None) -> Sequence[str] | None:
    """What the classes are called: as the first system that says it does, or the run folder."""
    for value in made.values():
        one = value[0] if isinstance(value, tuple) else value
        found: Sequence[str] | None = getattr(one, "class_names", None) or class_names(one)
        if found:
            return found
    listed = None if files is None else files.input("classes.txt")
    return None if listed is None else names_in(listed)


def _folder_labels(data: Path, ids: list[str], names: Sequence[str] | None) -> Any:
    """The classes of files in folders that are named as the classes; None, and a note, where they are not."""
    import numpy as np

    folders = [Path(one).parts[0] if len(Path(one).parts) > 1 else "" for one in ids]
    if not all(folders):
        return None
    unknown = next((folder for folder in sorted(set(folders)) if names is None or folder not in names), None)
    if names is None or unknown is not None:
        why = (
            "no system has names of classes" if names is None else f"the folder {unknown!r} is no class of the systems"
        )
        side().print(f"{str(data)!r} gives no labels: {why}; for accuracies {_NUMBERS}", soft_wrap=True)
        return None
    return np.array([list(names).index(folder) for folder in folders])
