"""The bias report: balances, flips counted by loops, on a bank and a model of tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.studies._pictures import folder, picture

from tsugiki.errors import DataError
from tsugiki.evals import demo_bias
from tsugiki.evals.demo_bias import Balance
from tsugiki.evals.options import OptionScores
from tsugiki.studies import bank as banks
from tsugiki.studies.neighbours import BankDemos
from tsugiki.testing import tiny_model
from tsugiki.types import ImagePart, Message, Sample, TextPart

LABELS = ("不良", "良品")


def test_balance_as_a_loop() -> None:
    found = Balance.of(["b", "a", "b", "b"])
    assert found.counts == {"a": 1, "b": 3} and found.shares == {"a": 0.25, "b": 0.75}
    entropy = 0.0
    for p in (0.25, 0.75):
        entropy -= p * math.log(p)
    assert found.effective == pytest.approx(math.exp(entropy))
    assert Balance.of(range(7)).effective == pytest.approx(7) and Balance.of([]).effective == 0.0


def test_flips() -> None:
    assert demo_bias.flipped("a", ["a", "b", "c", "a"]) == 0.5 and math.isnan(demo_bias.flipped("a", []))


def test_orders_are_different_and_never_the_one_that_is_there() -> None:
    rng = np.random.default_rng(0)
    found = demo_bias._other_orders(4, 5, rng)
    assert len(set(found)) == 5 and all(sorted(o) == [0, 1, 2, 3] and o != (0, 1, 2, 3) for o in found)
    assert demo_bias._other_orders(2, 5, rng) == [(1, 0)] and demo_bias._other_orders(1, 5, rng) == []


@pytest.fixture
def demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BankDemos:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    model = tiny_model(llm={"max_position_embeddings": 2048})
    banks.build(model, folder(tmp_path / "photos", (5, 4)), tmp_path / "bank", note="camera 1")
    banks.add(model, tmp_path / "bank", [asked(1, 30)], note="")
    return BankDemos(model, tmp_path / "bank", k=3)


def asked(label: int, number: int) -> Sample:
    messages = (Message.of("user", "?", (picture(label, number),)), Message.of("assistant", LABELS[1 - label]))
    return Sample(id=f"{label} {number}", messages=messages, options=LABELS)


def by_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers with the label that stands last before the question, as sure as there are demonstrations."""

    def score(self: Any, samples: Sequence[Sample]) -> list[OptionScores]:
        found = []
        for sample in samples:
            said = [p.text.strip() for p in sample.prompt[-1].parts if isinstance(p, TextPart)][:-1]
            likes = [float(bool(said) and option == said[-1]) for option in sample.options]
            found.append(OptionScores(sample.options, tuple(v - 2 for v in likes), (1, 1), (True, True)))
        return found

    monkeypatch.setattr(demo_bias.OptionScorer, "__call__", score)


def test_what_a_model_that_repeats_the_last_label_gets(demos: BankDemos, monkeypatch: pytest.MonkeyPatch) -> None:
    by_last(monkeypatch)
    samples = [asked(label, 50 + i) for label in (0, 1) for i in range(4)]
    told: list[tuple[int, int]] = []
    model = tiny_model()
    found = demo_bias.measure(model, samples, demos, orders=5, progress=lambda n, total: told.append((n, total)))
    turned, less = 0.0, 0.0
    for sample in samples:
        labels = [n.entry.label for n in demos.neighbours(sample)]  # the nearest stands last
        orders = [(a, b, c) for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3]
        turned += sum(labels[o[0]] != labels[0] for o in orders[1:]) / 5 / 8
        less += (labels[1] != labels[0]) / 3 / 8  # only without the nearest does another stand last
    own = {s.metric: s for s in found.scores}
    assert own["answers that another order changes"].value == pytest.approx(turned)
    assert own["answers that one demonstration less changes"].value == pytest.approx(less)
    assert own["calibrated minus as it is"].n == 8 and told[-1] == (8, 8)
    assert found.classes.counts == {"不良": 5, "良品": 5} and sum(found.shown.counts.values()) == 24
    assert found.sources.counts["camera 1"] == 9 and len(found.sources.counts) == 2
    assert found.gold.counts == {"不良": 4, "良品": 4}
    assert found.plain()["entries by class"]["effective"] == pytest.approx(2)


def test_a_real_model_gives_every_figure(demos: BankDemos) -> None:
    model = tiny_model(llm={"max_position_embeddings": 2048})
    found = demo_bias.measure(model, [asked(0, 50), asked(1, 51)], demos, orders=2)
    assert len(found.scores) == 6 and all(0 <= s.value <= 1 for s in found.scores if " minus " not in s.metric)
    alone = demo_bias.of_bank(demos.bank)
    assert list(alone.balances) == ["entries by class", "entries by source"] and not alone.scores


def test_questions_that_can_not_be_asked(demos: BankDemos) -> None:
    with pytest.raises(DataError, match="no question"):
        demo_bias.measure(None, [], demos)
    plain = Sample(id="x", messages=(Message.of("user", "?"), Message.of("assistant", "良品")), options=LABELS)
    with pytest.raises(DataError, match="x: 0 pictures, answer '良品'; expected a picture, and one of"):
        demo_bias.measure(None, [plain], demos)
    assert not any(isinstance(p, ImagePart) for m in plain.messages for p in m.parts)
