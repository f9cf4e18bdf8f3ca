"""From what is asked to words: templates filled, cut at their boxes, the answer's form stated in the question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tsugiki.synth.layout import one
from tsugiki.synth.phrases.base import BOX, Phrases
from tsugiki.types import Box, BoxPart, Part, TextPart


class Thing(Protocol):
    """What a picture shows, as far as sentences need it."""

    @property
    def box(self) -> Box: ...

    @property
    def hue(self) -> str | None:
        """A colour that lists name: a key of `Phrases.colours`."""

    def name(self, language: str) -> str: ...


class Picture(Protocol):
    """A scene, or anything else with things on it."""

    @property
    def objects(self) -> Sequence[Thing]: ...


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a scene and its answer."""

    task: str
    language: str
    form: str
    question: tuple[Part, ...]
    answer: tuple[Part, ...]
    short: str
    """The answer as a word or two, whatever the form; "" for boxes and captions."""
    options: tuple[str, ...]
    """Closed set of short answers, only where the form is "short"."""
    kind: str
    """What exactly is asked: the key of the phrases."""
    targets: tuple[int, ...]
    """Which of the scene's objects it is about."""
    category: str
    """The name that a detection question asks for; "" where it asks for all."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A question before it is put into words."""

    kind: str
    answers: str
    """First key of the answer's template."""
    targets: tuple[int, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    short: str = ""
    options: tuple[str, ...] = ()
    asked: tuple[Box, ...] = ()
    """Boxes that the question itself shows."""
    forms: tuple[str, ...] = ("short", "full", "boxes")
    category: str = ""


def worded(task: str, draft: Draft, scene: Picture, phrases: Phrases, form: str, rng: np.random.Generator) -> Question:
    """The draft as a question that states the form of its answer, and the answer; the phrases are drawn at random."""
    only = draft.kind == "detect class" or (form == "boxes" and draft.kind == "box" and rng.random() < 0.7)
    hint = _hint(task, draft.kind, form, only)
    parts = cut(one(phrases.questions[draft.kind], rng), draft.fields, [(box, None) for box in draft.asked], phrases)
    question = merged((*parts, TextPart(phrases.space + one(phrases.hints[hint], rng))))
    targets = [scene.objects[i] for i in draft.targets]
    marked = [(o.box, o.name(phrases.language)) for o in targets]
    if draft.answers == "caption":
        answer = cut(phrases.answers["caption", form], {"things": _things(scene, phrases, form)}, marked, phrases)
    elif draft.answers == "detect":
        items = [phrases.answers["detect item", form].format(name=name, box=BOX) for _, name in marked]
        answer = cut("{things}", {"things": phrases.separator.join(items)}, marked, phrases)
    elif only and draft.targets:
        answer = cut("{boxes}", {"boxes": phrases.space.join([BOX] * len(marked))}, marked, phrases)
    else:
        template = phrases.answers[draft.answers, "boxes only" if only else form]
        answer = cut(template, draft.fields, marked, phrases)
    options = draft.options if form == "short" else ()
    return Question(
        task, phrases.language, form, question, answer, draft.short, options, draft.kind, draft.targets, draft.category
    )


def _hint(task: str, kind: str, form: str, only: bool) -> str:
    """Which hint states the form. "Where is ...? Answer with boxes." means boxes alone; other answers need more
    words."""
    if only:
        return "boxes only"
    if form == "boxes" and kind in ("place", "box"):
        return "sentence with boxes"
    if kind == "detect":
        return "names and boxes"
    return {"presence": "yes or no", "caption": "briefly"}.get(task, form) if form == "short" else form


def _things(scene: Picture, phrases: Phrases, form: str) -> str:
    """The objects of a scene as a list; equal ones are counted, but in the form "boxes" each has a place for its
    box."""
    if form == "boxes":
        template = phrases.answers["caption item", "boxes"]
        said = [
            template.format(thing=phrases.thing(o.name(phrases.language), _said(o, phrases), 1), box=BOX)
            for o in scene.objects
        ]
        return phrases.join(said)
    groups = Counter((o.name(phrases.language), _said(o, phrases)) for o in scene.objects)
    return phrases.join([phrases.thing(name, colour, count) for (name, colour), count in groups.items()])


def _said(item: Thing, phrases: Phrases) -> str | None:
    return phrases.colours[item.hue] if item.hue else None


def cut(
    template: str, fields: Mapping[str, str], boxes: Sequence[tuple[Box, str | None]], phrases: Phrases
) -> tuple[Part, ...]:
    """Fill a template, then cut it at its box places; `boxes` are those with their labels, in order."""
    marks = {"box": BOX, "boxes": phrases.join([BOX] * len(boxes)) if boxes else ""}
    pieces = template.format(**{**marks, **fields}).split(BOX)
    parts: list[Part] = []
    for piece, box in zip(pieces, [*boxes[: len(pieces) - 1], None], strict=True):
        if piece:
            parts.append(TextPart(piece))
        if box is not None:
            parts.append(BoxPart(box[0], label=box[1]))
    return tuple(parts)


def merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbouring texts as one part."""
    merged: list[Part] = []
    for part in parts:
        if merged and isinstance(part, TextPart) and isinstance(merged[-1], TextPart):
            merged[-1] = TextPart(merged[-1].text + part.text)
        else:
            merged.append(part)
    return tuple(merged)
