"""The report: one HTML or Markdown file with everything inside, for someone who was not there.

What is first is what was found; then scores with intervals beside the bare LLM and the yardsticks, answers on pictures
(drawn at random, right and wrong), loss curves, and the proof in plain words. No script, nothing loaded. The pictures
of the Markdown are data URIs: editors and converters show them, GitHub does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tsugiki.data.files import atomic_write
from tsugiki.evals import _figures
from tsugiki.evals._charts import Curve, Point, curves, interval, points, svg_uri
from tsugiki.evals._figures import choose, plain
from tsugiki.evals._html import Html, h, join, page
from tsugiki.evals.calibration import confidences, reject_curve, reliability
from tsugiki.evals.tables import HEADINGS, cells, markdown, number
from tsugiki.evals.task import Answer
from tsugiki.types import Proof, Score

TITLES = {
    "decisions": "Choosing among given answers",
    "vqa": "Answering freely, word for word",
    "grounding": "Finding the place",
    "detection": "Finding everything",
    "captions": "Captions",
    "counting": "Counting",
    "matching": "Telling a true caption from a false one",
    "absent": "Saying what is not there",
    "wiki": "Text kept: loss on articles",
    "title_choice": "Text kept: choosing a title",
    "next_sentence": "Text kept: choosing the next sentence",
    "answers": "Text kept: whole answers",
    "wiki@picture": "Text after an unrelated picture: loss on articles",
    "title_choice@picture": "Text after an unrelated picture: choosing a title",
    "next_sentence@picture": "Text after an unrelated picture: choosing the next sentence",
    "answers@picture": "Text after an unrelated picture: whole answers",
}


AMOUNTS = "Dots with their 95 % interval over pictures; rings: each fold by itself."


@dataclass(frozen=True, kw_only=True)
class Report:
    """What goes into the page. Everything but the title may be left out."""

    title: str
    findings: Sequence[str] = ()
    """Sentences for the top."""
    scores: Sequence[Score] = ()
    answers: Sequence[Answer] = ()
    """In random order: the first ones of each kind are shown."""
    losses: Mapping[str, Curve] = field(default_factory=dict)
    """Name of a curve -> (step, loss)."""
    amounts: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    """Name of a line -> a figure by amount of data."""
    proof: Proof | None = None
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    """Where there are several models: name -> proof."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What was run: base, graft, data, seconds, versions, licences."""
    pictures: int = 24
    """How many answers are shown."""
    language: str = "en"


def write(report: Report, path: str | Path) -> Path:
    """Write the page, whole or not at all; as Markdown where the name ends in .md.

    Raises:
        StoreError: the disk is full, or the folder can't be written.
    """
    path = Path(path)
    atomic_write(path, render_markdown(report) if path.suffix.lower() == ".md" else render(report))
    return path


def render(report: Report) -> str:
    """The page as text."""
    parts = [h("h1", report.title)]
    if report.findings:
        parts.append(h("ul", *(h("li", f) for f in report.findings), class_="lead"))
    sections = (
        _scores(report.scores),
        _amounts(report.amounts),
        _calibration(report.answers),
        _answers(report),
        _losses(report.losses),
        _proof(report.proof),
        *(_proof(proof, name) for name, proof in report.proofs.items()),
        _facts(report.facts),
    )
    return page(report.title, join(*parts, *sections), language=report.language)


