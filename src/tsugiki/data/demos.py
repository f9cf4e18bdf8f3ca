"""Demonstrations: who is one for whom, in which order, and how they stand in front of a question.

Groups for tuning in context have N ~ U{0..N_max} demonstrations and one query of the same task (methods.md 3.5); never
the query's own picture, nor one that shows nearly the same. What a model says (feature vectors, losses) is an argument.
Shapes: n samples, c candidates, d width of a feature vector.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tsugiki.data._template import plain_messages
from tsugiki.data.boxes import BoxCodec
from tsugiki.data.images import image_size
from tsugiki.data.schema import message_text
from tsugiki.data.splits import THRESHOLD, sample_groups
from tsugiki.errors import DataError, InputError, UnknownNameError
from tsugiki.types import BoxPart, DemoPart, ImagePart, Message, Part, Sample, TextPart

logger = logging.getLogger("tsugiki")

Floats = npt.NDArray[Any]
BALANCE = 0.5
"""Weight of the likeness to the query in `diverse`, against the likeness to what is chosen already."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What a sampler may look at: c samples that may be shown with a query."""

    labels: Sequence[str]
    """The answer of each."""
    rng: np.random.Generator
    vectors: Floats | None = None
    """Unit vectors [c, d]."""
    query: Floats | None = None
    """The query's unit vector [d]."""
    hardness: Floats | None = None
    """[c], such as each one's loss under the model; the higher, the harder; NaN = not known yet."""

    def __len__(self) -> int:
        return len(self.labels)


Sampler = Callable[[Candidates, int], list[int]]


def random(candidates: Candidates, k: int) -> list[int]:
    """k of them, all equally likely, in random order."""
    return _ints(candidates.rng.permutation(len(candidates))[:k])


def nearest(candidates: Candidates, k: int) -> list[int]:
    """The k that are most like the query by cosine, the most alike first."""
    vectors, query = _vectors(candidates, "nearest")
    return _ints(np.argsort(-(vectors @ query), kind="stable")[:k])


def diverse(candidates: Candidates, k: int, balance: float = BALANCE) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): each time the one with the highest
    balance * likeness to the query - (1 - balance) * greatest likeness to one that is chosen."""
    vectors, query = _vectors(candidates, "diverse")
    relevance = vectors @ query  # [c]
    chosen: list[int] = []
    free, redundancy = np.ones(len(candidates), bool), np.zeros(len(candidates))
    while len(chosen) < min(k, len(candidates)):
        worth = balance * relevance - (1 - balance) * redundancy
        best = int(np.argmax(np.where(free, worth, -np.inf)))
        like = vectors @ vectors[best]
        redundancy = like if not chosen else np.maximum(redundancy, like)
        chosen.append(best)
        free[best] = False
    return chosen


def hard(candidates: Candidates, k: int) -> list[int]:
    """The k hardest, the hardest first; random as long as one of them has no hardness (NaN).

    Raises:
        InputError: nobody said how hard they are.
    """
    if candidates.hardness is None:
        raise InputError("the sampler 'hard' without hardness", expected="one number a sample, such as its loss")
    if np.isnan(candidates.hardness).any():
        return random(candidates, k)
    return _ints(np.argsort(-candidates.hardness, kind="stable")[:k])


def balanced(candidates: Candidates, k: int) -> list[int]:
    """k with as many of each answer as of any other, as far as there are; answers and samples in random order."""
    rounds: dict[str, int] = {}
    drawn = []
    first = {label: i for i, label in enumerate(candidates.rng.permutation(sorted(set(candidates.labels))))}
    for i in random(candidates, len(candidates)):
        label = candidates.labels[i]
        rounds[label] = rounds.get(label, -1) + 1
        drawn.append((rounds[label], first[label], i))
    return [i for _, _, i in sorted(drawn)[:k]]


SAMPLERS: dict[str, Sampler] = {
    "random": random,
    "nearest": nearest,
    "diverse": diverse,
    "hard": hard,
    "balanced": balanced,
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """A query and what is shown before it."""

    query: Sample
    demos: tuple[Sample, ...]
    """In the sampler's order."""
    asked: int
    """N as it was drawn; more than there are demos where the task has too few other pictures."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups over labelled samples: `groups(i, epoch)` is the one of sample i, drawn anew in each epoch.

    Raises:
        InputError: `most` is negative, or vectors or hardness do not fit the samples.
        UnknownNameError: no such sampler.
        DataError: a sample without an answer.
        ImageError: a picture can't be read.
    """

    samples: Sequence[Sample]
    most: int
    """N_max."""
    sampler: str = "random"
    vectors: Floats | None = None
    """[n, d], of any length."""
    hardness: Floats | None = None
    """[n]."""
    seed: int = 0
    near: int | None = THRESHOLD
    """Bits for `data.splits.near_duplicate_groups`; None keeps only equal pictures apart, as a fixed camera needs."""
    _kin: npt.NDArray[np.intp] = field(init=False, repr=False)  # [n] number of the set of like pictures
    _tasks: npt.NDArray[Any] = field(init=False, repr=False)  # [n]
    _labels: list[str] = field(init=False, repr=False)  # n answers
    _told: list[str] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.samples)
        if self.sampler not in SAMPLERS:
            raise UnknownNameError("sampler", self.sampler, SAMPLERS)
        if self.most < 0:
            raise InputError(f"most={self.most}", expected="0 or more demonstrations")
        for name, rows in (("vectors", self.vectors), ("hardness", self.hardness)):
            if rows is not None and len(rows) != n:
                raise InputError(f"{len(rows)} rows of {name}", expected=f"{n}, one a sample")
        kin = np.zeros(n, np.intp)
        for number, members in enumerate(sample_groups(self.samples, self.near)):
            kin[members] = number
        object.__setattr__(self, "_kin", kin)
        object.__setattr__(self, "_labels", [answer_text(s) for s in self.samples])
        object.__setattr__(self, "_tasks", np.array([*(s.task for s in self.samples), None], object)[:-1])
        if self.vectors is not None:
            lengths = np.linalg.norm(self.vectors, axis=1, keepdims=True)
            object.__setattr__(self, "vectors", self.vectors / np.maximum(lengths, 1e-12))

    def __len__(self) -> int:
        return len(self.samples)

    def __call__(self, index: int, epoch: int = 0) -> Group:
        """The group whose query is sample `index`; the same for the same seed, index and epoch."""
        rng = np.random.default_rng([self.seed, epoch, index])
        asked = int(rng.integers(0, self.most + 1))
        if not asked:
            return Group(query=self.samples[index], demos=(), asked=0)
        others = self.others(index)
        candidates = Candidates(
            labels=[self._labels[i] for i in others],
            rng=rng,
            vectors=None if self.vectors is None else self.vectors[others],
            query=None if self.vectors is None else self.vectors[index],
            hardness=None if self.hardness is None else self.hardness[others],
        )
        chosen = SAMPLERS[self.sampler](candidates, asked)
        query = self.samples[index]
        if len(chosen) < asked and query.task not in self._told:
            self._told.append(query.task)
            logger.warning(
                "task %r has %d other pictures for a query, %d demonstrations were asked for: all there are are used.",
                query.task, len(others), asked,
            )  # fmt: skip
        return Group(query=query, demos=tuple(self.samples[int(others[i])] for i in chosen), asked=asked)

    def others(self, index: int) -> npt.NDArray[np.intp]:
        """Numbers of the samples that may be shown with sample `index`: of its task, with another picture."""
        return np.flatnonzero((self._tasks == self._tasks[index]) & (self._kin != self._kin[index]))


