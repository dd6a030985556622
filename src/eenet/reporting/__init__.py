"""`report`: what a network's exits and its schedulers do, as one page that explains itself, as JSON and as figures.

How it is built. `_runs` reads what a report is about into `Run`s. `_replays` replays every scheduler of a run at every
budget of a grid, once. An analysis is a pure function of a `Run`, a `Replays`, records or a benchmark that returns a
chart of `_charts` (or a dict of them), which JSON can hold: all numbers that its figure shows. The page draws every
chart with one function of `page.js`, the JSON file holds the charts, `figures.draw` is their Matplotlib twin.

A section of the page is a dict {"id", "title", "about" (a sentence), "charts": [...], "notes": [...]}, which
`_sections` lists. A chart that changes with the budget is {"frames": {scheduler: [chart or None for each budget]}}, and
one that only moves a marker along the x axis says `marker`. Sections 1 and 2 (frontier, who leaves where) are in
`_frontier` and `_leaving`; nothing is decided in the browser.
"""
