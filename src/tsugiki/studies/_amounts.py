"""The page, the plot and the figures of a learning curve."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tsugiki.data.files import atomic_write
from tsugiki.evals import report as reports
from tsugiki.evals._charts import Point
from tsugiki.evals._html import LIGHT
from tsugiki.evals.tables import records
from tsugiki.extras import require
from tsugiki.types import Score

Points = Mapping[str, Sequence[Point]]
COLOURS = ("own", "gold", "base", "bad", "other", "soft", "ink")


def write(
    folder: Path,
    title: str,
    scores: Sequence[Score],
    points: Points,
    facts: Mapping[str, object],
    findings: Sequence[str] = (),
) -> None:
    """curve.json, curve.html, curve.md and curve.png in a folder.

    Raises:
        MissingExtraError: the extra `eval` is not installed.
        StoreError: the folder can't be written.
    """
    content = {
        "facts": facts,
        "findings": list(findings),
        "scores": records(scores),
        "points": {side: [asdict(point) for point in line] for side, line in points.items()},
    }
    atomic_write(folder / "curve.json", json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    report = reports.Report(title=title, findings=findings, scores=scores, amounts=points, facts=facts)
    for name in ("curve.html", "curve.md"):
        reports.write(report, folder / name)
    atomic_write(folder / "curve.png", png(points, title))


def png(points: Points, title: str) -> bytes:
    """Each side's figure by amount of data with its 95 % interval, and small rings for the folds.

    Raises:
        MissingExtraError: the extra `eval` is not installed.
    """
    figures = require("matplotlib.figure", extra="eval")
    figure = figures.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    amounts = sorted({point.x for line in points.values() for point in line})
    for i, (side, line) in enumerate(points.items()):
        colour, aside = LIGHT[COLOURS[i % len(COLOURS)]], 0.07 * (i - (len(points) - 1) / 2)
        places = [amounts.index(point.x) + aside for point in line]  # at equal distances, whatever lies between
        axes.plot(places, [point.value for point in line], "o-", color=colour, label=side)
        axes.vlines(places, [point.low for point in line], [point.high for point in line], color=colour, linewidth=2)
        for place, point in zip(places, line, strict=True):
            rings = [place + 0.02] * len(point.parts)
            axes.plot(rings, point.parts, "o", color=colour, fillstyle="none", markersize=4)
    axes.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
    axes.set(xlabel="labelled pictures", ylabel="share of right answers, 95 % interval", ylim=(0, 1.02), title=title)
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()
