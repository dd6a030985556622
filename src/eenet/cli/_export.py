"""`eenet export`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet._extras import require_extra
from eenet._pretrained import find_model
from eenet.cli._console import if_stopped, new_table, note_no_gain, of_the_fit, output, print_json, short, side, steps
from eenet.cli._data import call_of, names_in, opened, preprocessing_as, preprocessing_of, read_inputs
from eenet.cli._inputs import read_predictions, sizes_of
from eenet.cli._models import OR_FUNCTION, load_target, model_files
from eenet.cli._options import Allow, Backbone, ImageSize, Json, MaxLength, Mean, Resize, Seconds, Std, Tokenizer, share
from eenet.cli._trained import fit_beside, policy_notes, records_beside, without_rules_taken
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from eenet.bundle import LoadedBundle
    from eenet.models import MultiExitModel


def export(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A trained model by name, a saved one, a folder of a run, or package.module:function.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the bundle; an earlier bundle there is replaced.")],
    scheduler: Annotated[
        Path | None,
        typer.Option(help="What eenet fit --out saved.", show_default="EENet, fitted to the records beside the model"),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="Real inputs to check the bundle on: .npz or .npy, arrays by the names of the inputs."),
    ] = None,
    backend: Annotated[str, typer.Option(help="onnx, torch or aoti.")] = "onnx",
    classes: Annotated[Path | None, typer.Option(help="A text file with the name of a class on each line.")] = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = "0.485,0.456,0.406",
    std: Std = "0.229,0.224,0.225",
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    opset: Annotated[
        int | None, typer.Option(help="Of the ONNX graphs: a lower one for an older ONNX Runtime.", show_default="20")
    ] = None,
    allow: Allow = None,
    backbone: Backbone = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Calibration records that the bundle carries, to be planned again: what eenet fit took."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of the arrays' names in --records, such as val_.")] = "",
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Whether it carries their labels.")] = True,
    budget: Annotated[
        str | None, typer.Option(help="Another budget, in the costs measured here: 60% of the plain network, or 3ms.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure the bundle, and plan its budget in these costs.")
    ] = True,
    precision: Annotated[
        str,
        typer.Option(help="fp32, int8, auto (int8 where it is faster and as accurate), or stages.2=int8,heads.0=int8."),
    ] = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="For int8: labeled data not trained on; .npz, .npy, a folder of images, .parquet, or texts in "
            ".csv, .tsv or .jsonl."
        ),
    ] = None,
    max_exit_drop: Annotated[
        float,
        typer.Option(parser=share, help="How much accuracy an exit may lose to int8: 0.005 or 0.5% is half a point."),
    ] = 0.005,
    exit_drop_guarantee: Annotated[
        float | None,
        typer.Option(
            parser=share, help="With this probability it loses no more on fresh samples: 0.95 or 95%. Under auto."
        ),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to measure.")] = "1,8,32",
    seconds: Seconds = 1.0,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads for torch and for the bundle; 0 leaves them the choice.")
    ] = 0,
    json_output: Json = False,
) -> None:
    """Write a model and its scheduler as a bundle that runs elsewhere.

    An ONNX bundle needs numpy and onnxruntime to run, and no PyTorch. It is measured in the runtime that runs it, in
    turns with the plain network, and its budget is planned in these milliseconds, at the same share of the plain
    network. The bundle is compared with the model on the samples, logits and exits, before it appears. Without
    --samples these are the example that the model comes with. A folder of eenet demo, train or reproduce, and a model
    that ships, bring test inputs, class names, preprocessing and calibration records of their own, the folders also
    calibration data for int8.

    With --precision stages and heads run in int8, with --precision auto those that are faster so, as long as no exit
    loses more than --max-exit-drop on the calibration data. The records are collected again from them.

    Examples:

        eenet export digits --budget 60% --out bundle

        eenet export demo --scheduler demo/schedulers/eenet-60.safetensors --out bundle

        eenet export demo --scheduler demo/schedulers/eenet-60.safetensors --out small --precision auto

        eenet export mypackage.networks:resnet_with_exits --scheduler scheduler.safetensors --out bundle
        --samples images.npz --image-size 224 --resize 256 --classes imagenet.txt
    """
    require_extra("export", "eenet export")
    if threads:
        import torch

        torch.set_num_threads(threads)
    from eenet.bundle import export as write_bundle
    from eenet.scheduler import load_scheduler

    fitted = None if scheduler is None else load_scheduler(scheduler)
    files = model_files(target)
    if fitted is None and records is None:
        if files is None and ":" not in target:
            find_model(target, expected=OR_FUNCTION)  # raises for a name that is none
        if files is None:
            raise InvalidInputError(
                f"--scheduler is missing, and {target!r} has no records to fit one to; see eenet fit"
            )
        records_beside(files, target)  # raises where there are none, before the model is loaded
    model, example = load_target(target, allow=allow or (), backbone=backbone)
    names = None if classes is None else names_in(classes)
    preprocessing = preprocessing_as(model, image_size, resize, mean, std, tokenizer or (), max_length)
    if files is not None:
        preprocessing = preprocessing or preprocessing_of(files.inputs)
        listed = files.input("classes.txt")
        names = names_in(listed) if names is None and listed is not None else names
        samples = samples or files.input("samples.npz")
    if samples is not None:
        example = read_inputs(model, samples)
    asked = _precision(precision)
    loader = None
    if asked != "fp32":
        calibration = calibration or (None if files is None else files.input("calibration.npz"))
        if calibration is None:
            raise InvalidInputError(
                f"--precision {precision!r} needs samples with labels to take ranges from and to judge accuracy on, "
                "that the network was not trained on: give --calibration, a folder of images, a table or an .npz"
            )
        loader = _loader(model, calibration, preprocessing, names)
    records = records or (None if files is None else files.calibration())
    kept = None
    if records is not None:
        kept, _ = read_predictions(records, prefix)
    if_stopped("an earlier bundle there is as it was; give the same command again")
    with steps("exporting") as report:
        if fitted is None:
            assert kept is not None
            report("fitting EENet to the calibration records")
            fitted = fit_beside(model, example, kept, batch_size=1 if files is None else files.batch_size())
        with without_rules_taken() if scheduler is None else nullcontext():
            bundle = write_bundle(
                model,
                fitted,
                out,
                example=example,
                backend=backend,
                preprocessing=preprocessing,
                class_names=names,
                records=kept,
                keep_labels=labels,
                budget=budget,
                measure=measure,
                batch_sizes=sizes_of(batch_sizes),
                seconds=seconds,
                threads=threads or None,
                precision=asked,
                calibration=loader,
                max_exit_drop=max_exit_drop,
                exit_drop_guarantee=exit_drop_guarantee,
                progress=report,
                **({} if opset is None else {"opset": opset}),
            )
    info = bundle.info
    notes = policy_notes(bundle.scheduler)
    result = {"schema": 1, "out": str(out), "bytes": _size(out), **info, "policy_notes": notes}
    if json_output:
        print_json(result)
        return
    proof = info["verified"]
    console = output()
    console.print(f"{out}: {backend}, {len(info['exits'])} stages, {result['bytes'] / 1e6:.1f} MB", soft_wrap=True)
    console.print(
        f"checked on {proof['samples']} samples: exits as in a replay ({proof['ties_that_went_otherwise']} ties went "
        f"otherwise), logits within {proof['largest_logits_difference']:.1g}"
    )
    show_precision(bundle)
    show_costs(bundle)
    if samples is None:
        side().print("these samples are the example that came with the model: give real inputs with --samples")


def show_costs(bundle: LoadedBundle) -> None:
    """What the exits cost and where that was measured, the budget, and what it was planned from."""
    console, costs, scheduler = output(), bundle.costs, bundle.scheduler
    table = new_table(left=("exit", ""), right=(f"cost ({costs.unit})", "of plain" if costs.plain else "of last"))
    for k, name in enumerate(bundle.exit_names):
        table.add_row(str(k), name, short(costs[k]), f"{costs[k] / costs.reference:.0%}")
    if costs.plain is not None:
        table.add_row("plain network", "", short(costs.plain), "100%")
    console.print(table)
    console.print(f"costs {bundle.costs_from}", soft_wrap=True)
    console.print(f"Budget {costs.in_words(scheduler.budget)}.")
    for note in policy_notes(scheduler):
        console.print(f"{note}.", soft_wrap=True)
    note_no_gain(costs)
    records = bundle.records
    if records is not None:
        size = bundle.manifest.data["files"][bundle.manifest.data["records"]]["bytes"]
        labels = "" if records.utility is not None else ", no labels"
        console.print(f"It carries {len(records)} calibration records ({size / 1e6:.1f} MB{labels})")
    elif bundle.manifest.data["profile"] is None:
        console.print(
            "It carries no calibration records: its thresholds and its budget are those of the fit; give --records, so "
            "that it can be planned in other costs",
            soft_wrap=True,
        )
    else:
        console.print(
            "It carries no calibration records: "
            f"{of_the_fit(costs, scheduler.budget, scheduler.planned_cost)}; give --records to plan it",
            soft_wrap=True,
        )


def show_precision(bundle: LoadedBundle) -> None:
    """Which parts are in int8 and why others are not, and what that changed; nothing for a bundle in fp32."""
    made = bundle.info["quantization"]
    if made is None:
        return
    console = output()
    table = new_table(left=("part", "precision"), right=("fp32 (ms)", "int8 (ms)"))
    for row in made["parts"]:
        times = [short(row[key]) if key in row else "" for key in ("fp32_ms", "int8_ms")]
        table.add_row(row["part"], row["precision"], *times)
    console.print(table)
    for row in made["parts"]:
        if "why" in row:
            console.print(f"{row['part']} stays fp32: {row['why']}", soft_wrap=True)
        elif "operators_in_fp32" in row:
            console.print(f"{row['part']}: fp32 stays {', '.join(row['operators_in_fp32'])}", soft_wrap=True)
    samples, accuracies = made["samples"], made["accuracies"]
    changes = ", ".join(
        f"exit {k} {before:.2%} -> {after:.2%}"
        for k, (before, after) in enumerate(zip(accuracies["fp32"], accuracies["bundle"], strict=True))
    )
    console.print(f"Accuracy on {samples['judged']} calibration samples, fp32 -> bundle: {changes}", soft_wrap=True)
    if "plain" in made:
        before, after = made["plain"]["fp32"], made["plain"]["int8"]
        console.print(f"Plain network: {before:.2%} -> {after:.2%} all in int8", soft_wrap=True)
    if made.get("looser"):
        console.print(made["looser"]["text"], soft_wrap=True)


def _precision(text: str) -> str | dict[str, str]:
    """What --precision says: a word, or parts with theirs."""
    if "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _loader(model: MultiExitModel, data: Path, preprocessing: Any, classes: list[str] | None) -> list[Any]:
    """The batches of --calibration with their labels."""
    count, batches, known = opened(model, data, preprocessing, 32, None)
    truth, _ = known(classes, None)
    if truth is None or len(truth) != count:
        raise InvalidInputError(
            f"--calibration {str(data)!r} has no label for each of its {count} samples, by which accuracy is "
            "judged; put 'labels' beside the inputs, or images into a folder for each class"
        )
    made, done = [], 0
    for arrays, samples in batches():
        made.append((call_of(model, arrays, data), truth[done : done + samples]))
        done += samples
    return made


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
