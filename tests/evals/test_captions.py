"""Captions: the cut, the figures against their libraries and loops, the whole path."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu

from tsugiki import extras, testing
from tsugiki.errors import DataError, MissingExtraError
from tsugiki.evals import task
from tsugiki.evals.tasks import captions
from tsugiki.types import Box, BoxPart, Message, Sample

OWN = ["a red car and a dog", "two cats", "犬と車が描かれています", "a tree on the left side of it"]
GOLD = [
    ["a red car and two dogs", "a car"],
    ["three black cats"],
    ["赤い犬と車が描かれています"],
    ["a tree on the left"],
]


def samples(n: int, language: str = "en") -> list[Sample]:
    words = {"en": "A red cup and a dog.", "ja": "赤いコップと犬が描かれています。"}[language]
    return [
        Sample(
            id=f"{language}{i}",
            messages=(Message.of("user", "Describe it.", (p,)), Message.of("assistant", words)),
            task="caption",
            meta={"language": language},
        )
        for i, p in enumerate(testing.tiny_images(n, seed=len(language) + ord(language[0])))
    ]


def test_the_cut() -> None:
    assert captions.cut("A Red-hot ＣＡＲ, 2 dogs!") == "a red hot car 2 dogs"
    assert captions.cut("赤い車とdogが2匹。") == "赤 い 車 と dog が 2 匹"
    assert captions.cut("...") == ""


def test_bleu_is_that_of_the_corpus() -> None:
    own, golds = [captions.cut(t) for t in OWN], [[captions.cut(g) for g in gs] for gs in GOLD]
    counts = captions.bleu_counts(own, golds)
    streams = [[gs[i] if i < len(gs) else None for gs in golds] for i in range(2)]
    whole = sacrebleu.BLEU(tokenize="none", force=True, smooth_method="none").corpus_score(own, streams)
    assert counts.shape == (4, 10) and captions.bleu(counts) == pytest.approx(whole.score / 100) and whole.score > 0


def test_rouge_l_is_a_loop() -> None:
    def longest(a: list[str], b: list[str]) -> int:
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        return table[-1][-1]

    own, golds = [captions.cut(t) for t in OWN], [[captions.cut(g) for g in gs] for gs in GOLD]
    for text, refs, value in zip(own, golds, captions.rouge_l(own, golds), strict=True):
        words = text.split()
        p = max(longest(words, r.split()) / len(words) for r in refs)
        r = max(longest(words, r.split()) / len(r.split()) for r in refs)
        assert value == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p) if p and r else 0.0)


def test_cider_is_a_loop() -> None:
    own, golds = [captions.cut(t) for t in OWN], [[captions.cut(g) for g in gs] for gs in GOLD]

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    frequency = Counter(g for refs in golds for g in {g for r in refs for n in range(1, 5) for g in grams(r, n)})

    def vector(text: str, n: int) -> dict[tuple[str, ...], float]:
        return {g: c * (math.log(len(golds)) - math.log(max(1, frequency[g]))) for g, c in grams(text, n).items()}

    for text, refs, value in zip(own, golds, captions.cider(own, golds), strict=True):
        total = 0.0
        for ref in refs:
            for n in range(1, 5):
                a, b = vector(text, n), vector(ref, n)
                norm = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
                dot = sum(min(v, b.get(g, 0.0)) * b.get(g, 0.0) for g, v in a.items())
                # pycocoevalcap counts a text's bigrams as its length.
                delta = sum(grams(text, 2).values()) - sum(grams(ref, 2).values())
                total += (dot / norm if norm else 0.0) * math.exp(-(delta**2) / 72) / 4
        assert value == pytest.approx(10 * total / len(refs))


def test_the_whole_path() -> None:
    given = [*samples(5), *samples(5, "ja")]
    result = task.measure(testing.tiny_model(), "captions", given, train=given, max_new_tokens=2)["captions"]
    assert {(s.task, s.metric) for s in result.scores} == {
        (f"captions/{language}", metric) for language in ("en", "ja") for metric in ("BLEU-4", "CIDEr", "ROUGE-L")
    }
    for score in result.scores:
        assert score.n == 5 and score.base is not None and score.low is not None and score.difference is not None
        if score.metric != "CIDEr":  # where all captions are equal, no word tells any from another
            assert score.yardsticks == {"constant": pytest.approx(1.0)}


def test_what_is_selected_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    good = samples(1)[0]
    boxed = replace(good, messages=(*good.prompt, Message("assistant", (BoxPart(Box(0, 0, 1, 1)),))))
    assert captions.select([good, boxed, replace(good, task="vqa"), replace(good, messages=good.prompt)]) == [good]
    with pytest.raises(DataError, match="1 samples for captions; expected at least 5"):
        task.evaluate(testing.tiny_model(), "captions", [good])

    model = testing.tiny_model()

    def gone(name: str, *_: object) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", gone)
    with pytest.raises(MissingExtraError, match=r"sacrebleu is not installed.*tsugiki\[eval\]"):
        captions.measure(model, samples(5), task.Settings())


def test_an_empty_answer_scores_nothing() -> None:
    assert (
        captions.rouge_l([""], [["a cup"]]).tolist() == [0.0]
        and captions.bleu(captions.bleu_counts([""], [["a"]])) == 0
    )
    assert np.isfinite(captions.cider(["", "a"], [["a cup"], ["a dog"]])).all()
