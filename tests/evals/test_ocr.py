"""Reading: ANLS and CER against loops written out, texts with boxes, the whole path."""

from __future__ import annotations

from dataclasses import replace

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsugiki import testing
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.evals import task
from tsugiki.evals._boxes import Reply
from tsugiki.evals.task import Answer, Settings
from tsugiki.evals.tasks import grounding, ocr
from tsugiki.types import Box, BoxPart, ImagePart, Message, Sample, TextPart

PICTURE = testing.tiny_images(1)[0]


def sample(gold: str, kind: str = "read", **meta: object) -> Sample:
    messages = (Message.of("user", "What is written?", (PICTURE,)), Message.of("assistant", gold))
    return Sample(id=gold, messages=messages, task=kind, meta=meta)


def spotting(*texts: tuple[str, Box]) -> Sample:
    parts = tuple(p for text, box in texts for p in (TextPart(text + " "), BoxPart(box, label=text)))
    question = Message("user", (ImagePart(PICTURE), TextPart("All texts?")))
    return Sample(id="s", messages=(question, Message("assistant", parts)), task="spotting")


def edits(a: str, b: str) -> int:
    """Levenshtein's distance, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


WORDS = st.text(st.sampled_from("abcABC12-電圧ホ"), min_size=1, max_size=12)


@given(WORDS, WORDS)
def test_anls_and_cer_are_the_formulas(text: str, gold: str) -> None:
    similarity = 1 - edits(text.casefold(), gold.casefold()) / max(len(text), len(gold))
    assert ocr.anls(text, sample(gold)) == pytest.approx(similarity if similarity >= 0.5 else 0.0)
    assert ocr.cer(text, sample(gold)) == pytest.approx(edits(text, gold) / len(gold))
    assert ocr.cer(text, sample(gold)) == pytest.approx(jiwer.cer(gold, text))
    assert ocr.exact(text, sample(gold)) == (text == gold)


@settings(max_examples=20)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=6))
def test_cer_is_over_all_letters(pairs: list[tuple[str, str]]) -> None:
    answers = [
        Answer(task="ocr", sample=replace(sample(g), id=str(i)), text=t, gold=g, correct=t == g)
        for i, (t, g) in enumerate(pairs)
    ]
    found = {s.metric: s for s in ocr.texts("ocr/read", answers, constant="a")}
    assert found["CER"].value == pytest.approx(jiwer.cer([g for _, g in pairs], [t for t, _ in pairs]))
    constant = sum(edits("a", g) for _, g in pairs) / sum(len(g) for _, g in pairs)
    assert found["CER"].yardsticks["constant"] == pytest.approx(constant)


def test_what_counts_as_equal() -> None:
    assert ocr.exact("ＫＶ－２０４１", sample("KV-2041")) == 1.0
    assert ocr.exact(" 12\n V ", sample("12 V")) == 1.0
    assert ocr.exact("kv-2041", sample("KV-2041")) == 0.0 and ocr.anls("kv-2041", sample("KV-2041")) == 1.0
    assert ocr.exact("12V", sample("12 V", answers=["12V"])) == 1.0


def test_f1_pairs_each_text_once() -> None:
    a, b, far = Box(0, 0, 20, 10), Box(0, 20, 20, 30), Box(30, 30, 40, 40)
    gold = (("x", a), ("x", b))
    assert ocr.f1(gold, gold) == 1.0
    assert ocr.f1((("x", a), ("x", a)), gold) == pytest.approx(0.5)
    assert ocr.f1((("y", a), ("x", far)), gold) == 0.0
    assert ocr.f1((), gold) == 0.0
    assert ocr.f1((("x", b),), gold) == pytest.approx(2 / 3)


def test_lists_are_read_through_the_codec() -> None:
    codec, square = BoxCodec(), PaddedSquare(100, 100)
    text = f"KV-1 {codec.encode(Box(10, 10, 40, 20), square)}; 電圧 {codec.encode(Box(50, 10, 90, 20), square)}"
    assert ocr.listed(Reply.read(text, codec, square)) == (
        ("KV-1", Box(10, 10, 40, 20)),
        ("電圧", Box(50, 10, 90, 20)),
    )


def test_selection() -> None:
    boxed = spotting(("a", Box(1, 1, 9, 9)))
    bare = replace(boxed, messages=(boxed.messages[0], Message("assistant", (BoxPart(Box(1, 1, 9, 9)),))))
    good = [sample("a"), sample("b", "table"), boxed]
    assert ocr.select([*good, sample("c", "naming"), sample(" "), bare]) == good
    assert grounding.select([boxed]) == []
    assert grounding.select([replace(boxed, task="text box")]) != []


def test_the_whole_path() -> None:
    model = testing.tiny_model()
    asked = [
        replace(sample(text, kind, condition=condition), id=f"{text}{kind}{condition}")
        for text, kind in (("KV-2041", "read"), ("220 V", "field"))
        for condition in ("clean", "blur")
    ]
    asked.append(spotting(("a", Box(1, 1, 20, 20))))
    result = task.measure(model, "ocr", asked, train=asked, max_new_tokens=4)["ocr"]
    found = {(s.task, s.metric): s for s in result.scores}
    kinds = {"ocr/read", "ocr/field", "ocr/on clean pictures", "ocr/on blur pictures"}
    assert set(found) == {(k, m) for k in kinds for m in ("ANLS", "CER", "exact match")} | {("ocr/spotting", "F1@0.5")}
    assert all(s.base is not None and s.low is not None for s in result.scores)
    assert found["ocr/read", "exact match"].yardsticks == {"constant": 1.0}
    assert found["ocr/on blur pictures", "ANLS"].n == 2 and len(result.answers) == 5


def test_spotting_scores_what_the_answer_lists() -> None:
    codec = BoxCodec()
    asked, square = spotting(("a", Box(1, 1, 20, 20)), ("b", Box(22, 1, 40, 20))), PaddedSquare(*PICTURE.size)
    text = f"a {codec.encode(Box(1, 1, 20, 20), square)}"
    answers = [Answer(task="ocr", sample=asked, text=text, gold="", correct=False, base_text="none")]
    (score,) = ocr.score(answers, Settings(), codec)
    assert (score.value, score.base) == (pytest.approx(2 / 3), 0.0)
