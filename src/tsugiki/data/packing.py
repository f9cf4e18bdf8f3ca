"""Documents put together to rows of one length, each of them as if it stood alone.

Positions begin at 0 in every document. Without an attention mask and without a cache, transformers takes that for the
border of what may be attended, in every kernel; what is left of a row is padding, a document of its own without labels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.data.prompt import IGNORE, Encoded
from tsugiki.errors import PromptError
from tsugiki.types import PAD, TEXT, Sample, TextPart

OPEN = 16
"""Rows that are filled at the same time."""


@dataclass(frozen=True, slots=True)
class Pack(Sample):
    """A row of several documents, encoded; it has no messages of its own."""

    encoded: Encoded = Encoded([], [], [])
    documents: int = 0


def is_document(sample: Sample) -> bool:
    """Whether it is bare text: an assistant message alone."""
    return len(sample.messages) == 1 and sample.messages[0].role == "assistant"


def document(sample: Sample, tokenizer: Any, length: int) -> Iterator[Encoded]:
    """The bare words of a document, all of them labels but the first token; a longer one in pieces.

    Each piece begins with the tokenizer's first token, where it has one, as `evals.retention` reads texts.
    """
    text = "".join(p.text for p in sample.messages[0].parts if isinstance(p, TextPart))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    first = next(([i] for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), [])
    size = length - len(first)
    for start in range(0, len(ids), size):
        row = [*first, *ids[start : start + size]]
        if len(row) > 1:  # a single token has nothing before it to be predicted from
            yield Encoded(row, [TEXT] * len(row), [-1] * len(row), [IGNORE, *row[1:]])


def pack(
    samples: Sequence[Sample],
    tokenizer: Any,
    *,
    encode: Callable[[Sample], Encoded],
    length: int,
    pad_id: int,
    seed: int = 0,
    where: str = "",
) -> list[Pack]:
    """Text samples as rows of exactly `length` tokens; the same for the same seed.

    Args:
        encode: of a conversation, with labels; longer than `length` is its error.
        length: T, at least 2.
        pad_id: id at padding.
        seed: of the order in which documents are put together.

    Raises:
        PromptError: no sample has two tokens.
    """
    documents: list[Encoded] = []
    for sample in samples:
        documents += document(sample, tokenizer, length) if is_document(sample) else [encode(sample)]
    random.Random(f"pack {seed}").shuffle(documents)
    rows = list(_filled(documents, length))
    if not rows:
        raise PromptError("no text with two tokens or more", expected="words to learn from", where=where)
    return [
        Pack(id=f"pack {i}", messages=(), task="text", encoded=_joined(row, length, pad_id), documents=len(row))
        for i, row in enumerate(rows)
    ]


def _filled(documents: Iterable[Encoded], length: int) -> Iterator[list[Encoded]]:
    """Each document in the fullest open row that has room; else the oldest of `OPEN` rows is closed."""
    rows: list[list[Encoded]] = []
    room: list[int] = []
    for document in documents:
        fits = [i for i, left in enumerate(room) if left >= len(document)]
        if not fits:
            if len(rows) == OPEN:
                room.pop(0)
                yield rows.pop(0)
            rows.append([])
            room.append(length)
            fits = [len(rows) - 1]
        best = min(fits, key=lambda i: room[i])
        rows[best].append(document)
        room[best] -= len(document)
    yield from rows


def _joined(documents: Sequence[Encoded], length: int, pad_id: int) -> Encoded:
    ids = [i for d in documents for i in d.input_ids]
    left = length - len(ids)
    labels = [label for d in documents for label in (IGNORE, *(d.labels or [])[1:])]
    return Encoded(
        ids + [pad_id] * left,
        [TEXT] * len(ids) + [PAD] * left,
        [-1] * length,
        labels + [IGNORE] * left,
        positions=[i for d in documents for i in range(len(d))] + list(range(left)),
    )
