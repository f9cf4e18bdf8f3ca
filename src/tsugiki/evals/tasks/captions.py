"""Captions: BLEU-4, CIDEr and ROUGE-L against the captions of the same picture, per language (`meta["language"]`).

Texts are cut in one way for all three and for any language: NFKC, lower case, no punctuation, every kana or kanji a
token of its own, other words whole. The usual cut (PTB) needs Java, so figures are near to published ones, not equal.
References: the gold caption and `meta["answers"]`. BLEU is over the corpus, in [0, 1]; CIDEr's document frequencies are
those of the scored captions, and so are comparable only on the same data. The constant is the commonest training
caption. sacrebleu and pycocoevalcap come with the extra `eval`.

Sources: BLEU (Papineni et al. 2002), CIDEr (1411.5726), ROUGE-L (Lin 2004).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tsugiki.evals import stats, yardsticks
from tsugiki.evals.asking import FEWEST, refuse_few, said
from tsugiki.evals.task import Answer, Result, Settings, message_text, picture_groups
from tsugiki.extras import require
from tsugiki.types import BoxPart, Sample, Score

VERSION = 1
DESCRIPTION = "samples of the task caption whose gold caption has no boxes"
NEEDED = FEWEST

TOKENS = 48
"""Of an answer at least."""
_TOKEN = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W぀-ヿ㐀-鿿豈-﫿]+")

Texts = Sequence[str]
Floats = npt.NDArray[np.float64]


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Captions in words."""
    return [s for s in samples if s.task == "caption" and s.images and _is_words(s)]


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Ask for captions, until the time is up.

    Raises:
        DataError: too few samples.
        MissingExtraError: sacrebleu or pycocoevalcap is not installed; nothing is asked.
    """
    refuse_few("captions", samples)
    for module in ("sacrebleu", "pycocoevalcap"):
        require(module, extra="eval")
    room = Settings(**{**settings.__dict__, "max_new_tokens": max(TOKENS, settings.max_new_tokens)})
    answers = [_answer(*found) for found in said("captions", model, samples, room)]
    languages: dict[str, list[Answer]] = {}
    for answer in answers:
        languages.setdefault(_language(answer.sample), []).append(answer)
    scores = []
    for language, group in sorted(languages.items()):
        golds = (message_text(s.answer) for s in select(settings.train) if _language(s) == language)
        scores += score(f"captions/{language}", group, yardsticks.commonest(golds))
    return Result(task="captions", scores=scores, answers=answers)


def score(task: str, answers: Sequence[Answer], constant: str | None = None) -> list[Score]:
    """BLEU-4, CIDEr and ROUGE-L; `constant` is the caption that the yardstick always gives."""
    references = [[cut(g) for g in golds(a.sample)] for a in answers]
    own = [cut(a.text) for a in answers]
    blind = [cut(a.base_text) for a in answers if a.base_text is not None]
    base = blind if len(blind) == len(answers) else None
    always = None if constant is None else [cut(constant)] * len(answers)
    groups = picture_groups([a.sample for a in answers])
    found = [_bleu_score(task, own, references, base, always)]
    measures: dict[str, Callable[[Texts, Sequence[Texts]], Floats]] = {"CIDEr": cider, "ROUGE-L": rouge_l}
    for name, measured in measures.items():
        found.append(
            stats.score(
                task,
                name,
                measured(own, references),
                None if base is None else measured(base, references),
                groups=groups,
                yardsticks={} if always is None else {"constant": float(measured(always, references).mean())},
                version=VERSION,
            )
        )
    return found


def cut(text: str) -> str:
    """Tokens, one blank between them."""
    return " ".join(_TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()))


def golds(sample: Sample) -> list[str]:
    """The gold caption, then the others of `meta["answers"]`."""
    return [message_text(sample.answer), *map(str, sample.meta.get("answers") or ())]


def bleu_counts(texts: Texts, references: Sequence[Texts]) -> npt.NDArray[np.int64]:
    """What corpus BLEU is made of, a row a text, int64 [n, 10]: matches and totals of 1- to 4-grams, lengths."""
    metric = require("sacrebleu.metrics", extra="eval").BLEU(tokenize="none", force=True, effective_order=True)
    rows = []
    for text, golds in zip(texts, references, strict=True):
        found = metric.sentence_score(text, list(golds))
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(rows, dtype=np.int64)


def bleu(counts: npt.NDArray[np.int64]) -> float:
    """Corpus BLEU-4 in [0, 1] without smoothing, from rows of `bleu_counts`."""
    total = counts.sum(0).tolist()
    compute = require("sacrebleu.metrics", extra="eval").BLEU.compute_bleu
    return float(compute(total[:4], total[4:8], total[8], total[9]).score) / 100


def cider(texts: Texts, references: Sequence[Texts]) -> Floats:
    """CIDEr (its form "D") of each text, [n], 0 to 10."""
    return _coco("cider.cider", "Cider", texts, references)


def rouge_l(texts: Texts, references: Sequence[Texts]) -> Floats:
    """ROUGE-L of each text, [n], F with beta 1.2."""
    return _coco("rouge.rouge", "Rouge", texts, references)


def _coco(module: str, name: str, texts: Texts, references: Sequence[Texts]) -> Floats:
    scorer = getattr(require(f"pycocoevalcap.{module}", extra="eval"), name)()
    _, each = scorer.compute_score(
        {i: list(golds) for i, golds in enumerate(references)}, {i: [text] for i, text in enumerate(texts)}
    )
    return np.asarray(each, dtype=np.float64)


def _bleu_score(task: str, own: Texts, references: Sequence[Texts], base: Texts | None, always: Texts | None) -> Score:
    counts = bleu_counts(own, references)
    value = stats.bootstrap(lambda rows: bleu(rows), counts)
    fields: dict[str, Any] = {}
    if base is not None:
        other = bleu_counts(base, references)
        change = stats.bootstrap(lambda a, b: bleu(a) - bleu(b), counts, other)
        fields = {"base": bleu(other), "difference": change.value}
        fields |= {"difference_low": change.low, "difference_high": change.high}
    if always is not None:
        fields["yardsticks"] = {"constant": bleu(bleu_counts(always, references))}
    return Score(
        task=task,
        metric="BLEU-4",
        value=value.value,
        stderr=value.stderr,
        n=value.n,
        low=value.low,
        high=value.high,
        version=VERSION,
        **fields,
    )


def _language(sample: Sample) -> str:
    return str(sample.meta.get("language") or "any language")


def _is_words(sample: Sample) -> bool:
    answer = sample.answer
    return bool(cut(message_text(answer))) and not any(isinstance(p, BoxPart) for p in (answer.parts if answer else ()))


def _answer(sample: Sample, text: str, base: str | None) -> Answer:
    right = cut(text) in {cut(g) for g in golds(sample)}
    gold = message_text(sample.answer)
    return Answer(task="captions", sample=sample, text=text, gold=gold, correct=right, base_text=base)
