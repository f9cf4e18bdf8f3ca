"""Branches of a batch's rows: who takes which, and batches cut and put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsugiki import branches
from tsugiki.configuration import TsugikiOutput
from tsugiki.errors import InputError, PromptError, UnknownNameError
from tsugiki.types import BRANCHES

TEXT, IMAGE, GROUNDING = (BRANCHES[n] for n in ("text", "image", "grounding"))


@given(st.lists(st.sampled_from([TEXT, IMAGE, GROUNDING]), min_size=1, max_size=8))
@settings(deadline=None)
def test_every_row_is_in_one_group(rows: list[int]) -> None:
    found = branches.groups(torch.tensor(rows))
    assert sorted(i for _, own in found for i in own.tolist()) == list(range(len(rows)))
    for place, (name, own) in enumerate(found):
        allowed = {BRANCHES[name]} | ({TEXT} if place == 0 else set())
        assert {rows[i] for i in own.tolist()} <= allowed


@given(st.lists(st.sampled_from([TEXT, IMAGE, GROUNDING]), min_size=1, max_size=6), st.integers(1, 3))
@settings(deadline=None)
def test_what_the_groups_give_is_put_back_in_order(rows: list[int], each: int) -> None:
    branch = torch.tensor(rows)
    ids = torch.arange(len(rows))[:, None].expand(-1, 4)

    def run(input_ids: torch.Tensor, **_: Any) -> TsugikiOutput:
        return TsugikiOutput(logits=input_ids[..., None].float())

    whole = branches.forward(run, {"input_ids": ids, "labels": None}, branch, None)
    assert whole.logits is not None and torch.equal(whole.logits[..., 0], ids.float())

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:  # answers of a length of their own
        longer = torch.cat([input_ids, input_ids[:, : int(input_ids[0, 0]) % 3]], 1)
        return longer.repeat_interleave(each, 0)

    tokens = branches.generate(generate, {"input_ids": ids}, branch, pad=-7)
    assert len(tokens) == len(rows) * each
    for i in range(len(rows)):
        for own in tokens[i * each : (i + 1) * each].tolist():
            assert set(own) <= {i, -7} and own[:4] == [i] * 4


def test_names_and_numbers() -> None:
    place = torch.device("cpu")
    assert branches.numbers("grounding", 2, place).tolist() == [GROUNDING] * 2  # type: ignore[union-attr]
    assert branches.numbers(None, 2, place) is None
    with pytest.raises(UnknownNameError, match="grounding"):
        branches.numbers("grounds", 2, place)
    with pytest.raises(InputError, match="one number a row"):
        branches.numbers(torch.tensor([1]), 2, place)
    with pytest.raises(InputError, match="branch number 99"):
        branches.name_of(99)
    with pytest.raises(PromptError, match="several branches"):
        branches.refuse_cache(None, True)
    branches.refuse_cache(None, None)
