"""The plot of two figures against each other."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from tsugiki.evals._charts import LINE, standalone
from tsugiki.evals._scatter import HEIGHT, Dot, scatter

NAMES = ["projector", "lora", "cross_attention", "iaa", "lynx", "wings + lynx", "sphinx front-end + wings", "接ぎ木"]


def drawn(dots: list[Dot]) -> str:
    return scatter(dots, x_label="loss", y_label="right", bound=0.0, line=[(0.0, 0.5), (0.1, 0.7)])


def test_every_dot_stands_where_it_belongs() -> None:
    svg = drawn([Dot("a", 0.0, 0.5, (-0.1, 0.1), (0.4, 0.6)), Dot("b", 0.2, 0.7), Dot("gone", float("inf"), 0.5)])
    (xa, ya), (xb, yb) = (map(float, at) for at in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="5"', svg))
    assert xa < xb and ya > yb and "gone" not in svg and "inf" not in svg
    low, high = re.findall(rf'x1="{xa}" x2="{xa}" y1="([\d.]+)" y2="([\d.]+)" stroke="var\(--own\)"', svg)[0]
    assert float(low) - ya == pytest.approx(ya - float(high), abs=0.2) and float(high) < ya  # about the dot
    assert svg.count("<polyline") == 1 and svg.count("stroke-dasharray") == 1
    assert ElementTree.fromstring(standalone(scatter([Dot("<a>", 0, 1)], x_label="x", y_label="y", bound=0))).tag


def test_names_of_dots_in_one_place_do_not_lie_on_each_other() -> None:
    svg = drawn([Dot(name, 0.0, 0.6 + 0.001 * i) for i, name in enumerate(NAMES)])
    places = [float(y) for y in re.findall(r'y="([\d.]+)" fill="var\(--ink\)"', svg)]
    assert len(places) == len(NAMES) and all(0 < y < HEIGHT for y in places)
    assert all(b - a >= LINE - 0.01 for a, b in itertools.pairwise(sorted(places)))


def test_a_dot_without_a_name_takes_no_place_from_the_others() -> None:
    svg = drawn([Dot("", 0.0, 0.6 + 0.001 * i) for i in range(5)] + [Dot("a", 0.0, 0.605)])
    assert svg.count("<circle") == 6 and svg.count('fill="var(--ink)"') == 1
    assert 'stroke-width="0.7"' not in svg  # no line that leads to nothing, and "a" stands beside its dot


def test_a_name_that_looks_like_a_colour_stays_as_it_is() -> None:
    svg = standalone(scatter([Dot("var(--mine)", 0, 1)], x_label="x", y_label="y", bound=0))
    assert "var(--mine)" in svg and "var(--ink)" not in svg


def test_a_name_at_the_edge_stays_in_the_drawing() -> None:
    svg = drawn([Dot("x" * 20, 0.0, 0.5), Dot("y" * 20, 0.2, 0.6), Dot("z" * 99, 0.2, 0.7)])
    edges = [float(x) for x in re.findall(r'fill="var\(--ink\)" font-size="16" x="([\d.]+)" text-anchor="end"', svg)]
    assert len(edges) == 2 and edges[0] - 20 * 9.6 > 0


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawn([]) == "" and drawn([Dot("a", float("nan"), 1.0)]) == ""
