"""Each rule on answers that keep it and that do not; made prompts are repeatable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tsugiki.errors import DataError, UnknownNameError
from tsugiki.evals import rules

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("words_at_most", {"n": 3}, "a well-known bird", "one two three four five"),
    ("words_at_least", {"n": 3}, "one two three", "one two"),
    ("lower_case", {}, "all small.", "Not all."),
    ("upper_case", {}, "ALL LARGE 1.", "NOT all"),
    ("starts_with", {"start": "Well"}, "Well, yes", "Oh well"),
    ("ends_with", {"end": "The end."}, "Gone. The end.", "The end. Or not"),
    ("contains", {"word": "river"}, "A River runs", "rivers run"),
    ("avoids_letter", {"letter": "z"}, "no such letter", "Zoo"),
    ("json_keys", {"keys": ["a", "b"]}, '```json\n{"b": 1, "a": 2}\n```', '{"a": 1}'),
    ("bullets", {"n": 2}, "- a\n- b", "- a"),
    ("numbered", {"n": 2}, "1. a\n2. b", "a\nb"),
    ("one_of", {"options": ["yes", "no"]}, "Yes.", "Yes, it is"),
    ("quoted", {}, '"so it is"', '"so" it is'),
    ("language", {"language": "fr"}, "Le chat est sur la table et il dort.", "The cat is on the table."),
    ("language", {"language": "es"}, "El gato es de la casa y no del perro.", "Le chat est sur la table."),
    ("language", {"language": "de"}, "Der Hund und die Katze sind nicht im Haus.", "El gato y el perro."),
    ("language", {"language": "ja"}, "雪は白いです。", "snow"),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_a_rule_tells_good_from_bad(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    assert rules.follows(good, [(name, arguments)])
    assert not rules.follows(bad, [(name, arguments)]) and not rules.follows("  ", [(name, arguments)])


def test_every_rule_is_tried() -> None:
    assert {name for name, *_ in CASES} == set(rules.RULES)


def test_made_prompts() -> None:
    items = rules.instructions(60)
    assert items[:20] == rules.instructions(20) != rules.instructions(20, seed=1)
    for part in (items[:14], items[14:28], items[:28:2], items[1:28:2]):
        assert {name for i in part for name, _ in i.checks} == set(rules.RULES)
    assert not any("{" in i.prompt for i in items)
    document = items[2].document()
    assert json.loads(document["checks"]) == [["lower_case", {}]]
    assert rules.judge(document, ["all small"]) == {"acc": 1.0} and rules.judge(document, ["No"]) == {"acc": 0.0}


def test_chance_is_what_answers_keep_that_were_not_given_to_the_rule() -> None:
    small, quoted, listed = (rules.Instruction("", "", ((n, a),)) for n, a, *_ in (CASES[2], CASES[12], CASES[9]))
    answers = ['"all small"', '"so it is"', "- a\n- b"]
    assert all(rules.follows(a, i.checks) for a, i in zip(answers, (small, quoted, listed), strict=True))
    # "so it is" is small; - a - b is not quoted; "all small" is no list.
    assert rules.unread(answers, [small, quoted, listed]) == pytest.approx(1 / 3)
    assert rules.unread(["", "", ""], [small, quoted, listed]) == 0
    assert rules.unread(answers[:1], [small]) == 0


def test_wrong_rules_are_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'bullets'"):
        rules.follows("x", [("bullet", {})])
    with pytest.raises(DataError, match="rule bullets"):
        rules.follows("x", [("bullets", {"m": 1})])
