"""`tsugiki label-next`: of many pictures without a label, the few that are worth one next, and why.

    <out>/  next.jsonl  next.md  sheet.png

Every picture is ranked by three figures: nearness to the decision, the weight of the classes that it may be of (few
labels, or severe), and the disagreement of the graft with a linear probe on the same features. The rankings are fused,
what shows nearly the same as a labelled or a better picture is left out, and the choice is spread over the features;
`_ranking` has the definitions.

Shapes: n pictures, c options, V width of the tower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from tsugiki.data import schema, splits
from tsugiki.data.files import atomic_write
from tsugiki.data.looks import look, look_ahead
from tsugiki.data.sheet import draw_sheet
from tsugiki.errors import DataError, ImageError, InputError, UnknownNameError
from tsugiki.evals._learners import Probe
from tsugiki.evals.options import OptionScorer
from tsugiki.evals.task import picture_groups, short_answer
from tsugiki.evals.yardsticks import FEWEST, pooled
from tsugiki.studies import _own, _ranking
from tsugiki.studies._asked import Asked, asked_of
from tsugiki.studies._build import load_graft
from tsugiki.studies._ranking import Floats
from tsugiki.studies._reasons import APART, NEAR, RARE, Reasons
from tsugiki.studies.neighbours import Recent
from tsugiki.studies.predict import pictures_of
from tsugiki.types import ImageSource, Message, Sample
from tsugiki.vision.cache import FeatureCache

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Worth:
    """A picture that is worth a label."""

    sample: Sample
    """The question about it, without an answer; meta: what stands here."""
    score: float
    """Of the fused rankings; only its order means something."""
    ranks: Mapping[str, float]
    """By figure, among all pictures that were ranked; 1 is the first."""
    answer: str
    """The graft's."""
    probe: str
    """The probe's; empty without one."""
    reasons: tuple[str, ...]
    """In words, most of them with probabilities."""


@dataclass(frozen=True, kw_only=True)
class LabelNext:
    """What came out."""

    chosen: list[Worth]
    """Best first."""
    ranked: int
    """Pictures that these were chosen from."""
    notes: tuple[str, ...]
    """What was left out, in sentences."""
    out: Path | None

    @property
    def table(self) -> Table:
        """For a rich console."""
        table = Table()
        for heading in HEADINGS:
            table.add_column(heading)
        for row in self.rows():
            table.add_row(*map(escape, row))
        return table

    def rows(self) -> list[tuple[str, ...]]:
        """Place, picture, the two answers and the reasons."""
        found = enumerate(self.chosen, 1)
        return [(str(i), w.sample.id, w.answer, w.probe, "; ".join(w.reasons)) for i, w in found]


HEADINGS = ("", "picture", "model says", "probe says", "why")
READ = (
    "Figures in the reasons are probabilities from 0 to 1. The linear probe is a simple classifier on the same picture "
    "features, fitted to the labelled ones."
)
"""How to read the table."""
FIXED = (
    "With a fixed camera, where all pictures look alike, use --fixed-camera (near=None): only equal ones are left out."
)


