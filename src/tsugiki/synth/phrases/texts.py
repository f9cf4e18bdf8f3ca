"""What a language brings to pictures with text: the words that stand on them, and how is asked about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The words and sentences of `synth.ocr`. Templates are those of `phrases.base`."""

    language: str
    fields: Mapping[str, str]
    """Field of a nameplate -> its name there."""
    columns: tuple[str, ...]
    """Heads of the columns of numbers."""
    item: str
    """Head of the first column."""
    date: str
    """{year}, {month} and {day}."""
    questions: Mapping[str, tuple[str, ...]]
    """Task -> ways to ask. {text} is a text on the picture, {field} the name of a field, {row} and {column} those of a
    cell, {box} a place."""
    hints: Mapping[str, tuple[str, ...]]
    """Task -> how the form of its answer is asked for; () where the question says it."""
