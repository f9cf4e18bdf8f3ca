"""What the starter learns from: the order of a conversation, and of the pictures."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tsugiki.evals.task import message_text
from tsugiki.types import ImagePart, Message, Sample

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_starter_data")


def question(picture: str, task: str) -> Sample:
    messages = (Message.of("user", f"{task}?", (Path(picture),)), Message.of("assistant", f"{task} of {picture}"))
    return Sample(f"{picture}-{task}", messages, task=task, options=("a", "b"), meta={"caption": picture})


def test_a_conversation_asks_for_the_name_first_and_shows_its_picture_once(made: Any) -> None:
    talk = made.conversation([question("1", task) for task in ("box", "presence", "naming", "colour")])
    said = [message_text(m) for m in talk.messages]
    assert said[:2] == ["naming?", "naming of 1"]
    assert sorted(said) == sorted(t for k in ("box", "presence", "naming", "colour") for t in (f"{k}?", f"{k} of 1"))
    assert [sum(isinstance(p, ImagePart) for p in m.parts) for m in talk.messages] == [1] + 7 * [0]
    assert talk.task == "conversation" and not talk.options and talk.meta == {"caption": "1"}


def test_pictures_come_by_turns_with_all_their_questions(made: Any) -> None:
    one = [question(f"one {i}", task) for i in range(3) for task in ("naming", "box")]
    few = [question(f"few {i}", task) for i in range(3) for task in ("count", "box")]
    found = made.by_turns(one, few)
    assert [of[0].images[0].name for of in found] == ["one 0", "few 0", "one 1", "few 1", "one 2", "few 2"]
    assert sorted(s.id for of in found for s in of) == sorted(s.id for s in (*one, *few))
