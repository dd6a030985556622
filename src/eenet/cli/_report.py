"""`eenet report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet._extras import require
from eenet._pretrained import find_model
from eenet.cli._console import if_stopped, output, print_json, steps
from eenet.cli._options import CostsBatchSize, JudgedByLast, Unit, known_method, read_share
from eenet.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from eenet.reporting import Report

_RECORDS = (".npz", ".safetensors")


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS",
            help="Folders of eenet reproduce, train or demo, trained models by name, predictions (.npz, .safetensors).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(help="A folder for each figure as PNG and SVG.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="[FILE]", help="Every number that is shown, machine-readable.")
    ] = None,
    scheduler: Annotated[
        list[Path] | None, typer.Option(help="What eenet fit --out saved; several times for several.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Else these are fitted: eenet,stopping,max_prob, or all.")] = "",
    cascade: Annotated[
        bool,
        typer.Option(
            "--cascade", help="The predictions are the members of one cascade in this order, as for eenet fit."
        ),
    ] = False,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="Predictions to fit on, of a cascade once for each file. Without: one half of the predictions."
        ),
    ] = None,
    costs: Annotated[
        list[str] | None,
        typer.Option(
            help="Of predictions: the whole way to each exit, 2.3,4.1,4.9; or a .json file. Of a cascade as for eenet "
            "fit."
        ),
    ] = None,
    plain: Annotated[float | None, typer.Option(help="Cost of the plain network, where no .json file has it.")] = None,
    unit: Unit = None,
    batch_size: CostsBatchSize = None,
    prefix: Annotated[str, typer.Option(help="Of the arrays' names in predictions, such as test_.")] = "",
    calibration_prefix: Annotated[
        str, typer.Option("--calibration-prefix", help="The same in --calibration, such as val_.")
    ] = "",
    judged_by_last: JudgedByLast = False,
    images: Annotated[
        Path | None, typer.Option(help="The samples: a folder of images in the order of their names, or .npz, .npy.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="For segmentation: .npy of the classes at each exit, shown over the images.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="The samples: a line each in .txt, a row each in .csv, .tsv, .jsonl or .parquet."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of the texts in a table.", show_default="text or sentence")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="Names of the classes: a line each, or a JSON list.")] = None,
    exits: Annotated[
        str | None, typer.Option(help="Names of the exits, such as the members of a cascade: small 0,small 1,big.")
    ] = None,
    smaller: Annotated[
        list[str] | None,
        typer.Option(
            help="A smaller network without exits: NAME=COST,ACCURACY, such as tiny=1.9,0.81 or tiny=1.9,81%."
        ),
    ] = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="The samples are in the order of their time.")] = False,
    title: Annotated[str, typer.Option(help="Of the page.")] = "",
    budgets: Annotated[int, typer.Option(min=2, help="How many budgets the slider has.")] = 41,
    draws: Annotated[
        int, typer.Option(min=0, help="How many calibration sets to simulate, to see how often a guarantee holds.")
    ] = 30,
) -> None:
    """Write one page that shows what the exits and the schedulers do: no server and no network are needed to open it.

    A slider sets the budget for all figures: accuracy against cost, which classes and samples exit where and why, and
    what they cost. RESULTS are folders of results, or predictions with --costs, as eenet fit reads them. Of several the
    page compares them. The JSON of eenet benchmark, of eenet compare (comparison.json), of eenet search and of eenet
    profile may stand beside them: they add whole systems, resplits, the best of several networks, and times at several
    batch sizes. A benchmark or a search may be alone.

    Examples:

        eenet report digits

        eenet report demo --out report.html

        eenet report test.safetensors --calibration calibration.safetensors --costs costs.json --batch-size 1

        eenet report predictions.npz --prefix test_ --scheduler scheduler.safetensors --images images

        eenet report test.npz comparison/comparison.json costs.json --costs costs.json

        eenet report small.npz big.npz --cascade --costs 2.3,9.1 --scheduler cascade.safetensors

        eenet report search.json --out best.html

        eenet report results/a results/b --figures figures --json report.json
    """
    from eenet.reporting import report as make

    require("plotly.offline", "report", "a report")  # now, and not when all is computed
    if figures is not None:
        require("matplotlib.figure", "report", "a figure")
    results = [_named(path) for path in results]
    given = {
        "scheduler": scheduler, "methods": methods, "calibration": calibration, "costs": costs, "plain": plain,
        "unit": unit, "batch_size": batch_size, "prefix": prefix, "calibration_prefix": calibration_prefix,
        "judged_by_last": judged_by_last,
    }  # fmt: skip
    _require_used(results, given | {"cascade": cascade})
    one_table = cascade or sum(path.suffix in _RECORDS for path in results) == 1
    if one_table and all(path.suffix in (*_RECORDS, ".json") for path in results):
        given["compared"] = [path for path in results if path.suffix == ".json"]
    more: dict[str, Any] = {"ordered": ordered, "smaller": [_smaller(text) for text in smaller or ()]}
    if column is not None and texts is None:
        raise InvalidInputError(f"--column {column} is of the table that --texts names; give --texts, or leave it out")
    if images is not None or texts is not None or masks is not None:
        more["data"] = _samples(images, texts, masks, column)
    if classes is not None:
        from eenet.reporting import read_classes

        more["classes"] = read_classes(classes)
    if exits is not None:
        more["exits"] = tuple(word.strip() for word in exits.split(","))
    if_stopped(f"{out} was not written; give the same command again")
    with steps("report") as say:
        members = [path for path in results if cascade and path.suffix in _RECORDS]
        if len(members) == 1:
            raise InvalidInputError(
                f"--cascade was given with {str(members[0])!r} alone; give the files of all members"
            )
        others = [path for path in results if path not in members]
        read = [_records(members, given, more, say)] if members else []
        taken = [*read, *(_read(path, given, more, say) for path in (*others, *_profile(results, costs)))]
        known = _methods(methods)
        made = make(*taken, methods=known, title=title, budgets=budgets, draws=draws, progress=say, **more)
        say("writing the page")
        made.write(out)
        written = _write(made, figures, json_file, say)
    if json_file == Path("-"):
        print_json(made.data)
        return
    console = output()
    console.print(f"{out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser", soft_wrap=True)
    for what in written:
        console.print(what, soft_wrap=True)


def _write(made: Report, figures: Path | None, json_file: Path | None, say: Callable[[str], None]) -> list[str]:
    """Write what else is asked for, and say in words what that is."""
    written = []
    if figures is not None:
        say("drawing the figures")
        written.append(f"{len(made.write_figures(figures))} figures are in {figures}")
    if json_file not in (None, Path("-")):
        made.write_json(json_file)
        written.append(f"every number is in {json_file}")
    return written


def _require_used(results: list[Path], given: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` for an option about predictions where there are none."""
    asked = [f"--{name.replace('_', '-')}" for name, value in given.items() if value and name != "methods"]
    if asked and not any(path.suffix in _RECORDS for path in results):
        raise InvalidInputError(
            f"{' and '.join(asked)}: for predictions, and {', '.join(map(str, results))} holds results, with costs and "
            "records of its own; leave it out, or give the files of the folder"
        )


