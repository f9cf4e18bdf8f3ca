"""From a photograph with defects, or without, to a question with its true answer.

What is asked (`TASKS`): the type, box or severity of a defect, whether there is one, about one that is not there
("absent": asked as any other question, answered "none"), or for all defects ("caption").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tsugiki.synth.flaws import SEVERITIES, TYPES, Damaged
from tsugiki.synth.layout import one, pick
from tsugiki.synth.phrases import DEFECTS
from tsugiki.synth.phrases.base import Phrases
from tsugiki.synth.wording import Draft, Question, worded

TASKS = ("type", "box", "severity", "absent", "presence", "caption")
ON_CLEAN = ("absent", "presence", "caption")
"""What can be asked about a photograph without a defect."""

_ANY = 0.5  # of the questions that could name a type speak of "the defect"
_ANY_ON_CLEAN = 0.8  # more of them where there is none, so that "a defect?" is about as often no as yes


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What all questions of a run have in common."""

    forms: Mapping[str, float]
    """Weights above 0."""
    negatives: float
    """Share of photographs without a defect."""


def ask(task: str, photo: Damaged, language: str, choices: Choices, rng: np.random.Generator) -> Question:
    """A question of `task`. Without a defect it has to be one of `ON_CLEAN`; no two defects may be of one type; the
    task "box" needs the form "boxes"."""
    phrases = DEFECTS[language]
    draft = _ASKED[task](photo, phrases, choices, rng)
    weights = {form: weight for form, weight in choices.forms.items() if form in draft.forms}
    return worded(task, draft, photo, phrases, pick(weights, rng), rng)


def _all(photo: Damaged) -> tuple[int, ...]:
    return tuple(range(len(photo.objects)))


def _type(photo: Damaged, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    index = int(rng.integers(len(photo.objects)))
    target = photo.objects[index]
    name = target.name(phrases.language)
    fields, options = phrases.fields(name, 1), _options("type", phrases)
    if len(photo.objects) == 1:
        return Draft("type", "type", (index,), fields, name, options)
    # A box for a box says nothing, unless nothing else is wanted.
    forms = ("short", "full") if {"short", "full"} & choices.forms.keys() else ("boxes",)
    return Draft("type box", "type", (index,), fields, name, options, (target.box,), forms)


def _box(photo: Damaged, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    targets, name = _all(photo), phrases.object
    if rng.random() >= _ANY:
        targets = (int(rng.integers(len(photo.objects))),)
        name = photo.objects[targets[0]].name(phrases.language)
    return Draft("box", "box", targets, phrases.fields(name, len(targets)), forms=("boxes",))


def _severity(photo: Damaged, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    index = int(rng.integers(len(photo.objects)))
    target = photo.objects[index]
    alone = len(photo.objects) == 1 and rng.random() < _ANY
    severity = phrases.words[target.severity]
    fields = {**phrases.fields(phrases.object if alone else target.name(phrases.language), 1), "severity": severity}
    return Draft("severity", "severity", (index,), fields, severity, _options("severity", phrases))


def _absent(photo: Damaged, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    name = _missing(photo, phrases, rng)
    kinds = [kind for kind, forms in _ABSENT.items() if choices.forms.keys() & set(forms)]
    kind = one([kind for kind in kinds if kind != "type" or not photo.objects], rng)
    if kind == "type":
        name = phrases.object  # the question names none, the answer speaks of any
    options = () if kind == "box" else _options(kind, phrases)
    none = phrases.answers["absent", "short"]
    return Draft(kind, "absent", (), phrases.fields(name, 1), none, options, forms=_ABSENT[kind])


# What is asked about a defect that is not there, and in which forms; "type" on clean photographs alone.
_ABSENT = {"box": ("boxes",), "type": ("short", "full", "boxes"), "severity": ("short", "full", "boxes")}


def _missing(photo: Damaged, phrases: Phrases, rng: np.random.Generator) -> str:
    """The name of a type that is not there; of a clean photograph mostly that of any defect."""
    if not photo.objects and rng.random() < _ANY_ON_CLEAN:
        return phrases.object
    there = {defect.type for defect in photo.objects}
    return phrases.words[one([kind for kind in TYPES if kind not in there], rng)]


def _presence(photo: Damaged, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    options = (phrases.answers["yes", "short"], phrases.answers["no", "short"])
    # With the clean photographs, half of all answers are no.
    no = 0.5 - choices.negatives
    if not photo.objects or rng.random() * (1 - choices.negatives) < no:
        return Draft("presence", "no", (), phrases.fields(_missing(photo, phrases, rng), 1), options[1], options)
    targets, name = _all(photo), phrases.object
    if rng.random() >= _ANY:
        targets = (int(rng.integers(len(photo.objects))),)
        name = photo.objects[targets[0]].name(phrases.language)
    return Draft("presence", "yes", targets, phrases.fields(name, 1), options[0], options)


def _caption(photo: Damaged, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    return Draft("caption", "caption" if photo.objects else "clean", _all(photo))


_ASKED = {
    "type": _type,
    "box": _box,
    "severity": _severity,
    "absent": _absent,
    "presence": _presence,
    "caption": _caption,
}


def _options(kind: str, phrases: Phrases) -> tuple[str, ...]:
    """The closed set of a kind. "none" is always in it: the question may be about what is not there."""
    names = TYPES if kind == "type" else SEVERITIES
    return (*(phrases.words[name] for name in names), phrases.answers["absent", "short"])