def render_markdown(report: Report) -> str:
    """The page as Markdown."""
    parts = [f"# {plain(report.title)}\n\n"]
    if report.findings:
        parts += [*(f"* {plain(finding)}\n" for finding in report.findings), "\n"]
    if report.scores:
        notes = [f"* {plain(f'{s.task}, {s.metric}: {s.note}')}\n" for s in report.scores if s.note]
        parts += [f"## Scores\n\n{markdown(report.scores)}\n", *notes, "\n" if notes else ""]
    if drawn := points(report.amounts):
        parts.append(f"## By amount of data\n\n![{AMOUNTS}]({svg_uri(drawn)})\n\n{AMOUNTS}\n\n")
    if shown := choose(report.answers, report.pictures):
        parts += [f"## Answers\n\n{_drawn(report, shown)}\n\n", *map(_figures.markdown, shown)]
    if drawn := curves(report.losses):
        parts.append(f"## Training\n\n![loss]({svg_uri(drawn)})\n\n")
    proofs = {"": report.proof, **report.proofs} if report.proof is not None else dict(report.proofs)
    for name, proof in proofs.items():
        assert proof is not None
        words = " ".join(proof_in_words(proof))
        parts.append(f"## {plain(_proof_title(name))}\n\n{plain(words)} SHA-256: {proof.sha256 or 'none'}\n\n")
    if report.facts:
        parts += ["## What was run\n\n", *(f"* {plain(k)}: {plain(_fact(v))}\n" for k, v in report.facts.items())]
    return "".join(parts)


def _scores(scores: Sequence[Score]) -> Html:
    if not scores:
        return Html("")
    explained = h(
        "p",
        "Every figure with its 95 % interval. ",
        h("b", "●", class_="yes"),
        " model, ",
        h("b", "|", class_="base"),
        " bare LLM: the same questions without the picture, ",
        h("b", "|", class_="gold"),
        " yardsticks: simple learners on the same features and training pictures (probe: logistic regression; k-NN: "
        "vote of the nearest pictures; ridge: box regression; constant: always the same answer). A difference is "
        "paired over the same items; where its interval holds 0, these items do not tell the two apart.",
        class_="soft",
    )
    parts = [h("h2", "Scores"), explained, _table([s for s in scores if not is_detail(s)])]
    details = [s for s in scores if is_detail(s)]
    if details:
        parts.append(h("details", h("summary", f"{len(details)} more figures"), _table(details)))
    return join(*parts)


def is_detail(score: Score) -> bool:
    """Figures that are folded away: classes, sizes, and the lesser yardsticks."""
    parts = score.metric.startswith(("recall of ", "centre hit", "mean IoU")) or score.metric.endswith(
        tuple(f"Acc@0.5 {size}" for size in ("small", "medium", "large"))
    )
    return parts or score.metric.endswith((" minus constant", " minus k-NN"))


def _table(scores: Sequence[Score]) -> Html:
    head = h("thead", h("tr", *(h("th", t, scope="col") if t else h("td") for t in (HEADINGS[1], "", *HEADINGS[2:]))))
    rows = []
    for task, group in itertools.groupby(scores, key=lambda s: s.task):
        rows.append(h("tr", h("th", heading(task), colspan=len(HEADINGS), scope="rowgroup"), class_="group"))
        rows += [_row(s) for s in group]
    return h("table", head, h("tbody", *rows))


def heading(task: str) -> str:
    """A task's name for people: "decisions/naming" -> "Choosing among given answers: naming"."""
    name, _, kind = task.partition("/")
    return ": ".join(filter(None, (TITLES.get(name, name), kind)))


def _row(score: Score) -> Html:
    _, name, *figures = cells(score)
    note = h("div", score.note, class_="soft") if score.note else ""
    rivals = [h("span", f"{k} {number(v)} ", class_="whole") for k, v in score.yardsticks.items()]
    columns = [
        h("td", *(rivals if label == "yardsticks" else [t.replace(", ", ",\u00a0")]), data_label=label)
        if t
        else h("td")
        for t, label in zip(figures, HEADINGS[2:], strict=True)
    ]
    quiet = None if score.informative else "quiet"
    return h("tr", h("td", name, note, class_="name"), h("td", interval(score)), *columns, class_=quiet)


