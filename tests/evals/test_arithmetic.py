"""Arithmetic questions: the marked answer is right, no other is, and a run begins like a shorter one."""

from __future__ import annotations

import pytest

from tsugiki.errors import DataError
from tsugiki.evals import arithmetic


def test_the_marked_answer_is_the_result() -> None:
    items = arithmetic.arithmetic(arithmetic.MOST)
    assert len({i.context for i in items}) == len(items)
    for item in items:
        term = item.context.removeprefix(arithmetic.SOLVED).removesuffix(" =")
        left, sign, right = term.split()
        result = {"+": int(left) + int(right), "-": int(left) - int(right), "×": int(left) * int(right)}[sign]
        assert [o == str(result) for o in item.options] == [k == item.answer for k in range(4)]
        assert len(set(item.options)) == 4 and f"{term} = " not in arithmetic.SOLVED
    assert min(sum(i.answer == k for i in items) for k in range(4)) > 35


def test_seeds_and_lengths() -> None:
    assert arithmetic.arithmetic(30)[:12] == arithmetic.arithmetic(12) != arithmetic.arithmetic(12, seed=1)
    with pytest.raises(DataError, match="expected 240 at most"):
        arithmetic.arithmetic(241)
