"""The run's folder: what it was started with, and the first difference to what it is continued with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tsugiki.training.recipe import load
from tsugiki.training.run import Run, first_difference, versions

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_a_difference_is_found_exactly_where_there_is_one(a: Any, b: Any) -> None:
    assert first_difference(a, a) is None
    missing = json.dumps(a).replace("null", "") != json.dumps(b).replace("null", "")
    if first_difference(a, b) is None and type(a) is type(b):
        # Only a key that is absent in the one and None in the other counts as no difference.
        assert a == b or not missing or "null" in json.dumps([a, b])


def test_the_place_is_named() -> None:
    a = {"stages": [{"steps": 1}, {"steps": 2}], "seed": 0}
    b = {"stages": [{"steps": 1}, {"steps": 3}], "seed": 1}
    assert first_difference(a, b) == ("stages.1.steps", "2", "3")
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", "null", "2")
    assert first_difference([1], [1, 2]) == ("", "[1]", "[1, 2]")


def test_versions() -> None:
    assert {"python", "torch", "transformers", "tsugiki"} <= set(versions())


def test_a_new_run_is_described(tmp_path: Path) -> None:
    recipe = load("projector", ["seed=3"])
    run = Run(tmp_path / "run", recipe, {"data": {"a": "b"}})
    with run.locked():
        assert run.open(resume=True) is None and run.open(resume=False) is None
    assert load(tmp_path / "run/recipe.yaml") == recipe
    about = json.loads((tmp_path / "run/run.json").read_text())
    assert about["seed"] == 3 and about["data"] == {"a": "b"}
