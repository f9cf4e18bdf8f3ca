"""What a language brings to the generators.

Templates are `str.format` strings. `BOX` stands for a place where a box part goes; a template with `{box}` or `{boxes}`
gets it (or several of them, joined) before the text is split there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

BOX = "\ufffc"
"""The Unicode "object replacement character": no phrase and no name contains it."""

FORMS = ("short", "full", "boxes")
"""A word or two; a sentence; a sentence with boxes, or boxes alone."""

CELLS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
"""The nine cells of a picture, row by row: keys of `Phrases.places` and `Phrases.at`."""


@dataclass(frozen=True, kw_only=True)
class StepPhrases:
    """The sentences of `scout.py`: answers in steps. {a}, {b} and {c} are names of objects, {name} and {names} of one
    of which there are several, {nth} counts those."""

    hints: tuple[str, ...]
    """What follows a question and asks for steps."""
    questions: Mapping[str, tuple[str, ...]]
    """Kind of question -> ways to ask it."""
    steps: Mapping[str, str]
    """Kind of step -> its sentence."""
    side: Mapping[str, str]
    """Of `relations.SIDES` -> as in "it is ... the cup"."""
    direction: Mapping[str, str]
    """Of `relations.SIDES` -> short answer."""
    more: Mapping[str, str]
    """Of `relations.MORE` -> as in "it is ... than the cup"."""
    most: Mapping[str, str]
    """Of `relations.MORE` -> as in "it is ..." of one among several."""
    which: Mapping[str, str]
    """Of `relations.MORE` without "nearer" -> as in "the one that is ..." of two."""
    nth: tuple[str, ...]
    """First, second, ..."""


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """The words and sentences of one language."""

    language: str
    numbers: tuple[str, ...]
    """Counts as short answers, from 0 (= the short answer about something that is not there) to 9."""
    colours: Mapping[str, str]
    """Colour -> short answer."""
    places: Mapping[str, str]
    """Cell -> short answer."""
    at: Mapping[str, str]
    """Cell -> how a sentence says it."""
    hints: Mapping[str, tuple[str, ...]]
    """What follows a question and states the answer's form. The first is the words that `chat(detail=)` uses. Keys:
    FORMS; "boxes only" and "sentence with boxes" where the same question could be answered in both ways; "names and
    boxes" for lists; "yes or no"."""
    questions: Mapping[str, tuple[str, ...]]
    answers: Mapping[tuple[str, str], str]
    """(what is asked, form) -> template."""
    space: str
    """Between a question and its hint, and between boxes."""
    separator: str
    """Between the items of a list of names and boxes."""
    join: Callable[[Sequence[str]], str]
    """A list: "a, b and c"."""
    fields: Callable[[str, int], Mapping[str, str]]
    """(name, how many of it) -> what templates may say of it; a language adds its own (articles, plurals)."""
    thing: Callable[[str, str | None, int], str]
    """(name, colour or None, how many) -> how a list names it: "a red car", "two dogs"."""
    object: str
    """The name of anything at all."""
    stepwise: StepPhrases
    words: Mapping[str, str] = field(default_factory=dict)
    """Names of things and grades that have no table of their own."""
