"""The cost figure: that it is a picture with everything in it, and how it refuses."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from eenet.errors import InvalidInputError, MissingExtraError
from eenet.evaluation import Curve, Point, write_cost_figure
from eenet.scheduler import SCHEDULERS

CURVES = [
    Curve("EENet", [Point(0.3, 0.93, spread=0.02), Point(0.5, 0.97)]),
    Curve("MaxProbability", [Point(0.31, 0.92), Point(0.52, 0.965)]),
]
EXITS = [Point(0.2, 0.9, "exit 1"), Point(0.6, 0.95, "exit 2"), Point(1.0, 0.97, "exit 3")]
PLAIN = Point(0.9, 0.97)


def draw(path: Path, curves: list[Curve] = CURVES, plain: Point = PLAIN) -> None:
    write_cost_figure(path, curves, EXITS, plain, title="Accuracy against time", cost_label="ms", samples=1000)


def test_figure_is_a_png_large_enough_to_read(tmp_path: Path) -> None:
    draw(tmp_path / "report.png")
    start = (tmp_path / "report.png").read_bytes()[:24]
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", start[16:24])
    assert width >= 1000
    assert height >= 600


def test_every_point_changes_the_picture(tmp_path: Path) -> None:
    draw(tmp_path / "all.png")
    draw(tmp_path / "fewer.png", CURVES[:1])
    draw(tmp_path / "moved.png", plain=Point(0.8, 0.97))
    assert len({(tmp_path / name).read_bytes() for name in ("all.png", "fewer.png", "moved.png")}) == 3


def test_without_any_policy_there_is_still_a_figure(tmp_path: Path) -> None:
    draw(tmp_path / "report.png", [])
    assert (tmp_path / "report.png").stat().st_size > 0


def test_point_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nan"):
        draw(tmp_path / "report.png", plain=Point(float("nan"), 0.9))
    assert list(tmp_path.iterdir()) == []


def test_path_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match=r"report\.png"):
        draw(tmp_path / "file" / "report.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"\[report\]'"):
        draw(tmp_path / "report.png")


def test_no_color_and_no_marker_repeats_among_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    styles: list[tuple[str, str]] = []
    draw_bars = Axes.errorbar

    def recorded(self: Axes, *args: Any, **options: Any) -> Any:
        styles.append((options["color"], options["marker"]))
        return draw_bars(self, *args, **options)

    monkeypatch.setattr(Axes, "errorbar", recorded)
    draw(tmp_path / "report.png", [Curve(name, CURVES[0].points) for name in SCHEDULERS])
    colors, markers = map(set, zip(*styles, strict=True))
    assert len(styles) == len(colors) == len(markers) == len(SCHEDULERS) >= 13


def test_drawing_does_not_load_pyplot(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from eenet.evaluation import Point, write_cost_figure as w; "
        f"w({str(tmp_path / 'a.png')!r}, [], [], Point(1, 1), title='t', cost_label='ms'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
