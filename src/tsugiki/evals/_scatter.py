"""Inline SVG of two figures against each other: a dot for each model, its name beside it, both intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tsugiki.evals._charts import FONT, LETTERS, LINE, WIDTH, tick, ticks
from tsugiki.evals._html import Html, h, join

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 58, 14, 34, 48
Ends = tuple[float, float]


@dataclass(frozen=True)
class Dot:
    """A model, or weights."""

    name: str
    x: float
    y: float
    x_ends: Ends | None = None
    y_ends: Ends | None = None
    """Of the intervals; None where nothing was measured."""
    colour: str = "own"
    """A name of the page's style sheet."""


@dataclass(frozen=True)
class _Label:
    left: float
    right: float
    middle: float

    def meets(self, other: _Label) -> bool:
        beside = self.left < other.right and other.left < self.right
        return beside and abs(self.middle - other.middle) < LINE


def scatter(
    dots: Sequence[Dot], *, x_label: str, y_label: str, bound: float, line: Sequence[tuple[float, float]] = ()
) -> Html:
    """The drawing; nothing where there are no dots.

    Args:
        bound: an x at which a dashed line stands.
        line: points that a line joins, such as a front.
    """
    dots = [d for d in dots if math.isfinite(d.x) and math.isfinite(d.y)]
    if not dots:
        return Html("")
    xs = [bound, *(v for d in dots for v in (d.x, *_finite(d.x_ends)))]
    ys = [v for d in dots for v in (d.y, *_finite(d.y_ends))]
    x_ticks, y_ticks = ticks(min(xs), max(xs), about=4), ticks(min(ys), max(ys))

    def across(x: float) -> float:
        return round(LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - BOTTOM - TOP), 1)

    drawn = [tick(across(x), down(y_ticks[0]), f"{x:g}", below=True) for x in x_ticks]
    for y in y_ticks:
        drawn.append(h("line", x1=LEFT, x2=WIDTH - RIGHT, y1=down(y), y2=down(y), stroke="var(--line)"))
        drawn.append(tick(LEFT, down(y), f"{y:g}", below=False))
    at = across(bound)
    drawn.append(h("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, stroke="var(--soft)", stroke_dasharray="4 4"))
    if line:
        corners = " ".join(f"{across(x)},{down(y)}" for x, y in line)
        drawn.append(h("polyline", points=corners, fill="none", stroke="var(--gold)", stroke_width=1.5))
    places = [(across(d.x), down(d.y)) for d in dots]
    labels = _labels([d.name for d in dots], places)
    for dot, (x, y), label in zip(dots, places, labels, strict=True):
        colour = f"var(--{dot.colour})"
        thin = {"stroke": colour, "opacity": 0.5, "stroke_width": 2}
        if ends := _finite(dot.x_ends):
            drawn.append(h("line", x1=across(ends[0]), x2=across(ends[1]), y1=y, y2=y, **thin))
        if ends := _finite(dot.y_ends):
            drawn.append(h("line", x1=x, x2=x, y1=down(ends[0]), y2=down(ends[1]), **thin))
        drawn.append(h("circle", cx=x, cy=y, r=5, fill=colour))
        if not dot.name:
            continue
        after = label.left > x
        if label.middle != y:  # it had to give way to another one
            near = label.left - 2 if after else label.right + 2
            drawn.append(h("line", x1=x, y1=y, x2=near, y2=label.middle, stroke="var(--soft)", stroke_width=0.7))
        edge = {"x": label.left} if after else {"x": label.right, "text_anchor": "end"}
        drawn.append(h("text", dot.name, y=label.middle + 5, fill="var(--ink)", **FONT, **edge))
    drawn.append(h("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 4, text_anchor="end", fill="var(--soft)", **FONT))
    drawn.append(h("text", y_label, x=4, y=18, fill="var(--soft)", **FONT))
    title = h("title", f"{y_label} by {x_label}: {', '.join(f'{d.name} {d.y:.3g} at {d.x:.3g}' for d in dots)}")
    return h("svg", join(title, *drawn), class_="curve", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


def _labels(names: Sequence[str], places: Sequence[tuple[float, float]]) -> list[_Label]:
    """A place for each name beside its dot, the nearest one, above or below, that no other name has."""
    found: dict[int, _Label] = {}
    for i in sorted(range(len(names)), key=lambda i: places[i][1]):
        (x, y), wide = places[i], sum(LETTERS if ord(c) > 0x2E7F else 0.6 * LETTERS for c in names[i])
        left = x + 12 if x + 12 + wide < WIDTH else max(4.0, x - 12 - wide)
        tried = (y + side * step * LINE / 2 for step in range(2 * HEIGHT // LINE) for side in (-1, 1))
        labels = (_Label(left, left + wide, middle) for middle in tried if TOP <= middle <= HEIGHT - BOTTOM)
        named = [label for j, label in found.items() if names[j]]
        free = (label for label in labels if not any(map(label.meets, named)))
        found[i] = next(free, _Label(left, left + wide, y))
    return [found[i] for i in range(len(names))]


def _finite(ends: Ends | None) -> Ends | tuple[()]:
    return ends if ends is not None and all(map(math.isfinite, ends)) else ()
