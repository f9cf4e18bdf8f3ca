"""Pairs of captions of which one is true and the other has a single attribute swapped, about pictures of scenes.

`evals.tasks.matching` scores them. Swapped is the name, colour or number of one thing in a list of all, or the place of
one thing that is alone of its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tsugiki.synth.layout import one
from tsugiki.synth.phrases.base import CELLS
from tsugiki.synth.shown import Shown, pictures
from tsugiki.types import Message, Sample

SWAPPED = ("name", "colour", "count", "place")

Group = tuple[str, str | None]


def pairs(samples: Sequence[Sample], *, seed: int = 0) -> list[Sample]:
    """For each picture one pair for every attribute that it allows.

    Args:
        samples: of scenes; each picture counts once in each language.
        seed: of what is swapped for what, and of the order of the options.

    Raises:
        DataError: no sample says what its picture shows.
    """
    shown = pictures(samples)
    names = {s.phrases.language: sorted({s.name(o) for t in shown if t.phrases is s.phrases for o in t.objects})
             for s in shown}  # fmt: skip
    made = []
    for number, picture in enumerate(shown):
        rng = np.random.default_rng((seed, number))
        for kind in SWAPPED:
            true_false = _swapped(kind, picture, names[picture.phrases.language], rng)
            if true_false is not None:
                made.append(_sample(f"matching-{seed}-{number:06d}-{kind}", kind, picture, true_false, rng))
    return made


def _sample(name: str, kind: str, shown: Shown, pair: tuple[str, str], rng: np.random.Generator) -> Sample:
    phrases = shown.phrases
    question = phrases.space.join((phrases.questions["caption"][0], phrases.hints["full"][0]))
    options = pair if rng.random() < 0.5 else (pair[1], pair[0])
    messages = (Message.of("user", question, (shown.image,)), Message.of("assistant", pair[0]))
    return Sample(name, messages, task="matching", options=options, meta={**shown.meta, "swapped": kind})


def _swapped(kind: str, shown: Shown, names: Sequence[str], rng: np.random.Generator) -> tuple[str, str] | None:
    """(true caption, the one with `kind` swapped); None where the picture does not allow it."""
    if kind == "place":
        return _place(shown, rng)
    groups = Counter((shown.name(o), shown.hue(o)) for o in shown.objects)
    listed = list(groups)
    able = [g for g in listed if kind != "colour" or g[1] is not None]
    if not able:
        return None
    group = able[int(rng.integers(len(able)))]
    changed, count = group, groups[group]
    if kind == "name":
        others = [n for n in names if n not in {name for name, _ in listed}]
        if not others:
            return None
        changed = (one(others, rng), group[1])
    elif kind == "colour":
        taken = {hue for name, hue in listed if name == group[0]}
        changed = (group[0], one([c for c in shown.phrases.colours if c not in taken], rng))
    else:
        count = count + 1 if count == 1 or (rng.random() < 0.5 and count < 9) else count - 1
    false = {(changed if g == group else g): (count if g == group else n) for g, n in groups.items()}
    return _caption(shown, groups), _caption(shown, false)


def _caption(shown: Shown, groups: dict[Group, int]) -> str:
    phrases = shown.phrases
    said = [phrases.thing(n, phrases.colours[hue] if hue else None, count) for (n, hue), count in groups.items()]
    return phrases.answers["caption", "full"].format(things=phrases.join(said))


def _place(shown: Shown, rng: np.random.Generator) -> tuple[str, str] | None:
    counts = Counter(shown.name(o) for o in shown.objects)
    single = [o for o in shown.objects if counts[shown.name(o)] == 1]
    if not single:
        return None
    thing, phrases = single[int(rng.integers(len(single)))], shown.phrases
    fields = phrases.fields(shown.name(thing), 1)
    template = phrases.answers["place", "full"]
    other = one([cell for cell in CELLS if cell != thing["cell"]], rng)
    true, false = (template.format(**fields, at=phrases.at[cell]) for cell in (thing["cell"], other))
    return true, false
