"""The page of a comparison: HTML with everything inside, and the same numbers as Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsugiki.errors import ImageError
from tsugiki.evals._charts import picture
from tsugiki.evals._html import Html, h, join, page
from tsugiki.evals._scatter import Dot, scatter
from tsugiki.evals.tables import between, number
from tsugiki.studies import _compare_figures as figures
from tsugiki.studies._compare_figures import Mean
from tsugiki.types import Box

if TYPE_CHECKING:
    from tsugiki.studies.compare import Compared

Run = Mapping[str, Any]
IIT = {"T": ("T",), "VT - T": ("VT", "T"), "V": ("V",), "TTV - V": ("TTV", "V")}
"""Column -> kind of interleaved conversation, or two of them on the same last questions."""
NOTES = (
    "All arms of a seed begin with the same front-end and get the same samples in the same order and as many steps.",
    "Intervals: 95 %, bootstrap of pictures, all questions and seeds of one together; behind them the seeds' values.",
    "Text: loss minus the base's on the same held-out articles, nats a token; 0 where the proof holds. After a picture:"
    " the same articles behind an unrelated picture.",
    "IIT: last questions of conversations, T in words, V about a picture. VT - T is what a picture before a question in"
    " words costs, which exactness does not cover; TTV - V what text before a question about a picture does.",
    "First token, token: median ratio to the bare LLM with as many tokens of text, in interleaved pairs; seeds' mean.",
    "Memory: peak of the training minus what the loaded model takes, of the GPU where there is one; only where each arm"
    " has a process of its own.",
)

LOST = "loss of text minus the base's, nats a token"


def rows(result: Compared) -> list[dict[str, str]]:
    """One row an arm, of texts."""
    names = figures.columns(result.found)
    shown = len(names) > 1
    return [_row(result, name, runs, names if shown else []) for name, runs in result.found.items()]


def _row(result: Compared, name: str, runs: Sequence[Run], columns: Sequence[str]) -> dict[str, str]:
    text, after = figures.text(runs), figures.text(runs, after=True)
    row = {
        "arm": name + (" (as published)" if result.plan.arms[name].published else ""),
        "seeds": ", ".join(str(run["seed"]) for run in runs),
        "pictures": _said(figures.vision(runs)),
        **{column: _said(figures.vision(runs, column)) for column in columns},
        "text": "0, proven" if all(map(figures.proven, runs)) else _said(text, sign=True),
        "text after a picture": _said(after, sign=True),
        **{
            f"IIT {title}": _said(figures.interleaved(runs, *kinds), sign=len(kinds) > 1)
            for title, kinds in IIT.items()
        },
        "proof": _proof(runs),
        "trained": f"{_mean(runs, 'trainable') / 1e6:.2f} M",
        "stored": f"{_mean(runs, 'stored_mb'):.1f} MB",
        "training": f"{_mean(runs, 'seconds'):.0f} s",
        "memory": f"{_mean(runs, 'peak_mb'):.0f} MB" if all(run["peak_mb"] is not None for run in runs) else "",
    }
    for key, title in (("first", "first token"), ("token", "token")):
        timed = [run["speed"][key] for run in runs if run["speed"]]
        row[title] = f"{np.mean([t['ratio'] for t in timed]):.2f}" if timed else ""
    return row


def _said(mean: Mean | None, *, sign: bool = False) -> str:
    """Value, interval, and the seeds."""
    if mean is None:
        return ""
    value = mean.value
    seeds = f" ({', '.join(number(v, sign=sign) for v in mean.seeds)})" if len(mean.seeds) > 1 else ""
    return f"{number(value.value, sign=sign)} {between(value.low, value.high, sign=sign)}{seeds}"


def _mean(runs: Sequence[Run], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


def _proof(runs: Sequence[Run]) -> str:
    said = {
        ("exact: holds" if run["proof"]["holds"] else "exact: DOES NOT HOLD")
        if run["proof"]["guarantee"] == "exact"
        else "measured"
        for run in runs
    }
    return ", ".join(sorted(said))


def pareto(result: Compared) -> Html:
    """A drawing: pictures against what the text lost, each arm with both intervals; without those of which either was
    not measured."""
    dots = []
    for name, runs in result.found.items():
        vision, text = figures.vision(runs), figures.text(runs)
        proven = all(map(figures.proven, runs))
        if vision is None or text is None and not proven:
            continue
        lost = text.value if text is not None else None
        dots.append(
            Dot(
                name,
                lost.value if lost is not None else 0.0,
                vision.value.value,
                (lost.low, lost.high) if lost is not None else None,
                (vision.value.low, vision.value.high),
                "own" if proven else "base",
            )
        )
    return scatter(dots, x_label=LOST, y_label="pictures: share of right answers", bound=0.0)


def html(result: Compared) -> str:
    """The page, without files beside it."""
    title, drawn = result.plan.description or f"Comparison {result.plan.name}".strip(), pareto(result)
    return page(
        title,
        join(
            h("h1", title),
            h("ul", *(h("li", line) for line in _lead(result)), class_="lead"),
            h("h2", "Arms"),
            _table(rows(result)),
            h("ul", *(h("li", note, class_="soft") for note in NOTES)),
            h("h2", "Pictures against text") if drawn else Html(""),
            drawn,
            h("h2", "What was tested") if result.tests else Html(""),
            _table(_tests(result)),
            h("h2", "The same pictures, every arm"),
            _gallery(result),
            h("h2", "What was run"),
            _facts(result),
        ),
    )


def markdown(result: Compared) -> str:
    """The numbers for a repository."""
    title = result.plan.description or f"Comparison {result.plan.name}".strip()
    parts = [f"# {title}", "", *(f"* {line}" for line in _lead(result)), "", *_markdown(rows(result)), ""]
    if result.tests:
        parts += ["## What was tested", "", *_markdown(_tests(result)), ""]
    parts += [*(f"* {note}" for note in NOTES), *(f"* {k}: {v}." for k, v in facts(result).items()), ""]
    return "\n".join(parts)


def _lead(result: Compared) -> list[str]:
    """What was found, then what is missing."""
    lines = figures.findings(result.tests, result.found)
    lines += [f"Not tested, an arm is missing: {t.first} and {t.second}." for t in result.untested]
    lines += [f"{name} failed: {why}" for name, why in result.failed.items()]
    lines += [f"{name} is left out: {why}" for name, why in result.left_out.items()]
    lines += _seeds(result.found)
    if result.waiting:
        lines.append(f"Not run yet: {', '.join(result.waiting)}.")
    return lines or ["No comparison was to be tested."]


def _seeds(found: figures.Found) -> list[str]:
    """Where means are over different seeds, and so not of the same samples."""
    seeds = {name: ", ".join(str(run["seed"]) for run in runs) for name, runs in found.items()}
    if len(set(seeds.values())) < 2:
        return []
    each = "; ".join(f"{name} under {which}" for name, which in seeds.items())
    return [f"Means are over the seeds that an arm has finished, which differ: {each}. Tests use those of both arms."]


def _tests(result: Compared) -> list[dict[str, str]]:
    return [
        {
            "first": t.test.first,
            "second": t.test.second,
            "score": t.test.score or "all pictures",
            "seeds": ", ".join(map(str, t.seeds)),
            "first - second": f"{number(t.difference.value, sign=True)} "
            f"{between(t.difference.low, t.difference.high, sign=True)}",
            "p": f"{t.pvalue:.4f}",
            "Holm": f"{t.corrected:.4f}",
            "told apart": "yes" if t.told_apart else "no",
        }
        for t in result.tests
    ]


def facts(result: Compared) -> dict[str, str]:
    """What was run."""
    plan, first = result.plan, next(iter(result.found.values()))[0]
    about = first["environment"]
    return {
        "base": plan.base,
        "front-end": plan.vision if isinstance(plan.vision, str) else str(plan.vision),
        "shared stage": f"{plan.shared.steps} steps of {plan.budget.batch_size}, rate {plan.shared.rate:g}",
        "each arm": f"{plan.budget.steps} steps of {plan.budget.batch_size}"
        + (" in bf16" if plan.budget.precision == "bf16" else ""),
        "seeds": ", ".join(map(str, plan.seeds)),
        "items": ", ".join(f"{title} {len(items['ids'])}" for title, items in first["items"].items()),
        "versions": ", ".join(f"{k} {about[k]}" for k in ("tsugiki", "torch", "transformers", "python") if k in about),
    }


def _facts(result: Compared) -> Html:
    return h("dl", *(item for k, v in facts(result).items() for item in (h("dt", k), h("dd", v))))


def _gallery(result: Compared) -> Html:
    """A picture once, below it every arm's answer under its first seed."""
    first = {name: runs[0]["shown"] for name, runs in result.found.items()}
    roots = {name: path.parent for name, path in result.plan.data.ask.items()}
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for name, shown in first.items():
        for answer in shown:
            found.setdefault((answer["task"], answer["id"]), {})[name] = answer
    return h("div", *(_figure(title, answers, roots) for (title, _), answers in found.items()), class_="gallery")


