"""Altered pictures: what each condition does, and the drop paired by item."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tsugiki import testing
from tsugiki.data.images import open_image
from tsugiki.errors import InputError, UnknownNameError, UnsupportedError
from tsugiki.evals import alterations, task
from tsugiki.evals.alterations import CONDITIONS, STRENGTHS, altered, altered_picture
from tsugiki.evals.task import Settings
from tsugiki.evals.tasks import conditions
from tsugiki.types import Box, BoxPart, ImagePart, Message, Sample, TextPart

PICTURES = testing.tiny_images(4)


def questions(n: int = 4, answer: str = "yes") -> list[Sample]:
    return [
        Sample(
            id=f"q{i}",
            messages=(Message.of("user", "Is it red?", (PICTURES[i % 4],)), Message.of("assistant", answer)),
            task="decision",
            options=("yes", "no"),
        )
        for i in range(n)
    ]


def boxed(box: Box = Box(8, 12, 20, 24)) -> Sample:
    question = Message("user", (ImagePart(PICTURES[0]), TextPart("Where?")))
    return Sample(id="b", messages=(question, Message("assistant", (BoxPart(box),))), task="box")


def values(picture: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(picture, dtype=np.float64)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_stronger_condition_is_farther_from_the_picture(condition: str) -> None:
    # Moved by more, a smooth picture differs more; blur and JPEG need fine detail to take away.
    cells = 48 if condition in ("blur", "jpeg") else 3
    grid = Image.fromarray(np.random.default_rng(0).integers(60, 200, (cells, cells, 3), dtype=np.uint8))
    soft = grid.resize((224, 200), Image.Resampling.BICUBIC)
    far = []
    for strength in STRENGTHS:
        once = altered_picture(soft, condition, strength, "a")
        assert once.size == soft.size and once.mode == "RGB"
        assert once.tobytes() == altered_picture(soft, condition, strength, "a").tobytes()
        far.append(float(np.abs(values(once) - values(soft)).mean()))
    assert 0 < far[0] < far[1] < far[2]


@pytest.mark.parametrize("condition", ["brightness", "colour cast", "noise", "rotation"])
def test_pictures_differ_in_what_is_drawn(condition: str) -> None:
    made = {altered_picture(PICTURES[0], condition, 2, name, seed).tobytes() for name in "abcdef" for seed in (0, 1)}
    assert len(made) > 1


def test_values_are_the_formulas() -> None:
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    drawn = {altered_picture(grey, "brightness", 2, name).getpixel((0, 0)) for name in "abcdefgh"}
    assert drawn == {(50, 50, 50), (170, 170, 170)}
    for name in "abc":
        cast = values(altered_picture(grey, "colour cast", 3, name))[0, 0]
        assert cast.mean() == pytest.approx(100, abs=1) and 15 < np.abs(cast - 100).max() <= 35
    noisy = values(altered_picture(Image.new("RGB", (200, 200), (128, 128, 128)), "noise", 2))
    assert noisy.std() == pytest.approx(20, rel=0.05)


def test_a_scaled_box_marks_the_same_pixels() -> None:
    picture = Image.new("RGB", (100, 60), (255, 255, 255))
    box = Box(20, 10, 60, 50)
    picture.paste((0, 0, 0), (20, 10, 60, 50))
    sample = replace(boxed(box), messages=(Message("user", (ImagePart(picture),)), *boxed(box).messages[1:]))
    for strength, factor in zip(STRENGTHS, (0.8, 0.6, 0.4), strict=True):
        found = altered(sample, "scale", strength)
        moved = found.boxes[0].box
        assert moved.width == pytest.approx(40 * factor) and moved.height == pytest.approx(40 * factor)
        dark = values(open_image(found.images[0])).mean(-1)
        ys, xs = np.nonzero(dark < 60)
        edges = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert edges == pytest.approx((moved.x1, moved.y1, moved.x2, moved.y2), abs=1.01)
    assert altered(sample, "blur", 1).boxes == sample.boxes


def test_mistakes() -> None:
    with pytest.raises(UnsupportedError, match="rotation of a picture with boxes"):
        altered(boxed(), "rotation", 1)
    with pytest.raises(UnknownNameError, match="unknown condition 'blurr'.*Did you mean 'blur'"):
        alterations.alteration("blurr")
    with pytest.raises(InputError, match="strength 4"):
        altered_picture(PICTURES[0], "blur", 4)
    model = testing.tiny_model()
    with pytest.raises(UnknownNameError, match="unknown inner task 'decision'"):
        conditions.measure(model, questions(), Settings(inner=["decision"]))
    with pytest.raises(InputError, match="strength 0"):
        conditions.measure(model, questions(), Settings(strengths=[0]))


def test_drop_is_the_paired_mean() -> None:
    plain, found = [True, True, True, False, True], [True, False, False, True]
    score = conditions.drop("conditions/decisions", "drop: blur 1", plain, found, questions(5))
    assert score.n == 4 and score.value == pytest.approx(np.mean([0, 1, 1, -1]))
    assert score.low is not None and score.low <= score.value
    assert score.yardsticks == {"as they are": 0.75, "altered": 0.5}


def test_the_whole_path() -> None:
    model = testing.tiny_model()
    data = [*questions(), boxed()]
    chosen = {"conditions": ["blur", "rotation", "scale"], "strengths": [2], "max_new_tokens": 4}
    result = task.measure(model, "conditions", data, **chosen)["conditions"]
    drops = {(s.task, s.metric) for s in result.scores if s.metric.startswith("drop")}
    assert drops == {
        *(("conditions/decisions", f"drop: {c} 2") for c in ("blur", "rotation", "scale")),
        *(("conditions/grounding", f"drop: {c} 2") for c in ("blur", "scale")),
    }
    plain = next(s for s in result.scores if (s.task, s.metric) == ("decisions/decision", "accuracy"))
    assert plain.base is not None
    assert all(s.yardsticks["as they are"] == plain.value for s in result.scores if s.task == "conditions/decisions")
    # What the altered run says is what the inner task says of the altered pictures.
    shown = [altered(s, "blur", 2) for s in questions()]
    alone = task.measure(model, "decisions", shown)["decisions"].scores[0].value
    blurred = next(s for s in result.scores if s.metric == "drop: blur 2" and s.task == "conditions/decisions")
    assert blurred.yardsticks["altered"] == pytest.approx(alone)


def test_it_runs_only_where_it_is_named() -> None:
    assert conditions.select(questions()) and "conditions" not in task.scorable(questions())
    assert task.scorable(questions()) == ["decisions", "vqa"]
