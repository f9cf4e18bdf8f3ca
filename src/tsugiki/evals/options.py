"""Likelihood of the options of a closed question, given the picture.

The prompt with its picture runs through the LLM once. Its key-value cache is then repeated for the options, which run
as one batch of short continuations: K options cost K short rows instead of K prompts.

Shapes: B prompts of a chunk, K options of a sample, R continuations of a chunk, P tokens that the K texts share (prompt
and picture), L tokens of a continuation, W vocabulary. Log-probabilities are in nats.
"""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tsugiki.configuration import CACHE, cache_of
from tsugiki.data.collate import Item
from tsugiki.data.demos import plain
from tsugiki.data.prompt import IGNORE, Encoded
from tsugiki.errors import DataError
from tsugiki.types import TEXT, BoxPart, DemoPart, ImagePart, Message, Sample, TextPart

Normalise = Literal["sum", "mean"]

FIRST_ROUND = 3
"""How many options a picture gets in the first round when options may be left unfinished."""
MAX_ROWS = 64
"""Continuations that run together: bounds the memory of the repeated cache."""


@dataclass(frozen=True, slots=True)
class OptionScores:
    """Log-probabilities of the options of one sample, in the order of `options`.

    The label tokens of an option are its text and the end of the turn, so that "cat" does not win against "cat face" by
    being its beginning.
    """

    options: tuple[str, ...]
    logprobs: tuple[float, ...]
    """Sum over the option's label tokens; an upper bound where `finished` is False."""
    tokens: tuple[int, ...]
    """Number of label tokens of each option."""
    finished: tuple[bool, ...]

    def scores(self, normalise: Normalise = "sum") -> tuple[float, ...]:
        """One number an option, higher is likelier.

        "sum" is the probability that the LLM gives to the answer as a whole, and so the answer to "which option?".
        "mean" (per token) favours long options: each further token of a word that has begun is cheap. It is of use
        where options are sentences of very different length.
        """
        if normalise == "sum":
            return self.logprobs
        if not all(self.finished):
            raise DataError(
                "mean log-probabilities of unfinished options", expected="tolerance=None", fix="Score with it."
            )
        return tuple(v / n for v, n in zip(self.logprobs, self.tokens, strict=True))

    def best(self, normalise: Normalise = "sum") -> str:
        """The likeliest option, the first one of equals."""
        scores = self.scores(normalise)
        return self.options[max(range(len(scores)), key=scores.__getitem__)]

    def probabilities(self, normalise: Normalise = "sum") -> dict[str, float]:
        """Softmax of the scores over the options: the probability of each, given that one of them is the answer."""
        scores = torch.tensor(self.scores(normalise), dtype=torch.float64)
        return dict(zip(self.options, torch.softmax(scores, 0).tolist(), strict=True))


class OptionScorer:
    """Scores the options of samples. It remembers the token rows of questions that it has seen, and the cache of what
    prompts begin with: make a new one when the weights have changed.

    Args:
        model: the composite; encodes the samples.
        features: cached tower outputs, picture -> [P, V]; None encodes pixels.
        llm: what runs instead of the composite (the bare LLM); the samples then have no pictures.
        demos: samples -> the samples with demonstrations in front, which the model then sees.
        batch_size: B, prompts that run together. They have equal lengths, so that no padding enters.
        tolerance: None finishes every option. A number of nats leaves options unfinished that can't come within it of
            the best one (log-probabilities only fall with more tokens): the best option is exact with any tolerance
            >= 0, and a probability that is left out is below exp(-tolerance) of the best one's.
    """

    def __init__(
        self,
        model: Any,
        *,
        features: Any = None,
        llm: Any = None,
        demos: Callable[[Sequence[Sample]], Sequence[Sample]] | None = None,
        batch_size: int = 8,
        tolerance: float | None = None,
    ) -> None:
        self.model, self.llm, self.demos = model, llm or model, demos
        self.batch_size, self.tolerance = batch_size, tolerance
        self.collate = model.processor.collator(features, labels=True)
        self._known: dict[tuple[object, ...], _Rows] = {}
        self._head: tuple[list[int], Any] = ([], None)

    def __call__(self, samples: Sequence[Sample]) -> list[OptionScores]:
        """One result a sample, in their order; a gold answer is not looked at.

        Raises:
            DataError: a sample without options, or with an option twice.
        """
        samples = [_checked(sample) for sample in samples]
        if self.demos is not None:
            samples = self.demos(samples)
        rows = [self._rows(sample) for sample in samples]
        done: dict[int, OptionScores] = {}
        for chunk in _equal([len(r.prefix) for r in rows], self.batch_size):
            run = _Chunk(self, [samples[i] for i in chunk], [rows[i] for i in chunk])
            done.update(zip(chunk, run.scores(), strict=True))
        return [done[i] for i in range(len(samples))]

    def _rows(self, sample: Sample) -> _Rows:
        """Tokens do not depend on what is in a picture: one encoding for all samples with one question."""
        key = text_key(sample)
        if key not in self._known:
            texts = [replace(sample, messages=(*sample.prompt, Message.of("assistant", o))) for o in sample.options]
            self._known[key] = _Rows.of([self.collate.encode(t) for t in texts])
        return self._known[key]

    def head_cache(self, ids: list[int]) -> Any:
        """The cache [1 row] of a text that prompts begin with; only the last one is kept."""
        if self._head[0] != ids:
            output = self.llm(input_ids=torch.tensor([ids], device=next(self.llm.parameters()).device), use_cache=True)
            self._head = ids, cache_of(output)
        return copy.deepcopy(self._head[1])


