"""`report`: what a network's exits and its schedulers do, as one page that explains itself, as JSON and as figures.

How it is built. `_runs` reads what a report is about into `Run`s. `_replays` replays every scheduler of a run at every
budget of a grid, once. An analysis is a pure function of a `Run`, a `Replays`, records or a benchmark that returns a
chart of `_charts`, which JSON can hold: all numbers that its figure shows. `page/page.js` draws every chart by its
kind, the JSON file holds the charts, and `figures.draw` is their Matplotlib twin.

To add a section: write a function in `_sections` (or a module beside it) that gives `section(id, title, about, charts,
notes)` for a `Replays`, and name it in `OF_ONE`; or for all `Replays` and what other commands gave, and name it in
`OF_ALL`. A function gives None where there is nothing to show. A chart that changes with the budget has `frames`: for
each scheduler a list with one patch for each budget (or one for all), a dict whose entries replace those of the chart;
see `_leaving.framed`. A chart along whose x axis a marker moves says `marker="cost"` or `"budget"`, and `wide=True`
takes the whole width. Nothing is decided in the browser.
"""

from eenet.reporting._report import Report, report
from eenet.reporting._report import require_compared as require_compared
from eenet.reporting._runs import make_run as make_run
from eenet.reporting._samples import read_array as read_array
from eenet.reporting._samples import read_classes as read_classes
from eenet.reporting._samples import read_images as read_images
from eenet.reporting._samples import samples_of as samples_of

__all__ = ["Report", "report"]
