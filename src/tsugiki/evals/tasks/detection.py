"""Detection: which objects are there, and where? Average precision (COCO's AP50 and AP50:95) of free answers.

Samples of the task "detect"; `synth.scenes` makes them (`tasks=["detect"]`). Three protocols:

* list all: the gold answer holds a labelled box for every object; the answer gives label and box for each. A label is
  the words between the box before and its own box, on the same line; it has to equal a category after `vqa.normalise`
  (case, width, punctuation and articles do not count; a plural is another word).
* matched: the same answers, each label taken for the category with the most similar sentence embedding (the asset
  "minilm", English only), however far it is.
* class given: the question names the category (`meta["category"]`), and every box of the answer is one of it; where
  there is none, every box is a false one.

An LLM gives no scores: a box's confidence is the mean probability of the tokens that wrote it. The bare LLM answers
without the picture. Yardsticks give one box a question, of confidence 1: of the asked category, or with the commonest
label of the training answers. The ridge regression does not see which category is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tsugiki.data.boxes import PaddedSquare
from tsugiki.data.images import image_size
from tsugiki.evals import _detect, yardsticks
from tsugiki.evals._boxes import Reply, iou
from tsugiki.evals._detect import Seen
from tsugiki.evals._sentences import Encode, SentenceEncoder, nearest
from tsugiki.evals.free import FreeAnswerer, Spoken
from tsugiki.evals.options import without_pictures
from tsugiki.evals.task import Answer, Clock, Once, Result, Settings, bare_llm, picture_groups, shown_text
from tsugiki.evals.tasks.vqa import normalise
from tsugiki.types import Box, BoxPart, Sample, Score

VERSION = 1
DESCRIPTION = 'samples of the task "detect" whose gold boxes all have a label, or whose meta names the category'

THRESHOLD = 0.5
TOKENS = 40
"""Of a box and its label, in a tokenizer that splits digits."""
MOST = 512
"""Tokens of an answer."""


@dataclass(frozen=True, slots=True)
class Line:
    """What was asked, and the boxes of an answer with their words and confidences."""

    sample: Sample
    reply: Reply
    confidences: tuple[float, ...]

    @property
    def labels(self) -> list[str]:
        return [normalise(words.rpartition("\n")[2]) for words in self.reply.words]

    def seen(self, categories: Sequence[str | None]) -> Seen:
        """With the category of each box; a box of no category is left out."""
        found = zip(categories, self.reply.boxes, self.confidences, strict=True)
        return Seen(_gold(self.sample), tuple((name, box, p) for name, box, p in found if name is not None))


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of the task "detect" with a picture and a gold answer that says of each box what it shows."""
    return [
        s
        for s in samples
        if s.task == "detect" and s.images and s.answer is not None and (category(s) or all(p.label for p in _parts(s)))
    ]