def label_next(
    model: Any,
    pictures: str | Path | Sequence[ImageSource],
    *,
    train: str | Path | Sequence[Sample],
    n: int = 20,
    out: str | Path | None = None,
    severe: Sequence[str] = (),
    near: int | None = splits.THRESHOLD,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> LabelNext:
    """Choose pictures to label.

    Args:
        model: a model, or a saved graft's folder.
        pictures: a folder of pictures (with those below it), one picture, or pictures.
        train: the labelled ones, in any form that `fit` takes (`data/train.jsonl` of its folder): one question about
            one picture each, with options.
        n: how many to choose.
        out: a folder for the list (JSONL of questions without answers, reasons in meta), the table and a sheet.
        severe: classes that must not be missed: they count as if no picture had their label.
        near: bits for `data.splits.near_duplicate_groups`; None = equal pictures only, for a fixed camera.
        batch_size: pictures at once.
        seed: of the probe's hold-out and of the clusters.
        progress: a function of (what is done, done, in all).

    Raises:
        DataError: no picture, none that is new, or labels without one closed question.
        UnknownNameError: a severe class that is no option.
        StoreError: the disk is full, or the folder can't be written.
        MissingExtraError: without the extra "eval".
    """
    if n < 1:
        raise InputError(f"n={n}", expected="at least 1")
    labelled = _own.read(train).samples
    asked = _closed(labelled, train)
    for name in severe:
        if name not in asked.options:
            raise UnknownNameError("class", name, asked.options, where="severe")
    loaded = load_graft(model) if isinstance(model, str | Path) else model
    pool, notes = _readable(pictures, asked)
    read = len(pool)
    pool, alike = _new(pool, labelled, near, notes)
    features = FeatureCache(loaded.frontend) if loaded.frontend.tower.frozen else Recent(loaded, 1)
    p = _likelihoods(loaded, pool, features, batch_size, progress)
    x = pooled(features, [s.images[0] for s in pool])
    q = _probed(x, features, labelled, asked.options, seed, notes)
    counts = Counter(short_answer(s) for s in labelled)
    weights = _ranking.class_weights(counts, asked.options, severe)
    figures = {NEAR: _ranking.nearness(p), RARE: _ranking.rarity(p, weights)}
    if q is not None:
        figures[APART] = _ranking.disagreement(p, q)
    ranks = {name: _ranking.ranks(values) for name, values in figures.items()}
    scores = _ranking.fused(list(ranks.values()))
    kept = _one_each(alike, scores, notes)
    if near is not None and len(kept) < read:
        notes.append(FIXED)
    chosen = _ranking.spread(scores[kept], x[kept], n, seed)
    reasons = Reasons(options=asked.options, p=p, q=q, counts=counts, severe=frozenset(severe), ranks=ranks, n=n)
    found = [_worth(kept[k], pool[kept[k]], float(scores[kept[k]]), others, reasons) for k, others in chosen.items()]
    place = None if out is None else Path(out)
    result = LabelNext(chosen=found, ranked=len(pool), notes=tuple(notes), out=place)
    if place is not None:
        _write(result, place)
    return result


def _closed(labelled: Sequence[Sample], train: object) -> Asked:
    """The one question that all labelled samples ask.

    Raises:
        DataError: none, several, or without options.
    """
    asked = asked_of(labelled)
    if asked is None or len(asked.options) < 2:
        raise DataError(
            "several questions, or one without options" if asked is None else f"{len(asked.options)} options",
            expected="one question about one picture each, with two or more options",
            fix="Give the labels of one closed question.",
            where=str(train) if isinstance(train, str | Path) else "train",
        )
    return asked


def _readable(pictures: str | Path | Sequence[ImageSource], asked: Asked) -> tuple[list[Sample], list[str]]:
    """The question about every picture that can be read, and a note about the others."""
    named: list[tuple[str, ImageSource]]
    if isinstance(pictures, str | Path):
        named = [*pictures_of(Path(pictures))]
    else:
        named = [(str(s) if isinstance(s, str | Path) else f"picture {i}", s) for i, s in enumerate(pictures, 1)]
    found, wrong = [], []
    look_ahead(source for _, source in named)
    for name, source in named:
        try:
            look(source)
        except ImageError as error:
            wrong.append(error)
            continue
        messages = (Message.of("user", asked.question, (source,)),)
        found.append(Sample(id=name, messages=messages, task="decision", options=asked.options, where=name))
    if not found:
        raise wrong[0] if wrong else DataError("no picture", expected="one or more", where="pictures")
    return found, [f"{_pictures(len(wrong))} can't be read, left out; the first: {wrong[0]}"] if wrong else []


def _new(
    pool: Sequence[Sample], labelled: Sequence[Sample], near: int | None, notes: list[str]
) -> tuple[list[Sample], list[list[int]]]:
    """Pictures unlike every labelled one, and the groups of those that are alike among them.

    Raises:
        DataError: none is left.
    """
    groups = splits.sample_groups([*pool, *labelled], near)
    fresh = [group for group in groups if group[-1] < len(pool)]
    kept = sorted(i for group in fresh for i in group)
    if len(kept) < len(pool):
        notes.append(f"{_pictures(len(pool) - len(kept))} left out: nearly the same as a labelled one.")
    if not kept:
        raise DataError(
            f"all {len(pool)} pictures show nearly the same as labelled ones",
            expected="a new one",
            fix="Give other pictures." if near is None else f"Give other pictures. {FIXED}",
            where="pictures",
        )
    number = {i: k for k, i in enumerate(kept)}
    return [pool[i] for i in kept], [[number[i] for i in group] for group in fresh]


def _pictures(n: int) -> str:
    return f"{n} picture{'' if n == 1 else 's'}"


def _likelihoods(
    model: Any, pool: Sequence[Sample], features: Any, batch_size: int, progress: Progress | None
) -> Floats:
    """The graft's probability of each option, [n, c]."""
    score, rows = OptionScorer(model, features=features, batch_size=batch_size), []
    for start in range(0, len(pool), batch_size):
        rows += [list(s.probabilities().values()) for s in score(pool[start : start + batch_size])]
        if progress is not None:
            progress("pictures", len(rows), len(pool))
    return np.asarray(rows, np.float64)


def _probed(
    x: Any, features: Any, labelled: Sequence[Sample], options: Sequence[str], seed: int, notes: list[str]
) -> Floats | None:
    """The probe's probability of each option, [n, c]; None where there are too few labels for one."""
    answers = [short_answer(s) for s in labelled]
    if len(labelled) < FEWEST or len(set(answers)) < 2:
        notes.append(f"Too few labels for a probe ({len(labelled)} of {len(set(answers))} classes): ranked without it.")
        return None
    known = pooled(features, [s.images[0] for s in labelled])
    probe = Probe.fit(known, answers, groups=picture_groups(labelled), seed=seed)
    found: Floats = probe.probabilities(x, options)
    return found


def _one_each(alike: Sequence[Sequence[int]], scores: Floats, notes: list[str]) -> list[int]:
    """The best picture of each group."""
    kept = sorted(max(group, key=lambda i: (scores[i], -i)) for group in alike)
    if len(kept) < len(scores):
        notes.append(f"{_pictures(len(scores) - len(kept))} left out: nearly the same as a better one.")
    return kept


def _worth(i: int, sample: Sample, score: float, others: int, why: Reasons) -> Worth:
    own = {name: float(ranks[i]) for name, ranks in why.ranks.items()}
    said = why(i, others)
    meta: dict[str, Any] = {"reasons": list(said), "ranks": own, "graft": why.named(why.p[i])}
    if why.q is not None:
        meta["probe"] = why.named(why.q[i])
    sample = replace(sample, meta=meta)
    answer, probe = why.best(why.p, i), "" if why.q is None else why.best(why.q, i)
    return Worth(sample=sample, score=score, ranks=own, answer=answer, probe=probe, reasons=said)


def _write(result: LabelNext, out: Path) -> None:
    """The list, the table and the sheet."""
    schema.write(out / "next.jsonl", [w.sample for w in result.chosen])
    rows = [HEADINGS, ("---",) * len(HEADINGS), *result.rows()]
    cells = (" | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) for row in rows)
    notes = "".join(f"* {note}\n" for note in (READ, *result.notes))
    atomic_write(out / "next.md", "".join(f"| {row} |\n" for row in cells) + f"\n{notes}")
    shown = [
        replace(w.sample, messages=(Message.of("user", "; ".join(w.reasons), w.sample.images),)) for w in result.chosen
    ]
    draw_sheet(shown, out / "sheet.png", limit=len(shown))
