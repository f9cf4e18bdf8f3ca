"""Weights and the parts that they are for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.errors import InputError, UnknownNameError
from tsugiki.mixing._weights import Rules, matches, place

LAYER = "language_model.model.layers.7.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (LAYER, "llm.layers.7.mlp.up_proj.weight"),
        ("language_model.transformer.h.0.attn.c_attn.bias", "llm.layers.0.attn.c_attn.bias"),
        ("language_model.model.embed_tokens.weight", "llm.model.embed_tokens.weight"),
        ("grafts.0.layers.3.gate", "grafts.0.layers.3.gate"),
        ("frontend.projector.0.weight", "frontend.projector.0.weight"),
    ],
)
def test_places(name: str, where: str) -> None:
    assert place(name) == where


@pytest.mark.parametrize(
    ("pattern", "there"),
    [
        ("llm", True),
        ("llm.layers.7", True),
        ("llm.layers.0-7", True),
        ("llm.layers.8-9", False),
        ("llm.layers.*.mlp", True),
        ("llm.layers.*.self_attn", False),
        ("llm.layers.7.mlp.up_proj.weight.more", False),
        ("ll", False),
        ("grafts", False),
    ],
)
def test_patterns(pattern: str, there: bool) -> None:
    assert matches(pattern, place(LAYER)) is there


def test_the_last_pattern_counts_and_grafts_have_names() -> None:
    rules = Rules.of([0.5, 0.5], {"llm": 0.1, "llm.layers.0-9": [0.2, 0.8], "grafts.lynx": 1}, parents=2)
    rules = rules.named(["projector", "lynx"], [LAYER, "language_model.lm_head.weight", "grafts.1.x", "grafts.0.x"])
    assert rules.at(LAYER) == (0.2, 0.8)
    assert rules.at("language_model.lm_head.weight") == (0.1, 0.9)
    assert rules.at("grafts.1.x") == (1.0, 0.0)
    assert rules.at("grafts.0.x") == (0.5, 0.5)


def test_a_pattern_that_names_nothing_is_refused() -> None:
    rules = Rules.of([0.5, 0.5], {"llm.layer.0": 0.1}, parents=2)
    with pytest.raises(UnknownNameError, match=r"unknown part 'llm\.layer\.0'.*Did you mean 'llm\.layers"):
        rules.named([], [LAYER])


@pytest.mark.parametrize(
    ("weights", "parts", "said"),
    [
        ([0.5], None, "1 weights for 2 parents"),
        ([0.5, 0.6], None, r"sum to 1\.1; expected a sum of 1.*--normalise"),
        ([1.5, -0.5], None, r"expected each in \[0, 1\].*--extrapolate"),
        ([math.nan, 1.0], None, "finite"),
        ([0.5, 0.5], {"llm": 1.2}, r"mix\(parts\), llm: weights 1\.2, -0\.2"),
        ([0.5, 0.5], {"llm": [0.1, 0.2]}, r"mix\(parts\), llm: .* sum to 0\.3"),
    ],
)
def test_weights_that_do_not_fit(weights: list[float], parts: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Rules.of(weights, parts, parents=2)


def test_one_weight_for_three_parents_and_a_sum_of_zero() -> None:
    with pytest.raises(InputError, match="one weight for 3 parents"):
        Rules.of([0.2, 0.3, 0.5], {"llm": 0.2}, parents=3)
    with pytest.raises(InputError, match="sum to 0"):
        Rules.of([1, -1], parents=2, normalise=True)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6))
def test_normalised_weights_keep_their_ratios_and_sum_to_one(weights: list[float]) -> None:
    found = Rules.of(weights, parents=len(weights), normalise=True).weights
    assert math.fsum(found) == pytest.approx(1)
    assert all(f * weights[0] == pytest.approx(found[0] * w) for f, w in zip(found, weights, strict=True))
