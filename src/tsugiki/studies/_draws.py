"""Few labels: a pool of labelled pictures, draws from it, and the test pictures, which are no part of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.data.demos import Candidates, balanced
from tsugiki.data.images import source_key
from tsugiki.errors import DataError
from tsugiki.evals import yardsticks
from tsugiki.evals.task import short_answer
from tsugiki.evals.tasks import decisions
from tsugiki.studies import _own
from tsugiki.studies._divide import divide
from tsugiki.synth import fabric, pictograms, scenes
from tsugiki.types import Sample

TASK = "decision"
LEARNED = 25
"""Pictograms of the start; the held-out classes come next in the table."""
HELD_OUT = 5
"""Classes of pictograms that the start has not seen."""
MOST_TESTED = 0.5
"""Share of a user's pictures that are asked about, at most."""


@dataclass(frozen=True, kw_only=True)
class Few:
    """What is drawn from, and what is asked; all with the same kind of closed question."""

    name: str
    pool: list[Sample]
    test: list[Sample]
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> list[str]:
        """All answers that are offered, sorted."""
        return sorted({option for s in (*self.pool, *self.test) for option in s.options})

    @property
    def chance(self) -> float:
        """Share of right answers by guessing."""
        return float(np.mean([1 / len(s.options) for s in self.test]))


def own(data: str | Path | Sequence[Sample], *, test: int = 150, question: str | None = None, seed: int = 0) -> Few:
    """A user's labelled pictures, in any form that `fit` takes; like pictures are on one side.

    Args:
        test: pictures that are asked about, at most half of all; a split that the data names is kept.

    Raises:
        DataError: no picture with a closed question, several questions about one, one class only, or a label that is
            not in the answer set.
        ImageError: no picture can be read.
    """
    where = str(data) if isinstance(data, str | Path) else "data"
    samples = usable(_own.read(data, question=question).samples, where)
    parts = divide(samples, test=min(MOST_TESTED, test / len(samples)), seed=seed)
    return Few(name=Path(where).stem, pool=parts.train, test=_some(parts.test, test, seed), notes=parts.notes)


def fabrics(*, pool: int, test: int = 150, seed: int = 0) -> Few:
    """Photographs of fabric: `pool` of them with as many of each class, and others as they come.

    Raises:
        AssetError: the asset "fabric" is not fetched.
        DataError: more than there are.
    """
    labelled, rest = fabric.draw(seed, pool)
    return Few(name="fabric", pool=labelled, test=_some(rest, test, seed))


def drawings(folder: Path, *, pool: int, test: int = 150, seed: int = 0) -> Few:
    """Scenes of one pictogram of a held-out class, made below `folder`. The test has a rendering and backgrounds that
    the pool has not.

    Raises:
        AssetError: the assets "openmoji" and "fabric" are not fetched.
        StoreError: the folder can't be written.
    """
    names = [p.en for p in pictograms.table()[LEARNED : LEARNED + HELD_OUT]]
    return Few(
        name="held-out pictograms",
        pool=named_scenes(folder / "pool", pool, names, "train", seed),
        test=named_scenes(folder / "test", test, names, "test", seed),
    )


def named_scenes(folder: Path, n: int, names: Sequence[str] | int, split: Any, seed: int) -> list[Sample]:
    """Scenes of one object with the question for its name; all names are options."""
    common: dict[str, Any] = {"languages": ("en",), "objects": (1, 1), "options": None, "tasks": ["naming"]}
    found = scenes.generate(n, out=folder, split=split, seed=seed, pictograms=names, forms=["short"], **common)
    return [replace(s, task=TASK) for s in found]


MADE: dict[str, Callable[..., Few]] = {"fabric": lambda folder, **given: fabrics(**given), "pictograms": drawings}
"""Data that `tsugiki fewshot --on` knows: (folder for what is made, pool, test, seed) -> Few."""


def usable(samples: Sequence[Sample], where: str) -> list[Sample]:
    """Closed questions about one picture each, as one kind of question.

    Raises:
        DataError: none, a label that is no option, or a picture twice.
    """
    found = [replace(s, task=TASK) for s in decisions.select(samples) if len(s.images) == 1]
    if not found:
        raise DataError(
            f"none of {len(samples)} samples asks a closed question about one picture",
            expected="a label for each picture, or options and an answer that is one of them",
            fix="Use one folder for each class, or add options.",
            where=where,
        )
    if len({frozenset(s.options) for s in found}) > 1:
        raise DataError(
            "questions with different options",
            expected="one question: few labels of each of its answers",
            fix="Ask each question by itself.",
            where=where,
        )
    seen: set[object] = set()
    for sample in found:
        if short_answer(sample) not in sample.options:
            raise DataError(
                f"the label {short_answer(sample)!r} is not in the answer set",
                expected=f"one of {', '.join(map(repr, sample.options))}",
                fix="Correct it.",
                where=sample.where or sample.id,
            )
        key = source_key(sample.images[0])
        if key in seen:
            raise DataError(
                "a second question about the same picture",
                expected="one question for each picture",
                fix="Leave one out.",
                where=sample.where or sample.id,
            )
        seen.add(key)
    return found


def check(sizes: Sequence[int], folds: int, few: Few, least: int = yardsticks.FEWEST) -> None:
    """Raises DataError where the pool is too small for a size, a size for the arms, or there is nothing to draw."""
    n = len(few.pool)
    if not sizes or folds < 1 or min(sizes) < least or max(sizes) > n:
        raise DataError(
            f"sizes {', '.join(map(str, sizes)) or 'none'} in {folds} draws from {n} labelled pictures",
            expected=f"sizes from {least} to {n}, and one draw or more",
            fix="Add pictures, choose smaller sizes, or test on fewer.",
            where="sizes",
        )


def draws(few: Few, largest: int, folds: int, seed: int) -> tuple[list[list[Sample]], bool]:
    """Fold -> samples in an order of which every beginning has the classes as balanced as can be, and whether the folds
    have no picture in common: each then has its own share of every class; where the pool is too small for that, each
    draws from all of it.

    Args:
        largest: samples that a fold needs.
    """
    by_class: dict[str, list[Sample]] = {}
    for sample in few.pool:
        by_class.setdefault(short_answer(sample), []).append(sample)
    for name in sorted(by_class):
        random.Random(f"{seed}/{name}").shuffle(by_class[name])
    shares = [[s for group in by_class.values() for s in group[fold::folds]] for fold in range(folds)]
    apart = min(map(len, shares)) >= largest
    found = []
    for fold, share in enumerate(shares if apart else [few.pool] * folds):
        candidates = Candidates(labels=[short_answer(s) for s in share], rng=np.random.default_rng([seed, fold]))
        found.append([share[i] for i in balanced(candidates, largest)])
    return found, apart


def _some(samples: Sequence[Sample], n: int, seed: int) -> list[Sample]:
    return random.Random(seed).sample(list(samples), min(n, len(samples)))
