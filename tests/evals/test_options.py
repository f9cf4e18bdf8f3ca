"""Option likelihoods with a shared, repeated cache equal a loop that runs every option's whole text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tsugiki import grafts, testing
from tsugiki.errors import DataError, UnsupportedError
from tsugiki.evals import options as options_module
from tsugiki.evals.options import OptionScorer, OptionScores, text_key, without_pictures
from tsugiki.types import Box, BoxPart, Message, Sample, TextPart

OPTIONS = ("cat", "cat face", "a dog", "鳥", "b")


def samples(n: int = 5, *, options: tuple[str, ...] = OPTIONS) -> list[Sample]:
    """Questions of two lengths, one picture each."""
    return [
        Sample(
            id=f"s{i}",
            messages=(Message.of("user", "What is it?" + "!" * (i % 2), (picture,)), Message.of("assistant", "cat")),
            options=options,
        )
        for i, picture in enumerate(testing.tiny_images(n))
    ]


@torch.inference_mode()
def one_by_one(model: Any, sample: Sample, option: str) -> float:
    """Sum of the log-probabilities of an option's label tokens, its whole text in one forward."""
    text = replace(sample, messages=(*sample.prompt, Message.of("assistant", option)))
    inputs = model.encode_samples([text], labels=True).inputs()
    labels = inputs.pop("labels")[0, 1:]
    logprobs = torch.log_softmax(model(**inputs).logits[0, :-1], -1)
    here = labels != -100
    return float(logprobs[here].gather(1, labels[here][:, None]).sum())


@pytest.mark.parametrize("graft", grafts.available())
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_equals_the_loop(graft: str, family: str) -> None:
    try:
        model = testing.tiny_model(graft, family).double()
    except UnsupportedError as error:
        pytest.skip(str(error))
    asked = [*samples(), without_pictures(samples()[0])]
    for sample, found in zip(asked, OptionScorer(model, batch_size=2)(asked), strict=True):
        assert found.options == OPTIONS and all(found.finished)
        for option, value in zip(OPTIONS, found.logprobs, strict=True):
            assert value == pytest.approx(one_by_one(model, sample, option), abs=1e-10)


@pytest.mark.parametrize("pictured", ["first", "last"])
def test_earlier_turns_are_no_part_of_the_score(pictured: str) -> None:
    model = testing.tiny_model().double()
    shown, asked = samples()[:2]
    earlier, last = (shown, without_pictures(asked)) if pictured == "first" else (without_pictures(shown), asked)
    talk = replace(last, messages=(*earlier.messages, *last.messages))
    (found,) = OptionScorer(model)([talk])
    told = [one_by_one(model, talk, option) for option in OPTIONS]
    before = one_by_one(model, replace(talk, messages=earlier.prompt), "cat")
    assert found.logprobs == pytest.approx([value - before for value in told], abs=1e-10)


def test_the_bare_llm_scores_as_the_models_text_path() -> None:
    model = testing.tiny_model()
    blind = [without_pictures(s) for s in samples()]
    own = OptionScorer(model)(blind)
    assert own == OptionScorer(model, llm=model.language_model)(blind)
    assert own[0] == own[2] and own[0] != own[1]  # equal questions, pictures left out


def test_the_picture_and_the_question_matter() -> None:
    first, second, third = OptionScorer(testing.tiny_model())(samples()[:3])
    assert first.logprobs != third.logprobs and first.logprobs != second.logprobs


def test_many_options_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = testing.tiny_model().double()
    whole = OptionScorer(model)(samples())
    monkeypatch.setattr(options_module, "MAX_ROWS", 3)
    for a, b in zip(whole, OptionScorer(model)(samples()), strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-10)


@pytest.mark.parametrize("tolerance", [0.0, 2.0, 30.0])
def test_unfinished_options_change_no_answer(tolerance: float) -> None:
    model = testing.tiny_model().double()
    with torch.no_grad():  # a sure model: what begins badly is not worth finishing
        model.language_model.lm_head.weight.mul_(30)
    names = tuple(chr(97 + i) * (1 + i % 4) for i in range(16))
    whole = OptionScorer(model)(samples(options=names))
    quick = OptionScorer(model, tolerance=tolerance)(samples(options=names))
    for a, b in zip(whole, quick, strict=True):
        assert a.best() == b.best()
        for exact, value, finished in zip(a.logprobs, b.logprobs, b.finished, strict=True):
            assert value == pytest.approx(exact, abs=1e-10) if finished else value >= exact
            assert finished or exact < max(a.logprobs) - tolerance
    if tolerance == 0.0:
        assert not all(all(b.finished) for b in quick)


def test_a_question_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = OptionScorer(testing.tiny_model())
    scorer(samples())
    assert len(scorer._known) == 2
    monkeypatch.setattr(type(scorer.collate), "encode", lambda *_: pytest.fail("tokenised again"))
    scorer(samples())


def test_cached_features_take_the_place_of_pixels() -> None:
    model = testing.tiny_model()
    looked: list[Any] = []

    def features(source: Any) -> torch.Tensor:
        looked.append(source)
        return model.frontend.encode(model.frontend.transform(source)[None])[0]

    asked = samples()
    live, cached = OptionScorer(model)(asked), OptionScorer(model, features=features)(asked)
    assert len(looked) == len(asked)
    for a, b in zip(live, cached, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_probabilities_and_normalisation() -> None:
    scores = OptionScores(("long one", "short"), (-3.0, -2.0), (6, 1), (True, True))
    assert scores.best() == "short" and scores.best("mean") == "long one"
    probabilities = scores.probabilities()
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert probabilities["short"] / probabilities["long one"] == pytest.approx(torch.tensor(1.0).exp().item())
    with pytest.raises(DataError, match="tolerance=None"):
        replace(scores, finished=(True, False)).scores("mean")


@pytest.mark.parametrize("options", [(), ("a", "a")])
def test_options_must_be_there_and_differ(options: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="different options"):
        OptionScorer(testing.tiny_model())(samples(1, options=options))


def test_a_question_with_a_box_is_its_own() -> None:
    box = BoxPart(Box(1, 1, 9, 9))
    a, b = samples(3)[0], samples(3)[2]
    assert text_key(a) == text_key(b)
    boxed = [replace(s, messages=(Message("user", (*s.messages[0].parts, box)), s.messages[1])) for s in (a, b)]
    assert text_key(boxed[0]) != text_key(boxed[1])
    assert all(isinstance(p, TextPart) for m in without_pictures(boxed[0]).messages for p in m.parts)


def test_options_that_begin_alike_share_no_answer() -> None:
    """The end of the turn counts: an option that begins another one does not win by that."""
    model = testing.tiny_model().double()
    found = OptionScorer(model)(samples(1))[0]
    assert found.tokens[0] == len(b"cat") + 1
    assert found.logprobs[1] != pytest.approx(found.logprobs[0])
