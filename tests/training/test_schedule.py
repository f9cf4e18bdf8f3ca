"""Schedules against their formulas."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.training.schedule import Schedule, factor

KINDS: list[Schedule] = ["constant", "linear", "cosine", "constant_decay"]


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_is_a_straight_line(kind: Schedule) -> None:
    assert [factor(kind, p, warmup=0.2) for p in (0.0, 0.05, 0.1)] == pytest.approx([0.0, 0.25, 0.5])


def test_formulas() -> None:
    assert factor("constant", 0.9, warmup=0.1) == 1.0
    assert factor("linear", 0.55, warmup=0.1) == pytest.approx(0.5)
    assert factor("cosine", 0.325, warmup=0.1) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factor("constant_decay", 0.7, warmup=0.1, decay=0.2) == 1.0
    assert factor("constant_decay", 0.9, warmup=0.1, decay=0.2) == pytest.approx(0.5)
    assert factor("constant_decay", 1.0, warmup=0.0, decay=0.0) == 1.0


@given(st.sampled_from(KINDS), st.floats(-1, 2), st.floats(0, 0.99), st.floats(0, 1))
def test_always_between_zero_and_one(kind: Schedule, progress: float, warmup: float, decay: float) -> None:
    assert 0.0 <= factor(kind, progress, warmup=warmup, decay=decay) <= 1.0


@given(st.sampled_from(KINDS), st.floats(0, 0.9))
def test_never_rises_after_the_warm_up(kind: Schedule, warmup: float) -> None:
    values = [factor(kind, warmup + (1 - warmup) * i / 20, warmup=warmup) for i in range(21)]
    assert all(a >= b - 1e-12 for a, b in zip(values, values[1:], strict=False))
