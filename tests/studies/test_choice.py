"""The choice between methods, from cells: the best that keeps its text, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest

from tsugiki.errors import InputError, RecipeError, UnknownNameError
from tsugiki.studies._choice import AUTO, candidates, compared


def cell(right: str, held: bool | None = None) -> dict[str, Any]:
    """One row a letter, y for a right answer."""
    rows = [
        {
            "id": f"{i}",
            "picture": f"{i}",
            "task": "decisions/decision",
            "sides": {"model": {"accuracy": float(r == "y")}},
        }
        for i, r in enumerate(right)
    ]
    return {"rows": rows, "lost": None if held is None else {"held": held, "worst": 0.02 if held else 0.4}}


def test_names() -> None:
    assert candidates("projector") == [("projector",)]
    assert candidates(["wings", "lynx"]) == [("wings", "lynx")]
    assert candidates("projector, wings+lynx") == [("projector",), ("wings", "lynx")]
    assert candidates("auto") == list(AUTO)
    with pytest.raises(UnknownNameError, match="Did you mean 'wings'"):
        candidates("projector,wingz")
    with pytest.raises(InputError, match="each once"):
        candidates("wings,wings")


def test_the_best_that_keeps_its_text() -> None:
    found = compared(
        {
            ("projector",): [cell("y" * 12 + "n" * 28)],
            ("wings",): [cell("y" * 38 + "n" * 2)],
            ("full_finetune",): [cell("y" * 40, held=False)],
        },
        0.05,
    )
    assert found.method == ("wings",) and list(found.out) == ["full_finetune"]
    assert "rise by 0.400" in found.out["full_finetune"] and "is out" in found.sentences[-1]
    assert not any("told apart" in line for line in found.sentences)
    gap = next(s for s in found.scores if s.metric == "wings minus projector")
    assert gap.value == pytest.approx(26 / 40) and gap.low is not None and gap.low > 0
    with pytest.raises(RecipeError, match="no candidate keeps its text"):
        compared({("full_finetune",): [cell("yy", held=False)]}, 0.05)


def test_those_that_are_not_told_apart() -> None:
    found = compared({("projector",): [cell("yynynynn")], ("wings",): [cell("nynynyyn")]}, 0.05)
    assert found.method == ("projector",)  # of equals the first
    assert any("not told apart from wings" in line for line in found.sentences)
