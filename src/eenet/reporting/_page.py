"""The page of a report: one HTML file with its data, its script and Plotly inside."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from importlib import resources
from typing import Any

from eenet._extras import require

_FOLDER = "page"


def page_of(data: dict[str, Any]) -> str:
    """The page for the data of a report.

    The data and Plotly are compressed and in base64, so that nothing in them can end the element that holds them.
    """
    plotly = require_plotly().get_plotlyjs()
    parts = {
        # The name of a folder may have bytes that are no text.
        "TITLE": html.escape(data["title"].encode("utf-8", "replace").decode("utf-8")),
        "STYLE": _text("page.css"),
        "DATA": packed(json.dumps(data, allow_nan=False, separators=(",", ":"))),
        "PLOTLY": packed(plotly),
        "SCRIPT": _text("page.js"),
    }
    return re.sub("@@([A-Z]+)@@", lambda found: parts[found[1]], _text("page.html"))


def require_plotly() -> Any:
    """The module that has plotly's script; raises `MissingExtraError` where it is not installed."""
    return require("plotly.offline", "report", "a report")


def packed(text: str) -> str:
    """Text, compressed as the browser's DecompressionStream("deflate") reads it, in base64."""
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def _text(name: str) -> str:
    return (resources.files("eenet.reporting") / _FOLDER / name).read_text(encoding="utf-8")
