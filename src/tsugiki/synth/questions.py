"""From a scene to a question with its true answer: text and box parts in one of the languages.

What is asked (`TASKS`): the name, colour, number, place (one of nine cells) or box of an object, whether one is there,
about one that is not there ("absent": asked as any other question, answered "none"), or for a caption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tsugiki.synth.layout import Scene, one, pick
from tsugiki.synth.phrases import LANGUAGES
from tsugiki.synth.phrases.base import CELLS, Phrases
from tsugiki.synth.pictograms import Pictogram
from tsugiki.synth.wording import Draft, Question, worded

TASKS = ("naming", "colour", "count", "place", "box", "absent", "presence", "caption")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What all questions of a run have in common."""

    pictograms: tuple[Pictogram, ...]
    forms: Mapping[str, float]
    """Weights above 0."""
    options: int | None = 25
    """How many names a naming question offers; None = all."""
    largest: int = 3
    """Most objects on a scene: what count questions offer, and "none"."""


def ask(task: str, scene: Scene, language: str, choices: Choices, rng: np.random.Generator) -> Question:
    """A question of `task` about `scene`. The scene has to allow it: "colour" and "place" need `compose(single=True)`,
    "colour" also `compose(colour=True)`; the task "box" needs the form "boxes"."""
    phrases = LANGUAGES[language]
    draft = _ASKED[task](scene, phrases, choices, rng)
    weights = {form: weight for form, weight in choices.forms.items() if form in draft.forms}
    return worded(task, draft, scene, phrases, pick(weights, rng), rng)


# --- what is asked, one function per task ---


def _singles(scene: Scene) -> list[int]:
    """Objects that are the only one of their name."""
    counts = Counter(o.pictogram.code for o in scene.objects)
    return [i for i, o in enumerate(scene.objects) if counts[o.pictogram.code] == 1]


def _any(indices: Sequence[int], rng: np.random.Generator) -> int:
    return indices[int(rng.integers(len(indices)))]


def _name(scene: Scene, index: int, phrases: Phrases) -> str:
    return scene.objects[index].name(phrases.language)


