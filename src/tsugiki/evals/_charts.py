"""Inline SVG of the report: pictures with boxes, loss curves, intervals, figures by amount of data.

Colours come from the page's style sheet; alone, in a Markdown page, a drawing brings the light ones itself.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from tsugiki.data.images import open_image
from tsugiki.evals._html import LIGHT, Html, h, join
from tsugiki.types import Box, ImageSource, Score

Curve = Sequence[tuple[float, float]]

PICTURE_SIDE = 360
WIDTH, LETTERS = 460, 16
"""Of curves: on a phone, 360 pixels wide, such letters are still 12 pixels high."""
FONT = {"font_size": LETTERS}
LEGEND, LINE = 330, 20
"""Width of a row of names, and height of one."""
MOST_BOXES = 30
"""Boxes of an answer that are drawn."""
_STROKES = tuple(f"var(--{name})" for name in ("own", "gold", "base", "bad", "other", "soft", "ink"))


@dataclass(frozen=True)
class Point:
    """A figure at one amount of data, its interval, and the values of the folds behind it."""

    x: float
    value: float
    low: float
    high: float
    parts: tuple[float, ...] = ()


def picture(
    source: ImageSource,
    found: Sequence[Box] = (),
    gold: Sequence[Box] = (),
    asked: Sequence[Box] = (),
    numbers: Sequence[int] = (),
) -> Html:
    """A picture inside the page, over it boxes: of the question (white), true ones (dashed) and the answer's (solid).

    Boxes are in pixels of the original; the picture itself is stored smaller.

    Args:
        numbers: what stands at each of `found`; none where it is empty.
    """
    image = open_image(source)
    width, height = image.size
    line = max(width, height) / 130
    boxes = [_box(b, colour, t) for b in asked for colour, t in (("#000000", 2 * line), ("#ffffff", line))]
    boxes += [_box(b, "#1456b8", line, dashed=True) for b in gold]
    boxes += [_box(b, "#e8590c", line) for b in found[:MOST_BOXES]]
    boxes += [_tag(b, n, image.size) for b, n in list(zip(found, numbers, strict=False))[:MOST_BOXES]]
    shown = h("image", href=data_uri(image), width=width, height=height)
    label = f"picture; boxes: {len(asked)} asked about, {len(found)} answered, {len(gold)} true" if boxes else "picture"
    return h("svg", shown, *boxes, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def standalone(svg: Html) -> str:
    """A drawing that needs no page around it, on the light ground."""
    whole = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif"', 1)
    return re.sub(r"var\(--(\w+)\)", lambda match: LIGHT.get(match[1], match[0]), whole)


def svg_uri(svg: Html) -> str:
    """The same as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(standalone(svg).encode("utf-8")).decode("ascii")


