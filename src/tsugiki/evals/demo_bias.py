"""What the demonstrations do to answers, whatever the picture shows: who they are, and how often they turn an answer.

Balance of classes and sources in the bank and among what is shown; the share of answers that change when the same
demonstrations stand in another order, or when one of them is left out; and what contextual calibration changes
(`contextual.py`). A model that looks at the picture keeps its answer under the first.

Shapes: n questions, k demonstrations of one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.errors import DataError
from tsugiki.evals import stats
from tsugiki.evals.contextual import Calibrated
from tsugiki.evals.options import OptionScorer
from tsugiki.evals.task import difference, picture_groups, short_answer
from tsugiki.types import Sample, Score

TASK = "demo bias"
VERSION = 1
WINDOW = 8
"""Questions between two reports of progress."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Balance:
    """How often each name occurs."""

    counts: Mapping[str, int]

    @classmethod
    def of(cls, names: Iterable[str]) -> Balance:
        return cls(dict(sorted(Counter(names).items())))

    @property
    def shares(self) -> dict[str, float]:
        total = sum(self.counts.values())
        return {name: n / total for name, n in self.counts.items()}

    @property
    def effective(self) -> float:
        """exp of the entropy of the shares: as many equally common names would be as mixed; 0 without any."""
        return math.exp(-sum(p * math.log(p) for p in self.shares.values())) if self.counts else 0.0


@dataclass(frozen=True, kw_only=True)
class DemoBias:
    """What was found."""

    classes: Balance
    """Entries in use of each label."""
    sources: Balance
    """Entries in use of each source: their note, or the folder that they came from."""
    shown: Balance
    """Demonstrations of each label in front of the questions."""
    answers: Balance
    gold: Balance
    scores: list[Score]
    """Share of changed answers by order and by one demonstration less, accuracy, and what calibration changes."""

    @property
    def balances(self) -> dict[str, Balance]:
        """By name, for tables; those of questions are left out where none were asked."""
        found = {"entries by class": self.classes, "entries by source": self.sources}
        asked = {"shown by class": self.shown, "answers by class": self.answers, "questions by class": self.gold}
        return found | (asked if self.scores else {})

    def plain(self) -> dict[str, Any]:
        """The balances for JSON."""
        return {name: {"counts": dict(b.counts), "effective": b.effective} for name, b in self.balances.items()}


def of_bank(bank: Any) -> DemoBias:
    """The balances of a bank alone.

    Args:
        bank: a `data.bank.Bank`.
    """
    used = [entry for entry in bank.entries() if entry.withdrawn is None]
    none = Balance({})
    sources = Balance.of(source_of(entry) for entry in used)
    return DemoBias(
        classes=Balance.of(e.label for e in used), sources=sources, shown=none, answers=none, gold=none, scores=[]
    )


