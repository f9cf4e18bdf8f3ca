"""What is said of each picture, for a hub that reads picture and words together: the question that is asked about it,
or the text of a demonstration.

Shapes: N pictures of a batch, L words of the longest text, Q queries of the hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsugiki.data.schema import message_text
from tsugiki.types import DEMO_FORMS, DemoPart, ImagePart, Message

ASKED = 0
"""The form of a picture that is asked about; demonstrations have 1 + their form's place in DEMO_FORMS."""
TEXT_FORM, VISUAL_FORM, PLAIN_FORM, BOTH_FORM = (1 + i for i in range(len(DEMO_FORMS)))


@dataclass(frozen=True, slots=True)
class Said:
    """Of one picture."""

    form: int = ASKED
    ids: tuple[int, ...] = ()
    """Of the words that the hub reads; under `uni_modal`, of those that the LLM reads."""

    def tokens(self, queries: int) -> int:
        """Places that the picture takes in the LLM's sequence; a demonstration ends with a separator."""
        visual = queries * (self.form in (ASKED, VISUAL_FORM, PLAIN_FORM, BOTH_FORM))
        textual = len(self.ids) * (self.form in (TEXT_FORM, PLAIN_FORM, BOTH_FORM))
        return visual + textual + (self.form != ASKED)


@dataclass(frozen=True)
class Reader:
    """How a hub's words are made from messages."""

    tokenizer: Any
    """The LLM's."""
    queries: int
    """Q."""
    own: Any = None
    """The tokenizer of a hub that has words of its own, with its special tokens; None = the LLM's, without."""
    guided: bool = True
    """Whether a question guides the tokens of its picture."""

    def __call__(self, messages: Sequence[Message]) -> tuple[Said, ...]:
        """What is said of the pictures, in order. A picture is asked about by the words of its own message: later turns
        leave its tokens as they were."""
        return tuple(
            self._demo(part) if isinstance(part, DemoPart) else Said(ASKED, self._asked(message))
            for message in messages
            for part in message.parts
            if isinstance(part, ImagePart)
        )

    def _asked(self, message: Message) -> tuple[int, ...]:
        text = message_text(message).strip()
        return self.ids(text) if self.guided and text else ()

    def _demo(self, part: DemoPart) -> Said:
        form = 1 + DEMO_FORMS.index(part.form)
        return Said(form, _ids(self.tokenizer, part.text, False) if form == PLAIN_FORM else self.ids(part.text))

    def ids(self, text: str) -> tuple[int, ...]:
        """Of the words that the hub reads."""
        return _ids(self.tokenizer if self.own is None else self.own, text, self.own is not None)


def _ids(tokenizer: Any, text: str, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def tensors(said: Sequence[Said]) -> tuple[Tensor, Tensor]:
    """`image_text` [N, L] and `image_form` [N] of a batch, int64."""
    text = torch.full((len(said), max([1, *(len(s.ids) for s in said)])), -1, dtype=torch.int64)
    for row, one in zip(text, said, strict=True):
        if one.ids:
            row[: len(one.ids)] = torch.tensor(one.ids)
    return text, torch.tensor([s.form for s in said], dtype=torch.int64)
