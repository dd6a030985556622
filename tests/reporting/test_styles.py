"""The look of methods: fixed by name, and told apart without color and by color-blind readers."""

from __future__ import annotations

from itertools import combinations
from typing import Any
from unittest import mock

import numpy as np
import pytest

import eenet
from eenet.scheduler import SCHEDULERS, Scheduler
from eenet.testing import toy_costs, toy_records

# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture(scope="module")
def styles() -> dict[str, Any]:
    records, costs = toy_records(120), toy_costs()
    everything = {name: made().fit(records, costs, fallback=False) for name, made in SCHEDULERS.items()}
    made = eenet.report(toy_records(60, seed=1), costs=costs, schedulers=everything, budgets=2, draws=0)
    found: dict[str, Any] = made.data["runs"][0]["styles"]
    return found


def linear(color: str) -> Any:
    """Linear RGB of a color such as #0072B2."""
    values = np.array([int(color[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Any) -> Any:
    """CIE Lab of linear RGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_every_method_has_a_marker_and_a_color_of_its_own(styles: dict[str, Any]) -> None:
    assert len(styles) == len(SCHEDULERS) >= 13
    for key in ("color", "dark", "marker", "symbol"):
        assert len({style[key] for style in styles.values()}) == len(styles), key


@pytest.mark.parametrize("ground", ["color", "dark"])
def test_methods_of_close_colors_differ_in_their_dashes(styles: dict[str, Any], ground: str) -> None:
    for name, matrix in BLINDNESS.items():
        for one, other in combinations(styles, 2):
            first, second = (lab(np.array(matrix) @ linear(styles[which][ground])) for which in (one, other))
            distance = float(np.linalg.norm(first - second))
            assert distance > 10 or styles[one]["dashes"] != styles[other]["dashes"], (name, one, other, distance)


def test_colors_can_be_seen_on_their_ground(styles: dict[str, Any]) -> None:
    def luminance(color: str) -> float:
        return float(linear(color) @ [0.2126, 0.7152, 0.0722])

    ground = luminance("#16181c")
    for name, style in styles.items():
        assert (luminance(style["dark"]) + 0.05) / (ground + 0.05) >= 4.5, name
        assert 1.05 / (luminance(style["color"]) + 0.05) >= 1.8, name


def test_a_method_looks_the_same_beside_others_and_by_any_of_its_names(styles: dict[str, Any]) -> None:
    scheduler = eenet.Entropy().fit(toy_records(60), toy_costs(), fallback=False)
    for title in ("entropy", "Entropy", "Entropy (BranchyNet)"):
        made = eenet.report(
            toy_records(40, seed=1),
            costs=toy_costs(),
            schedulers={"mine": scheduler, title: scheduler},
            budgets=2,
            draws=0,
        )
        found = made.data["runs"][0]["styles"]
        assert found[title] == styles["entropy"]
        assert found["mine"] != found[title]


def test_methods_of_ones_own_have_styles_of_their_own_the_same_in_every_order(styles: dict[str, Any]) -> None:
    with mock.patch.dict(SCHEDULERS):  # what is registered here is forgotten afterwards

        class FirstOfMine(Scheduler, method="first_of_mine"):
            """A method of one's own."""

        class SecondOfMine(Scheduler, method="second_of_mine"):
            """Another one."""

        def found(*titles: str) -> dict[str, Any]:
            fitted = eenet.MaxProbability().fit(toy_records(60), toy_costs(), fallback=False)
            records, named = toy_records(40, seed=1), dict.fromkeys(titles, fitted)
            made = eenet.report(records, costs=toy_costs(), schedulers=named, budgets=2, draws=0)
            of: dict[str, Any] = made.data["runs"][0]["styles"]
            return of

        both = found("first_of_mine", "max_prob", "second_of_mine")
        assert both["max_prob"] == styles["max_prob"]
        assert both == found("second_of_mine", "first_of_mine", "max_prob")
        own = found("FirstOfMine")
        assert own["FirstOfMine"] == both["first_of_mine"], "a class looks like its method"
        for style in (both["first_of_mine"], both["second_of_mine"]):
            assert style["color"] not in {of["color"] for of in styles.values()}
        many = found(*(f"network {number}" for number in range(30)))
        assert len({(style["color"], *style["dashes"]) for style in many.values()}) == 30
