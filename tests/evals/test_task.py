"""Tasks are found by file name; `evaluate` takes samples, files and mappings, and says what is wrong."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

import pytest

import tsugiki
from tsugiki import testing
from tsugiki.data import schema
from tsugiki.errors import DataError, InputError, UnknownNameError
from tsugiki.evals import task, tasks
from tsugiki.evals.budget import SUITES
from tsugiki.evals.task import Settings
from tsugiki.types import Message, Sample, Score


def questions(n: int = 6) -> list[Sample]:
    return [
        Sample(
            id=f"q{i}",
            messages=(Message.of("user", f"What is {i}?", (p,)), Message.of("assistant", "yes")),
            task="naming",
            options=("yes", "no"),
        )
        for i, p in enumerate(testing.tiny_images(n))
    ]


def test_every_file_is_a_task() -> None:
    names = [m.name for m in pkgutil.iter_modules(tasks.__path__)]
    assert task.available() == sorted(names) and {"decisions", "grounding", "vqa"} <= set(names)
    for name in names:
        found = task.load(name)
        assert isinstance(found.VERSION, int) and found.DESCRIPTION
        assert callable(found.select) and callable(found.measure)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'grounding'"):
        task.evaluate(testing.tiny_model(), ["groundings"], questions())
    with pytest.raises(UnknownNameError, match="Did you mean 'batch_size'"):
        task.evaluate(testing.tiny_model(), "vqa", questions(), batchsize=3)
    with pytest.raises(InputError, match="no task"):
        task.evaluate(testing.tiny_model(), [], questions())


def test_the_public_name_is_this_function() -> None:
    scores = tsugiki.evaluate(testing.tiny_model(), "decisions", questions())
    assert scores and all(isinstance(s, Score) and s.stderr >= 0 and s.n == 6 for s in scores if s.metric == "accuracy")


def test_data_as_file_and_as_mapping(tmp_path: Path) -> None:
    stored = []
    for i, sample in enumerate(questions()):
        path = tmp_path / f"{i}.png"
        sample.images[0].save(path)  # type: ignore[union-attr]
        stored.append(
            Sample(
                id=sample.id,
                messages=(Message.of("user", "What?", (path,)), sample.messages[1]),
                task="naming",
                options=sample.options,
            )
        )
    schema.write(tmp_path / "own.jsonl", stored)
    model = testing.tiny_model()
    from_file = task.evaluate(model, "decisions", tmp_path / "own.jsonl")
    assert from_file == task.evaluate(model, "decisions", {"decisions": stored})
    with pytest.raises(DataError, match="no data for task vqa"):
        task.evaluate(model, ["decisions", "vqa"], {"decisions": stored})


def test_data_that_fits_no_task() -> None:
    with pytest.raises(DataError, match="none of 6 samples can be scored by grounding"):
        task.evaluate(testing.tiny_model(), "grounding", questions())
    with pytest.raises(DataError, match="no data for task decisions"):
        task.evaluate(testing.tiny_model(), "decisions")


def test_limit_and_time() -> None:
    model = testing.tiny_model()
    seen: list[tuple[str, int, int]] = []
    (result,) = task.measure(
        model, "vqa", questions(), limit=5, batch_size=2, max_new_tokens=2, progress=lambda *a: seen.append(a)
    ).values()
    assert len(result.answers) == 5 and seen == [("vqa", 2, 5), ("vqa", 4, 5), ("vqa", 5, 5)]
    assert result.seconds > 0
    short = task.measure(model, "vqa", questions(), seconds=0.0, batch_size=2, max_new_tokens=2)["vqa"]
    assert len(short.answers) == 2 and short.scores[0].n == 2


def test_samples_come_in_random_order_fixed_by_the_seed() -> None:
    def order(seed: int) -> list[str]:
        chosen = task._samples("vqa", task.load("vqa"), questions(30), Settings(seed=seed))
        return [s.id for s in chosen]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(s.id for s in questions(30)) and order(0) != [s.id for s in questions(30)]


def test_retention_is_a_task_that_brings_its_own_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    def retention(model: Any, **options: Any) -> list[Score]:
        given.update(options)
        options["progress"]("wiki.loss")
        return [Score(task="wiki", metric="loss", value=1.0, stderr=0.1, n=3)]

    monkeypatch.setattr("tsugiki.evals.tasks.retention.retention", retention)
    seen: list[tuple[str, int, int]] = []
    for data in (None, questions()):
        scores = task.evaluate(None, "retention", data, limit=7, progress=lambda *a: seen.append(a))
        assert [s.metric for s in scores] == ["loss"]
    assert given["n"] == 7 and seen == [("retention", 1, 0)] * 2
    assert (given["suites"], given["own"], given["int8"]) == (SUITES, (), False)
    own = tmp_path / "own.jsonl"
    own.write_text("".join(f'{{"prompt": "{i}?"}}\n' for i in range(9)))
    task.evaluate(None, "retention", suites=["wiki"], own=own, int8=True)
    assert (given["suites"], len(given["own"]), given["int8"]) == (["wiki"], 9, True)
    task.evaluate(None, "retention", own=own, limit=4)
    assert len({item.prompt.text for item in given["own"]}) == 4


def test_the_same_question_is_asked_once() -> None:
    asked: list[str] = []

    def ask(samples: Any) -> list[str]:
        asked.extend(s.id for s in samples)
        return [s.id.upper() for s in samples]

    sample = questions(2)
    once = task.Once(ask)
    assert once([sample[0], sample[1], sample[0]]) == ["Q0", "Q1", "Q0"]
    assert once([sample[0]]) == ["Q0"] and asked == ["q0", "q1"]


def test_questions_on_one_picture_are_one_group() -> None:
    a, b = questions(2)
    assert task.picture_groups([a, b]) is None
    groups = task.picture_groups([a, b, a])
    assert groups is not None and groups[0] == groups[2] != groups[1]


def test_tasks_with_too_few_items_are_left_out() -> None:
    captions = [
        Sample(
            id=f"c{i}",
            task="caption",
            messages=(Message.of("user", "What is this?", (p,)), Message.of("assistant", "a red cup")),
        )
        for i, p in enumerate(testing.tiny_images(6))
    ]
    assert "captions" in task.scorable(captions)
    assert "captions" not in task.scorable(captions[:4])
    assert "captions" not in task.scorable(captions, limit=4)
