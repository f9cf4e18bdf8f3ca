"""From a picture's boxes to a question about its things and the steps of the answer, before they are put into words.

Kinds: "where" asks for one thing; "side" on which side of another one it is; "more" which of two is further left,
larger, nearer to a third one; "most" the same of several of one name; "chain" on which side of the one that "more"
finds a third one is. What is not plain by the margins of `relations.py` is not asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tsugiki.synth import relations
from tsugiki.synth.annotated import Picture
from tsugiki.synth.phrases.base import Phrases
from tsugiki.types import Box

LEVELS = (1, 2, 3)

_PLAIN = [relation for relation in relations.MORE if relation != "nearer"]


@dataclass(frozen=True, slots=True)
class Step:
    """One line of an answer."""

    kind: str
    """Key of the phrases."""
    fields: Mapping[str, str]
    box: Box | None = None
    name: str = ""
    """Of what the box shows."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A question and its steps before they are put into words."""

    kind: str
    fields: Mapping[str, str]
    steps: tuple[Step, ...]
    relation: str = ""
    short: str = ""
    """The answer as a word or two."""


def draw(picture: Picture, phrases: Phrases, level: int, rng: random.Random) -> Draft | None:
    """A question of a level, or None where what was drawn has no plain answer: try again."""
    return rng.choice(_KINDS[level])(picture, phrases, level, rng)


def draw_absent(picture: Picture, phrases: Phrases, level: int, rng: random.Random) -> Draft | None:
    """A question as those of a level, with one of its names that of what is not there; None where names are lacking."""
    missing = rng.choice(picture.absent)
    kind, relation, wanted = rng.choice(_SLOTS[level])
    names = list(_drawn(picture.singles, wanted - 1, rng))
    if len(names) < wanted - 1:
        return None
    names.insert(rng.randrange(wanted), missing)
    fields = _fields(phrases, relation, name=missing) if kind == "most" else _fields(phrases, relation, *names)
    steps = (Step("none", {"name": missing}), Step("answer none", {}))
    return Draft(kind, fields, steps, relation, phrases.numbers[0])


# --- one function per kind ---


def _where(picture: Picture, phrases: Phrases, level: int, rng: random.Random) -> Draft | None:
    for a in _drawn(picture.singles, 1, rng):
        return Draft("where", _fields(phrases, "", a), (_at(picture, a), _the(picture, a)), short=a)
    return None


def _side(picture: Picture, phrases: Phrases, level: int, rng: random.Random) -> Draft | None:
    drawn = _drawn(picture.singles, 2, rng)
    relation = _side_of(picture, *drawn) if drawn else None
    if relation is None:
        return None
    a, b = drawn
    steps = (_at(picture, a), _at(picture, b), *_beside(picture, phrases, relation, a, b))
    return Draft("side", _fields(phrases, "", a, b), steps, relation, phrases.stepwise.direction[relation])


def _more(picture: Picture, phrases: Phrases, level: int, rng: random.Random) -> Draft | None:
    relation = "nearer" if level == 3 else rng.choice(_PLAIN)
    drawn = _drawn(picture.singles, level, rng)
    if not drawn or not (order := _ordered(picture, relation, *drawn)):
        return None
    winner, loser = order
    steps = (
        *(_at(picture, name) for name in (*drawn[2:], *drawn[:2])),  # what the distance is to comes first
        Step("more", _fields(phrases, relation, winner, loser, *drawn[2:])),
        _the(picture, winner),
    )
    return Draft("more", _fields(phrases, relation, *drawn), steps, relation, winner)


