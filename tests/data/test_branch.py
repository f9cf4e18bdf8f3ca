"""The branch that a sample asks for, and where its question is."""

from __future__ import annotations

from typing import Any

import pytest

from tsugiki.data.branch import branch_of, number, question_span
from tsugiki.data.collate import Collator
from tsugiki.data.prompt import plain_messages, render
from tsugiki.errors import UnknownNameError
from tsugiki.testing import tiny_images, tiny_tokenizer
from tsugiki.types import BRANCHES, Box, BoxPart, Message, Sample, TextPart


def sample(*answer: Any, question: str = "Where is it?", **options: Any) -> Sample:
    picture = tiny_images(1)[0]
    turns = (Message.of("user", question, (picture,)), Message("assistant", answer or (TextPart("There."),)))
    return Sample(id="1", messages=turns, **options)


def test_a_sample_asks_for_the_branch_that_it_names_or_that_its_answer_shows() -> None:
    assert branch_of(sample()) == "image"
    assert branch_of(sample(BoxPart(Box(0, 0, 9, 9)))) == "grounding"
    assert branch_of(sample(task="absent", meta={"form": "boxes"})) == "grounding"
    # A converter's question about what is not there is put like those whose answer is a box.
    assert branch_of(sample(task="absent", meta={"category": "cup"})) == "grounding"
    assert branch_of(sample(task="absent", meta={"form": "short"})) == "image"
    assert branch_of(sample(BoxPart(Box(0, 0, 9, 9)), meta={"branch": "image"})) == "image"
    with pytest.raises(UnknownNameError, match="grounding"):
        branch_of(sample(meta={"branch": "grounded"}))


def test_a_model_without_the_branch_takes_image() -> None:
    assert number("grounding", ("image",)) == BRANCHES["image"]
    assert number("grounding", ("image", "grounding")) == BRANCHES["grounding"]


@pytest.mark.parametrize("question", ["Where is it?", "User", "どこですか？", "<|im_end|>", "  spaces  "])
def test_the_question_is_found_in_the_rendered_text(question: str) -> None:
    turns = (
        Message.of("system", "Where is it? " + question),
        Message.of("user", question),
        Message.of("assistant", question),
        Message.of("user", "And now: " + question),
        Message.of("assistant", question),
    )
    plain = plain_messages(turns)
    text = render(plain, tiny_tokenizer())
    start, end = question_span(text, plain)
    assert text[start:end] == ("And now: " + question).strip()
    assert text[:start].endswith("<|im_start|>user\n") and text[:start].count("<|im_start|>user") == 2


def test_batches_say_the_branch_or_mark_the_question() -> None:
    tokenizer = tiny_tokenizer()
    options: dict[str, Any] = {"tokens_per_image": 2, "placeholder_id": 300, "features": lambda _: _zeros()}
    rows = [sample(), sample(BoxPart(Box(0, 0, 9, 9)))]
    alone = Collator(tokenizer, **options)(rows)
    assert alone.branch is None and alone.question is None
    told = Collator(tokenizer, **options, branches=("image", "grounding"))(rows)
    assert told.branch is not None and told.branch.tolist() == [BRANCHES["image"], BRANCHES["grounding"]]
    asked = Collator(tokenizer, **options, branches=("image", "grounding"), question=True)(rows)
    assert asked.branch is None and asked.question is not None
    marked = asked.input_ids[0][asked.question[0].bool()].tolist()
    assert tokenizer.decode(marked) == "Where is it?"


def _zeros() -> Any:
    import torch

    return torch.zeros(4, 8)
