"""What `laws` found, as JSON, PNG and one HTML page without a network."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugiki.data.files import atomic_write
from tsugiki.evals._charts import Curve, curves
from tsugiki.evals._html import Html, h, join, page
from tsugiki.evals.laws import PARTS, TEXT_PARTS, VERSION, Laws, Suggestion, scores
from tsugiki.evals.tables import between, finite, number, records
from tsugiki.extras import require
from tsugiki.types import Score

NAME = "attention"
_LABELS = {"before": "text before the picture", "image": "the picture", "after": "text after the picture"}
_ASKED = {"all": "all positions", "answer": "the positions that predict the answer"}
MEANINGS = {
    "1 - rho, before against after": "0: the same layers read both texts; 2: layers that read one more read the other "
    "less. Higher is closer to the bare LLM, which has 2 by arithmetic, as its attention is all on the two texts; so "
    "it tells little.",
    "1 - rho, text before, against the bare LLM": "How the layers share out attention to the text before the picture. "
    "0: as in the bare LLM; 1: unrelated; 2: the opposite. Lower is closer to the bare LLM.",
    "1 - rho, text after, against the bare LLM": "The same for the text after the picture. Lower is closer to the bare "
    "LLM.",
    "share on pictures": "Of all attention, mean over layers. Lower is closer to the bare LLM, which gets no picture "
    "and has 0; a model that looks has more.",
}
"""Metric of `laws.scores` -> what it means, and which direction is closer to the bare LLM."""
_ADDED = (
    "What a layer adds to the shift against the bare LLM, of both texts. Lower is closer to the bare LLM; the layers "
    "with the highest are suggested for learners. Chosen: how often a layer is among them when conversations are drawn "
    "anew; nearer to 100 % is a surer suggestion."
)
_EXPLAINED = (
    "The share of a layer's attention that goes to each part, mean over heads, queries and conversations. The bare LLM "
    "reads the same text without the picture: for the texts, the nearer the two curves, the closer the model is to it."
)


def write(laws: Laws, suggestion: Suggestion, folder: str | Path, facts: Mapping[str, object] | None = None) -> Path:
    """Write `attention.json`, `attention.png` and `attention.html` to `folder`; returns the page.

    Args:
        facts: what was run, as in other reports.

    Raises:
        MissingExtraError: matplotlib, of the extra `eval`, is not installed; nothing is written.
        StoreError: the disk is full, or the folder can't be written.
    """
    folder, facts = Path(folder), dict(facts or {})
    drawn = png(laws, suggestion)
    content = json.dumps({**record(laws, suggestion), "run": facts}, indent=1, ensure_ascii=False, default=str)
    atomic_write(folder / f"{NAME}.json", content + "\n")
    atomic_write(folder / f"{NAME}.png", drawn)
    atomic_write(folder / f"{NAME}.html", render(laws, suggestion, facts))
    return folder / f"{NAME}.html"


def record(laws: Laws, suggestion: Suggestion) -> dict[str, Any]:
    """Plain JSON values: the scores, each layer's figures, the layers for learners and the rule behind them."""
    own, base = laws.own.mean(0), laws.base.mean(0)
    layers = [
        {
            "layer": i,
            "model": dict(zip(PARTS, own[i].tolist(), strict=True)),
            "bare LLM": {PARTS[part]: float(base[i, part]) for part in TEXT_PARTS},
            "moved": {"value": moved.value, "low": finite(moved.low), "high": finite(moved.high)},
            "chosen": suggestion.chosen[i],
        }
        for i, moved in enumerate(suggestion.moved)
    ]
    return {
        "version": VERSION,
        "conversations": len(laws.samples),
        "queries": laws.queries,
        "scores": records(scores(laws)),
        "rule": suggestion.rule,
        "wings": {"layers": list(suggestion.layers)},
        "layers": layers,
    }