def _named(path: Path) -> Path:
    """The folder of a trained model in place of its name."""
    if path.suffix in (*_RECORDS, ".json"):
        return path
    return find_model(path, expected=", and no file of results", holds=("metrics.json", "work"))


def _read(path: Path, given: Mapping[str, Any], more: Mapping[str, Any], say: Callable[[str], None]) -> Any:
    """What `eenet.report` takes: a folder and the JSON of a command by their path, predictions as a run."""
    if path.suffix not in _RECORDS or path.is_dir():
        if not path.exists():
            raise InvalidInputError(f"cannot read {str(path)!r}: it is not there; give a folder of results or a file")
        if path.is_file() and path.suffix != ".json":
            raise InvalidInputError(
                f"{str(path)!r} ends in {path.suffix!r}, expected a folder of results, predictions (.npz, "
                ".safetensors), or the .json of eenet benchmark, compare, search or profile"
            )
        return path
    return _records([path], given, more, say)


def _records(paths: list[Path], given: Mapping[str, Any], more: Mapping[str, Any], say: Callable[[str], None]) -> Any:
    """A run of the predictions in a file, or in those of the members of a cascade."""
    from eenet.cli._inputs import JUDGED_BY_LAST, read_member_costs, read_members
    from eenet.reporting import make_run, require_compared
    from eenet.scheduler import load_scheduler

    by_last = given["judged_by_last"]
    records, in_files, counts = read_members(
        paths, given["prefix"], judged_by_last=by_last, more_with="with --cascade "
    )
    fitted = [load_scheduler(file) for file in given["scheduler"] or ()]
    if fitted and given["costs"] is None and any(costs is None for costs in in_files):
        table = fitted[0].costs
    else:
        table = read_member_costs(given["costs"], given["unit"], given["batch_size"], in_files, counts, given["plain"])
    for path in given.get("compared", ()):  # before anything is fitted
        require_compared(path, [table])
    before = given["calibration"] or ()
    if before and len(before) != len(paths):
        raise InvalidInputError(
            f"there are {len(before)} files of --calibration and {len(paths)} of predictions; give one for each"
            f"{'' if len(paths) > 1 else ', of a cascade with --cascade'}"
        )
    calibration = read_members(before, given["calibration_prefix"], judged_by_last=by_last)[0] if before else None
    about = {("samples" if name == "data" else name): value for name, value in more.items()}
    about |= {"methods": _methods(given["methods"]), "name": " + ".join(path.stem for path in paths)}
    about |= {"notes": (JUDGED_BY_LAST,)} if by_last else {}
    if len(paths) > 1:
        names = [
            path.stem if n == 1 else f"{path.stem} {k}" for path, n in zip(paths, counts, strict=True) for k in range(n)
        ]
        about = {"exits": tuple(names), **about}
    return make_run(records, table, fitted, calibration=calibration, progress=say, **about)


