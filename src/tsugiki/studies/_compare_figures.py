"""What arms of a comparison differ in: means over seeds, paired differences, and tests that are corrected together.

Intervals are of pictures: what was asked about one picture, by several tasks or under several seeds, is drawn together.
The spread of the seeds stands apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tsugiki.data import schema
from tsugiki.data.images import source_key
from tsugiki.errors import UnknownNameError
from tsugiki.evals import stats
from tsugiki.evals.stats import Interval
from tsugiki.extras import require
from tsugiki.studies._compare_plan import Plan, Test
from tsugiki.types import Sample

RESAMPLES = 9_999
Found = Mapping[str, Sequence[Mapping[str, Any]]]
"""Arm -> its finished runs, one a seed."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A figure of an arm."""

    value: Interval
    seeds: tuple[float, ...]
    """Of each seed alone."""


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A comparison of two arms, on the items and seeds that both have."""

    test: Test
    seeds: tuple[int, ...]
    """Under which both arms have finished."""
    difference: Interval
    pvalue: float
    corrected: float
    """By Holm over all comparisons of the plan."""

    @property
    def told_apart(self) -> bool:
        return self.corrected < stats.ALPHA


def columns(found: Found) -> list[str]:
    """Every data, task and kind of question, in order of appearance."""
    names: dict[str, None] = {}
    for runs in found.values():
        for run in runs:
            for title, items in run["items"].items():
                names |= dict.fromkeys(f"{title}/{kind}" for kind in dict.fromkeys(items["kinds"]))
    return list(names)


@dataclass(frozen=True)
class Pictures:
    """What tells the pictures apart that a plan asks about."""

    asked: Mapping[str, Mapping[str, str]]
    """Data -> id of a sample -> its picture."""
    last: Mapping[str, str]
    """Id of the last item of a conversation -> its picture; of items with one."""

    @classmethod
    def of(cls, plan: Plan) -> Pictures:
        """Those of a plan's files."""

        def key(sample: Sample, which: int) -> str:
            return repr(source_key(sample.images[which])) if sample.images else sample.id

        asked = {name: {s.id: key(s, 0) for s in schema.load(file)} for name, file in plan.data.ask.items()}
        turns = [] if plan.data.iit is None else schema.load(plan.data.iit)
        about = [s for s in turns if str(s.meta.get("turns", "V")).endswith("V")]
        return cls(asked, {str(s.meta.get("item", s.id)): key(s, -1) for s in about})


