"""The user's own prompts as JSONL, each asked in a conversation and judged by what its line gives.

    {"prompt": "Which part wears first?", "options": ["belt", "chain"], "answer": "belt"}  is the answer the likeliest?
    {"prompt": "What does E42 mean?", "answer": "The belt slips."}                          the loss of the answer
    {"prompt": "Greet a customer."}                               agreement with the base, and the loss of its answer

`prompt` is a text, or a list of messages {"role", "content"} that ends with the user's. Errors name file and line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.data import _fields
from tsugiki.data.schema import ROLES
from tsugiki.errors import DataError
from tsugiki.evals.harness import after_picture
from tsugiki.evals.prompts import Prompt, prompt_of
from tsugiki.types import ImageSource, Message, Sample

KEYS = ("prompt", "options", "answer")


@dataclass(frozen=True, slots=True)
class Own:
    """One line."""

    prompt: Prompt
    options: tuple[str, ...] = ()
    answer: str = ""
    """One of the options where there are some; "" = the base's own."""
    where: str = ""

    @property
    def suite(self) -> str:
        """By what it is judged: `own_options`, `own_answers` or `own_prompts`."""
        return "own_options" if self.options else "own_answers" if self.answer else "own_prompts"

    def sample(self, picture: ImageSource | None = None) -> Sample:
        """The conversation, with the answer where it has one; asked after a picture where there is one."""
        turns: tuple[Message, ...] = self.prompt.conversation
        if picture is not None:
            turns = after_picture(turns, picture)
        said = (Message.of("assistant", self.answer),) if self.answer else ()
        return Sample(id=self.where, messages=(*turns, *said), options=self.options, where=self.where)


def read(path: str | Path) -> list[Own]:
    """The prompts of a file.

    Raises:
        DataError: the file is missing or empty, or at its first wrong line.
    """
    path = Path(path)
    items = []
    for number, record in _fields.jsonl_records(path):
        if isinstance(record, DataError):
            raise record
        items.append(_own(record, f"{path}:{number}"))
    if not items:
        raise DataError("no prompts", expected="one JSON object a line", where=str(path))
    return items


def _own(record: Any, where: str) -> Own:
    line = _fields.mapping(record, where, KEYS)
    asked = line.get("prompt")
    said = _turns(asked, where) if isinstance(asked, list) else _fields.text(asked, f"{where} prompt")
    prompt = prompt_of(said, "own", where)
    given = line.get("options")
    options = _options(given, f"{where} options") if given is not None else ()
    answer = _fields.text(line["answer"], f"{where} answer") if "answer" in line else ""
    if "answer" in line and not answer.strip():
        raise DataError("an empty answer", expected="a text", fix="Leave the field out.", where=f"{where} answer")
    if options and answer not in options:
        found = repr(answer) if answer else "no answer"
        expected = f"one of the options {', '.join(map(repr, options))}"
        raise DataError(found, expected=expected, fix="Correct it.", where=f"{where} answer")
    return Own(prompt, options, answer, where)


def _turns(given: list[Any], where: str) -> list[dict[str, str]]:
    turns = []
    for i, value in enumerate(given):
        place = f"{where} prompt[{i}]"
        entry = _fields.mapping(value, place, ("role", "content"))
        if entry.get("role") not in ROLES:
            found = f"unknown role {entry.get('role')!r}"
            raise DataError(found, expected=f"one of {', '.join(ROLES)}", fix="Correct it.", where=place)
        turns.append({"role": entry["role"], "content": _fields.text(entry.get("content"), f"{place} content")})
    return turns


def _options(given: Any, where: str) -> tuple[str, ...]:
    options: Sequence[str] = [
        _fields.text(option, f"{where}[{i}]") for i, option in enumerate(_fields.sequence(given, where))
    ]
    if len(set(options)) < max(len(options), 2) or not all(option.strip() for option in options):
        found = f"the options {', '.join(map(repr, options))}" if options else "no options"
        raise DataError(found, expected="at least two that differ, none empty", fix="Correct them.", where=where)
    return tuple(options)
