"""Boxes: overlap, size classes, parse failures, false positives, and the whole path."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tsugiki import testing
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.evals import task
from tsugiki.evals._boxes import Reply, iou
from tsugiki.evals.task import Answer
from tsugiki.evals.tasks import grounding
from tsugiki.types import Box, BoxPart, Message, Sample, Score

GOLD = Box(10, 10, 30, 30)
edges = st.integers(0, 12).map(float)
boxes = st.tuples(edges, edges, st.integers(1, 9), st.integers(1, 9)).map(
    lambda t: Box(t[0], t[1], t[0] + t[2], t[1] + t[3])
)


def sample(gold: Box | None = GOLD, *, size: tuple[int, int] = (100, 60), kind: str = "box") -> Sample:
    parts = (BoxPart(gold),) if gold else Message.of("assistant", "There is none.").parts
    picture = Image.new("RGB", size)
    return Sample(id="s", messages=(Message.of("user", "Where?", (picture,)), Message("assistant", parts)), task=kind)


def answer(found: Box | None, gold: Box | None = GOLD, **options: object) -> Answer:
    asked = sample(gold, **options)  # type: ignore[arg-type]
    given = (found,) if found else ()
    right = bool(grounding.hit(given, (gold,))) if gold else not given
    golds = (gold,) if gold else ()
    return Answer(task="grounding", sample=asked, text="", gold="", correct=right, boxes=given, gold_boxes=golds)


def scored(answers: list[Answer], **options: object) -> dict[str, Score]:
    return {s.metric: s for s in grounding.score("t", answers, [None] * len(answers), **options)}  # type: ignore[arg-type]


@given(boxes, boxes)
def test_iou_equals_counting_pixels(a: Box, b: Box) -> None:
    def pixels(box: Box) -> set[tuple[int, int]]:
        return {(x, y) for x in range(int(box.x1), int(box.x2)) for y in range(int(box.y1), int(box.y2))}

    assert iou(a, b) == pytest.approx(len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)))
    assert iou(a, b) == iou(b, a)


def test_the_first_box_counts_against_the_best_fitting_gold_box() -> None:
    far = Box(50, 30, 60, 40)
    assert grounding.overlap((GOLD, far), (far, GOLD)) == 1.0
    assert grounding.overlap((far, GOLD), (GOLD,)) == 0.0
    assert grounding.overlap((), (GOLD,)) == 0.0
    assert grounding.hit((Box(10, 10, 30, 20),), (GOLD,)) == 1.0  # exactly 0.5
    assert grounding.any_hit((far, GOLD), (GOLD,)) == 1.0
    assert grounding.any_hit((far, far), (GOLD,)) == grounding.any_hit((), (GOLD,)) == 0.0
    assert grounding.centre_hit((Box(0, 0, 58, 38),), (GOLD,)) == 1.0
    assert grounding.centre_hit((Box(0, 0, 60, 40),), (GOLD,)) == 0.0  # x2 is exclusive


@pytest.mark.parametrize(
    ("box", "size", "name"),
    [
        (Box(0, 0, 12, 12), (100, 60), "small"),
        (Box(0, 0, 12.5, 5), (100, 60), "medium"),
        (Box(0, 0, 5, 24), (60, 100), "medium"),
        (Box(0, 0, 5, 25), (60, 100), "large"),
    ],
)
def test_size_by_the_longer_side(box: Box, size: tuple[int, int], name: str) -> None:
    assert grounding.size_class(sample(size=size), box) == name


def test_scores_of_known_answers() -> None:
    small = Box(0, 0, 6, 6)
    answers = [answer(GOLD)] * 6 + [answer(None)] * 2 + [answer(Box(10, 10, 30, 14))] * 2 + [answer(GOLD, small)] * 2
    scores = scored(answers, rivals={"ridge": [GOLD] * 12})
    assert scores["Acc@0.5"].value == 0.5 and scores["Acc@0.5"].n == 12
    assert scores["Acc@0.5 medium"].value == pytest.approx(0.6) and scores["Acc@0.5 small"].value == 0.0
    assert "Acc@0.5 large" not in scores
    assert scores["Acc@0.5 any box"].value == 0.5
    assert scores["no box"].value == pytest.approx(2 / 12) and scores["parse failures"].value == 0.0
    assert scores["centre hit"].value == pytest.approx(8 / 12)
    assert scores["mean IoU"].value == pytest.approx((6 + 2 * 0.2) / 12)
    assert scores["Acc@0.5"].yardsticks == {"ridge": pytest.approx(10 / 12)}
    assert scores["Acc@0.5 minus ridge"].value == pytest.approx(-4 / 12)
    assert all(s.stderr >= 0 and s.low is not None for s in scores.values())


def test_any_box_counts_every_box_and_the_first_one_does_not() -> None:
    far = Box(50, 30, 60, 40)
    answers = [replace(answer(far), boxes=(far, GOLD)), answer(GOLD), answer(far), replace(answer(None), text="[0.1,")]
    replies = [Reply("", (GOLD,)), Reply("[1,2]"), Reply("here"), Reply("[0.1, 0.9, 0.2, 0.3]")]
    scores = {s.metric: s for s in grounding.score("t", answers, replies)}
    assert (scores["Acc@0.5"].value, scores["Acc@0.5 any box"].value) == (0.25, 0.5)
    assert (scores["parse failures"].value, scores["no box"].value) == (0.25, 0.0)
    assert scores["Acc@0.5"].base == 0.25 and scores["parse failures"].base == 0.5 and scores["no box"].base == 0.25


def test_an_answer_by_steps_comes_to_its_last_box() -> None:
    """A right box for an object on the way is no right answer; a picture without steps has no such figure."""
    first, far = Box(50, 30, 60, 40), Box(70, 40, 80, 50)
    steps = [
        replace(answer(None), gold_boxes=(first, GOLD), boxes=b) for b in ((first, GOLD), (first, far), (GOLD,), ())
    ]
    marked = [replace(a, sample=replace(a.sample, id=str(i), meta={"steps": [1, 1]})) for i, a in enumerate(steps)]
    scores = scored([*marked, answer(GOLD)])
    assert scores["Acc@0.5 of the last step"].value == 0.5 and scores["Acc@0.5 of the last step"].n == 4
    assert scores["Acc@0.5"].value == 0.8 and "Acc@0.5 of the last step" not in scored([answer(GOLD)])


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("[0.1,0.2,0.5,0.6]", False),
        ("［0.1, 0.2, 0.5, 0.6］", False),
        ("[0.1,0.2,0.5", True),  # cut off
        ("[0.5,0.2,0.1,0.6]", True),  # x2 < x1
        ("It is at [12, 30].", True),
        ("(0.1, 0.2, 0.5, 0.6)", True),
        (" [the dog]", True),
        ("There is none.", False),
        ("a dog (1)", False),
        ("犬は［左］です", False),
        ("", False),
    ],
)
def test_a_parse_failure_tries_to_give_a_box(text: str, failed: bool) -> None:
    assert Reply.read(text, BoxCodec(), PaddedSquare(100, 60)).failed is failed


def test_a_box_has_the_number_of_its_line() -> None:
    def numbers(text: str) -> tuple[int, ...]:
        return Reply.read(text, BoxCodec(), PaddedSquare(100, 100)).numbers

    box = "[0.1,0.2,0.5,0.6]"
    assert numbers(f"The dog: {box}\n\nThe cup: {box} {box}\nSo it is left.\n{box}") == (1, 2, 2, 4)
    assert numbers(f"{box} {box}") == (1, 2) and numbers(box) == numbers("") == ()
    assert numbers(f"It is\n {box}") == (2,)


def test_false_positives_count_clean_pictures() -> None:
    twice = answer(None, None, kind="absent")  # two questions on one picture: one of them got a box
    absent = [answer(None, None, kind="absent") for _ in range(3)] + [replace(twice, boxes=(GOLD,)), twice]
    scores = scored([*absent, answer(GOLD)])
    assert scores[grounding.FALSE_POSITIVES].value == 0.25 and scores[grounding.FALSE_POSITIVES].n == 4
    assert scores[grounding.FALSE_POSITIVES].base is None and scores["Acc@0.5"].n == 1
    asked = grounding.score("t", absent, [Reply("", (GOLD,))] * 5)
    assert [(s.value, s.base) for s in asked] == [(0.25, 1.0)]


def test_the_whole_path() -> None:
    absent = sample(None, kind="absent")
    data = [sample(), sample(size=(60, 100)), absent, replace(sample(), messages=sample().prompt)]
    data += [sample(kind="detect"), sample(kind="caption")]
    train = [sample(Box(10, 10, 30 + i, 30)) for i in range(8)]
    result = task.measure(testing.tiny_model(), "grounding", data, train=train, max_new_tokens=8)["grounding"]
    assert {s.task for s in result.scores} == {"grounding/box", "grounding/absent"}
    scores = {s.metric: s for s in result.scores}
    assert len(result.answers) == 3 and scores["Acc@0.5"].n == 2
    # Random weights write no box: told apart from a wrong box, and right where nothing is there.
    assert (
        scores["no box"].value + scores["parse failures"].value == 1.0 and scores[grounding.FALSE_POSITIVES].value == 0
    )
    assert scores["Acc@0.5"].base == 0.0 and set(scores["Acc@0.5"].yardsticks) == {"constant", "ridge"}


def test_boxes_are_read_in_pixels_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    model = testing.tiny_model()
    codec, square = model.processor.collator().codec, PaddedSquare(100, 60)
    said = "It is here: " + codec.encode(GOLD, square)
    monkeypatch.setattr(grounding.FreeAnswerer, "__call__", lambda self, asked: [said] * len(asked))
    result = task.measure(model, "grounding", [sample()])["grounding"]
    assert result.answers[0].correct
    assert iou(result.answers[0].boxes[0], GOLD) > 0.98
    assert {s.metric: s.value for s in result.scores}["Acc@0.5"] == 1.0