def by_picture(run: Mapping[str, Any], known: Pictures) -> dict[str, Any]:
    """The run with the same word for the same picture, whatever asked about it.

    An arm's file numbers pictures in the order in which one task asked about them; that order differs from task to
    task, and of conversations from seed to seed.
    """

    def renamed(title: str, items: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
        pairs = zip(items["ids"], items["pictures"], strict=True)
        return {**items, "pictures": [own.get(str(name), f"{title} {number}") for name, number in pairs]}

    done = dict(run)
    done["items"] = {
        title: renamed(title, items, known.asked.get(title.rpartition(": ")[0], {}))
        for title, items in run["items"].items()
    }
    if turns := run.get("iit", {}).get("items"):
        words = {str(name): f"words {name}" for name in turns["ids"]}  # without a picture each stands for itself
        done["iit"] = {**run["iit"], "items": renamed("iit", turns, {**words, **known.last})}
    return done


@dataclass(frozen=True)
class Item:
    """A question and whether the answer is right."""

    name: str
    picture: str
    right: int


def of_run(run: Mapping[str, Any], column: str = "") -> list[Item]:
    """The items of one column, or of all."""
    return [
        Item(f"{title}/{kind} {name}", f"{title.rpartition(': ')[0]} {picture}", right)
        for title, items in run["items"].items()
        for name, kind, picture, right in zip(
            items["ids"], items["kinds"], items["pictures"], items["right"], strict=True
        )
        if column in ("", f"{title}/{kind}", title)
    ]


def vision(runs: Sequence[Mapping[str, Any]], column: str = "") -> Mean | None:
    """Share of right answers over seeds; None where nothing was asked."""
    values = [items for run in runs if (items := of_run(run, column))]
    if not values:
        return None
    every = [item for items in values for item in items]
    interval = stats.mean([item.right for item in every], groups=[item.picture for item in every])
    return Mean(value=interval, seeds=tuple(float(np.mean([item.right for item in items])) for items in values))


def interleaved(runs: Sequence[Mapping[str, Any]], kind: str, minus: str = "") -> Mean | None:
    """Share of right last turns of one kind of IIT conversations, or what it has more than another kind on the same
    last items; None where they were not asked."""
    pairs: list[list[tuple[str, int, int]]] = []
    for run in runs:
        items = run.get("iit", {}).get("items") or {"ids": (), "pictures": (), "kinds": (), "right": ()}
        rows = list(zip(items["kinds"], items["ids"], items["pictures"], items["right"], strict=True))
        other = {name: right for turns, name, _, right in rows if turns == minus}
        pairs.append(
            [
                (f"{picture}", right, other.get(name, 0))
                for turns, name, picture, right in rows
                if turns == kind and (name in other or not minus)
            ]
        )
    every = [row for rows in pairs for row in rows]
    if not every:
        return None
    groups, own, rest = (list(column) for column in zip(*every, strict=True))
    value = stats.paired(own, rest, groups=groups) if minus else stats.mean(own, groups=groups)
    return Mean(value=value, seeds=tuple(float(np.mean([a - b for _, a, b in rows])) for rows in pairs if rows))


def text(runs: Sequence[Mapping[str, Any]], *, after: bool = False) -> Mean | None:
    """What the text lost: loss minus the base's, nats a token, mean over seeds; None where it was not read.

    All seeds read the same texts, so the mean of their intervals' ends holds the mean at least as surely.
    """
    task = "wiki@picture" if after else "wiki"
    scores = [s for run in runs for s in run["text"] if s["task"] == task and "loss" in s["metric"]]
    scores = [s for s in scores if s.get("difference") is not None]
    if not scores:
        return None
    each = tuple(float(s["difference"]) for s in scores)
    low, high = (
        float(np.mean([s.get(end, value) for s, value in zip(scores, each, strict=True)]))
        for end in ("difference_low", "difference_high")
    )
    value = Interval(float(np.mean(each)), (high - low) / 2 / 1.96, low, high, scores[0]["n"])
    return Mean(value=value, seeds=each)


def summary(name: str, runs: Sequence[Mapping[str, Any]], published: bool) -> dict[str, Any]:
    """An arm in numbers, for who makes a table of several; None where something was not measured."""
    means = {
        "pictures": vision(runs),
        "text": text(runs),
        "text after a picture": text(runs, after=True),
        "words after a picture": interleaved(runs, "VT", "T"),
    }
    timed = [run["speed"]["first"]["ratio"] for run in runs if run["speed"]]
    return {
        "arm": name,
        "published": published,
        "seeds": [run["seed"] for run in runs],
        **{key: None if mean is None else {**asdict(mean.value), "seeds": mean.seeds} for key, mean in means.items()},
        "proven": all(map(proven, runs)),
        "trainable": float(np.mean([run["trainable"] for run in runs])),
        "first_token": float(np.mean(timed)) if timed else None,
    }


def tested(plan: Plan, found: Found) -> tuple[list[Tested], list[Test]]:
    """The plan's comparisons, where both arms have finished the same seeds; and those that wait. Holm counts all."""
    pairs = [(test, _paired(test, found)) for test in plan.comparisons]
    ready = [(test, pair) for test, pair in pairs if pair is not None]
    waiting = [test for test, pair in pairs if pair is None]
    if not ready:
        return [], waiting
    values = [_pvalue(pair) for _, pair in ready]
    correct = require("statsmodels.stats.multitest", extra="eval").multipletests
    corrected = correct([*values, *(1.0 for _ in waiting)], alpha=stats.ALPHA, method="holm")[1]
    done = [
        Tested(
            test=test,
            seeds=pair.seeds,
            difference=stats.paired(pair.own, pair.other, groups=pair.pictures),
            pvalue=value,
            corrected=float(after),
        )
        for (test, pair), value, after in zip(ready, values, corrected, strict=False)
    ]
    return done, waiting


@dataclass(frozen=True)
class _Pair:
    """Right answers of both arms to the same items under the same seeds, and the picture of each."""

    seeds: tuple[int, ...]
    own: list[int] = field(default_factory=list)
    other: list[int] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


def _paired(test: Test, found: Found) -> _Pair | None:
    """What both arms have; None where that is nothing yet.

    Raises:
        UnknownNameError: both have finished, and neither was asked what the score names.
    """
    first, second = ({run["seed"]: run for run in found.get(name, ())} for name in (test.first, test.second))
    pair = _Pair(tuple(sorted(first.keys() & second.keys())))
    for seed in pair.seeds:
        mine, theirs = ({i.name: i for i in of_run(run[seed], test.score)} for run in (first, second))
        for name in (n for n in mine if n in theirs):
            pair.own.append(mine[name].right)
            pair.other.append(theirs[name].right)
            pair.pictures.append(mine[name].picture)
    if pair.seeds and not pair.pictures:
        known = [
            *columns(found),
            *dict.fromkeys(title for runs in found.values() for run in runs for title in run["items"]),
        ]
        raise UnknownNameError("score", test.score, known, where=f"comparisons: {test.first}, {test.second}")
    return pair if pair.seeds else None


def _pvalue(pair: _Pair) -> float:
    """Two-sided permutation test of paired means: under no difference a picture's signs are equally likely."""
    totals: dict[str, float] = {}
    for a, b, picture in zip(pair.own, pair.other, pair.pictures, strict=True):
        totals[picture] = totals.get(picture, 0.0) + a - b
    values = np.array([totals[picture] for picture in sorted(totals)])
    if len(values) < 2 or not values.any():
        return 1.0
    scipy = require("scipy.stats", extra="eval")
    test = scipy.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True, axis=-1,
        batch=max(1, 2_000_000 // len(values)), rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.pvalue)


def findings(tests: Iterable[Tested], found: Found) -> list[str]:
    """What differs beyond noise and what does not, in sentences."""
    lines = []
    for one in tests:
        test, gap = one.test, one.difference
        about = f" on {test.score}" if test.score else ""
        interval = f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], Holm p = {one.corrected:.3f}"
        if one.told_apart:
            word = "ahead of" if gap.value > 0 else "behind"
            lines.append(f"{test.first} is {word} {test.second}{about}: {interval}.")
        else:
            lines.append(f"{test.first} and {test.second} are not told apart{about}: {interval}.")
    for name, runs in found.items():
        lost = text(runs)
        if any(run["proof"]["guarantee"] == "exact" and not run["proof"]["holds"] for run in runs):
            lines.append(f"{name} promises exact text, and its proof does not hold.")
        elif lost is not None and lost.value.low > 0:
            lines.append(
                f"{name} costs text: {lost.value.value:+.3f} nats a token "
                f"[{lost.value.low:+.3f}, {lost.value.high:+.3f}]."
            )
    exact = [name for name, runs in found.items() if runs and all(map(proven, runs))]
    if exact:
        lines.append(f"Proven to answer text as the base does, difference 0: {', '.join(exact)}.")
    return lines


def proven(run: Mapping[str, Any]) -> bool:
    """Whether the proof of an exact model holds."""
    return bool(run["proof"]["guarantee"] == "exact" and run["proof"]["holds"])