def measure(
    model: Any,
    samples: Sequence[Sample],
    demos: Any,
    *,
    orders: int = 4,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> DemoBias:
    """Ask each question again with its demonstrations in other orders, with each of them left out, and calibrated.

    Args:
        samples: closed questions about pictures, with their answers.
        demos: a `studies.neighbours.BankDemos`.
        orders: other orders of each question's demonstrations, drawn at random; fewer where there are no more.
        batch_size: prompts at once.
        seed: of the orders.
        progress: told how many questions are done, of how many.

    Raises:
        DataError: no sample, or one without options or an answer among them.
        InputError, ImageError: as `demos`.
    """
    _refuse(samples)
    plain = OptionScorer(model, features=demos.features, batch_size=batch_size)
    calibrated = Calibrated(plain, demos)
    rng = np.random.default_rng(seed)
    rows: list[_Row] = []
    for start in range(0, len(samples), WINDOW):
        window = samples[start : start + WINDOW]
        near = [demos.neighbours(sample) for sample in window]
        rows += _rows(plain, calibrated, demos, window, near, [_other_orders(len(n), orders, rng) for n in near])
        if progress is not None:
            progress(len(rows), len(samples))
    return _found(of_bank(demos.bank), samples, rows)


def source_of(entry: Any) -> str:
    """Where an entry came from: its note, or the folder of its picture."""
    return str(entry.note or Path(entry.source).parent)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Answers to one question."""

    labels: tuple[str, ...]
    """Of its k demonstrations."""
    said: str
    ordered: tuple[str, ...]
    without: tuple[str, ...]
    """k answers, each with one demonstration less."""
    calibrated: str


def _rows(
    scorer: OptionScorer,
    calibrated: Calibrated,
    demos: Any,
    samples: Sequence[Sample],
    near: Sequence[Sequence[Any]],
    orders: Sequence[Sequence[Sequence[int]]],
) -> Iterator[_Row]:
    asked: list[Sample] = []
    for sample, found, others in zip(samples, near, orders, strict=True):
        asked.append(demos.placed(sample, found))
        asked += [demos.placed(sample, [found[i] for i in order]) for order in others]
        asked += [demos.placed(sample, [*found[:i], *found[i + 1 :]]) for i in range(len(found))]
    said = iter([scores.best() for scores in scorer(asked)])
    corrected = calibrated.score(samples, near)
    for found, others, own in zip(near, orders, corrected, strict=True):
        yield _Row(
            labels=tuple(n.entry.label for n in found),
            said=next(said),
            ordered=tuple(itertools.islice(said, len(others))),
            without=tuple(itertools.islice(said, len(found))),
            calibrated=own.best(),
        )


def _other_orders(k: int, wanted: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Different orders of k things, none of them the one that is there."""
    found: dict[tuple[int, ...], None] = {}
    same = tuple(range(k))
    while len(found) < min(wanted, math.factorial(k) - 1):
        order = tuple(map(int, rng.permutation(k)))
        if order != same:
            found[order] = None
    return list(found)


def flipped(said: str, again: Sequence[str]) -> float:
    """Share of the answers `again` that are not `said`; nan without any."""
    return sum(text != said for text in again) / len(again) if again else math.nan


def _found(bank: DemoBias, samples: Sequence[Sample], rows: Sequence[_Row]) -> DemoBias:
    gold = [short_answer(s) for s in samples]
    right = [row.said == g for row, g in zip(rows, gold, strict=True)]
    corrected = [row.calibrated == g for row, g in zip(rows, gold, strict=True)]
    groups = picture_groups(samples)
    scores = [
        *_share("answers that another order changes", [flipped(r.said, r.ordered) for r in rows], samples),
        *_share("answers that one demonstration less changes", [flipped(r.said, r.without) for r in rows], samples),
        *_share("answers that calibration changes", [float(r.said != r.calibrated) for r in rows], samples),
        stats.score(TASK, "accuracy", right, groups=groups, version=VERSION),
        stats.score(TASK, "accuracy, calibrated", corrected, groups=groups, version=VERSION),
        difference(TASK, "calibrated minus as it is", corrected, right, groups=groups, version=VERSION),
    ]
    return DemoBias(
        classes=bank.classes,
        sources=bank.sources,
        shown=Balance.of(label for row in rows for label in row.labels),
        answers=Balance.of(row.said for row in rows),
        gold=Balance.of(gold),
        scores=scores,
    )


def _share(metric: str, values: Sequence[float], samples: Sequence[Sample]) -> list[Score]:
    """Mean over the questions that have a value: one demonstration has no other order."""
    kept = [i for i, value in enumerate(values) if not math.isnan(value)]
    if not kept:
        return []
    groups = picture_groups([samples[i] for i in kept])
    found = stats.mean([values[i] for i in kept], groups=groups)
    fields = {"value": found.value, "stderr": found.stderr, "n": found.n, "low": found.low, "high": found.high}
    return [Score(task=TASK, metric=metric, version=VERSION, **fields)]  # type: ignore[arg-type]


def _refuse(samples: Sequence[Sample]) -> None:
    if not samples:
        raise DataError("no question", expected="one or more, with options and an answer", where="demo bias")
    for sample in samples:
        if not sample.images or short_answer(sample) not in sample.options:
            raise DataError(
                f"{len(sample.images)} pictures, answer {short_answer(sample)!r}",
                expected=f"a picture, and one of {', '.join(map(repr, sample.options)) or 'some options'}",
                fix="Correct it, or leave it out.",
                where=sample.where or sample.id,
            )
