"""`eenet ui`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from eenet._extras import require
from eenet._pretrained import model_names
from eenet.cli._console import print_json, side
from eenet.cli._options import ListeningJson
from eenet.errors import InvalidInputError


def ui(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...", help="Folders of eenet reproduce, train or demo, also empty; trained models by name."
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    budgets: Annotated[int, typer.Option(min=2, help="How many budgets the slider has.")] = 41,
    json_output: ListeningJson = False,
) -> None:
    """Show the report of results in the browser, and follow a run that writes them.

    The page is that of eenet report. It is made again when the results change, and keeps the budget, the scheduler and
    the place that were chosen. As long as a run has no results it shows what there is: the steps that are done, the
    training so far, and what comes next. Only this machine can reach it. Ctrl-C ends it.

    Examples:

        eenet ui demo

        eenet ui results/a results/b --port 8100 --open
    """
    require("plotly.offline", "report", "eenet ui")
    from eenet.reporting._live import HOST, follow, make_server
    from eenet.reporting._runs import require_no_bundle
    from eenet.reporting._watch import Watched

    wrong = next((path for path in results if path.is_file() and path.suffix != ".json"), None)
    if wrong is not None:
        raise InvalidInputError(
            f"{str(wrong)!r} is a file, expected a folder of results, or the JSON of eenet benchmark; for predictions "
            "and records write the page with eenet report"
        )
    results = [path if path.exists() else model_names().get(str(path), path) for path in results]
    for path in results:
        require_no_bundle(path)
    watched = Watched(results, budgets=budgets)
    server = make_server(watched, port)
    url = f"http://{HOST}:{server.server_port}/"
    if json_output:
        print_json({"schema": 1, "results": [str(path) for path in results], "url": url}, indent=None)
    side().print(f"{', '.join(map(str, results))}: {url} (Ctrl-C ends it)", soft_wrap=True)
    if open_browser:
        webbrowser.open(url)
    try:
        follow(watched, server)
    except KeyboardInterrupt:
        side().print("ended")
