"""Yardsticks learn what is in the features, choose their settings on a hold-out, and keep to the options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tsugiki.errors import DataError
from tsugiki.evals import _learners, yardsticks
from tsugiki.evals._boxes import iou
from tsugiki.evals.task import Settings
from tsugiki.types import Box, BoxPart, Message, Sample

NAMES = ("ok", "hole", "stain")


class Features:
    """Features [P=4, V=6] that tell class and place of a picture with some noise; keyed by the picture's path."""

    def __init__(self, noise: float = 0.3) -> None:
        self.noise, self.asked = noise, 0

    def get(self, sources: Any) -> torch.Tensor:
        self.asked += len(sources)
        rows = []
        for source in sources:
            number = int(str(source))
            row = torch.randn(4, 6, generator=torch.Generator().manual_seed(number)) * self.noise
            row[:, number % 3] += 2.0
            row[0, 3:5] = torch.tensor([number % 7, number % 5]) / 10.0
            rows.append(row)
        return torch.stack(rows).half()


def samples(numbers: range, *, kind: str = "defect", options: tuple[str, ...] = NAMES) -> list[Sample]:
    return [
        Sample(
            id=str(i),
            messages=(Message.of("user", "?", (str(i),)), Message.of("assistant", NAMES[i % 3])),
            task=kind,
            options=options,
        )
        for i in numbers
    ]


def right(choice: list[str], asked: list[Sample]) -> float:
    return float(np.mean([c == NAMES[int(s.id) % 3] for c, s in zip(choice, asked, strict=True)]))


def test_choices_learn_from_the_training_pictures() -> None:
    asked = samples(range(100, 160))
    found = yardsticks.choices("defect", asked, Settings(features=Features(), train=samples(range(60))))
    assert set(found) == {"constant", "probe", "k-NN"}
    assert right(found["probe"], asked) > 0.9 and right(found["k-NN"], asked) > 0.9
    assert len(set(found["constant"])) == 1


def test_only_the_same_kind_and_only_allowed_options() -> None:
    train = [*samples(range(30)), *samples(range(30, 60), kind="other")]
    assert yardsticks.choices("unknown", samples(range(5)), Settings(train=train)) == {}
    asked = samples(range(100, 112), options=("hole", "stain"))
    for choice in yardsticks.choices("defect", asked, Settings(features=Features(), train=train)).values():
        assert set(choice) <= {"hole", "stain"}


def test_without_features_only_the_constant_answer() -> None:
    train = [*samples(range(9)), *samples(range(9, 99, 3))]  # mostly "ok"
    found = yardsticks.choices("defect", samples(range(100, 106)), Settings(train=train))
    assert found == {"constant": ["ok"] * 6}


def test_the_probe_chooses_c_on_the_given_hold_out() -> None:
    x = yardsticks.pooled(Features(), [str(i) for i in range(60)])
    assert x.shape == (60, 12) and x.dtype == np.float32
    y = [NAMES[i % 3] for i in range(60)]
    probe = _learners.Probe.fit(x, y, holdout=range(40, 60))
    assert probe.setting in _learners.C_GRID and probe.holdout_accuracy > 0.8
    again = _learners.Probe.fit(x, y, holdout=range(40, 60))
    assert again.setting == probe.setting
    assert probe.choose(x, [NAMES] * 60) == again.choose(x, [NAMES] * 60)
    assert probe.choose(x[:1], [("never seen", NAMES[0])]) == [NAMES[0]]


def test_pooling_is_mean_and_maximum() -> None:
    features = Features()
    expected = features.get(["7"])[0].float()
    pooled = yardsticks.pooled(features, ["7"], chunk=1)[0]
    assert np.allclose(pooled, torch.cat([expected.mean(0), expected.amax(0)]).numpy())
    one = yardsticks.gather(lambda source: features.get([source])[0], ["7", "8"])
    assert torch.equal(one, features.get(["7", "8"]))


def test_one_class_is_no_reason_to_fail() -> None:
    x = np.zeros((6, 4), dtype=np.float32)
    assert _learners.Probe.fit(x, ["ok"] * 6).choose(x, [NAMES] * 6) == ["ok"] * 6


def test_split_keeps_pictures_on_one_side() -> None:
    groups = [i // 3 for i in range(30)]
    inner, outer = _learners.split(30, 0.2, groups, seed=0)
    assert len(inner) + len(outer) == 30 and not {groups[i] for i in inner} & {groups[i] for i in outer}
    assert np.array_equal(outer, _learners.split(30, 0.2, groups, seed=0)[1])
    with pytest.raises(DataError, match="at least 2"):
        _learners.split(5, 0.2, [0] * 5, seed=0)
    with pytest.raises(DataError, match="not all"):
        _learners.split(3, [0, 1, 2], None, seed=0)


def boxed(numbers: range, folder: Any) -> list[Sample]:
    """A picture of 100 x 50 pixels whose features tell where the box is."""
    found = []
    for i in numbers:
        path = folder / f"{i}"
        Image.new("RGB", (100, 50)).save(path, "PNG")
        x, y = 10.0 * (i % 7), 8.0 * (i % 5)
        answer = Message("assistant", (BoxPart(Box(x, y, x + 30, y + 16)),))
        found.append(Sample(id=str(i), messages=(Message.of("user", "Where?", (path,)), answer), task="box"))
    return found


def test_ridge_reads_the_place_from_the_features(tmp_path: Any) -> None:
    def features(source: Any) -> torch.Tensor:
        return Features(noise=0.0).get([source.name])[0]

    train, asked = boxed(range(70), tmp_path), boxed(range(70, 100), tmp_path)
    found = yardsticks.places("box", asked, Settings(features=features, train=train))
    assert set(found) == {"constant", "ridge"}
    hits = {
        name: np.mean([iou(b, s.boxes[0].box) >= 0.5 for b, s in zip(boxes, asked, strict=True)])
        for name, boxes in found.items()
    }
    assert hits["ridge"] > 0.9 > hits["constant"] > 0
    assert yardsticks.places("box", asked, Settings(train=samples(range(3)))) == {}


def test_the_constant_box_is_the_one_that_hits_most() -> None:
    many, few = Box(0.1, 0.1, 0.3, 0.3), Box(0.6, 0.6, 0.9, 0.9)
    assert _learners.constant_box([many] * 5 + [few] * 3) == many
    with pytest.raises(DataError):
        _learners.constant_box([])


def test_the_commonest_answer() -> None:
    assert yardsticks.commonest(["a", "b", "b", "a"]) == "a"
    assert yardsticks.commonest([]) is None


def test_few_pictures_leave_the_constant_answer(tmp_path: Any) -> None:
    few = samples(range(4))
    assert set(yardsticks.choices("defect", few, Settings(features=Features(), train=few))) == {"constant"}
    same = boxed(range(1), tmp_path) * 9  # one picture
    assert set(yardsticks.places("box", same, Settings(features=lambda _: torch.zeros(4, 6), train=same))) == {
        "constant"
    }
