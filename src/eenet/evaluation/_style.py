"""How methods and exits look in every figure: one table of names, colors, markers and dashes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from eenet.scheduler import SCHEDULERS

GRAY = "#6b6b6b"
_LIGHT_GRAY = "#a8a8a8"


@dataclass(frozen=True)
class Style:
    """The look of a curve: its color on white, that on a dark ground, Matplotlib's marker, Plotly's, and its dashes.

    `dashes` are lengths of strokes and gaps in points, empty for a solid line.
    """

    color: str
    dark: str
    marker: str
    symbol: str
    dashes: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {**asdict(self), "dashes": list(self.dashes)}


_DASHES: tuple[tuple[float, ...], ...] = ((), (6.0, 2.0), (1.5, 1.5), (7.0, 2.0, 1.5, 2.0))
_SOLID, _LONG, _DOTS, _MIXED = _DASHES

# No color and no marker repeats. The first six colors are Okabe and Ito's, the others Paul Tol's, which stay
# distinguishable with the common kinds of color blindness. Where two come close, their dashes differ.
_METHODS: dict[str, tuple[str, str, Style]] = {
    "eenet": ("EENet", "", Style("#0072B2", "#4DB2F0", "o", "circle", _SOLID)),
    "stopping": ("Optimal stopping", "", Style("#D55E00", "#FF8A3D", "^", "triangle-up", _LONG)),
    "max_prob": ("Max probability", "MSDNet", Style("#009E73", "#2FD1A3", "v", "triangle-down", _SOLID)),
    "entropy": ("Entropy", "BranchyNet", Style("#CC79A7", "#E79AC4", "D", "diamond", _LONG)),
    "patience": ("Patience", "PABEE", Style("#E69F00", "#F5B93D", "P", "cross", _SOLID)),
    "voting": ("Voting", "", Style("#56B4E9", "#8FD3FF", "X", "x", _MIXED)),
    "margin": ("Margin", "", Style("#882255", "#D9679F", "s", "square", _SOLID)),
    "temperature": ("Temperature scaled", "", Style("#332288", "#9C8CF0", "<", "triangle-left", _DOTS)),
    "ztw": ("ZTW", "", Style("#999933", "#CFCF5A", ">", "triangle-right", _DOTS)),
    "beem": ("BEEM", "", Style("#AA4499", "#E07FD0", "p", "pentagon", _MIXED)),
    "eero": ("EERO", "", Style("#117733", "#55B878", "h", "hexagon", _LONG)),
    "gate": ("Learned gate", "", Style("#661100", "#D07A66", "d", "diamond-tall", _MIXED)),
    "searched": ("Searched thresholds", "", Style("#6699CC", "#9CC4EC", "*", "star", _DOTS)),
    "static": ("One exit for all", "", Style("#44AA99", "#79D6C7", "8", "octagon", _LONG)),
}

# For all other names: methods of one's own, runs, networks.
_OTHERS = (
    Style("#0077BB", "#55B4F0", "1", "y-down-open", _MIXED),
    Style("#EE7733", "#FF9C66", "2", "y-up-open", _DOTS),
    Style("#CC3311", "#FF7A5C", "3", "y-left-open", _LONG),
    Style("#009988", "#3FD0BF", "4", "y-right-open", _MIXED),
    Style("#EE3377", "#FF7AA8", "+", "cross-thin-open", _DOTS),
    Style("#7B6A00", "#C9B84A", "x", "x-thin-open", _LONG),
)

PLAIN = Style("#000000", "#FFFFFF", "*", "star", _SOLID)
REFERENCE = Style(GRAY, _LIGHT_GRAY, "s", "square", _DOTS)
MIXTURE = Style(GRAY, _LIGHT_GRAY, "", "square", _DOTS)
ORACLE = Style(GRAY, _LIGHT_GRAY, "", "circle", _LONG)
RIGHT = Style("#0072B2", "#4DB2F0", "o", "circle", _SOLID)
WRONG = Style("#D55E00", "#FF8A3D", "X", "x", _LONG)

_FIRST, _MIDDLE, _LAST = (44, 127, 184), (27, 158, 119), (217, 95, 14)
_EXIT_MARKERS = tuple((style.marker, style.symbol) for *_, style in _METHODS.values())


def title_of(name: str, *, paper: bool = False) -> str:
    """A method as figures and tables call it, on request with the paper it is known from; other names stay as given."""
    method = _method(name)
    if method not in _METHODS:
        return name
    title, known, _ = _METHODS[method]
    return f"{title} ({known})" if paper and known else title


def styles(names: Sequence[str]) -> dict[str, Style]:
    """The style of each name: the methods of eenet and the plain network have their own.

    Of the other styles the name itself chooses one, so that a method of one's own looks the same in every figure and in
    whatever order the names come. Where two would choose the same, the second by the alphabet takes the next.
    """
    made = {name: PLAIN for name in names if name.casefold() == "plain network"}
    taken: set[str] = set()
    for name in names:
        method = _method(name)
        if method in _METHODS and method not in taken:
            taken.add(method)
            made[name] = _METHODS[method][-1]
    free = [*_OTHERS, *(style for method, (*_, style) in _METHODS.items() if method not in taken)]
    left: list[int] = []
    for number, name in enumerate(sorted({name for name in names if name not in made})):
        left = left or list(range(len(free)))
        wanted = zlib.crc32(_method(name).encode()) % len(_OTHERS)
        chosen = min(left, key=lambda slot: (slot - wanted) % len(free))
        left.remove(chosen)
        again = number // len(free)  # more names than styles: the same ones, with other dashes
        dashes = _DASHES[(_DASHES.index(free[chosen].dashes) + again) % len(_DASHES)]
        made[name] = replace(free[chosen], dashes=dashes)
    return {name: made[name] for name in names}


def exit_styles(exits: int) -> list[Style]:
    """The styles of K exits, from blue for the first over green to orange for the last."""
    made = []
    for k in range(exits):
        share = k / max(1, exits - 1)
        ends, part = ((_FIRST, _MIDDLE), 2 * share) if share < 0.5 else ((_MIDDLE, _LAST), 2 * share - 1)
        mixed = [round((1 - part) * low + part * high) for low, high in zip(*ends, strict=True)]
        lighter = [round(value + 0.3 * (255 - value)) for value in mixed]
        marker, symbol = _EXIT_MARKERS[k % len(_EXIT_MARKERS)]
        color, dark = ("#" + "".join(f"{value:02x}" for value in of) for of in (mixed, lighter))
        made.append(Style(color, dark, marker, symbol, _DASHES[k % len(_DASHES)]))
    return made


def _method(name: str) -> str:
    """The method that a name means: by its key, its class or its title, with or without its paper; else the name."""
    bare = name.removesuffix(" *").partition("(")[0].strip().casefold()
    classes = {getattr(made, "__name__", method).casefold(): method for method, made in SCHEDULERS.items()}
    return _TITLES.get(bare) or classes.get(bare, bare)


_TITLES = {title.casefold(): method for method, (title, *_) in _METHODS.items()}