def data_uri(image: Image.Image, side: int = PICTURE_SIDE) -> str:
    """A JPEG of at most `side` pixels as a data URI."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def interval(score: Score) -> Html:
    """Value and 95 % interval on a line from 0 to 1 (differences: -1 to 1), with marks of base and yardsticks."""
    start = -1.0 if min(score.value, score.low or 0.0) < 0 or " minus " in score.metric else 0.0
    if not start <= score.value <= 1.0:
        return Html("")

    def x(value: float) -> float:
        return round(3 + 144 * (min(max(value, start), 1.0) - start) / (1.0 - start), 1)

    marks = [h("line", x1=3, x2=147, y1=11, y2=11, stroke="var(--line)", stroke_width=1)]
    if start < 0:
        marks.append(h("line", x1=x(0), x2=x(0), y1=3, y2=19, stroke="var(--soft)", stroke_width=1))
    for value, colour in [*((v, "var(--gold)") for v in score.yardsticks.values()), (score.base, "var(--base)")]:
        if value is not None and math.isfinite(value):
            marks.append(h("line", x1=x(value), x2=x(value), y1=5, y2=17, stroke=colour, stroke_width=2))
    if score.low is not None and score.high is not None:
        marks.append(h("line", x1=x(score.low), x2=x(score.high), y1=11, y2=11, stroke="var(--own)", stroke_width=4))
    marks.append(h("circle", cx=x(score.value), cy=11, r=4.5, fill="var(--own)"))
    return h("svg", *marks, class_="scale", viewBox="0 0 150 22", aria_hidden="true")


def curves(losses: Mapping[str, Curve], *, x_label: str = "step", y_label: str = "loss, nats per token") -> Html:
    """Loss curves: thin as measured, thick as running mean of about a twentieth of the run."""
    kept = {name: [(x, y) for x, y in curve if math.isfinite(x) and math.isfinite(y)] for name, curve in losses.items()}
    kept = {name: curve for name, curve in kept.items() if curve}
    if not kept:
        return Html("")
    legend = [[], *_legend(list(kept), WIDTH - 30)]  # the first row is the label's, which may be long
    width, left, bottom, top = WIDTH, 50, 44, 30 + LINE * (len(legend) - 1)
    height = 220 + top
    xs = [x for curve in kept.values() for x, _ in curve]
    ys = [y for curve in kept.values() for _, y in curve]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(0.0, *ys), max(ys))
    x_span, y_span = x_ticks[-1] - x_ticks[0], y_ticks[-1] - y_ticks[0]

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (x - x_ticks[0]) / x_span * (width - left - 22)
        return round(across, 1), round(height - bottom - (y - y_ticks[0]) / y_span * (height - bottom - top), 1)

    drawn = [tick(*at(x, y_ticks[0]), f"{x:g}", below=True) for x in x_ticks]
    for y in y_ticks:
        (x0, y0), (x1, _) = at(x_ticks[0], y), at(x_ticks[-1], y)
        drawn += [h("line", x1=x0, x2=x1, y1=y0, y2=y0, stroke="var(--line)"), tick(x0, y0, f"{y:g}", below=False)]
    for i, curve in enumerate(kept.values()):
        colour = _STROKES[i % len(_STROKES)]
        for points, thickness, opacity in ((curve, 1, 0.35), (smooth(curve), 2.5, 1)):
            path = " ".join(f"{px},{py}" for px, py in (at(x, y) for x, y in points))
            drawn.append(
                h("polyline", points=path, fill="none", stroke=colour, stroke_width=thickness, opacity=opacity)
            )
    drawn += _names(list(kept), legend)
    drawn.append(h("text", x_label, x=width - 12, y=height - 4, fill="var(--soft)", text_anchor="end", **FONT))
    drawn.append(h("text", y_label, x=left, y=18, fill="var(--soft)", **FONT))
    title = h("title", f"{y_label} by {x_label}: {', '.join(kept)}")
    return h("svg", join(title, *drawn), class_="curve", viewBox=f"0 0 {width} {height}", role="img")


def points(lines: Mapping[str, Sequence[Point]], *, x_label: str = "pictures", y_label: str = "share") -> Html:
    """Figures with intervals by amount of data; the amounts stand at equal distances."""
    kept = {name: line for name, line in lines.items() if line}
    if not kept:
        return Html("")
    legend = _legend(list(kept))
    width, left, bottom, top = WIDTH, 50, 44, 30 + LINE * (len(legend) - 1)
    height = 230 + top
    amounts = sorted({p.x for line in kept.values() for p in line})
    values = [v for line in kept.values() for p in line for v in (p.value, p.low, p.high, *p.parts) if math.isfinite(v)]
    y_ticks = ticks(min(0.0, *values), max(values))

    gap = (width - left - 22) / len(amounts)
    beside = min(18.0, gap / (len(kept) + 1))

    def across(x: float, i: float) -> float:
        return round(left + gap * (amounts.index(x) + 0.5) + beside * (i - (len(kept) - 1) / 2), 1)

    def down(y: float) -> float:
        y = min(max(y, y_ticks[0]), y_ticks[-1])  # an interval of one picture has no end
        return round(height - bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - bottom - top), 1)

    drawn = [tick(across(x, (len(kept) - 1) / 2), down(y_ticks[0]), f"{x:g}", below=True) for x in amounts]
    for y in y_ticks:
        drawn.append(h("line", x1=left, x2=width - 22, y1=down(y), y2=down(y), stroke="var(--line)"))
        drawn.append(tick(left, down(y), f"{y:g}", below=False))
    for i, line in enumerate(kept.values()):
        colour = _STROKES[i % len(_STROKES)]
        for p in line:
            x = across(p.x, i)
            drawn.append(h("line", x1=x, x2=x, y1=down(p.low), y2=down(p.high), stroke=colour, stroke_width=3))
            drawn.append(h("circle", cx=x, cy=down(p.value), r=5, fill=colour))
            drawn += [
                h(
                    "circle",
                    cx=round(x + 0.45 * beside, 1),
                    cy=down(v),
                    r=3,
                    fill="none",
                    stroke=colour,
                    stroke_width=1.2,
                )
                for v in p.parts
            ]
    drawn += _names(list(kept), legend)
    drawn.append(h("text", x_label, x=width - 12, y=height - 4, fill="var(--soft)", text_anchor="end", **FONT))
    drawn.append(h("text", y_label, x=left, y=18, fill="var(--soft)", **FONT))
    title = h("title", f"{y_label} by {x_label}: {', '.join(kept)}")
    return h("svg", join(title, *drawn), class_="curve", viewBox=f"0 0 {width} {height}", role="img")


def _legend(names: Sequence[str], room: int = LEGEND) -> list[list[str]]:
    """Names in rows; by default they leave room for a short label of the axis."""
    rows: list[list[str]] = [[]]
    for name in names:
        if rows[-1] and sum(map(_wide, [*rows[-1], name])) > room:
            rows.append([])
        rows[-1].append(name)
    return rows


def _names(names: Sequence[str], legend: Sequence[Sequence[str]]) -> Iterator[Html]:
    """The rows above a drawing, each name in the colour of its line."""
    for row, beside in enumerate(legend):
        end = WIDTH - 14
        for name in beside:
            colour = _STROKES[names.index(name) % len(_STROKES)]
            yield h("text", name, x=end, y=18 + LINE * row, fill=colour, text_anchor="end", **FONT)
            end -= _wide(name)


def _wide(name: str) -> int:
    return 10 * len(name) + 14


def smooth(curve: Curve) -> list[tuple[float, float]]:
    """Mean of each point and its neighbours in a window of about a twentieth of the curve."""
    half = len(curve) // 40
    smoothed = []
    for i, (x, _) in enumerate(curve):
        near = curve[max(0, i - half) : i + half + 1]
        smoothed.append((x, sum(y for _, y in near) / len(near)))
    return smoothed


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _box(box: Box, colour: str, line: float, *, dashed: bool = False) -> Html:
    return h(
        "rect",
        x=round(box.x1, 1),
        y=round(box.y1, 1),
        width=round(box.width, 1),
        height=round(box.height, 1),
        fill="none",
        stroke=colour,
        stroke_width=round(line, 2),
        stroke_dasharray=f"{3 * line:.1f} {2 * line:.1f}" if dashed else None,
    )


def _tag(box: Box, number: int, size: tuple[int, int]) -> Html:
    """A number on a plate in the upper left corner of a box, inside the picture."""
    high = max(size) / 14
    wide = high * (0.55 + 0.45 * len(str(number)))
    x, y = min(max(box.x1, 0.0), size[0] - wide), min(max(box.y1, 0.0), size[1] - high)
    plate = h("rect", x=round(x, 1), y=round(y, 1), width=round(wide, 1), height=round(high, 1), fill="#e8590c")
    text = h(
        "text",
        str(number),
        x=round(x + wide / 2, 1),
        y=round(y + 0.78 * high, 1),
        fill="#ffffff",
        text_anchor="middle",
        font_size=round(0.8 * high, 1),
        font_weight="bold",
    )
    return join(plate, text)


def tick(x: float, y: float, text: str, *, below: bool) -> Html:
    """A number at an axis."""
    anchor, dx, dy = ("middle", 0, 18) if below else ("end", -8, 5)
    return h("text", text, x=x + dx, y=y + dy, fill="var(--soft)", text_anchor=anchor, **FONT)
