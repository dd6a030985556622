"""`eenet collect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from eenet._extras import require_extra
from eenet._files import atomic_path
from eenet.cli._console import if_stopped, new_table, output, print_json, progress
from eenet.cli._data import (
    call_of,
    class_names,
    labels_in,
    names_in,
    opened,
    preprocessing_as,
    preprocessing_of,
    refuse_columns,
)
from eenet.cli._models import load_target, model_files
from eenet.cli._options import Allow, Backbone, ImageSize, Json, Labels, MaxLength, Mean, Resize, Std, Tokenizer
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.records import ExitRecords

_KINDS = (".safetensors", ".npz")


def collect(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A folder of eenet demo, a saved model, or package.module:function."),
    ],
    data: Annotated[
        Path, typer.Option(help="A folder of images, .parquet, .npz, .npy, or of texts .txt, .csv, .tsv or .jsonl.")
    ],
    out: Annotated[Path, typer.Option(help="The records: .safetensors, or .npz with probabilities and labels.")],
    labels: Labels = None,
    unlabeled: Annotated[
        bool, typer.Option("--unlabeled", help="Without labels, even where the data have them.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples that go through the network together.")] = 32,
    column: Annotated[
        str | None,
        typer.Option(help="The column of a table with the inputs.", show_default="a usual name, such as text"),
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="The one with the labels.", show_default="label")] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="The names of the network's classes in order, one on each line: what labels that are names, or "
            "folders, are looked up in.",
            show_default="those kept with the model; else, of folders only, their order by name",
        ),
    ] = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = "0.485,0.456,0.406",
    std: Std = "0.229,0.224,0.225",
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    allow: Allow = None,
    backbone: Backbone = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads for torch; 0 leaves it the choice.")] = 0,
    json_output: Json = False,
) -> None:
    """Run a network over data and write what its exits said: the records that `eenet fit` and `evaluate` read.

    Arrays are given by the names of the network's inputs, labels as "labels" beside them. A folder of images has a
    folder for each class. A table has a column "label". Labels are class numbers, or names of the network's
    classes: those kept with the model, or in the order of --classes. A folder of eenet demo, train or reproduce says
    itself how its inputs are made of files.

    Examples:

        eenet collect model --data validation.npz --out records.safetensors

        eenet collect mypackage.networks:resnet_with_exits --data photos --image-size 224 --resize 256 --out val.npz

        eenet collect model --data reviews.parquet --column text --tokenizer tokenizer --out records.safetensors
    """
    if out.suffix not in _KINDS:
        raise InvalidInputError(
            f"--out {str(out)!r} ends in {out.suffix or 'nothing'!r}, expected .safetensors or .npz"
        )
    if unlabeled and (labels is not None or label_column is not None):
        raise InvalidInputError("--unlabeled leaves labels out; leave --labels and --label-column out as well")
    if labels is not None and label_column is not None:
        raise InvalidInputError(f"--labels {labels} and --label-column {label_column} both give labels; leave one out")
    refuse_columns(data, "--column", column)
    refuse_columns(data, "--label-column", label_column)
    require_extra("torch", "eenet collect")
    if threads:
        import torch

        torch.set_num_threads(threads)
    from eenet.models import collect as run

    model, _ = load_target(target, allow=allow or (), backbone=backbone)
    files = model_files(target)
    preprocessing = preprocessing_as(model, image_size, resize, mean, std, tokenizer or (), max_length)
    if preprocessing is None and files is not None:
        preprocessing = preprocessing_of(files.inputs)
    order = classes or (None if files is None else files.input("classes.txt"))
    names = class_names(model) if order is None else names_in(order)
    count, batches, known = opened(model, data, preprocessing, batch_size, column)
    truth = None
    if not unlabeled:
        if labels is not None:
            truth = labels_in(labels, names)
        else:
            truth, names = known(names, label_column)
        if truth is None:
            raise InvalidInputError(
                f"{str(data)!r} has no labels; give --labels FILE, or --unlabeled for records without"
            )
        if np.ndim(truth) == 0 or len(truth) != count:
            raise InvalidInputError(f"there are {np.size(truth)} labels for {count} samples; give one for each sample")
    if_stopped("the records are kept when all samples are done; give the same command again")
    with progress() as bars:
        update = bars.task("collecting", total=count)

        def loader() -> Iterator[Any]:
            done = 0
            for arrays, samples in batches():
                inputs = call_of(model, arrays, data)
                yield (inputs,) if truth is None else (inputs, truth[done : done + samples])
                done += samples
                update(done)

        records = run(model, loader())
    _write(records, out)
    accuracies = None if records.utility is None else records.accuracies.tolist()
    result = {
        "schema": 1,
        "out": str(out),
        "samples": len(records),
        "exits": list(model.exit_names),
        "classes": names,
        "accuracies": accuracies,
    }
    if json_output:
        print_json(result)
        return
    table = new_table(left=("exit", ""), right=() if accuracies is None else ("accuracy",))
    for k, name in enumerate(model.exit_names):
        table.add_row(str(k), name, *(() if accuracies is None else (f"{accuracies[k]:.2%}",)))
    console = output()
    console.print(table)
    console.print(f"{len(records)} samples, written to {out}", soft_wrap=True)


def _write(records: ExitRecords, out: Path) -> None:
    if out.suffix == ".safetensors":
        records.save(out)
        return
    if records.pooled:
        raise InvalidInputError("records of images with a class per pixel are written as .safetensors only")
    with atomic_path(out) as path, path.open("wb") as file:
        if records.labels is None:
            np.savez_compressed(file, probabilities=records.probabilities)
        else:
            np.savez_compressed(file, probabilities=records.probabilities, labels=records.labels)