def _profile(results: list[Path], costs: list[str] | None) -> list[Path]:
    """The file of --costs, where it is a profile: it has the times by batch size too."""
    from eenet._files import read_json

    if costs is None or len(costs) > 1 or not costs[0].endswith(".json"):
        return []
    path = Path(costs[0])
    known = {one.resolve() for one in results}
    return [] if path.resolve() in known or "batch_sizes" not in read_json(path) else [path]


def _methods(text: str) -> tuple[str, ...]:
    from eenet.scheduler import SCHEDULERS

    if text == "all":
        return tuple(SCHEDULERS)
    return tuple(known_method(word.strip(), "--methods") for word in text.split(",") if word.strip())


def _samples(images: Path | None, texts: Path | None, masks: Path | None, column: str | None) -> Any:
    from eenet.predict import open_items
    from eenet.reporting import read_array, read_images, samples_of

    if images is not None and texts is not None:
        raise InvalidInputError("--images and --texts are both given; a report shows one of them")
    if masks is not None and images is None:
        raise InvalidInputError("--masks are shown over images: give --images too")
    if texts is not None:
        items = open_items(texts, "text", column=column)
        return samples_of([text or "" for _, some in items.batches(1024, 0) for text in some])
    assert images is not None
    samples = read_images(images)
    return samples if masks is None else samples.with_masks(read_array(masks, "masks"))


def _smaller(text: str) -> dict[str, Any]:
    name, _, numbers = text.rpartition("=")
    try:
        first, second = numbers.split(",")
        cost, accuracy = float(first), read_share(second)
    except ValueError as error:
        raise InvalidInputError(
            f"--smaller {text!r} cannot be read; write NAME=COST,ACCURACY, tiny=1.9,0.81"
        ) from error
    return {"name": name or "smaller network", "cost": cost, "accuracy": accuracy}
