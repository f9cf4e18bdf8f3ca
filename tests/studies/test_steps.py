"""The hold-out: when it is asked, what it measures, and which mark wins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.studies._pictures import picture

from tsugiki.evals.tasks import decisions
from tsugiki.studies._steps import HoldOut, Mark, marks_of
from tsugiki.testing import tiny_model
from tsugiki.training.trainer import StepReport
from tsugiki.types import Message, Sample


def sample(i: int, *options: str) -> Sample:
    answer = options[i % len(options)] if options else f"number {i}"
    messages = (Message.of("user", "Which?", (picture(i % 2, i),)), Message.of("assistant", answer))
    return Sample(id=str(i), messages=messages, options=options, task="decision")


def nats(model: object, samples: list[Sample]) -> list[tuple[float, int]]:
    """Sum over label tokens of each sample's loss, and their number, by the plain forward."""
    found = []
    for one in samples:
        output = model(**model.encode_samples([one], labels=True).inputs())  # type: ignore[attr-defined, operator]
        found.append((float(output.loss) * output.label_ids.numel(), output.label_ids.numel()))
    return found


def test_marks() -> None:
    assert marks_of(150) == [25, 50, 75, 100, 125, 150]
    assert marks_of(4) == [1, 2, 3, 4] and marks_of(1) == [1] and marks_of(7)[-1] == 7


def test_the_best_mark() -> None:
    order = [Mark(1, 0.5, -9.0), Mark(9, 0.75, -3.0), Mark(3, 0.75, -2.0), Mark(2, 0.75, -2.0)]
    assert sorted(order, key=lambda m: m.rank) == order
    assert max([Mark(1, None, -2.0), Mark(2, None, -1.5)], key=lambda m: m.rank).step == 2


@torch.no_grad()
def test_what_is_measured(tmp_path: Path) -> None:
    model = tiny_model(llm={"initializer_range": 0.1})
    closed, free = [sample(i, "良品", "bad one") for i in range(5)], [sample(i) for i in range(5)]
    mark = HoldOut(model, closed, None, [1], tmp_path).measure(1)
    result = decisions.measure(model, closed, decisions.Settings())
    assert mark.accuracy == result.scores[0].value
    assert mark.loglikelihood == pytest.approx(-sum(n for n, _ in nats(model, closed)) / 5, abs=1e-3)
    mark = HoldOut(model, free, None, [1], tmp_path, batch_size=2).measure(1)
    total = nats(model, free)
    assert mark.accuracy is None
    assert mark.loglikelihood == pytest.approx(-sum(n for n, _ in total) / sum(k for _, k in total), abs=1e-4)


def test_it_is_asked_at_its_marks_and_remembers(tmp_path: Path) -> None:
    model = tiny_model()
    held = [sample(i, "a", "b") for i in range(2)]
    hold = HoldOut(model, held, None, [2, 3], tmp_path)
    model.train()
    for step in (1, 2, 3, 2, 4):
        hold(StepReport(stage="0", step=step, loss=1.0, seconds=1.0, progress=0.1))
    assert model.training
    assert [m.step for m in hold.found()] == [2, 3]
    assert HoldOut(model, held, None, [2, 3], tmp_path).best() == hold.best()
    assert HoldOut(model, held, None, [3], tmp_path / "other").best() is None


def test_it_is_enough_after_so_many_marks_without_a_better_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {1: 0.5, 2: 0.75, 3: 0.5, 4: 0.75, 5: 1.0}  # equal accuracy, no better likelihood: not better
    monkeypatch.setattr(HoldOut, "measure", lambda self, step: Mark(step, said[step], -1.0))
    hold = HoldOut(tiny_model(), [], None, list(said), tmp_path, patience=2)
    reports = [StepReport(stage="0", step=step, loss=1.0, seconds=1.0, progress=0.1) for step in (1, 2, 3, 4)]
    assert [hold(report) for report in reports] == [False, False, False, True]
    best = hold.best()
    assert best is not None and best.step == 2
    assert not HoldOut(tiny_model(), [], None, list(said), tmp_path).enough(4)
