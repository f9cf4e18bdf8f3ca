from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.data import packing
from tsugiki.data.collate import Collator, pad
from tsugiki.data.prompt import IGNORE, Encoded
from tsugiki.errors import PromptError
from tsugiki.testing import tiny_tokenizer
from tsugiki.types import PAD, Message, Sample

TOKENIZER = tiny_tokenizer()
COLLATOR = Collator(TOKENIZER, tokens_per_image=4, placeholder_id=300)


def document(text: str) -> Sample:
    return Sample(id=text[:5], messages=(Message.of("assistant", text),))


def packed(samples: list[Sample], length: int, seed: int = 0) -> list[packing.Pack]:
    pad_id = COLLATOR.pad_id
    return packing.pack(samples, TOKENIZER, encode=COLLATOR.encode, length=length, pad_id=pad_id, seed=seed)


def pieces(row: Encoded) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of the documents of a row, cut where positions begin anew; without the padding."""
    assert row.positions is not None and row.labels is not None
    starts = [i for i, p in enumerate(row.positions) if p == 0] + [len(row)]
    cut = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    return [(row.input_ids[s], row.labels[s]) for s in cut if PAD not in row.token_kind[s]]


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=30), st.integers(2, 60), st.integers(0, 3))
def test_every_word_is_learned_once(texts: list[str], length: int, seed: int) -> None:
    rows = packed([document(t) for t in texts], length, seed)
    assert all(len(r.encoded) == length for r in rows)
    found: list[list[int]] = []
    for row in rows:
        assert row.encoded.labels is not None
        for ids, labels in pieces(row.encoded):
            assert labels == [IGNORE, *ids[1:]]
            found.append(ids)
        assert sum(x != IGNORE for x in row.encoded.labels) == sum(len(i) - 1 for i, _ in pieces(row.encoded))
    first, expected = TOKENIZER.bos_token_id, []
    for text in texts:
        ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        expected += [[first, *ids[i : i + length - 1]] for i in range(0, len(ids), length - 1)]
    assert sorted(found) == sorted(expected)


def test_conversations_keep_their_labels() -> None:
    talk = [
        Sample(id=str(i), messages=(Message.of("user", "q" * i), Message.of("assistant", f"answer {i}")))
        for i in range(1, 9)
    ]
    whole = {tuple(e.input_ids): e.labels for e in map(COLLATOR.encode, talk)}
    rows = packed([*talk, document("some words")], 128)
    found = [piece for row in rows for piece in pieces(row.encoded)]
    assert len(found) == 9 and sum(row.documents for row in rows) == 9
    own = {tuple(ids): labels for ids, labels in found if tuple(ids) in whole}
    assert own == {ids: [IGNORE, *(labels or [])[1:]] for ids, labels in whole.items()}


def test_the_seed_decides_what_stands_together() -> None:
    texts = [document("x" * n) for n in range(3, 40)]
    assert packed(texts, 64) == packed(texts, 64) != packed(texts, 64, seed=1)
    filled = sum(len(ids) for row in packed(texts, 64) for ids, _ in pieces(row.encoded))
    assert filled > 0.85 * 64 * len(packed(texts, 64))


def test_nothing_to_learn() -> None:
    with pytest.raises(PromptError, match="no text with two tokens"):
        packed([document("")], 8)


def test_a_batch_of_packed_and_plain_rows() -> None:
    row = packed([document("abc"), document("defg")], 12)[0].encoded
    plain = COLLATOR.encode(Sample(id="p", messages=(Message.of("user", "?"), Message.of("assistant", "!"))))
    batch = pad([row, plain], pad_id=0)
    assert batch.position_ids is not None and "attention_mask" not in batch.inputs()
    assert batch.position_ids[1, : len(plain)].tolist() == list(range(len(plain)))
    assert batch.position_ids[0, 12:].eq(0).all() and batch.position_ids.shape == batch.input_ids.shape


@pytest.mark.parametrize("options", [{"side": "left"}, {}])
def test_packed_rows_stand_alone(options: dict[str, Any]) -> None:
    row = packed([document("abc")], 12)[0].encoded
    rows = [row] if options else [row, Encoded([1, 2], [0, 1], [-1, 0], [IGNORE, 2])]
    with pytest.raises(PromptError, match="packed rows beside a picture, or padded on the left"):
        pad(rows, pad_id=0, **options)
