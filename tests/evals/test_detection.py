"""Average precision against a loop, labels against categories, confidences, and the whole path."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from tsugiki import testing
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.errors import AssetError, DataError
from tsugiki.evals import _detect, _sentences, free, task
from tsugiki.evals._boxes import Reply, iou
from tsugiki.evals._detect import Seen
from tsugiki.evals.free import FreeAnswerer, Spoken
from tsugiki.evals.task import Settings
from tsugiki.evals.tasks import detection
from tsugiki.types import TEXT, Box, BoxPart, Message, Sample, Score, TextPart

SIZE = (100, 80)
CUP, DOG = Box(10, 10, 40, 40), Box(50, 20, 90, 70)


def listing(*objects: tuple[str, Box], i: int = 0, **meta: Any) -> Sample:
    parts = [p for name, box in objects for p in (TextPart(f"{name} "), BoxPart(box, label=name))] or [TextPart("none")]
    picture = Image.new("RGB", SIZE, (i, 0, 0))
    messages = (Message.of("user", "List every object.", (picture,)), Message("assistant", tuple(parts)))
    return Sample(id=f"s{i}", messages=messages, task="detect", meta=meta)


def line(sample: Sample, text: str, *confidences: float) -> detection.Line:
    reply = Reply.read(text, BoxCodec(), PaddedSquare(*SIZE))
    return detection.Line(sample, reply, confidences or (1.0,) * len(reply.boxes))


def said(*objects: tuple[str, Box], between: str = "; ") -> str:
    square = PaddedSquare(*SIZE)
    return between.join(f"{name} {BoxCodec().encode(box, square)}" for name, box in objects)


def random_questions(n: int, seed: int, shift: float) -> list[Seen]:
    rng = random.Random(seed)
    questions = []
    for _ in range(n):
        gold, found = [], []
        for _ in range(rng.randint(0, 4)):
            x, y, w, h = rng.randint(0, 60), rng.randint(0, 60), rng.randint(8, 40), rng.randint(8, 40)
            name = rng.choice("abc")
            gold.append((name, Box(x, y, x + w, y + h)))
            for _ in range(rng.randint(0, 2)):
                d = rng.uniform(-shift, shift)
                other = name if rng.random() < 0.8 else rng.choice("abcd")
                found.append((other, Box(x + d, y, x + d + w, y + h), round(rng.random(), 1)))
        questions.append(Seen(tuple(gold), tuple(found)))
    return questions


def loop(questions: Sequence[Seen], threshold: float) -> float:
    """Average precision at one threshold, written out: greedy matches by confidence, 101 recalls, mean of classes."""
    values = []
    for name in {n for q in questions for n, _ in q.gold}:
        total = sum(n == name for q in questions for n, _ in q.gold)
        marked: list[tuple[float, bool]] = []
        for q in questions:
            gold = [b for n, b in q.gold if n == name]
            taken: set[int] = set()
            for n, box, p in sorted(q.found, key=lambda f: -f[2]):
                if n != name:
                    continue
                free_ones = [(iou(box, g), i) for i, g in enumerate(gold) if i not in taken]
                best = max(free_ones, default=(0.0, -1))
                marked.append((p, best[0] >= threshold))
                if best[0] >= threshold:
                    taken.add(best[1])
        marked.sort(key=lambda m: -m[0])
        points = []
        for k in range(1, len(marked) + 1):
            right = sum(hit for _, hit in marked[:k])
            points.append((right / total, right / k))
        at = [max((p for r, p in points if r >= step / 100 - 1e-12), default=0.0) for step in range(101)]
        values.append(sum(at) / 101)
    return sum(values) / len(values)


def test_perfect_answers_have_precision_one() -> None:
    questions = random_questions(12, 0, 0.0)
    perfect = [Seen(q.gold, tuple((n, b, 0.5) for n, b in q.gold)) for q in questions]
    assert _detect.average_precision(perfect) == (pytest.approx(1.0), pytest.approx(1.0))
    assert _detect.average_precision([Seen(q.gold) for q in questions]) == (0.0, 0.0)
    assert _detect.average_precision([Seen((), q.found) for q in questions]) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_a_loop(seed: int) -> None:
    questions = random_questions(15, seed, 12.0)
    ap50, ap = _detect.average_precision(questions)
    thresholds = [0.5 + 0.05 * k for k in range(10)]
    assert 0.05 < ap50 < 0.95
    assert ap50 == pytest.approx(loop(questions, 0.5), abs=1e-9)
    assert ap == pytest.approx(sum(loop(questions, t) for t in thresholds) / 10, abs=1e-9)


def test_a_box_of_another_category_or_on_a_clean_picture_counts_as_it_should() -> None:
    right = Seen((("cup", CUP),), (("cup", CUP, 0.5),))
    assert _detect.average_precision([right, Seen((), (("cup", CUP, 0.9),))])[0] == pytest.approx(0.5)
    assert _detect.average_precision([right, Seen((), (("cup", CUP, 0.1),))])[0] == pytest.approx(1.0)
    assert _detect.average_precision([right, Seen((), (("dog", CUP, 0.9),))])[0] == pytest.approx(1.0)


def test_scores_have_intervals_over_pictures() -> None:
    own = random_questions(30, 3, 10.0)
    base = [Seen(q.gold) for q in own]
    groups = [i // 2 for i in range(30)]
    scores = {s.metric: s for s in _detect.scores("t", own, base, groups=groups, rivals={"half": own[:1] + base[1:]})}
    assert set(scores) == {"AP50", "AP50:95"}
    for score, value in zip(scores.values(), _detect.average_precision(own), strict=True):
        assert score.value == value and score.n == 15 and score.base == 0.0 and score.difference == value
        assert score.low is not None and score.high is not None and score.low < value < score.high and score.stderr > 0
        assert 0.0 < score.yardsticks["half"] < value
    again = _detect.scores("t", own, base, groups=groups)
    assert [(s.low, s.high) for s in again] == [(s.low, s.high) for s in scores.values()]


def test_labels_are_the_words_before_a_box() -> None:
    sample = listing(("cup", CUP), ("dog", DOG))
    for text in (
        said(("cup", CUP), ("dog", DOG)),
        said(("A cup:", CUP), ("the Dog is at", DOG), between=", "),
        said(("1 thing\ncup", CUP), ("ｄｏｇ", DOG), between="\n"),
    ):
        labels = line(sample, text).labels
        assert labels[0] == "cup" and labels[1] in ("dog", "dog is at"), text
    assert line(sample, said(("犬", CUP), ("T-shirt", DOG), between="、")).labels == ["犬", "t shirt"]


def test_the_literal_protocol_takes_equal_labels_only() -> None:
    sample = listing(("cup", CUP), ("dog", DOG))
    seen = detection.literal([line(sample, said(("Cup", CUP), ("dogs", DOG)), 0.9, 0.4)], ["cup", "dog"])
    assert [(name, p) for name, _, p in seen[0].found] == [("cup", 0.9)]
    assert [name for name, _ in seen[0].gold] == ["cup", "dog"]


def encode(texts: Sequence[str]) -> torch.Tensor:
    known = {"cup": [1.0, 0.0], "dog": [0.0, 1.0], "mug": [0.8, 0.6], "puppy": [0.1, 0.99]}
    return torch.tensor([known[t] for t in texts])


def test_labels_are_matched_by_their_vectors() -> None:
    assert _sentences.nearest(["mug", "puppy", "mug"], ["cup", "dog"], encode) == ["cup", "dog", "cup"]
    assert _sentences.nearest([], ["cup"], encode) == []
    text = said(("mug", CUP), ("puppy", DOG)) + " " + BoxCodec().encode(CUP, PaddedSquare(*SIZE))
    seen = detection.matched([line(listing(("cup", CUP), ("dog", DOG)), text)], ["cup", "dog"], encode)
    assert [name for name, _, _ in seen[0].found] == ["cup", "dog"]  # the box without words is left out
    assert _detect.average_precision(seen)[0] == pytest.approx(1.0)


def by_protocol(lines: list[detection.Line], **options: Any) -> dict[tuple[str, str], Score]:
    scores = detection.score(lines, options.pop("base", []), Settings(**options), encode)
    return {(s.task, s.metric): s for s in scores}


def test_three_protocols() -> None:
    everything = listing(("cup", CUP), ("dog", DOG))
    samples = [replace(everything, id=str(i)) for i in range(3)]
    dogs, none = listing(("dog", DOG), i=1, category="dog"), listing(i=2, category="dog")
    box = BoxCodec().encode(DOG, PaddedSquare(*SIZE))
    lines = [line(s, said(("cup", CUP), ("puppy", DOG))) for s in samples]
    lines += [line(dogs, box, 0.5), line(none, box, 0.9)]
    blind = [line(a.sample, "") for a in lines]
    scores = by_protocol(lines, base=blind)
    assert {t for t, _ in scores} == {"detection/list all", "detection/matched", "detection/class given"}
    assert scores["detection/list all", "AP50"].value == pytest.approx(0.5)
    assert scores["detection/matched", "AP50"].value == pytest.approx(1.0)
    assert scores["detection/class given", "AP50"].value == pytest.approx(0.5)  # the false box is the surer one
    assert all(s.base == 0.0 and s.version == detection.VERSION for s in scores.values())
    assert scores["detection/list all", "AP50"].n == 1  # one picture, asked about three times


def test_only_labelled_samples_are_taken() -> None:
    whole, clean, asked = listing(("cup", CUP)), listing(), listing(category="cup")
    unlabelled = replace(whole, messages=(*whole.prompt, Message("assistant", (BoxPart(CUP),))))
    other = replace(whole, task="box")
    named = replace(unlabelled, meta={"category": "cup"})
    unanswered = replace(whole, messages=whole.prompt)
    given = [whole, clean, asked, unlabelled, other, named, unanswered]
    assert detection.select(given) == [whole, clean, asked, named]
    with pytest.raises(DataError, match="detect"):
        task.measure(testing.tiny_model(), "detection", [other])


def test_the_confidence_of_a_part_is_that_of_its_tokens() -> None:
    spoken = Spoken("ab[cd]", (1, 2, 2, 4, 6), (0.1, 0.2, 0.3, 0.5, 0.9))
    assert spoken.confidence(2, 6) == pytest.approx(0.7)
    assert spoken.confidence(1, 3) == pytest.approx(0.35)
    assert spoken.confidence(0, 1) == pytest.approx(0.1)
    assert Spoken("", (), ()).confidence(0, 4) == 1.0


@pytest.mark.parametrize("bare", [False, True])
def test_probabilities_are_those_of_a_forward_pass(bare: bool) -> None:
    model = testing.tiny_model()
    sample = listing(("cup", CUP))
    if bare:
        sample = replace(sample, messages=(Message.of("user", "List."), sample.messages[1]))
    answerer = FreeAnswerer(model, max_new_tokens=6, batch_size=2)
    spoken = answerer.spoken([sample, sample])
    assert [s.text for s in spoken] == answerer([sample, sample])
    assert spoken[0] == spoken[1] and len(spoken[0].probabilities) == 6
    # The same tokens in one pass, teacher-forced.
    ids = torch.tensor(answerer._generate([sample])[:1])
    prompt = model.encode_samples([replace(sample, messages=sample.prompt)], add_generation_prompt=True).inputs()
    given = dict(prompt)
    given["input_ids"] = torch.cat([prompt["input_ids"], ids], 1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    for name, value in (("token_kind", TEXT), ("image_index", -1)):
        if name in prompt:
            given[name] = torch.nn.functional.pad(prompt[name], (0, 6), value=value)
    with torch.no_grad():
        logits = model(**given).logits[0, -7:-1]
    found = logits.softmax(-1).gather(1, ids[0][:, None])[:, 0]
    assert torch.allclose(found, torch.tensor(spoken[0].probabilities), atol=1e-4)


def test_an_end_is_where_the_token_ends_in_the_stripped_text(monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = FreeAnswerer(testing.tiny_model())
    ids = answerer.model.tokenizer(" 犬 [0.1]", add_special_tokens=False)["input_ids"]
    spoken = answerer._spoken(ids, [0.5] * len(ids))
    assert spoken.text == "犬 [0.1]" and spoken.ends[-1] == len(spoken.text) and spoken.ends[0] == 0
    assert list(spoken.ends[-5:]) == [3, 4, 5, 6, 7]


def test_the_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "SentenceEncoder", lambda: encode)
    samples = [listing(("cup", CUP), ("dog", DOG), i=i) for i in range(6)]
    samples += [listing(("dog", DOG), i=i + 6, category="dog") for i in range(4)]
    answers = {False: said(("cup", CUP), ("dog", DOG)), True: said(("", DOG))}

    def spoken(self: free.FreeAnswerer, asked: Sequence[Sample]) -> list[Spoken]:
        return [Spoken(answers[bool(s.meta.get("category"))] if s.images else "", (), ()) for s in asked]

    monkeypatch.setattr(FreeAnswerer, "spoken", spoken)
    train = [listing(("cup", Box(10 + i, 10, 40, 40)), i=20 + i) for i in range(8)]
    train += [listing(("dog", Box(50, 20, 90, 60 + i)), i=30 + i, category="dog") for i in range(8)]
    result = task.measure(testing.tiny_model(), "detection", samples, train=train)["detection"]
    assert len(result.scores) == 6 and all(s.value == pytest.approx(1.0) and s.base == 0.0 for s in result.scores)
    yardsticks = {s.task: s.yardsticks for s in result.scores if s.metric == "AP50"}
    assert set(yardsticks["detection/list all"]) == {"constant", "ridge"}
    assert yardsticks["detection/list all"]["constant"] == pytest.approx(0.5)  # one of two categories
    assert yardsticks["detection/class given"]["constant"] == pytest.approx(1.0)
    assert all(a.correct and a.boxes and a.base_text == "" for a in result.answers)
    assert {len(a.boxes): a.numbers for a in result.answers} == {2: (1, 2), 1: ()}


def test_without_the_encoder_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path))
    asked: list[int] = []
    monkeypatch.setattr(FreeAnswerer, "spoken", lambda self, samples: asked.append(1))
    with pytest.raises(AssetError, match="tsugiki assets fetch minilm"):
        task.measure(testing.tiny_model(), "detection", [listing(("cup", CUP))])
    assert not asked
    # Where every question names its category, nothing is matched.
    monkeypatch.undo()
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path))
    given = task.measure(testing.tiny_model(), "detection", [listing(("cup", CUP), category="cup")], max_new_tokens=4)
    assert {s.task for s in given["detection"].scores} == {"detection/class given"}


@pytest.mark.assets("minilm")
def test_the_real_encoder_knows_what_words_mean() -> None:
    real = _sentences.SentenceEncoder()
    vectors = real(["a dog", "dog", "a very much longer text about something else entirely"])
    assert vectors.shape == (3, 384) and torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert torch.allclose(vectors[1], real(["dog"])[0], atol=1e-5)  # padding does not count
    assert _sentences.nearest(["puppy", "dogs", "coffee mug"], ["cup", "dog", "car"], real) == ["dog", "dog", "cup"]
