"""The formats of the task mix, made from any pictures with named boxes: one conversation format for all of them.

    caption           what is there, in a sentence                             task caption
    grounded caption  the same with a box for each thing                       task caption
    vqa               how many there are, in a word                            task count
    choice            which of four is there, by its letter                    task choice
    rec               a name -> its boxes (referring expression)               task box
    reg               a box -> the name of what is in it                       task naming
    detection         every thing with its box; or all of one name             task detect

Reading, tables and lists of texts with boxes come from `ocr.generate` (tasks read, field, gauge, cell, table, text box,
spotting), keypoints and people's own captions from COCO (`keypoints` here, `data.convert.coco_captions`). What a
question says stands in `phrases`, in each language; coordinates are box parts, which only the codec writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tsugiki.data.boxes import BoxCodec
from tsugiki.data.convert import coco_keypoints
from tsugiki.errors import InputError
from tsugiki.synth import annotated
from tsugiki.synth.annotated import Picture
from tsugiki.synth.layout import one, pick
from tsugiki.synth.phrases import FORMATS as PHRASES
from tsugiki.synth.phrases.base import Phrases
from tsugiki.synth.runs import Weights, weights_of
from tsugiki.synth.wording import Draft, Question, cut, merged, worded
from tsugiki.types import Box, ImagePart, Message, Sample, TextPart

LETTERS = "ABCD"
MOST = 9
"""Things that a question may be about: a language counts so far."""


@dataclass(frozen=True, slots=True)
class _Thing:
    """One box of a picture, as `wording` wants it."""

    box: Box
    label: str
    hue: None = None

    def name(self, language: str) -> str:
        """As it was annotated, in whatever language."""
        return self.label


@dataclass(frozen=True, slots=True)
class _Scene:
    """The things of a picture, from left to right."""

    objects: tuple[_Thing, ...]
    absent: tuple[str, ...]
    whole: bool = True
    """Whether these are all things that were annotated."""

    def of(self, name: str) -> tuple[int, ...]:
        return tuple(i for i, thing in enumerate(self.objects) if thing.label == name)

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(thing.label for thing in self.objects))


def convert(
    path: str | Path,
    *,
    images: str | Path | None = None,
    formats: Weights | None = None,
    languages: Weights = ("en",),
    questions: int = 3,
    seed: int = 0,
    problems: list[InputError] | None = None,
    left_out: Counter[str] | None = None,
) -> list[Sample]:
    """`questions` of different formats about each picture of a COCO file (`.json`), or of samples whose boxes have
    labels (`.jsonl`).

    Args:
        images: folder of COCO's pictures.
        formats: names or weights of `FORMATS`; None = all alike. A picture gets those that it allows.
        languages: names or weights of "en" and "ja"; names of things stay as they were annotated.
        seed: of all choices.
        problems: takes the errors of wrong entries, which are left out; None = the first one is raised.
        left_out: counts what can't be asked for, and why.

    Raises:
        UnknownNameError: an unknown format or language.
        DataError: the file is not what it should be, or holds nothing to ask for.
        BoxError, ImageError: see `data.convert.coco`.
    """
    if seed < 0:
        raise InputError(f"seed {seed}", expected="0 or more", where="formats")
    wrong: list[InputError] = [] if problems is None else problems
    pictures = annotated.read(
        path,
        images=images,
        seed=seed,
        codec=BoxCodec(),
        problems=wrong,
        left_out=Counter() if left_out is None else left_out,
    )
    if problems is None and wrong:
        raise wrong[0]
    weights = weights_of("format", tuple(FORMATS) if formats is None else formats, FORMATS)
    said = weights_of("language", languages, PHRASES)
    samples: list[Sample] = []
    for number, picture in enumerate(pictures):
        samples += make(picture, weights, said, questions, np.random.default_rng((seed, number)))
    return samples


def make(
    picture: Picture,
    formats: Mapping[str, float],
    languages: Mapping[str, float],
    questions: int,
    rng: np.random.Generator,
) -> list[Sample]:
    """At most `questions` samples about one picture, of different formats that it allows."""
    things = [_Thing(box, name) for name, boxes in picture.things.items() for box in boxes]
    scene = _Scene(tuple(sorted(things, key=lambda t: (t.box.x1, t.box.y1))), picture.absent, picture.whole)
    left = {name: weight for name, weight in formats.items() if FORMATS[name].allows(scene)}
    samples: list[Sample] = []
    while left and len(samples) < questions:
        chosen = pick(left, rng)
        del left[chosen]
        phrases = PHRASES[pick(languages, rng)]
        asked = FORMATS[chosen].ask(scene, phrases, rng)
        meta = {"language": phrases.language, "form": asked.form, "kind": asked.kind, "short": asked.short}
        meta |= {"format": chosen, "caption": picture.caption}
        if asked.task == "detect":
            meta["category"] = asked.category
        samples.append(
            Sample(
                id=f"{picture.name}-{chosen.replace(' ', '-')}",
                messages=(
                    Message("user", (ImagePart(picture.source), *asked.question)),
                    Message("assistant", asked.answer),
                ),
                task=asked.task,
                options=asked.options,
                meta=meta,
            )
        )
    return samples


def keypoints(
    path: str | Path, *, images: str | Path | None = None, language: str = "en", seed: int = 0
) -> list[Sample]:
    """The keypoints of a COCO file, asked for in a language; see `data.convert.coco_keypoints`."""
    phrases = PHRASES[language]
    question = one(phrases.questions["keypoints"], np.random.default_rng(seed))
    found = coco_keypoints.convert(path, images=images, question=question, separator=phrases.separator)
    return [replace(s, meta={**s.meta, "language": language, "form": "boxes", "format": "keypoints"}) for s in found]


def _caption(scene: _Scene, phrases: Phrases, rng: np.random.Generator) -> Question:
    return worded("caption", Draft("caption", "caption", _all(scene)), scene, phrases, "full", rng)


def _grounded(scene: _Scene, phrases: Phrases, rng: np.random.Generator) -> Question:
    return worded("caption", Draft("caption", "caption", _all(scene)), scene, phrases, "boxes", rng)


def _count(scene: _Scene, phrases: Phrases, rng: np.random.Generator) -> Question:
    name = one(scene.names, rng)
    targets = scene.of(name)
    number = phrases.numbers[len(targets)]
    fields = {**phrases.fields(name, len(targets)), "number": number}
    return worded("count", Draft("count", "count", targets, fields, number), scene, phrases, "short", rng)


def _choice(scene: _Scene, phrases: Phrases, rng: np.random.Generator) -> Question:
    """One name that is there among some that are not; the answer is its letter."""
    right = one(scene.names, rng)
    names = [right, *(scene.absent[i] for i in rng.permutation(len(scene.absent))[: len(LETTERS) - 1])]
    names = [names[i] for i in rng.permutation(len(names))]
    letters = LETTERS[: len(names)]
    listed = [phrases.words["choice"].format(letter=a, name=n) for a, n in zip(letters, names, strict=True)]
    choices = " ".join(listed)
    text = cut(one(phrases.questions["choice"], rng), {"choices": choices}, [], phrases)
    hint = TextPart((phrases.space or " ") + one(phrases.hints["letter"], rng))
    short = letters[names.index(right)]
    question = merged((*text, hint))
    answer = (TextPart(short),)
    return Question(
        "choice", phrases.language, "short", question, answer, short, tuple(letters), "choice", scene.of(right), ""
    )


def _rec(scene: _Scene, phrases: Phrases, rng: np.random.Generator) -> Question:
    name = one(scene.names, rng)
    targets = scene.of(name)
    draft = Draft("box", "box", targets, phrases.fields(name, len(targets)), forms=("boxes",))
    return worded("box", draft, scene, phrases, "boxes", rng)


def _reg(scene: _Scene, phrases: Phrases, rng: np.random.Generator) -> Question:
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    draft = Draft("naming box", "naming", (index,), phrases.fields(thing.label, 1), thing.label, (), (thing.box,))
    return worded("naming", draft, scene, phrases, "short", rng)


def _detect(scene: _Scene, phrases: Phrases, rng: np.random.Generator) -> Question:
    if scene.whole and rng.random() < 0.5:
        return worded("detect", Draft("detect", "detect", _all(scene)), scene, phrases, "boxes", rng)
    there = not scene.absent or rng.random() < 0.75
    name = one(scene.names if there else scene.absent, rng)
    fields = phrases.fields(name, 1)
    answers, short = ("detect class", "") if there else ("absent", phrases.answers["absent", "short"])
    draft = Draft("detect class", answers, scene.of(name), fields, short, forms=("boxes",), category=name)
    return worded("detect", draft, scene, phrases, "boxes", rng)


def _all(scene: _Scene) -> tuple[int, ...]:
    return tuple(range(len(scene.objects)))


def _any(scene: _Scene) -> bool:
    return bool(scene.objects)


def _few(scene: _Scene) -> bool:
    return 0 < len(scene.objects) <= MOST


@dataclass(frozen=True, slots=True)
class Format:
    """One format."""

    ask: Callable[[_Scene, Phrases, np.random.Generator], Question]
    allows: Callable[[_Scene], bool] = _few
    """Whether a picture can be asked so."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "caption": Format(_caption, lambda scene: scene.whole and _few(scene)),
        "grounded caption": Format(_grounded, lambda scene: scene.whole and _few(scene)),
        "vqa": Format(_count),
        "choice": Format(_choice, lambda scene: _any(scene) and bool(scene.absent)),
        "rec": Format(_rec),
        "reg": Format(_reg, _any),
        "detection": Format(_detect),
    }
)