def render(laws: Laws, suggestion: Suggestion, facts: Mapping[str, object]) -> str:
    """The page as text."""
    title = "Where attention goes, layer by layer"
    lead = [
        f"Layers for learners: {_listed(suggestion)}.",
        f"The rule: {suggestion.rule}.",
        f"{len(laws.samples)} conversations; queries: {_ASKED[laws.queries]}.",
    ]
    charts = [
        join(h("h3", f"To {_LABELS[part]}"), curves(lines, x_label="layer", y_label="share of attention"))
        for part, lines in _lines(laws).items()
    ]
    moved = {"model against bare LLM": [(i, m.value) for i, m in enumerate(suggestion.moved)]}
    figures = [h("li", f"{line}. {MEANINGS[s.metric]} {s.note}") for s, line in told(laws)]
    pairs = [item for k, v in facts.items() for item in (h("dt", k), h("dd", str(v)))]
    return page(
        title,
        join(
            h("h1", title),
            h("ul", *(h("li", sentence) for sentence in lead), class_="lead"),
            h("h2", "Shares"),
            h("p", _EXPLAINED, class_="soft"),
            *charts,
            h("h2", "Shift"),
            h("ul", *figures),
            curves(moved, x_label="layer", y_label="added to 1 - rho, both texts"),
            h("h2", "Layers"),
            h("p", _ADDED, class_="soft"),
            _table(laws, suggestion),
            *((h("h2", "What was run"), h("dl", *pairs)) if pairs else ()),
        ),
    )


def told(laws: Laws) -> list[tuple[Score, str]]:
    """Each score, and its value with its interval."""
    return [(s, f"{s.metric}: {number(s.value)} {between(s.low, s.high)}".strip()) for s in scores(laws)]


def png(laws: Laws, suggestion: Suggestion) -> bytes:
    """The same curves as one picture; the suggested layers are shaded."""
    figure = require("matplotlib.figure", extra="eval").Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (part, lines) in zip(grid.flat, _lines(laws).items(), strict=False):
        for name, curve in lines.items():
            axes.plot(*zip(*curve, strict=True), label=name, marker=".")
        axes.set(title=f"attention to {_LABELS[part]}", xlabel="layer", ylabel="share", ylim=(0, None))
        axes.legend()
    last, at = grid.flat[-1], list(range(laws.layers))
    values = [m.value for m in suggestion.moved]
    ends = [[m.value - m.low for m in suggestion.moved], [m.high - m.value for m in suggestion.moved]]
    last.errorbar(at, values, yerr=ends, fmt=".-", capsize=2)
    last.set(title="model against bare LLM, both texts", xlabel="layer", ylabel="added to 1 − rho")
    for axes in grid.flat:
        for i in suggestion.layers:
            axes.axvspan(i - 0.5, i + 0.5, alpha=0.12, color="tab:green", linewidth=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _lines(laws: Laws) -> dict[str, dict[str, Curve]]:
    """Part -> whose attention -> share by layer."""
    found: dict[str, dict[str, Curve]] = {}
    for i, part in enumerate(PARTS):
        found[part] = {"model": list(enumerate(laws.own[..., i].mean(0).tolist()))}
        if i in TEXT_PARTS:
            found[part]["bare LLM"] = list(enumerate(laws.base[..., i].mean(0).tolist()))
    return found


def _listed(suggestion: Suggestion) -> str:
    return ", ".join(map(str, suggestion.layers))


def _table(laws: Laws, suggestion: Suggestion) -> Html:
    heads = ("layer", *PARTS, "before, bare", "after, bare", "added to 1 − rho [95 %]", "chosen")
    own, base = laws.own.mean(0), laws.base.mean(0)
    rows = []
    for i, moved in enumerate(suggestion.moved):
        shares = [number(float(v)) for v in (*own[i], base[i, 0], base[i, 2])]
        name = h("b", f"{i} ✓", class_="yes") if i in suggestion.layers else str(i)
        changed = f"{number(moved.value)} {between(moved.low, moved.high)}"
        texts = (*shares, changed, f"{suggestion.chosen[i]:.0%}")
        cells = [h("td", text, data_label=label) for text, label in zip(texts, heads[1:], strict=True)]
        rows.append(h("tr", h("td", name, class_="name"), *cells))
    return h("table", h("thead", h("tr", *(h("th", label, scope="col") for label in heads))), h("tbody", *rows))