def category(sample: Sample) -> str:
    """What the question asks for; "" where it asks for everything."""
    return str(sample.meta.get("category") or "")


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Ask for the objects, until the time is up.

    Raises:
        AssetError: there are samples that list all, and the sentence encoder can't be had.
    """
    encode = None if all(category(s) for s in samples) else SentenceEncoder()
    most = max(len(_parts(s)) for s in samples)
    tokens = min(MOST, max(settings.max_new_tokens, TOKENS * max(most, 1)))
    options: dict[str, Any] = {"batch_size": settings.batch_size, "max_new_tokens": tokens}
    own = FreeAnswerer(model, features=settings.features, demos=settings.demos, **options)
    llm = bare_llm(model, settings)
    base = None if llm is None else Once(FreeAnswerer(model, llm=llm, **options).spoken)
    codec = model.processor.collator().codec
    lines: list[Line] = []
    blind: list[Line] = []
    answers: list[Answer] = []
    for window in Clock("detection", len(samples), settings).windows(samples, settings.batch_size):
        others = [None] * len(window) if base is None else base([without_pictures(s) for s in window])
        for sample, said, other in zip(window, own.spoken(window), others, strict=True):
            lines.append(_line(sample, said, codec))
            if other is not None:
                blind.append(_line(sample, other, codec))
            answers.append(_answer(lines[-1], said.text, None if other is None else other.text))
    return Result(task="detection", scores=score(lines, blind, settings, encode, model), answers=answers)


def score(
    lines: Sequence[Line], base: Sequence[Line], settings: Settings, encode: Encode | None, model: Any = None
) -> list[Score]:
    """Scores of the three protocols; one without any gold box is left out.

    Args:
        base: the bare LLM's for the same samples, in the same order; empty where it was not asked.
        encode: for the protocol "matched".
    """
    rows = {"list all": [i for i, a in enumerate(lines) if not category(a.sample)]}
    rows |= {"matched": rows["list all"], "class given": [i for i, a in enumerate(lines) if category(a.sample)]}
    names = list(dict.fromkeys(name for i in rows["list all"] for name, _ in _gold(lines[i].sample)))
    named: dict[str, Callable[[Sequence[Line]], list[Seen]]] = {
        "list all": partial(literal, names=names),
        "matched": partial(matched, names=names, encode=encode),
        "class given": lambda asked: [a.seen([normalise(category(a.sample))] * len(a.reply.boxes)) for a in asked],
    }
    scores: list[Score] = []
    for protocol, chosen in rows.items():
        asked = [lines[i] for i in chosen]
        if not any(_gold(a.sample) for a in asked):
            continue
        scores += _detect.scores(
            f"detection/{protocol}",
            named[protocol](asked),
            named[protocol]([base[i] for i in chosen]) if base else None,
            groups=picture_groups([a.sample for a in asked]),
            rivals=_rivals([a.sample for a in asked], settings, model),
            version=VERSION,
        )
    return scores


def literal(lines: Sequence[Line], names: Sequence[str]) -> list[Seen]:
    """Each box with the category that its label equals; others are left out."""
    return [a.seen([label if label in names else None for label in a.labels]) for a in lines]


def matched(lines: Sequence[Line], names: Sequence[str], encode: Encode | None) -> list[Seen]:
    """Each box with the category that its label means most likely; a box without words is left out."""
    assert encode is not None, "there is an encoder wherever all is to be listed"
    labels = [label for a in lines for label in a.labels if label]
    meant = dict(zip(labels, nearest(labels, names, encode), strict=True))
    return [a.seen([meant.get(label) for label in a.labels]) for a in lines]


def _rivals(samples: Sequence[Sample], settings: Settings, model: Any) -> dict[str, list[Seen]]:
    """One box a question: of the category that it names, else with the commonest label."""
    given = bool(category(samples[0]))
    boxes = yardsticks.places("detect", samples, settings, model, keep=lambda s: bool(category(s)) == given)
    if not boxes:
        return {}
    train = [s for s in select(settings.train) if not category(s)]
    label = yardsticks.commonest(name for s in train for name, _ in _gold(s)) or ""
    return {
        rival: [
            Seen(_gold(s), ((normalise(category(s)) or label, box, 1.0),))
            for s, box in zip(samples, found, strict=True)
        ]
        for rival, found in boxes.items()
    }


def _line(sample: Sample, said: Spoken, codec: Any) -> Line:
    reply = Reply.read(said.text, codec, PaddedSquare(*image_size(sample.images[0])))
    return Line(sample, reply, tuple(said.confidence(*span) for span in reply.spans))


def _gold(sample: Sample) -> tuple[tuple[str, Box], ...]:
    return tuple((normalise(category(sample) or str(p.label)), p.box) for p in _parts(sample))


def _parts(sample: Sample) -> list[BoxPart]:
    return [p for p in (sample.answer.parts if sample.answer else ()) if isinstance(p, BoxPart)]


def _answer(line: Line, text: str, base: str | None) -> Answer:
    gold, asked = _gold(line.sample), normalise(category(line.sample))
    found = [(asked or label, box) for label, box in zip(line.labels, line.reply.boxes, strict=True)]
    # For people: as many boxes as objects, and every object has one of its name.
    complete = len(found) == len(gold) and all(
        any(name == label and iou(box, true) >= THRESHOLD for label, box in found) for name, true in gold
    )
    return Answer(
        task="detection",
        sample=line.sample,
        text=text,
        gold=shown_text(line.sample.answer),
        correct=complete,
        base_text=base,
        boxes=line.reply.boxes,
        gold_boxes=tuple(box for _, box in gold),
        numbers=line.reply.numbers,
    )
