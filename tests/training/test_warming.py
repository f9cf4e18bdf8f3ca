"""From a stage's samples to the warm start of the projector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training._tiny import cache, model, recipe, samples

from tsugiki.errors import RecipeError, UnknownNameError
from tsugiki.testing import tiny_images, tiny_llm
from tsugiki.training.recipe import WarmStart
from tsugiki.training.trainer import train
from tsugiki.training.warming import captions, places, told, word_embeddings
from tsugiki.types import Box, BoxPart, Message, Sample, TextPart


def ask(number: int, picture: Any, answer: str, task: str = "chat") -> Sample:
    return Sample(
        id=str(number), task=task, messages=(Message.of("user", "?", picture), Message.of("assistant", answer))
    )


def test_all_that_is_said_of_a_picture_is_its_caption() -> None:
    one, two, three = tiny_images(3)
    data = {
        "a": [ask(0, (one,), "a cat"), ask(1, (two,), "a dog"), ask(2, (one,), "red"), ask(3, (one,), "red")],
        "b": [
            ask(4, (one,), "none", "absent"),
            ask(5, (one, two), "both"),
            ask(6, (), "text"),
            ask(7, (three,), "cup"),
        ],
    }
    found = captions(data, WarmStart())
    assert [text for _, text in found] == ["a cat red", "a dog", "cup"] and found[0][0] is one
    assert [text for _, text in captions(data, WarmStart(samples=1, exclude=()))] == ["a cat red none"]


def test_a_caption_in_the_meta_comes_first() -> None:
    one, two = tiny_images(2)
    data = [ask(0, (one,), "none", "absent"), ask(1, (one,), "red", "colour"), ask(2, (two,), "blue")]
    said = [replace(sample, meta={"caption": "red cat", "words": ""}) for sample in data[:2]]
    assert [text for _, text in captions({"a": [*said, data[2]]}, WarmStart())] == ["red cat", "blue"]
    assert [text for _, text in captions({"a": said}, WarmStart(caption="words"))] == ["red"]


def test_paths_are_told_apart_by_name() -> None:
    data = {"a": [ask(0, ("x.png",), "a"), ask(1, (Path("x.png"),), "b"), ask(2, ("y.png",), "c")]}
    assert [text for _, text in captions(data, WarmStart())] == ["a b", "c"]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_word_embeddings_are_what_the_first_layer_sees(family: str) -> None:
    llm = tiny_llm(family)
    with torch.no_grad():
        first = llm(torch.arange(20)[None], output_hidden_states=True).hidden_states[0][0]
    # Gemma scales a second time in some versions; the look-up is what visual tokens are put beside.
    assert torch.allclose(word_embeddings(llm)[:20], llm.get_input_embeddings()(torch.arange(20)))
    assert word_embeddings(llm).shape == (llm.config.vocab_size, llm.config.hidden_size) and first.shape[0] == 20


def run(fields: dict[str, Any], tmp_path: Path, built: Any = None, **options: Any) -> Any:
    built = built if built is not None else model()
    given = {"data": samples(), "progress": False, "features": cache(built, tmp_path), **options}
    return train(built, fields, tmp_path / "run", **given)


def test_a_stage_of_a_warm_start_alone(tmp_path: Path) -> None:
    built, other = model(), model()
    fields = recipe(steps=0, warm_start=True)
    result = run(fields, tmp_path, built)
    assert result.steps == 0 and result.reports["0"]["matched"] and result.reports["0"]["pictures"] == 8
    moved = [n for n, p in built.named_parameters() if not torch.equal(p, dict(other.named_parameters())[n])]
    assert moved and all(name.startswith("frontend.projector.") for name in moved)
    again = model(seed=4)
    assert run(fields, tmp_path, again).resumed
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), again.parameters(), strict=True))


def test_a_warm_start_is_not_done_again_on_resume(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(report: Any) -> None:
        if report.step == 3:
            raise Stop

    fields = recipe(warm_start={"samples": 6, "options": {"norm": 0.5}})
    whole = model()
    expected = run(fields, tmp_path / "whole", whole)
    with pytest.raises(Stop):
        run(fields, tmp_path, model(), on_step=stop)
    built = model(seed=2)
    result = run(fields, tmp_path, built)
    assert result.losses == expected.losses and result.reports["0"] == result.reports["0"] | {
        "norm": 0.5,
        "pictures": 6,
    }
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), whole.parameters(), strict=True))


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="warm-start option 'nrom'.*Did you mean 'norm'"):
        run(recipe(warm_start={"options": {"nrom": 1}}), tmp_path)
    told = [ask(i, (picture,), "none", "absent") for i, picture in enumerate(tiny_images(3))]
    with pytest.raises(RecipeError, match="no picture with an answer in words"):
        run(recipe(warm_start=True), tmp_path / "b", data=told)


def test_a_warm_start_that_sets_nothing_says_so(tmp_path: Path) -> None:
    built = model()
    before = {name: p.clone() for name, p in built.frontend.projector.named_parameters()}
    start = {"options": {"match": False, "norm": None}}
    result = run(recipe(warm_start=start, steps=0), tmp_path, built)
    assert told(result.reports["0"]).startswith("warm start: the projector stays as it is")
    assert all(torch.equal(p, before[name]) for name, p in built.frontend.projector.named_parameters())


def boxed(number: int, picture: Any, *boxes: Box, meta: dict[str, Any] | None = None) -> Sample:
    told = Message("assistant", (TextPart("there: "), *(BoxPart(box) for box in boxes)))
    return Sample(id=str(number), messages=(Message.of("user", "Where?", (picture,)), told), meta=meta or {})


def test_all_boxes_of_a_picture_are_its_places() -> None:
    one, two, three = tiny_images(3)
    a, b, c = Box(0, 0, 5, 5), Box(2, 2, 9, 9), Box(1, 1, 3, 4)
    things = {"objects": [{"name": "cup", "box": [0, 0, 5, 5]}, {"name": "cat", "box": [2, 2, 9, 9]}]}
    data = {"x": [boxed(0, one, a), boxed(1, two, c), ask(2, (three,), "nothing")], "y": [boxed(3, one, b, a)]}
    assert places(data, WarmStart()) == [(one, [a, b]), (two, [c])]
    assert places(data, WarmStart(samples=1)) == [(one, [a, b])]
    assert places({"x": [boxed(0, one, a, meta=things)]}, WarmStart()) == [(one, [a, b])]
    assert places({"x": [boxed(0, one, c, meta=things)]}, WarmStart(objects="gold")) == [(one, [c])]
    for other in (7, "cup", ["cup"], [{"name": "cup"}], [{"box": [0, 1]}], [{"box": ["0", 0, 5, 5]}]):
        assert places({"x": [boxed(0, one, c, meta={"objects": other})]}, WarmStart()) == [(one, [c])]


def test_places_are_fitted_kept_and_never_trained(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(report: Any) -> None:
        if report.step == 3:
            raise Stop

    pictures = tiny_images(6)
    data = [boxed(i, p, Box(i, 0, i + p.width // 3, p.height // 2)) for i, p in enumerate(pictures)]
    fields, short = recipe(warm_start=True, steps=5), {"decimals": 0, "scale": 99, "whole": 2}
    built = model(places=1, box_text=short)
    given = {"data": data, "progress": False, "features": cache(built, tmp_path)}
    with pytest.raises(Stop):
        train(built, fields, tmp_path / "run", on_step=stop, **given)
    fitted = built.frontend.places.weight.clone()
    assert built.frontend.places.fitted
    again = model(places=1, box_text=short)
    result = train(again, fields, tmp_path / "run", **given)
    assert result.resumed and result.reports["0"]["places"]["things"] == 6
    assert torch.equal(again.frontend.places.weight, fitted)
    other = model(places=1, box_text=short)
    assert train(other, recipe(steps=1), tmp_path / "b", **{**given, "data": data}, overrides=["warm_start=true"])


def test_places_are_fitted_where_no_answer_has_words(tmp_path: Path) -> None:
    data = [boxed(i, p, Box(i, 0, i + 9, 9)) for i, p in enumerate(tiny_images(4))]
    data = [replace(s, messages=(s.messages[0], Message("assistant", s.messages[1].parts[1:]))) for s in data]
    built, before = model(places=1), model(places=1).frontend.projector.linear_2.weight
    result = run(recipe(warm_start=True, steps=0), tmp_path, built, data=data)
    assert result.reports["0"]["places"]["things"] == 4 and not result.reports["0"]["matched"]
    assert built.frontend.places.fitted and torch.equal(built.frontend.projector.linear_2.weight, before)


def test_places_without_a_warm_start_or_boxes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="never fitted.*warm_start: true"):
        run(recipe(), tmp_path, model(places=1))
    with pytest.raises(RecipeError, match="0 pictures with boxes.*places=0"):
        run(recipe(warm_start=True), tmp_path / "b", model(places=1))


def test_people_read_a_line_of_it() -> None:
    fitted = {"matched": True, "pictures": 20, "words": 7, "seconds": 1.2, "lambda_1": 1e-6}
    assert told(fitted) == "warm start: the projector starts from 20 pictures and 7 words, in 1 s"
    assert told({"matched": False, "places": {}}) == "warm start: places are fitted"
    assert "(the texts do not differ)" in told({"matched": False, "pictures": 2, "reason": "the texts do not differ"})
