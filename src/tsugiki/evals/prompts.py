"""The bundled prompts of `verify` and of answer agreement: English, Japanese, code, conversations, odd texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tsugiki.errors import DataError
from tsugiki.types import Message

Given = Sequence[str | Sequence[Mapping[str, str]]] | str | Path
"""Own prompts: texts or conversations ({"role", "content"}), or a file: .txt (one a line) or .json (a list of them)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with the user's turn; `plain` prompts may also be continued as a bare text."""

    kind: str
    turns: tuple[tuple[str, str], ...]
    """(role, content) in order."""

    @property
    def plain(self) -> bool:
        return len(self.turns) == 1

    @property
    def text(self) -> str:
        """The last turn."""
        return self.turns[-1][1]

    @property
    def conversation(self) -> tuple[Message, ...]:
        return tuple(Message.of(role, text) for role, text in self.turns)  # type: ignore[arg-type]

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat templates take them."""
        return [{"role": role, "content": content} for role, content in self.turns]


@lru_cache(maxsize=1)
def bundled() -> tuple[Prompt, ...]:
    """The prompts that come with the library, at least 64."""
    content = json.loads(files("tsugiki.evals").joinpath("prompts.json").read_text(encoding="utf-8"))
    return tuple(prompt_of(p.get("messages", p.get("text")), p["kind"], "prompts.json") for p in content["prompts"])


def collect(given: Given | None = None) -> tuple[Prompt, ...]:
    """Own prompts first, then the bundled ones: never fewer than those.

    Raises:
        DataError: the file can't be read or holds no prompt, or a conversation does not end with the user's turn.
    """
    if given is None:
        return bundled()
    where = str(given) if isinstance(given, str | Path) else "prompts"
    items = _read(Path(given)) if isinstance(given, str | Path) else list(given)
    own = tuple(prompt_of(item, "own", f"{where}, prompt {i}") for i, item in enumerate(items, 1))
    return (*own, *bundled())


def prompt_of(item: Any, kind: str, where: str) -> Prompt:
    """A prompt from a text, or from a conversation.

    Raises:
        DataError: neither, or it does not end with the user's turn.
    """
    turns = [{"role": "user", "content": item}] if isinstance(item, str) else item
    try:
        prompt = Prompt(kind, tuple((str(t["role"]), str(t["content"])) for t in turns))
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{item!r:.60}", expected="a text, or a list of messages with role and content", where=where
        ) from error
    if not prompt.turns or prompt.turns[-1][0] != "user" or not prompt.text:
        raise DataError("no question to answer", expected="a conversation that ends with the user's text", where=where)
    return prompt


def _read(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        items = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"can't be read ({error})", expected="a UTF-8 text or JSON file", where=str(path)) from error
    if not isinstance(items, list) or not items:
        raise DataError("no prompts", expected="one prompt a line, or a JSON list", where=str(path))
    return items
