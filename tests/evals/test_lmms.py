"""The class that lmms-eval gets, on a small fake of its base."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tsugiki import testing
from tsugiki.errors import MissingExtraError, UnsupportedError
from tsugiki.evals import lmms
from tsugiki.evals.free import FreeAnswerer
from tsugiki.evals.options import OptionScorer
from tsugiki.types import Message, Sample


class Base:
    is_simple = False

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


def made() -> tuple[Any, list[Any]]:
    model, pictures = testing.tiny_model(), testing.tiny_images(2)
    found = lmms.model_class(Base)(model=model, batch_size=2)
    found.task_dict = {"pope": {"test": [{"image": p} for p in pictures]}}
    return found, pictures


def visual(document: Any) -> list[Any]:
    return [document["image"]]


def test_answers_are_those_of_the_model() -> None:
    found, pictures = made()
    asked = [
        SimpleNamespace(args=("<image>\nIs it red?", {"max_new_tokens": 4}, visual, i, "pope", "test")) for i in (0, 1)
    ]
    expected = FreeAnswerer(found.model, max_new_tokens=4)(
        [Sample(id=str(i), messages=(Message.of("user", "Is it red?", (p,)),)) for i, p in enumerate(pictures)]
    )
    assert found.generate_until(asked) == expected and found.is_simple
    stops = [SimpleNamespace(args=("Is it red?", {"max_new_tokens": 4, "until": [expected[0][:1]]}, visual, 0, "pope",
                                   "test"))]  # fmt: skip
    stopped = FreeAnswerer(found.model, max_new_tokens=4)(
        [Sample(id="0", messages=(Message.of("user", "Is it red?", (pictures[0],)),))]
    )
    assert found.generate_until(stops) == [lmms._until(stopped[0], [expected[0][:1]])]
    assert lmms._until("a\n\nb", ["\n\n"]) == "a" and lmms._until("a.b", ".") == "a" and lmms._until("a", None) == "a"


def test_likelihoods_are_those_of_the_options() -> None:
    found, pictures = made()
    asked = [
        SimpleNamespace(args=("Is it red?", "yes", visual, 0, "pope", "test")),
        SimpleNamespace(args=("Is it red?", lambda document: " no", visual, 1, "pope", "test")),
        SimpleNamespace(args=("2 + 2?", "4", None, 0, "pope", "test")),
    ]
    values = [value for value, _ in found.loglikelihood(asked)]
    for value, text, image, option in zip(values, ("Is it red?", "Is it red?", "2 + 2?"), ((pictures[0],),
                                          (pictures[1],), ()), ("yes", "no", "4"), strict=True):  # fmt: skip
        sample = Sample(id="x", messages=(Message.of("user", text, image),), options=(option,))
        assert value == pytest.approx(OptionScorer(found.model)([sample])[0].logprobs[0], abs=1e-4)
    with pytest.raises(UnsupportedError, match="several rounds"):
        found.generate_until_multi_round([])


def test_the_entry_point_leads_here() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"tsugiki": "tsugiki.evals.lmms:manifest"}
    with pytest.raises(MissingExtraError, match="lmms_eval"):
        lmms.manifest()
    with pytest.raises(AttributeError):
        lmms.nothing  # noqa: B018
