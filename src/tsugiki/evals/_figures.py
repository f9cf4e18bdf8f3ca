"""Answers on their pictures, for the report: the boxes drawn, the text beside them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from tsugiki.errors import ImageError
from tsugiki.evals._boxes import lines_of
from tsugiki.evals._charts import picture, svg_uri
from tsugiki.evals._html import Html, h
from tsugiki.evals.task import Answer, shown_text
from tsugiki.types import BoxPart, Sample

TOP = 3
"""Options shown with their probability."""
LONGEST = 2000
"""Characters of an answer that are shown."""
COLOURS = (
    "Boxes: solid orange the answer, dashed blue the true place, white the question. A number is that of the step "
    "where an answer has several lines, else that of the box."
)
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]#|~"})


def choose(answers: Sequence[Answer], n: int) -> list[Answer]:
    """The first `n` answers, in turn from each task and kind of question; they come in random order."""
    kinds: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        kinds.setdefault((answer.task, answer.sample.task), []).append(answer)
    turns = itertools.zip_longest(*kinds.values())
    return [a for turn in turns for a in turn if a is not None][:n]


def figure(answer: Answer) -> Html:
    """A figure of the page."""
    mark = h("b", "✓ ", class_="yes") if answer.correct else h("b", "✗ ", class_="no")
    lines = [h("p", f"{answer.task}, {answer.sample.task}: {_question(answer.sample)}"), *_said(answer, mark)]
    if not answer.correct:
        lines.append(h("p", h("b", "true: ", class_="gold"), answer.gold or "(nothing)"))
    if answer.base_text is not None:
        lines.append(h("p", h("b", "bare LLM, no picture: ", class_="base"), _cut(answer.base_text) or "(nothing)"))
    likely = sorted(answer.probabilities.items(), key=lambda item: -item[1])[:TOP]
    if likely:
        bars = itertools.chain.from_iterable((h("span", o), h("span", f"{100 * p:.1f} %")) for o, p in likely)
        lines.append(h("div", *bars, class_="bar"))
    return h("figure", _picture(answer), h("figcaption", *lines))


def markdown(answer: Answer) -> str:
    """A figure of the Markdown page, ending with a blank line: the picture is inside as a data URI."""
    shown = _picture(answer)
    lines = [f"![picture]({svg_uri(shown)})"] if shown.startswith("<svg") else []
    lines.append(f"{plain(f'{answer.task}, {answer.sample.task}')}: {plain(_question(answer.sample))}")
    steps = lines_of(_cut(answer.text))
    mark = "✓" if answer.correct else "✗"
    if len(steps) > 1:
        lines.append("\n".join([mark, "", *(f"{i}. {plain(step)}" for i, step in enumerate(steps, 1))]))
    else:
        lines.append(f"{mark} **{plain(_cut(answer.text)) or '(nothing)'}**")
    if not answer.correct:
        lines.append(f"true: {plain(answer.gold) or '(nothing)'}")
    if answer.base_text is not None:
        lines.append(f"bare LLM, no picture: {plain(_cut(answer.base_text)) or '(nothing)'}")
    return "\n\n".join(lines) + "\n\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return escape(" ".join(text.split()), quote=False).translate(_SPECIAL)


def _said(answer: Answer, mark: Html) -> list[Html]:
    """The answer; its lines as numbered steps where there are several."""
    text = _cut(answer.text)
    steps = lines_of(text)
    if len(steps) < 2:
        return [h("p", mark, h("span", text or "(nothing)", class_="said"))]
    return [h("p", mark), h("ol", *(h("li", step) for step in steps), class_="said")]


def _picture(answer: Answer) -> Html:
    if not answer.sample.images:
        return Html("")
    try:
        asked = [p.box for m in answer.sample.prompt for p in m.parts if isinstance(p, BoxPart)]
        return picture(answer.sample.images[0], answer.boxes, answer.gold_boxes, asked, answer.numbers)
    except ImageError as error:  # a report is written even when a picture has gone since
        return h("p", f"(no picture: {error})", class_="soft")


def _question(sample: Sample) -> str:
    last = next((m for m in reversed(sample.prompt) if m.role == "user"), None)
    text = shown_text(last)
    return text if len(text) <= 240 else text[:239] + "…"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
