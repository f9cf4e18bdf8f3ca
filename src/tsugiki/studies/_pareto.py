"""The page and the plot of a search for weights: what a score gains against what text loses."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsugiki.evals._html import LIGHT, Html, h, join, page
from tsugiki.evals._scatter import Dot, scatter
from tsugiki.evals.tables import between, number
from tsugiki.extras import require
from tsugiki.studies._points import Measured
from tsugiki.types import Score

if TYPE_CHECKING:
    from tsugiki.studies.search import Found

X_LABEL = "largest drop of text, share of its budget"


def front(points: Sequence[Measured]) -> list[Measured]:
    """Those that no other beats in one figure without losing in the other, by the share of the budget."""
    best, kept = -math.inf, []
    for measured in sorted(points, key=lambda m: (m.used, -m.gain)):
        if measured.gain > best and math.isfinite(measured.used):
            kept.append(measured)
            best = measured.gain
    return kept


def png(points: Sequence[Measured], objective: str, chosen: Measured | None) -> bytes:
    """Every point with the interval of its score, the front as a line, the budget's end as another.

    Raises:
        MissingExtraError: the extra `eval` is not installed.
    """
    figures = require("matplotlib.figure", extra="eval")
    figure = figures.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for measured in points:
        if not math.isfinite(measured.used):
            continue
        score, colour = measured.objective, LIGHT["own" if measured.feasible else "bad"]
        axes.plot([measured.used] * 2, _ends(score), color=colour, alpha=0.3)
        axes.plot(measured.used, score.value, "o", color=colour)
        if len(set(measured.point.parts.values()) | {measured.point.beta}) == 1:
            axes.annotate(f"{measured.point.beta:g}", (measured.used, score.value), (5, 4), textcoords="offset points")
    line = front(points)
    axes.plot([m.used for m in line], [m.objective.value for m in line], color=LIGHT["gold"], label="Pareto front")
    axes.axvline(1.0, color=LIGHT["base"], linestyle="--", label="budget")
    if chosen is not None:
        axes.plot(chosen.used, chosen.objective.value, "*", color=LIGHT["gold"], markersize=16, label="chosen")
    axes.set(xlabel=X_LABEL, ylabel=objective)
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()


def page_of(found: Found) -> str:
    """A page without files beside it."""
    body = join(
        h("h1", f"Weights by {found.objective}"),
        h("ul", *(h("li", line) for line in findings(found)), class_="lead"),
        _drawn(found),
        h("h2", "On items that the search did not see") if found.unseen else Html(""),
        _compared(found),
        h("h2", "Part by part: the chosen weights, but one part from one parent alone") if found.ablation else Html(""),
        _ablation(found),
        h("h2", "Points"),
        _points(found),
    )
    return page(f"Weights by {found.objective}", body)


def _drawn(found: Found) -> Html:
    """The same plot, for the page."""
    dots = []
    for m in found.points:
        score, name = m.objective, f"{m.point.beta:g}" if len({*m.point.parts.values(), m.point.beta}) == 1 else ""
        chosen = found.chosen is not None and m.point == found.chosen.point
        colour = "gold" if chosen else "own" if m.feasible else "bad"
        dots.append(Dot(f"{name} chosen".strip() if chosen else name, m.used, score.value, None, _ends(score), colour))
    line = [(m.used, m.objective.value) for m in front(found.points)]
    return scatter(dots, x_label=X_LABEL, y_label=found.objective, bound=1.0, line=line)


def findings(found: Found) -> list[str]:
    """What the search found, in sentences."""
    tried = f"{len(found.points)} points, {sum(m.feasible for m in found.points)} within the budget"
    if found.chosen is None:
        near = found.nearest
        share = f"{near.used:.0%} of it" if math.isfinite(near.used) else "more than can be told"
        return [f"{tried}.", f"No point keeps the budget. The nearest, {near.point}, uses {share}."]
    lines = [f"{tried}.", f"Chosen: {found.chosen.point}; {_said(found.chosen, found.objective)}."]
    lines += [f"Unseen items, {name}: {_said(m, found.objective)}." for name, m in found.unseen.items()]
    return lines


def _said(measured: Measured, objective: str) -> str:
    score = measured.objective
    kept = "kept" if measured.feasible else "broken"
    return f"{objective} {number(score.value)} {between(score.low, score.high)} (n={score.n}), budget {kept}"


def _compared(found: Found) -> Html:
    if not found.unseen:
        return Html("")
    names = list(found.unseen)
    rows = []
    for scores in zip(*(m.scores for m in found.unseen.values()), strict=True):
        cells = [f"{number(s.value)} {between(s.low, s.high)}" for s in scores]
        rows.append([f"{scores[0].task}.{scores[0].metric}", *cells])
    return _table(["score", *names], rows)


def _ablation(found: Found) -> Html:
    """Change of every score against the chosen weights."""
    if found.chosen is None or not found.ablation:
        return Html("")
    chosen = found.chosen.scores
    rows = []
    for part, (first, second) in found.ablation.items():
        for end, measured in (("first", first), ("second", second)):
            changes = [number(b.value - a.value, sign=True) for a, b in zip(chosen, measured.scores, strict=True)]
            rows.append([part, end, *changes])
    return _table(["part", "from the", *(f"{s.task}.{s.metric}" for s in chosen)], rows)


def _points(found: Found) -> Html:
    rows = []
    for measured in found.points:
        score = measured.objective
        used = f"{measured.used:.0%}" if math.isfinite(measured.used) else "∞"
        kept = "yes" if measured.feasible else "no"
        rows.append([str(measured.point), f"{number(score.value)} {between(score.low, score.high)}", used, kept])
    return _table(["weights of the first parent", found.objective, "budget used", "kept"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    head = h("thead", h("tr", *(h("th", cell, scope="col") for cell in header)))
    body = [h("tr", *(h("td", cell, data_label=name) for name, cell in zip(header, row, strict=True))) for row in rows]
    return h("table", head, h("tbody", *body))


def _ends(score: Score) -> tuple[float, float]:
    ends = [score.low if score.low is not None else score.value, score.high if score.high is not None else score.value]
    low, high = (end if math.isfinite(end) else score.value for end in ends)
    return low, high