def _calibration(answers: Sequence[Answer]) -> Html:
    """Accuracy by confidence, and when unsure answers are left out, of closed decisions."""
    kinds: dict[str, list[Answer]] = {}
    for a in answers:
        if a.probabilities and a.task == "decisions":
            kinds.setdefault(a.sample.task, []).append(a)
    trusted: dict[str, Curve] = {}
    kept: dict[str, Curve] = {}
    for kind, group in kinds.items():
        sure = confidences([a.probabilities for a in group])
        right = np.array([a.correct for a in group], dtype=np.float64)
        trusted[kind] = [(b.confidence, b.accuracy) for b in reliability(sure, right)]
        kept[kind] = reject_curve(sure, right)
    if not kinds:
        return Html("")
    return join(
        h("h2", "How far to trust a probability"),
        h(
            "p",
            "Where probabilities are true, accuracy equals confidence. Below: the least sure answers left out first.",
        ),
        curves({"true": [(0.0, 0.0), (1.0, 1.0)], **trusted}, x_label="confidence", y_label="accuracy"),
        curves(kept, x_label="share answered", y_label="accuracy"),
    )


def _answers(report: Report) -> Html:
    shown = choose(report.answers, report.pictures)
    if not shown:
        return Html("")
    figures = h("div", *map(_figures.figure, shown), class_="gallery")
    return join(h("h2", "Answers"), h("p", _drawn(report, shown), class_="soft"), figures)


def _drawn(report: Report, shown: Sequence[Answer]) -> str:
    right = sum(a.correct for a in report.answers)
    return (
        f"{len(shown)} of {len(report.answers)} answers, drawn at random from every kind of question; "
        f"{right} of all are right. {_figures.COLOURS}"
    )


def _amounts(amounts: Mapping[str, Sequence[Point]]) -> Html:
    drawn = points(amounts)
    return join(h("h2", "By amount of data"), h("p", AMOUNTS, class_="soft"), drawn) if drawn else Html("")


def _losses(losses: Mapping[str, Curve]) -> Html:
    drawn = curves(losses)
    return join(h("h2", "Training"), drawn) if drawn else Html("")


def _proof(proof: Proof | None, name: str = "") -> Html:
    if proof is None:
        return Html("")
    words = [h("p", sentence) for sentence in proof_in_words(proof)]
    checks = [
        h("li", h("b", "✓" if c.holds else "✗", class_="yes" if c.holds else "no"), h("b", c.name), f" {c.detail}")
        for c in proof.checks
    ]
    seal = h("p", "SHA-256 of this proof: ", h("code", proof.sha256 or "none"), class_="soft")
    return join(h("h2", _proof_title(name)), *words, h("ul", *checks, class_="checks"), seal)


def _proof_title(name: str) -> str:
    return "Proof about the text" + (f": {name}" if name else "")


def proof_in_words(proof: Proof) -> list[str]:
    """What the proof says and what it does not say."""
    name = str(proof.base.get("name") or proof.base.get("path") or "the base LLM")
    if proof.guarantee == "exact" and proof.holds:
        first = (
            f"A question without a picture gets the answer of {name}, token for token. This was checked, not assumed: "
            f"every weight of the LLM against its source, the logits of {proof.prompts} prompts bit for bit, and "
            f"{proof.answers} whole answers."
        )
    elif proof.guarantee == "exact":
        first = f"This model does NOT answer like {name} on text: a check below failed. Do not use it in its place."
    elif proof.holds:
        first = f"The weights of {name} were changed by training: what this did to its text is measured, not proven."
    else:
        first = f"The weights of {name} were changed, and a check below failed."
    second = "Once a picture has entered a conversation, text answers are measured, not proven."
    prefix = (
        "Words before the first picture are read exactly as by the base." if proof.prefix_exact and proof.holds else ""
    )
    return [s for s in (first, second, prefix, proof.note) if s]


def _facts(facts: Mapping[str, object]) -> Html:
    if not facts:
        return Html("")
    pairs = [item for k, v in facts.items() for item in (h("dt", k), h("dd", _fact(v)))]
    return join(h("h2", "What was run"), h("dl", *pairs))


def _fact(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