def answer_text(sample: Sample) -> str:
    """The text of a labelled sample's answer.

    Raises:
        DataError: it has none.
    """
    if sample.answer is None:
        raise DataError("a sample without an answer", expected="labelled ones", where=sample.where or sample.id)
    return message_text(sample.answer)


def full_text(sample: Sample, codec: BoxCodec | None = None) -> str:
    """All that is said in a labelled sample, questions and answers, a line each: what a demonstration says.

    Raises:
        DataError: it has no answer.
    """
    answer_text(sample)
    sizes = [image_size(source, where=sample.where) for source in sample.images] if sample.boxes else ()
    plain = plain_messages(sample.messages, sizes=sizes, codec=codec, where=sample.where or sample.id)
    return "\n".join(m["content"].strip() for m in plain if m["role"] != "system")


def demo_of(sample: Sample, form: str, codec: BoxCodec | None = None) -> DemoPart:
    """A labelled sample of one picture as a demonstration.

    Raises:
        DataError: no answer, or another number of pictures.
    """
    if len(sample.images) != 1:
        raise DataError(
            f"a demonstration with {len(sample.images)} pictures", expected="one", where=sample.where or sample.id
        )
    return DemoPart(sample.images[0], full_text(sample, codec), form)


def shown(query: Sample, demos: Sequence[Sample], form: str, codec: BoxCodec | None = None) -> Sample:
    """The query with demonstrations in front, the first of them next to the question, where samplers put the most alike
    one. Without any it is the query itself, the same object."""
    if not demos:
        return query
    parts = [demo_of(demo, form, codec) for demo in reversed(demos)]
    return replace(query, messages=in_front(query.messages, parts))


def plain(messages: Sequence[Message]) -> Sequence[Message]:
    """Messages for a model without a hub: of a demonstration its picture and behind it its text, a line. The question
    that its message asks anyway is left out there: a demo bank, too, shows labels alone."""
    if not any(isinstance(p, DemoPart) for m in messages for p in m.parts):
        return messages

    def parts_of(part: Part, asked: str) -> tuple[Part, ...]:
        if not isinstance(part, DemoPart):
            return (part,)
        return ImagePart(part.source), TextPart(part.text.removeprefix(f"{asked}\n") + "\n")

    return [
        replace(m, parts=tuple(p for part in m.parts for p in parts_of(part, message_text(m).strip())))
        for m in messages
    ]


def in_front(messages: Sequence[Message], parts: Sequence[Part]) -> tuple[Message, ...]:
    """The conversation with `parts` (pictures and text) at the head of the last message that has a picture.

    Boxes still belong to the pictures they belonged to. Without a picture nothing changes.
    """
    pictured = [i for i, m in enumerate(messages) if any(isinstance(p, ImagePart) for p in m.parts)]
    if not pictured:
        return tuple(messages)
    at, added = pictured[-1], sum(isinstance(p, ImagePart) for p in parts)
    before = sum(isinstance(p, ImagePart) for m in messages[:at] for p in m.parts)

    def moved(part: Part) -> Part:
        behind = isinstance(part, BoxPart) and part.image >= before
        return replace(part, image=part.image + added) if isinstance(part, BoxPart) and behind else part

    done = [replace(m, parts=tuple(map(moved, m.parts))) for m in messages]
    done[at] = replace(done[at], parts=(*parts, *done[at].parts))
    return tuple(done)


def _vectors(candidates: Candidates, name: str) -> tuple[Floats, Floats]:
    if candidates.vectors is None or candidates.query is None:
        raise InputError(f"the sampler {name!r} without feature vectors", expected="vectors [n, d], one a sample")
    return candidates.vectors, candidates.query


def _ints(indices: npt.NDArray[Any]) -> list[int]:
    return [int(i) for i in indices]