def without_pictures(sample: Sample) -> Sample:
    """The same conversation for a bare LLM: pictures, and boxes that refer to them, are left out."""
    messages = []
    for message in plain(sample.messages):
        parts = tuple(p for p in message.parts if isinstance(p, TextPart))
        messages.append(Message(message.role, parts or (TextPart(""),)))
    return replace(sample, messages=tuple(messages))


def text_key(sample: Sample) -> tuple[object, ...]:
    """Equal for samples that ask the same question with the same options, whatever their pictures show."""
    parts: list[object] = []
    for message in sample.prompt:
        parts.append(message.role)
        for p in message.parts:
            said = (p.text, p.form) if isinstance(p, DemoPart) else type(p)
            parts.append(p.text if isinstance(p, TextPart) else said)
    boxes = any(isinstance(p, BoxPart) for m in sample.prompt for p in m.parts)
    # A box is written relative to its picture: such a question is the sample's own.
    return (sample.options, *parts, sample.id if boxes else None)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The texts "prompt and option" of one sample, cut into what they share and what follows."""

    prefix: Encoded  # P tokens
    ids: tuple[tuple[int, ...], ...]  # K rows of tokens after the prefix, up to the last label
    scored: tuple[tuple[bool, ...], ...]  # which of them are labels

    @classmethod
    def of(cls, texts: Sequence[Encoded]) -> _Rows:
        labels = [last_turn([label != IGNORE for label in t.labels or ()]) for t in texts]
        end = min(row.index(True) for row in labels)
        # A tokenizer may merge the end of the prompt with an option: the prefix is what all rows really share.
        cut = next((j for j in range(end) if len({t.input_ids[j] for t in texts}) > 1), end)
        if any(i >= 0 for t in texts for i in t.image_index[cut:]):
            raise DataError("a picture after the place where the options differ", expected="pictures in the question")
        ends = [len(row) - row[::-1].index(True) for row in labels]
        first = texts[0]
        return cls(
            Encoded(first.input_ids[:cut], first.token_kind[:cut], first.image_index[:cut], said=first.said),
            tuple(tuple(t.input_ids[cut:e]) for t, e in zip(texts, ends, strict=True)),
            tuple(tuple(row[cut:e]) for row, e in zip(labels, ends, strict=True)),
        )


class _Chunk:
    """B samples whose prefixes have equal length."""

    def __init__(self, scorer: OptionScorer, samples: Sequence[Sample], rows: Sequence[_Rows]) -> None:
        self.scorer, self.llm, self.samples, self.rows = scorer, scorer.llm, samples, rows
        self.prefix = len(rows[0].prefix)
        self.device = next(self.llm.parameters()).device

    @torch.inference_mode()
    def scores(self) -> list[OptionScores]:
        first, cache = self._prefill()
        sums = [
            [float(first[b, row[0]]) if scored[0] else 0.0 for row, scored in zip(r.ids, r.scored, strict=True)]
            for b, r in enumerate(self.rows)
        ]
        todo = [[k for k, row in enumerate(r.ids) if len(row) > 1] for r in self.rows]
        if self.scorer.tolerance is not None:
            chosen = [heapq.nlargest(FIRST_ROUND, ks, key=sums[b].__getitem__) for b, ks in enumerate(todo)]
            self._finish(chosen, sums, cache, last=False)
            todo = [[k for k in ks if k not in chosen[b]] for b, ks in enumerate(todo)]
            near = [self._near(sums[b], ks, self.scorer.tolerance) for b, ks in enumerate(todo)]
        else:
            near = todo
        self._finish(near, sums, cache, last=True)
        unfinished = [set(ks) - set(near[b]) for b, ks in enumerate(todo)]
        return [self._result(b, sums[b], unfinished[b]) for b in range(len(self.samples))]

    def _prefill(self) -> tuple[Tensor, Any]:
        """Log-probabilities of the token after the prefix [B, W], and the cache of the prefix."""
        items = [Item(r.prefix, s.images, s.where or s.id) for s, r in zip(self.samples, self.rows, strict=True)]
        inputs = self._placed(self.scorer.collate(items).inputs())
        if self.llm is not self.scorer.model:
            inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        head, cache = self._shared_head(), None
        if head:
            cache = self.scorer.head_cache(self.rows[0].prefix.input_ids[:head])
            cache.batch_select_indices(torch.zeros(len(items), dtype=torch.long, device=self.device))
            inputs |= {k: inputs[k][:, head:] for k in ("input_ids", "token_kind", "image_index") if k in inputs}
        output = self.llm(**inputs, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        return _log_softmax(output.logits[:, -1]).cpu(), cache_of(output)

    def _shared_head(self) -> int:
        """How many tokens all prompts begin with before any picture (the system prompt, mostly): these run once.

        None where the graft changes the text before a picture too.
        """
        pictures = any(i >= 0 for r in self.rows for i in r.prefix.image_index)
        if pictures and not getattr(self.llm, "prefix_exact", False):
            return 0
        rows = list({id(r): r.prefix for r in self.rows}.values())
        for j in range(self.prefix - 1):
            if any(row.image_index[j] >= 0 or row.input_ids[j] != rows[0].input_ids[j] for row in rows):
                return j
        return self.prefix - 1

    def _near(self, sums: Sequence[float], rest: Sequence[int], tolerance: float) -> list[int]:
        """Of the unfinished options those that can still come within `tolerance` of the best finished one."""
        finished = [v for k, v in enumerate(sums) if k not in rest]
        bound = max(finished, default=math.inf) - tolerance
        return [k for k in rest if sums[k] >= bound]

    def _finish(self, options: Sequence[Sequence[int]], sums: list[list[float]], cache: Any, *, last: bool) -> None:
        """Add the log-probabilities of all tokens after the first one to `sums`, for the chosen options."""
        pairs = [(b, k) for b, ks in enumerate(options) for k in ks]
        pairs.sort(key=lambda pair: len(self.rows[pair[0]].ids[pair[1]]))  # equal lengths together: little padding
        for start in range(0, len(pairs), MAX_ROWS):
            part = pairs[start : start + MAX_ROWS]
            own = cache if last and start + MAX_ROWS >= len(pairs) else copy.deepcopy(cache)
            own.batch_select_indices(torch.tensor([b for b, _ in part], device=self.device))
            for (b, k), value in zip(part, self._continue(part, own), strict=True):
                sums[b][k] += value

    def _continue(self, pairs: Sequence[tuple[int, int]], cache: Any) -> list[float]:
        """Sum of the log-probabilities of tokens 1.. of R continuations, whose prefixes are the rows of `cache`."""
        ids = [self.rows[b].ids[k] for b, k in pairs]
        width = max(map(len, ids)) - 1  # the last token is predicted, never fed
        fed = torch.zeros(len(pairs), width, dtype=torch.long)  # [R, L]
        target, counts = torch.zeros_like(fed), torch.zeros(fed.shape, dtype=torch.bool)
        for r, (b, k) in enumerate(pairs):
            n = len(ids[r]) - 1
            fed[r, :n], target[r, :n] = torch.tensor(ids[r][:-1]), torch.tensor(ids[r][1:])
            counts[r, :n] = torch.tensor(self.rows[b].scored[k][1:])
        # Right padding comes after every token that counts, so causality keeps it out; the mask can be all ones.
        inputs = {"input_ids": fed, "attention_mask": torch.ones(len(pairs), self.prefix + width, dtype=torch.long)}
        output = self.llm(**self._placed(inputs | self._kinds(fed)), use_cache=True, **{CACHE: cache})
        here = counts.nonzero()  # [number of labels, 2]
        logprobs = _log_softmax(output.logits[counts.to(self.device)])
        gained = logprobs.gather(1, target[counts][:, None].to(self.device))[:, 0].double().cpu()
        total: list[float] = torch.zeros(len(pairs), dtype=torch.float64).index_add(0, here[:, 0], gained).tolist()
        return total

    def _kinds(self, fed: Tensor) -> dict[str, Tensor]:
        """Continuations are text; a request without a picture says nothing about kinds."""
        if not any(isinstance(p, ImagePart) for s in self.samples for m in s.prompt for p in m.parts):
            return {}
        return {"token_kind": torch.full_like(fed, TEXT), "image_index": torch.full_like(fed, -1)}

    def _placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self.device) for k, v in inputs.items()}

    def _result(self, b: int, sums: Sequence[float], unfinished: set[int]) -> OptionScores:
        tokens = tuple(map(sum, self.rows[b].scored))
        finished = tuple(k not in unfinished for k in range(len(sums)))
        return OptionScores(self.samples[b].options, tuple(sums), tokens, finished)


def _checked(sample: Sample) -> Sample:
    if not sample.options or len(set(sample.options)) != len(sample.options):
        found = "no options" if not sample.options else f"{len(sample.options)} options, some of them twice"
        raise DataError(found, expected="different options", where=sample.where or f"sample {sample.id}")
    return sample


def last_turn(labels: Sequence[bool]) -> list[bool]:
    """Labels of the last answer alone: those of earlier turns are the same for all options."""
    start = len(labels) - labels[::-1].index(True)
    while start and labels[start - 1]:
        start -= 1
    return [*(False for _ in labels[:start]), *labels[start:]]


def _equal(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in chunks of one length, at most `size` each."""
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(length, []).append(i)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
