"""Answers in steps: where a sample marks them, and which step each label belongs to.

`meta["steps"]` says how many parts of the gold answer each of its steps has, in order: [3, 3, 1, 2] for nine parts.
`meta["step_weights"]` may give each of them a weight in the loss `per_step`. Every other assistant message is one step.
B rows, T positions.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from tsugiki.data._template import plain_messages
from tsugiki.data.boxes import BoxCodec
from tsugiki.errors import DataError, PromptError
from tsugiki.types import Message, Sample


def marked(sample: Sample, *, where: str = "") -> tuple[int, ...]:
    """Parts of each step of the gold answer; empty where the sample has no marks.

    Raises:
        DataError: marks without a gold answer, or that do not add up to its parts.
    """
    given = sample.meta.get("steps")
    if given is None:
        return ()
    parts = len(sample.answer.parts) if sample.answer else 0
    numbers = list(given) if isinstance(given, (list, tuple)) else []
    right = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
    if not (right and numbers and sum(numbers) == parts):
        raise DataError(
            f"{given!r} for an answer of {parts} parts",
            expected="the number of parts of each step, 1 or more, that together are all parts of the last message",
            fix="Correct it, or leave it out: the answer is one step then.",
            where=f"{where} meta.steps".strip(),
        )
    return tuple(numbers)


def weights(sample: Sample, *, where: str = "") -> tuple[float, ...] | None:
    """Weights of all steps of the conversation, 1 for messages without marks; None where the sample gives none.

    Raises:
        DataError: not one finite weight of 0 or more for each step of the gold answer.
    """
    given = sample.meta.get("step_weights")
    if given is None:
        return None
    steps = len(marked(sample, where=where))
    numbers = list(given) if isinstance(given, (list, tuple)) else []
    right = all(isinstance(w, (int, float)) and math.isfinite(w) and w >= 0 for w in numbers)
    if not right or len(numbers) != steps or not any(numbers):
        raise DataError(
            f"{given!r} for {steps} marked steps",
            expected="one weight of 0 or more for each step of the last message, not all 0",
            fix="Correct it, or leave it out: steps have equal weights then.",
            where=f"{where} meta.step_weights".strip(),
        )
    before = sum(m.role == "assistant" for m in sample.messages) - 1
    return (*[1.0] * before, *map(float, numbers))


def ends(
    message: Message,
    steps: Sequence[int],
    text: str,
    span: tuple[int, int],
    *,
    sizes: Sequence[tuple[int, int]] = (),
    codec: BoxCodec | None = None,
    where: str = "",
) -> list[int]:
    """Where in the rendered conversation each step of an answer ends.

    Args:
        message: the gold answer, of text and boxes.
        steps: parts of each step.
        text: the whole conversation, rendered.
        span: where the answer is in it.
        sizes: of the sample's pictures.
        codec: writes the boxes.

    Raises:
        PromptError: the chat template does not write the answer as it is.
    """
    cuts = list(accumulate(steps, initial=0))
    each = [Message(message.role, message.parts[a:b]) for a, b in pairwise(cuts)]
    said = [m["content"] for m in plain_messages(each, sizes=sizes, codec=codec, where=where)]
    whole = "".join(said)
    shown = whole.strip()  # templates trim
    at = text.find(shown, *span)
    if at < 0:
        raise PromptError(
            "the chat template does not write the answer as it is, so its steps can't be found",
            expected="a template that leaves assistant messages alone",
            fix="Give the tokenizer another chat_template, or leave meta.steps out.",
            where=where,
        )
    begin = at - (len(whole) - len(whole.lstrip()))
    return [begin + length for length in accumulate(map(len, said))]


def numbered(
    tokens: Sequence[tuple[int, int]], labels: Sequence[int], spans: Sequence[tuple[int, int]], last: Sequence[int]
) -> list[int]:
    """The number of the step at each label, -1 elsewhere, counted through the conversation.

    Args:
        tokens: (start, end) of T tokens in characters of the rendered conversation; a token that lies in two steps
            belongs to the one it begins in.
        labels: T of them, negative where there is no loss.
        spans: of all answers, in characters, in order.
        last: ends of the steps of the last answer.
    """
    begins = [start for start, _ in spans]
    numbers = []
    for (start, end), label in zip(tokens, labels, strict=True):
        turn = bisect_left(begins, end) - 1
        inner = min(bisect_right(last, start), len(last) - 1) if turn == len(spans) - 1 else 0
        numbers.append(turn + inner if label >= 0 else -1)
    return numbers


def turns(labels: Tensor) -> Tensor:
    """Labels int64 [B, T] -> the number of the step at each label where every run of labels is one, -1 elsewhere."""
    has = labels >= 0
    begins = has.clone()
    begins[:, 1:] &= ~has[:, :-1]
    return torch.where(has, begins.long().cumsum(1) - 1, -1)
