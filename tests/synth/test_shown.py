"""Questions made from scenes: captions with one attribute swapped, and what is not there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tsugiki.errors import DataError
from tsugiki.synth import absent, matching, shown
from tsugiki.types import Message, Sample

CUP = {"name": "cup", "ja": "コップ", "colour": "red", "cell": "left"}
DOG = {"name": "dog", "ja": "犬", "colour": None, "cell": "top"}
CAT = {"name": "cat", "ja": "猫", "colour": "black", "cell": "right"}


def scene(number: int, objects: list[dict[str, object]], language: str = "en") -> Sample:
    messages = (Message.of("user", "?", (Path(f"/p/{number}.png"),)), Message.of("assistant", "x"))
    return Sample(f"s{number}", messages, meta={"objects": objects, "language": language, "split": "test"})


SCENES = [scene(0, [CUP, DOG]), scene(0, [CUP, DOG]), scene(1, [DOG, DOG, CAT]), scene(2, [CAT]), scene(3, [DOG])]


def test_pairs_differ_in_one_attribute() -> None:
    made = matching.pairs(SCENES, seed=3)
    by_kind = Counter(s.meta["swapped"] for s in made)
    assert by_kind == {"name": 4, "count": 4, "place": 4, "colour": 1}  # an ink such as black is no colour to ask for
    for s in made:
        true = s.answer.parts[0].text  # type: ignore[union-attr]
        assert true in s.options and len(set(s.options)) == 2
    colour = next(s for s in made if s.meta["swapped"] == "colour")
    assert "The picture shows a red cup and a dog." in colour.options
    false = next(o for o in colour.options if "a red cup" not in o)
    assert false.endswith(" cup and a dog.") and made == matching.pairs(SCENES, seed=3)
    assert {s.options.index(s.answer.parts[0].text) for s in made} == {0, 1}  # type: ignore[union-attr]


def test_pairs_in_japanese() -> None:
    made = matching.pairs([scene(0, [CUP, DOG], "ja"), scene(1, [CAT], "ja")])
    texts = {s.meta["swapped"]: s for s in made if s.id.startswith("matching-0-000000")}
    assert "赤いコップと犬が描かれています。" in texts["colour"].options
    assert set(texts) == set(matching.SWAPPED)


def test_absent_names_are_drawn_in_three_ways() -> None:
    made = absent.questions(SCENES, seed=0)
    assert len(made) == 4 * 3 * 2 and Counter(s.answer.parts[0].text for s in made) == {"yes": 12, "no": 12}  # type: ignore[union-attr]
    asked = {s.id: s.messages[0].parts[1].text for s in made}  # type: ignore[union-attr]
    there = {0: {"cup", "dog"}, 1: {"dog", "cat"}, 2: {"cat"}, 3: {"dog"}}
    for name, text in asked.items():
        number = int(name.split("-")[3])
        named = next(n for n in ("cup", "dog", "cat") if n in text)
        assert (named in there[number]) == name.endswith("yes")
    assert "dog" in asked["absent-0-en-000002-popular-no"]  # on most pictures
    assert "dog" in asked["absent-0-en-000002-adversarial-no"]  # the only one beside a cat


def test_what_a_picture_shows_has_to_be_known() -> None:
    assert len(shown.pictures(SCENES)) == 4
    plain = Sample("x", SCENES[0].messages)
    for made in (matching.pairs, absent.questions):
        with pytest.raises(DataError, match="synth scenes"):
            made([plain])