def _naming(scene: Scene, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    index = int(rng.integers(len(scene.objects)))
    target = scene.objects[index]
    name = _name(scene, index, phrases)
    fields = {**phrases.fields(name, 1), "at": phrases.at[target.cell]}
    options = _name_options(scene, index, phrases, choices, rng)
    alone = sum(o.cell == target.cell for o in scene.objects) == 1
    if len(scene.objects) == 1:
        return Draft("naming", "naming", (index,), fields, name, options)
    if alone and rng.random() < 0.5:
        return Draft("naming at", "naming", (index,), fields, name, options)
    # A box for a box says nothing, unless nothing else is wanted.
    forms = ("short", "full") if {"short", "full"} & choices.forms.keys() else ("boxes",)
    return Draft("naming box", "naming", (index,), fields, name, options, (target.box,), forms)


def _name_options(
    scene: Scene, index: int, phrases: Phrases, choices: Choices, rng: np.random.Generator
) -> tuple[str, ...]:
    """All names in the table's order; or as many as wanted, with those of all objects on the scene among them."""
    names = [p.name(phrases.language) for p in choices.pictograms]
    wanted = len(names) if choices.options is None else choices.options
    if wanted >= len(names):
        return tuple(names)
    gold = _name(scene, index, phrases)
    there = {o.pictogram.name(phrases.language) for o in scene.objects} - {gold}
    kept = [gold, *(name for name in names if name in there)][:wanted]
    others = [name for name in names if name not in kept]
    kept += [others[i] for i in rng.permutation(len(others))[: wanted - len(kept)]]
    return tuple(kept[i] for i in rng.permutation(len(kept)))


def _colour(scene: Scene, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    index = _any([i for i in _singles(scene) if scene.objects[i].hue], rng)
    colour = phrases.colours[scene.objects[index].hue or ""]
    fields = {**phrases.fields(_name(scene, index, phrases), 1), "colour": colour}
    return Draft("colour", "colour", (index,), fields, colour, _options("colour", phrases, choices))


def _count(scene: Scene, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    if len(scene.objects) > 1 and rng.random() < 0.4:
        kind, targets, name = "count all", tuple(range(len(scene.objects))), phrases.object
    else:
        counts = Counter(o.pictogram.code for o in scene.objects)
        most = max(counts.values())
        # Where something is there twice, that is asked for half the time: "one" would be the usual answer otherwise.
        several = [code for code, count in counts.items() if count == most]
        codes = several if rng.random() < 0.5 else list(counts)
        code = codes[int(rng.integers(len(codes)))]
        targets = tuple(i for i, o in enumerate(scene.objects) if o.pictogram.code == code)
        kind, name = "count", _name(scene, targets[0], phrases)
    number = phrases.numbers[len(targets)]
    fields = {**phrases.fields(name, len(targets)), "number": number}
    return Draft(kind, "count", targets, fields, number, _options("count", phrases, choices))


def _place(scene: Scene, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    index = _any(_singles(scene), rng)
    cell = scene.objects[index].cell
    fields = {**phrases.fields(_name(scene, index, phrases), 1), "place": phrases.places[cell], "at": phrases.at[cell]}
    return Draft("place", "place", (index,), fields, phrases.places[cell], _options("place", phrases, choices))


def _box(scene: Scene, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    code = scene.objects[int(rng.integers(len(scene.objects)))].pictogram.code
    targets = tuple(i for i, o in enumerate(scene.objects) if o.pictogram.code == code)
    return Draft(
        "box", "box", targets, phrases.fields(_name(scene, targets[0], phrases), len(targets)), forms=("boxes",)
    )


def _absent(scene: Scene, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    name = _missing(scene, choices, rng).name(phrases.language)
    kind = one([kind for kind, forms in _ABSENT.items() if choices.forms.keys() & set(forms)], rng)
    options = () if kind == "box" else _options(kind, phrases, choices)
    none = phrases.answers["absent", "short"]
    return Draft(kind, "absent", (), phrases.fields(name, 1), none, options, forms=_ABSENT[kind])


# What is asked about something that is not there, and in which forms.
_ABSENT = {
    "colour": ("short", "full"),
    "count": ("short", "full", "boxes"),
    "place": ("short", "full", "boxes"),
    "box": ("boxes",),
}


def _missing(scene: Scene, choices: Choices, rng: np.random.Generator) -> Pictogram:
    there = {o.pictogram.code for o in scene.objects}
    missing = [p for p in choices.pictograms if p.code not in there]
    return missing[int(rng.integers(len(missing)))]


def _presence(scene: Scene, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    options = (phrases.answers["yes", "short"], phrases.answers["no", "short"])
    if rng.random() < 0.5:
        fields = phrases.fields(_missing(scene, choices, rng).name(phrases.language), 1)
        return Draft("presence", "no", (), fields, options[1], options)
    code = scene.objects[int(rng.integers(len(scene.objects)))].pictogram.code
    targets = tuple(i for i, o in enumerate(scene.objects) if o.pictogram.code == code)
    return Draft("presence", "yes", targets, phrases.fields(_name(scene, targets[0], phrases), 1), options[0], options)


def _caption(scene: Scene, phrases: Phrases, choices: Choices, rng: np.random.Generator) -> Draft:
    return Draft("caption", "caption", tuple(range(len(scene.objects))))


_ASKED = {
    "naming": _naming,
    "colour": _colour,
    "count": _count,
    "place": _place,
    "box": _box,
    "absent": _absent,
    "presence": _presence,
    "caption": _caption,
}


def _options(kind: str, phrases: Phrases, choices: Choices) -> tuple[str, ...]:
    """The closed set of a kind. "none" is always in it: the question may be about something that is not there."""
    none = phrases.answers["absent", "short"]
    if kind == "colour":
        return (*phrases.colours.values(), none)
    if kind == "count":
        return (*phrases.numbers[1 : choices.largest + 1], none)
    return (*(phrases.places[cell] for cell in CELLS), none)
