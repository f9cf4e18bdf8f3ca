"""From a page with text to a question with its true answer.

What is asked (`TASKS`): to read a text at a box, the value of a field, of a gauge or of a cell, where a text is, all
texts with their boxes ("spotting"), or the whole table as Markdown ("table").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tsugiki.synth.layout import one
from tsugiki.synth.lettering import Written
from tsugiki.synth.pages import Gauge
from tsugiki.synth.phrases import LANGUAGES
from tsugiki.synth.phrases.texts import Texts
from tsugiki.synth.wording import cut, merged
from tsugiki.types import BoxPart, Part, TextPart

TASKS = ("read", "field", "gauge", "cell", "text box", "spotting", "table")
ON_PAGE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "words": ("read", "text box", "spotting"),
        "label": ("read", "text box", "spotting"),
        "nameplate": ("field", "text box", "spotting"),
        "gauge": ("gauge",),
        "table": ("cell", "text box", "table"),
    }
)
"""What a kind of page can be asked."""


@dataclass(frozen=True, slots=True)
class Page:
    """What is written on a picture."""

    kind: str
    texts: Texts
    written: tuple[Written, ...]
    gauge: Gauge | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about a page and its answer."""

    task: str
    kind: str
    """The key of the phrases."""
    form: str
    question: tuple[Part, ...]
    answer: tuple[Part, ...]
    short: str
    """The answer where it is one text, else ""."""
    targets: tuple[int, ...]
    """Which of the page's texts it is about."""


def ask(task: str, page: Page, rng: np.random.Generator) -> Asked:
    """A question of `task`, one of `ON_PAGE` of the page's kind."""
    return _ASKED[task](page, rng)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _read(page: Page, rng: np.random.Generator) -> Asked:
    target = int(rng.integers(len(page.written)))
    text = page.written[target]
    kind = "read" if len(page.written) > 1 else "read all"
    question = _question("read", kind, page, rng, boxes=[text])
    return Asked("read", kind, "short", question, (TextPart(text.text),), text.text, (target,))


def _field(page: Page, rng: np.random.Generator) -> Asked:
    target = _any([i for i, t in enumerate(page.written) if t.role == "value"], rng)
    text = page.written[target]
    question = _question("field", "field", page, rng, {"field": page.texts.fields[text.key]})
    return Asked("field", "field", "short", question, (TextPart(text.text),), text.text, (target,))


def _gauge(page: Page, rng: np.random.Generator) -> Asked:
    assert page.gauge is not None, "the page is a gauge"
    short = f"{page.gauge.value} {page.gauge.unit}"
    return Asked("gauge", "gauge", "short", _question("gauge", "gauge", page, rng), (TextPart(short),), short, ())


def _cell(page: Page, rng: np.random.Generator) -> Asked:
    head = page.texts.item
    target = _any([i for i, t in enumerate(page.written) if t.role == "cell" and t.key != head], rng)
    text = page.written[target]
    question = _question("cell", "cell", page, rng, {"row": text.row, "column": text.key})
    return Asked("cell", "cell", "short", question, (TextPart(text.text),), text.text, (target,))


def _text_box(page: Page, rng: np.random.Generator) -> Asked:
    counts = Counter(t.text for t in page.written)
    target = _any([i for i, t in enumerate(page.written) if counts[t.text] == 1], rng)
    text = page.written[target]
    question = _question("text box", "text box", page, rng, {"text": text.text})
    return Asked("text box", "text box", "boxes", question, (BoxPart(text.box, label=text.text),), "", (target,))


def _spotting(page: Page, rng: np.random.Generator) -> Asked:
    """From the top to the bottom, in a line from the left to the right: as they were written."""
    language = LANGUAGES[page.texts.language]
    parts: list[Part] = []
    for text in page.written:
        parts += [TextPart(("" if not parts else language.separator) + text.text + " ")]
        parts.append(BoxPart(text.box, label=text.text))
    question = _question("spotting", "spotting", page, rng)
    return Asked("spotting", "spotting", "boxes", question, tuple(parts), "", tuple(range(len(page.written))))


def _table(page: Page, rng: np.random.Generator) -> Asked:
    heads = [t.text for t in page.written if t.role == "head"]
    cells = [t.text for t in page.written if t.role == "cell"]
    rows = [cells[i : i + len(heads)] for i in range(0, len(cells), len(heads))]
    question = _question("table", "table", page, rng)
    answer = (TextPart(markdown([heads, *rows])),)
    return Asked("table", "table", "full", question, answer, "", tuple(range(len(page.written))))


_ASKED: Mapping[str, Callable[[Page, np.random.Generator], Asked]] = MappingProxyType(
    {
        "read": _read,
        "field": _field,
        "gauge": _gauge,
        "cell": _cell,
        "text box": _text_box,
        "spotting": _spotting,
        "table": _table,
    }
)


def _question(
    task: str,
    kind: str,
    page: Page,
    rng: np.random.Generator,
    fields: Mapping[str, str] | None = None,
    boxes: Sequence[Written] = (),
) -> tuple[Part, ...]:
    language = LANGUAGES[page.texts.language]
    parts = cut(one(page.texts.questions[kind], rng), fields or {}, [(t.box, None) for t in boxes], language)
    hints = page.texts.hints[task]
    return merged((*parts, TextPart(language.space + one(hints, rng)))) if hints else parts


def _any(indices: Sequence[int], rng: np.random.Generator) -> int:
    return indices[int(rng.integers(len(indices)))]
