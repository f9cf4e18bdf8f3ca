"""Interleaved conversations: nearest turns, paired items, and no answer given away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tsugiki import testing
from tsugiki.data import schema
from tsugiki.data.files import sha256_file
from tsugiki.errors import DataError
from tsugiki.synth import iit
from tsugiki.types import Message, Sample

TOPICS = ("river", "planet", "bread", "violin")


def encode(texts: Sequence[str]) -> Tensor:
    """How often each topic is named, and a little of everything."""
    counts = torch.tensor([[0.1, *(float(text.count(topic)) for topic in TOPICS)] for text in texts])
    return torch.nn.functional.normalize(counts, dim=-1)


def texts(n: int = 24) -> list[Sample]:
    return [
        Sample(
            id=f"t{i:02}",
            messages=(Message.of("user", f"A {TOPICS[i % 4]}?"), Message.of("assistant", f"yes{i}")),
            options=(f"yes{i}", f"no{i}"),
        )
        for i in range(n)
    ]


def pictures(n: int = 12) -> list[Sample]:
    return [
        Sample(
            id=f"v{i:02}",
            messages=(
                Message.of("user", f"Is this a {TOPICS[i % 4]}?", (picture,)),
                Message.of("assistant", f"seen{i}"),
            ),
            options=(f"seen{i}", f"unseen{i}"),
        )
        for i, picture in enumerate(testing.tiny_images(n))
    ]


def by_kind(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    return {k: [s for s in samples if s.meta["turns"] == k] for kinds in iit.KINDS.values() for k in kinds}


def test_kinds_have_the_same_last_items_and_their_turns() -> None:
    kinds = by_kind(iit.generate(texts(), pictures(), encode, n=6))
    for last, names in iit.KINDS.items():
        asked = [[s.meta["item"] for s in kinds[name]] for name in names]
        assert len(asked[0]) == len(set(asked[0])) == 6 and all(a == asked[0] for a in asked)
        for name in names:
            for s in kinds[name]:
                assert [m.role for m in s.messages] == ["user", "assistant"] * len(name)
                shown = "".join("V" if Sample(id="", messages=(m,)).images else "T" for m in s.messages[::2])
                assert shown == name and name[-1] == last
    for a, b in zip(kinds["TT"], kinds["TTT"], strict=True):
        assert b.meta["earlier"][1:] == a.meta["earlier"]


def test_earlier_turns_are_the_nearest_with_their_gold_answers() -> None:
    known = {s.id: s for s in (*texts(), *pictures())}
    for s in iit.generate(texts(), pictures(), encode, n=4):
        item = known[s.meta["item"]]
        earlier = [known[name] for name in s.meta["earlier"]]
        assert [m.parts[-1] for m in s.messages] == [m.parts[-1] for e in (*earlier, item) for m in e.messages]
        topic = next(t for t in TOPICS if t in schema.message_text(item.messages[0]))
        assert all(topic in schema.message_text(e.messages[0]) for e in earlier)


def test_the_same_in_any_order_of_the_items_and_another_by_the_seed() -> None:
    one = iit.generate(texts(), pictures(), encode, n=5, seed=1)
    assert iit.generate(texts()[::-1], pictures()[::-1], encode, n=5, seed=1) == one
    assert [s.id for s in iit.generate(texts(), pictures(), encode, n=5, seed=2)] != [s.id for s in one]


def test_no_item_stands_before_too_many() -> None:
    found = by_kind(iit.generate(texts(), pictures(), encode))
    for kind in ("TTT", "VT", "TTV"):
        used = [name for s in found[kind] for name in s.meta["earlier"]]
        assert found[kind] and max(map(used.count, used)) <= iit.MOST


def test_options_of_the_last_turn_are_kept_out() -> None:
    river = [s for s in texts() if "river" in schema.message_text(s.messages[0])]
    giving = Sample(
        id="a", messages=(Message.of("user", "A river?"), Message.of("assistant", "NO0 or so")),
        options=("NO0 or so", "x"),
    )  # fmt: skip
    found = iit.generate([*river, giving], pictures(), encode)
    before = {s.meta["item"]: s.meta["earlier"] for s in found if s.meta["turns"] == "TTT"}
    assert "t00" in before and "a" not in before["t00"]  # "no0" is a wrong option of t00
    assert any("a" in earlier for earlier in before.values())
    with pytest.raises(DataError, match="sample iit-TT-t00: the option 'no0' occurs in an earlier turn"):
        iit.conversation("TT", [giving], river[0])


def test_items_of_one_source_never_meet() -> None:
    items = [replace(s, meta={"source": f"article {int(s.id[1:]) // 8}"}) for s in texts()]
    source = {s.id: s.meta["source"] for s in items}
    for s in iit.generate(items, pictures(), encode):
        if s.meta["item"] in source:
            assert all(source.get(name) != source[s.meta["item"]] for name in s.meta["earlier"])


@given(st.text("ab ", min_size=1).filter(str.strip))
def test_whole_words(option: str) -> None:
    assert iit.occurs(option, f"x {option.upper()}.")
    assert not iit.occurs(option, f"z{option.strip()}z") or option.strip() != option


def test_words_inside_words() -> None:
    assert not iit.occurs("no", "I know") and iit.occurs("no", "No!") and iit.occurs("赤", "赤い花")


def test_what_can_not_be_an_item() -> None:
    with pytest.raises(DataError, match="1 pictures, and its gold answer"):
        iit.generate(texts(), texts(), encode)
    with pytest.raises(DataError, match="no V items"):
        iit.generate(texts(), [], encode)
    with pytest.raises(DataError, match="no T item of 2 with earlier turns"):
        iit.generate(texts(2), pictures(), encode)


def test_written_with_a_card(tmp_path: Path) -> None:
    made = iit.generate(texts(), pictures(), encode, n=2, seed=3)
    iit.write(tmp_path, made, seed=3, sources=[{"name": "own", "version": "1", "licence": "CC0-1.0"}])
    read = schema.load(tmp_path / iit.FILE)
    assert [(s.id, s.options, dict(s.meta)) for s in read] == [(s.id, s.options, dict(s.meta)) for s in made]
    assert schema.check(tmp_path / iit.FILE) == []
    card = json.loads((tmp_path / iit.CARD).read_text())
    assert (card["version"], card["seed"], card["sources"][0]["licence"]) == (iit.VERSION, 3, "CC0-1.0")
    assert card["conversations"] == {k: 2 for kinds in iit.KINDS.values() for k in kinds}
    assert card["file"]["sha256"] == sha256_file(tmp_path / iit.FILE)
