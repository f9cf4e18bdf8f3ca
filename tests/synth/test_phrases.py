from __future__ import annotations

import string

import pytest

from tsugiki.data import detail
from tsugiki.synth.flaws import SEVERITIES, TYPES
from tsugiki.synth.phrases import DEFECTS, LANGUAGES
from tsugiki.synth.phrases.base import BOX, CELLS, FORMS, Phrases
from tsugiki.synth.phrases.en import article, join, plural
from tsugiki.synth.pictograms import COLOURS, table

BOTH = pytest.mark.parametrize("phrases", LANGUAGES.values(), ids=LANGUAGES)


@BOTH
def test_a_language_is_complete(phrases: Phrases) -> None:
    english = LANGUAGES["en"]
    assert phrases.answers.keys() == english.answers.keys()
    assert phrases.questions.keys() == english.questions.keys()
    assert phrases.hints.keys() == english.hints.keys()
    assert set(phrases.colours) == set(COLOURS)
    assert set(phrases.places) == set(phrases.at) == set(CELLS)
    for values in (phrases.colours.values(), phrases.places.values(), phrases.numbers):
        assert len(set(values)) == len(values)
    assert len(phrases.numbers) == 10
    assert phrases.numbers[0] == phrases.answers["absent", "short"] == phrases.answers["absent", "boxes only"]


@BOTH
def test_the_standard_hints_are_those_of_chat(phrases: Phrases) -> None:
    for form in FORMS:
        assert phrases.hints[form][0] == detail.PHRASES[phrases.language][form]
        assert detail.language(phrases.hints[form][0]) == phrases.language


@BOTH
def test_templates_can_be_filled_for_every_name(phrases: Phrases) -> None:
    texts = [t for group in phrases.questions.values() for t in group] + list(phrases.answers.values())
    wanted = {name for t in texts for _, name, _, _ in string.Formatter().parse(t) if name}
    told = {"at", "place", "number", "colour", "box", "boxes", "things", "thing"}
    for p in table():
        for count in range(1, 10):
            fields = phrases.fields(p.name(phrases.language), count)
            assert wanted <= told | fields.keys()
            assert all(value and BOX not in value for value in fields.values())
            assert phrases.thing(p.name(phrases.language), None, count)


@BOTH
def test_short_answers_differ_within_their_closed_set(phrases: Phrases) -> None:
    names = [p.name(phrases.language) for p in table()]
    assert len(set(names)) == len(names)
    none = phrases.answers["absent", "short"]
    assert none not in {*phrases.colours.values(), *phrases.places.values(), *phrases.numbers[1:]}


def test_english_articles_and_plurals() -> None:
    said = {
        name: plural(name) for name in ("dog", "bus", "fish", "tomato", "battery", "monkey", "axe", "torch", "volcano")
    }
    assert list(said.values()) == [
        "dogs",
        "buses",
        "fish",
        "tomatoes",
        "batteries",
        "monkeys",
        "axes",
        "torches",
        "volcanoes",
    ]
    assert (plural("avocado"), plural("maple leaf"), plural("tooth"), plural("hourglass")) == (
        "avocados",
        "maple leaves",
        "teeth",
        "hourglasses",
    )
    assert [article(n) for n in ("apple", "umbrella", "hourglass", "orange dog", "house", "T-shirt")] == ["an"] * 4 + [
        "a"
    ] * 2
    assert [join(items) for items in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_lists_of_things() -> None:
    english, japanese = LANGUAGES["en"].thing, LANGUAGES["ja"].thing
    assert [english("dog", None, 1), english("dog", "orange", 1), english("fish", "red", 2)] == [
        "a dog",
        "an orange dog",
        "two red fish",
    ]
    assert [japanese("犬", None, 1), japanese("犬", "赤", 1), japanese("犬", "緑", 1), japanese("犬", None, 2)] == [
        "犬",
        "赤い犬",
        "緑の犬",
        "二つの犬",
    ]


@pytest.mark.parametrize("phrases", DEFECTS.values(), ids=DEFECTS)
def test_a_language_is_complete_about_defects(phrases: Phrases) -> None:
    english = DEFECTS["en"]
    assert DEFECTS.keys() == LANGUAGES.keys()
    assert phrases.answers.keys() == english.answers.keys()
    assert phrases.questions.keys() == english.questions.keys()
    assert set(phrases.words) == {*TYPES, *SEVERITIES}
    none = phrases.answers["absent", "short"]
    assert none == phrases.answers["absent", "boxes only"]
    assert len({*phrases.words.values(), phrases.object, none}) == len(phrases.words) + 2
    texts = [t for group in phrases.questions.values() for t in group] + list(phrases.answers.values())
    wanted = {name for t in texts for _, name, _, _ in string.Formatter().parse(t) if name}
    for count in (1, 2, 3):
        assert wanted <= {"severity", "box", "boxes", "things", "thing"} | phrases.fields(phrases.object, count).keys()
