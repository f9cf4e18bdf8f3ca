"""Steps of answers: found in the tokens by the marks of the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.collate import Collator
from tsugiki.data.steps import marked, turns, weights
from tsugiki.errors import DataError, PromptError
from tsugiki.testing import tiny_tokenizer
from tsugiki.types import Box, BoxPart, ImagePart, Message, Part, Sample, TextPart

LINES = ["The nut is at ", "犬の位置は", "a\n", "\n", " two  spaces ", "é 🐕", "。\n"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("steps") / "a.png"
    Image.new("RGB", (100, 50)).save(file)
    return file


def collator(**options: Any) -> Collator:
    given = {"tokens_per_image": 3, "placeholder_id": 260, **options}
    return Collator(tiny_tokenizer(), **given)


def sample(picture: Path, parts: tuple[Part, ...], steps: Any, *before: Message, **meta: Any) -> Sample:
    question = Message("user", (ImagePart(picture), TextPart("Where?")))
    messages = (question, *before, Message("assistant", parts))
    return Sample(id="s", messages=messages, meta={"steps": steps, **meta})


@st.composite
def answers(draw: st.DrawFn) -> tuple[tuple[Part, ...], list[int]]:
    parts: list[Part] = []
    counts = []
    for _ in range(draw(st.integers(1, 5))):
        own: list[Part] = [TextPart(t) for t in draw(st.lists(st.sampled_from(LINES), min_size=1, max_size=3))]
        if draw(st.booleans()):
            own.insert(draw(st.integers(0, len(own))), BoxPart(Box(1, 2, 50, 40)))
        parts += own
        counts.append(len(own))
    return tuple(parts), counts


@given(answers())
def test_every_label_has_the_number_of_its_step(picture: Path, answer: tuple[tuple[Part, ...], list[int]]) -> None:
    parts, counts = answer
    earlier = (Message.of("assistant", "Ask."), Message.of("user", "?"))
    encoded = collator().encode(sample(picture, parts, counts, *earlier))
    assert encoded.labels is not None and encoded.steps is not None
    tokenizer, said = tiny_tokenizer(), []
    for step in range(1 + len(counts)):
        own = [i for i, s in zip(encoded.input_ids, encoded.steps, strict=True) if s == step]
        said.append(tokenizer.decode(own))
    expected, at = ["Ask.<|im_end|>"], 0
    for count in counts:
        text = ""
        for part in parts[at : at + count]:
            text += part.text if isinstance(part, TextPart) else "[0.010,0.270,0.500,0.650]"
        expected.append(text)
        at += count
    expected[-1] += "<|im_end|>"  # the end of the turn belongs to the last step
    assert said == expected
    assert [s >= 0 for s in encoded.steps] == [label >= 0 for label in encoded.labels]


def test_a_template_that_trims(picture: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | trim")
    own = Collator(tokenizer, tokens_per_image=3, placeholder_id=260)
    encoded = own.encode(sample(picture, (TextPart(" one\n"), TextPart("two\n ")), [1, 1]))
    assert encoded.steps is not None
    said = [
        tokenizer.decode([i for i, s in zip(encoded.input_ids, encoded.steps, strict=True) if s == k]) for k in range(2)
    ]
    assert said == ["one\n", "two<|im_end|>"]


def test_a_template_that_rewrites_is_refused(picture: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'].replace('one', 'uno')")
    own = Collator(tokenizer, tokens_per_image=3, placeholder_id=260)
    messages = (Message.of("user", "?"), Message("assistant", (TextPart("one\n"), TextPart("two"))))
    with pytest.raises(PromptError, match=r"sample 's'.*does not write the answer as it is"):
        own.encode(Sample(id="s", messages=messages, meta={"steps": [1, 1]}))


def test_marks_survive_jsonl(picture: Path, tmp_path: Path) -> None:
    parts = (TextPart("The nut is at "), BoxPart(Box(1, 2, 50, 40), 0, "nut"), TextPart(".\n"), TextPart("none"))
    one = sample(picture, parts, [3, 1], step_weights=[1, 2.5])
    schema.write(tmp_path / "a.jsonl", [one])
    (read,) = schema.load(tmp_path / "a.jsonl")
    assert marked(read) == (3, 1) and weights(read) == (1.0, 2.5)
    assert collator().encode(read) == collator().encode(one)


@pytest.mark.parametrize("steps", [[1], [1, 2], [2, 0], [True, 1], "11", [3, -1], []])
def test_marks_that_do_not_fit(picture: Path, steps: Any) -> None:
    wrong = sample(picture, (TextPart("a\n"), TextPart("b")), steps)
    with pytest.raises(DataError, match=r"sample 's' meta\.steps: .* for an answer of 2 parts"):
        collator().encode(wrong)
    schema.write(picture.with_name("a.jsonl"), [wrong])
    (error,) = schema.check(picture.with_name("a.jsonl"))
    assert "a.jsonl:1 meta.steps: " in str(error)
    assert collator(labels=False).encode(wrong).steps is None  # an answer that is not learned is not looked at


@pytest.mark.parametrize("given_weights", [[1], [1, -1], [1, float("nan")], [0, 0], 2])
def test_weights_that_do_not_fit(picture: Path, given_weights: Any) -> None:
    wrong = sample(picture, (TextPart("a\n"), TextPart("b")), [1, 1], step_weights=given_weights)
    with pytest.raises(DataError, match=r"meta\.step_weights: .* for 2 marked steps"):
        collator().encode(wrong)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_with_and_without_marks(picture: Path, side: Any) -> None:
    one = sample(picture, (TextPart("a\n"), TextPart("bb")), [1, 1], step_weights=[3, 1])
    talk = (
        Message.of("user", "q"),
        Message.of("assistant", "x"),
        Message.of("user", "q"),
        Message.of("assistant", "y"),
    )
    other = Sample(id="t", messages=talk)
    batch = collator(padding_side=side, features=lambda _: torch.zeros(2, 2))([one, other])
    assert batch.steps is not None and batch.labels is not None and batch.step_weights is not None
    assert batch.steps.dtype == torch.int64 and batch.step_weights.dtype == torch.float32
    assert [row[row >= 0].tolist() for row in batch.steps] == [[0, 0, 1, 1, 1], [0, 0, 1, 1]]
    assert torch.equal(batch.steps >= 0, batch.labels >= 0)
    assert batch.step_weights.tolist() == [[3, 1], [1, 1]]
    assert not {"steps", "step_weights"} & set(batch.inputs())
    assert set(batch.for_losses()) == {"steps", "step_weights"}
    plain = collator()([other])
    assert plain.steps is None and plain.step_weights is None and not plain.for_losses()


def test_turns_are_runs_of_labels() -> None:
    labels = torch.tensor([[-100, 5, 0, -100, 7], [3, -100, -100, 1, 1]])
    assert turns(labels).tolist() == [[-1, 0, 0, -1, 1], [0, -1, -1, 1, 1]]