def _most(picture: Picture, phrases: Phrases, level: int, rng: random.Random) -> Draft | None:
    to = _drawn(picture.singles, 1, rng) if level == 3 and rng.random() < 0.5 else ()
    names = picture.several(2 if to or level == 2 else 3, 2 if level == 2 else len(phrases.stepwise.nth))
    if not names:
        return None
    name = rng.choice(names)
    boxes = picture.things[name]
    relation = "nearer" if to else rng.choice(_PLAIN)
    index = relations.foremost(relation, boxes, picture.span, _box(picture, to[0]) if to else None)
    if index is None:
        return None
    counted = [{"name": name, "nth": nth} for nth in phrases.stepwise.nth]
    fields = _fields(phrases, relation, c=to[0] if to else "", name=name)
    steps = (
        *(_at(picture, other) for other in to),
        *(Step("nth at", counted[i], box, name) for i, box in enumerate(boxes)),
        Step("most", {**fields, **counted[index]}),
        Step("answer nth", counted[index], boxes[index], name),
    )
    return Draft("most", fields, steps, relation, phrases.stepwise.nth[index])


def _chain(picture: Picture, phrases: Phrases, level: int, rng: random.Random) -> Draft | None:
    relation = rng.choice(_PLAIN)
    drawn = _drawn(picture.singles, 3, rng)
    if not drawn or not (order := _ordered(picture, relation, *drawn[:2])):
        return None
    a, b, c = drawn
    place = _side_of(picture, c, order[0])
    if place is None:
        return None
    steps = (
        *(_at(picture, name) for name in (a, b)),
        Step("more", _fields(phrases, relation, *order)),
        _at(picture, c),
        *_beside(picture, phrases, place, c, order[0]),
    )
    return Draft(
        "chain", _fields(phrases, relation, *drawn), steps, f"{relation} {place}", phrases.stepwise.direction[place]
    )


_Kind = Callable[[Picture, Phrases, int, random.Random], Draft | None]
_KINDS: Mapping[int, tuple[_Kind, ...]] = {1: (_where,), 2: (_side, _more, _most), 3: (_more, _most, _chain)}
# Kind, relation, and how many names it has.
_SLOTS: Mapping[int, list[tuple[str, str, int]]] = {
    1: [("where", "", 1)],
    2: [("side", "", 2), *(("more", r, 2) for r in _PLAIN), *(("most", r, 1) for r in _PLAIN)],
    3: [("more", "nearer", 3), *(("chain", r, 3) for r in _PLAIN)],
}


# --- their parts ---


def _drawn(names: Sequence[str], count: int, rng: random.Random) -> tuple[str, ...]:
    """So many different names; none where there are fewer."""
    return tuple(rng.sample(list(names), count)) if len(names) >= count else ()


def _box(picture: Picture, name: str) -> Box:
    (box,) = picture.things[name]
    return box


def _side_of(picture: Picture, a: str, b: str) -> str | None:
    return relations.side(_box(picture, a), _box(picture, b), picture.span)


def _ordered(picture: Picture, relation: str, a: str, b: str, c: str | None = None) -> tuple[str, str] | None:
    """The two names, that of what exceeds the other one first."""
    to = None if c is None else _box(picture, c)
    for one, other in ((a, b), (b, a)):
        if relations.exceeds(relation, _box(picture, one), _box(picture, other), picture.span, to):
            return one, other
    return None


def _at(picture: Picture, name: str) -> Step:
    return Step("at", {"name": name}, _box(picture, name), name)


def _the(picture: Picture, name: str) -> Step:
    return Step("answer", {"name": name}, _box(picture, name), name)


def _beside(picture: Picture, phrases: Phrases, relation: str, a: str, b: str) -> tuple[Step, Step]:
    """That `a` is on a side of `b`, and the answer that says so."""
    fields = {"a": a, "b": b, "side": phrases.stepwise.side[relation]}
    return Step("side", fields), Step("answer side", fields, _box(picture, a), a)


def _fields(phrases: Phrases, relation: str, a: str = "", b: str = "", c: str = "", name: str = "") -> dict[str, str]:
    """What templates may say of the names and the relation between them."""
    words = phrases.stepwise
    fields = {"a": a, "b": b, "c": c, "name": name}
    if name:
        fields["names"] = phrases.fields(name, 2).get("names", name)
    for key, said in (("more", words.more), ("most", words.most), ("which", words.which)):
        if relation in said:
            fields[key] = said[relation].format(c=c)
    return fields
