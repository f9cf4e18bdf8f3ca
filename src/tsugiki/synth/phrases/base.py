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
    FORMS; "boxes only" and "sentence with boxes" where the same question could be answered in both ways; "yes or
    no"."""
    questions: Mapping[str, tuple[str, ...]]
    answers: Mapping[tuple[str, str], str]
    """(what is asked, form) -> template."""
    space: str
    """Between a question and its hint, and between boxes."""
    join: Callable[[Sequence[str]], str]
    """A list: "a, b and c"."""
    fields: Callable[[str, int], Mapping[str, str]]
    """(name, how many of it) -> what templates may say of it; a language adds its own (articles, plurals)."""
    thing: Callable[[str, str | None, int], str]
    """(name, colour or None, how many) -> how a list names it: "a red car", "two dogs"."""
    object: str
    """The name of anything at all."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Names of things and grades that have no table of their own."""