def _figure(title: str, answers: Mapping[str, Mapping[str, Any]], roots: Mapping[str, Path]) -> Html:
    one = next(iter(answers.values()))
    root = roots.get(title.rpartition(": ")[0], next(iter(roots.values())))
    drawn = Html("")
    if one["picture"]:
        boxes = [_box(b) for answer in answers.values() for b in answer["boxes"][:1]]
        try:
            drawn = picture(root / one["picture"], boxes, [_box(b) for b in one["gold_boxes"]])
        except (ImageError, OSError) as error:  # a page is written even when a picture has gone since
            drawn = h("p", f"(no picture: {error})", class_="soft")
    lines = [h("p", f"{title}: {one['question']}"), h("p", h("b", "true: ", class_="gold"), one["gold"] or "(nothing)")]
    for name, answer in answers.items():
        mark = h("b", "✓ ", class_="yes") if answer["right"] else h("b", "✗ ", class_="no")
        lines.append(h("p", mark, f"{name}: ", h("span", answer["text"] or "(nothing)", class_="said")))
    return h("figure", drawn, h("figcaption", *lines))


def _box(corners: Sequence[float]) -> Box:
    return Box(*corners)


def _table(content: Sequence[Mapping[str, str]]) -> Html:
    if not content:
        return Html("")
    heads = [key for key in content[0] if any(row.get(key) for row in content)]
    head = h("thead", h("tr", *(h("th", key, scope="col") for key in heads)))
    body = []
    for row in content:
        cells = [h("td", row.get(key, ""), data_label=key, class_="name" if key == heads[0] else None) for key in heads]
        body.append(h("tr", *cells))
    # Wider than a screen it scrolls, by the keyboard too.
    return h("div", h("table", head, h("tbody", *body)), class_="wide", tabindex=0, role="region", aria_label="table")


def _markdown(content: Sequence[Mapping[str, str]]) -> Iterator[str]:
    heads = [key for key in content[0] if any(row.get(key) for row in content)]
    for cells in itertools.chain([heads, ["---"] * len(heads)], ([row.get(k, "") for k in heads] for row in content)):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
