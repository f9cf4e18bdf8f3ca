"""IIT: accuracy of each kind, kinds paired by item, the bare LLM without pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.synth.test_iit import encode, pictures, texts

from tsugiki import testing
from tsugiki.errors import AssetError, DataError
from tsugiki.evals import task
from tsugiki.evals.tasks import iit
from tsugiki.evals.text_items import Choice
from tsugiki.synth.iit import KINDS, generate, write
from tsugiki.types import Sample

KIND_NAMES = [kind for kinds in KINDS.values() for kind in kinds]


def made(n: int = 4) -> list[Sample]:
    return generate(texts(), pictures(), encode, n=n)


def test_the_whole_path() -> None:
    result = task.measure(testing.tiny_model(), "iit", made(7), limit=6)["iit"]
    scores = {(s.task, s.metric): s for s in result.scores}
    others = [(kind, alone) for alone, *rest in KINDS.values() for kind in rest]
    assert set(scores) == {(f"iit/{kind}", "accuracy") for kind in KIND_NAMES} | {
        (f"iit/{kind}", f"accuracy minus {alone}") for kind, alone in others
    }
    assert all(s.n == 6 and s.low is not None and s.high is not None for s in result.scores)
    for kind, alone in others:
        change = scores[f"iit/{kind}", f"accuracy minus {alone}"].value
        accuracy = [scores[f"iit/{k}", "accuracy"].value for k in (kind, alone)]
        assert change == pytest.approx(accuracy[0] - accuracy[1])
    for kind in KIND_NAMES:
        found = scores[f"iit/{kind}", "accuracy"]
        mine = [a for a in result.answers if a.sample.meta["turns"] == kind]
        assert found.value == pytest.approx(sum(a.correct for a in mine) / 6)
        assert found.base == pytest.approx(sum(a.base_text == a.gold for a in mine) / 6)
        assert ("without the picture" in found.note) == ("V" in kind)
        if "V" not in kind:  # a request without a picture is the bare LLM's
            assert found.difference == 0 and all(a.text == a.base_text for a in mine)


def test_limit_cuts_items_and_the_order_of_the_file_does_not_matter() -> None:
    model = testing.tiny_model()
    one = task.measure(model, "iit", made(7), limit=5, seed=1)["iit"]
    assert len(one.answers) == 5 * len(KIND_NAMES)
    assert task.measure(model, "iit", made(7)[::-1], limit=5, seed=1)["iit"].scores == one.scores


def test_time_is_up_after_the_first_window() -> None:
    result = task.measure(testing.tiny_model(), "iit", made(6), seconds=0, batch_size=2)["iit"]
    assert len(result.answers) == 4 and {a.sample.meta["turns"] for a in result.answers} == {"T", "TT", "TTT", "VT"}


def test_too_few_for_an_interval() -> None:
    with pytest.raises(DataError, match="4 samples for iit with T last"):
        task.evaluate(testing.tiny_model(), "iit", made(4))


def choices(sort: str, n: int) -> list[Choice]:
    """Questions of the shape of Wikipedia's."""
    said = (s for s in texts(n))
    return [Choice(f"{sort}-{i}", f"{sort} {s.messages[0].parts[0].text}", (f"{sort}{i}", f"not {sort}{i}"), 0)
            for i, s in enumerate(said)]  # type: ignore[union-attr]  # fmt: skip


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def maker(sort: str) -> object:
        return lambda n, *, seed=0: choices(sort, 8)

    monkeypatch.setattr(iit, "SORTS", {sort: maker(sort) for sort in ("title", "next")})
    monkeypatch.setattr(iit, "SentenceEncoder", lambda: encode)


def test_own_picture_questions_become_conversations(fakes: None) -> None:
    result = task.measure(testing.tiny_model(), "iit", pictures(), limit=5)["iit"]
    assert {s.task for s in result.scores} == {f"iit/{kind}" for kind in KIND_NAMES}
    assert {a.sample.meta["item"] for a in result.answers if a.sample.meta["turns"] == "V"} <= {
        s.id for s in pictures()
    }


def test_conversations_without_data(fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iit, "scenes", lambda n, *, seed=0: pictures(n))
    assert {s.n for s in task.evaluate(testing.tiny_model(), "iit", limit=6)} == {6}


def test_published_conversations_score_as_those_in_memory(tmp_path: Path) -> None:
    write(tmp_path, made(5), seed=0)
    model = testing.tiny_model()
    assert task.evaluate(model, "iit", tmp_path / "iit.jsonl") == task.evaluate(model, "iit", made(5))


def test_what_is_selected() -> None:
    assert iit.select([*made(1), *pictures()]) == made(1)
    assert iit.select([*texts(), *pictures()]) == pictures()
    spoilt = next(s for s in made(1) if s.meta["turns"] == "TT")
    told = spoilt.messages[1].parts[0].text  # type: ignore[union-attr]
    with pytest.raises(DataError, match=f"the option '{told}' occurs in an earlier turn"):
        iit.select([replace(spoilt, options=(*spoilt.options, told))])


def test_a_text_question_knows_its_article() -> None:
    asked = iit.question(Choice("next-Anne of X", "Q", ("a", "b"), 1))
    assert asked.meta["source"] == "Anne of X" and asked.answer is not None
    assert task.message_text(asked.answer) == "b"


def test_sources_of_the_card(tmp_path: Path) -> None:
    assert [s["name"] for s in iit.sources()] == ["wiki", "minilm", "openmoji", "fabric"]
    (tmp_path / "own.jsonl").write_text("x")
    own = iit.sources(tmp_path / "own.jsonl", "CC0-1.0")[-1]
    assert own["name"] == "own.jsonl" and own["licence"] == "CC0-1.0" and own["version"].startswith("sha256 ")


def test_drawn_scenes_and_wikipedia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iit, "POOL", 20)
    monkeypatch.setattr(iit, "SentenceEncoder", lambda: encode)
    try:
        found: Sequence[Sample] = iit.conversations(iit.scenes(6), 3, 0)
    except AssetError as error:
        pytest.skip(str(error))
    assert len(found) == 3 * len(KIND_NAMES) and found == iit.conversations(iit.scenes(6), 3, 0)
    assert all(isinstance(image, bytes) for s in found for image in s.images)
