"""Which method? Each candidate is trained and asked on the same inner folds; the best one that keeps its text wins.

    <folder>/  study.json  cells/projector-0.json (candidate-fold)  runs/projector-0/ (its training)

Only training samples come in here: what is scored in the end chooses nothing. A candidate whose guarantee is exact
keeps its text by proof; of one that trains the LLM the text loss is measured in every inner fold against the budget,
and it is out where one fold breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki import build
from tsugiki.data.files import sha256_file
from tsugiki.errors import DataError, InputError, RecipeError, UnknownNameError
from tsugiki.evals import stats
from tsugiki.evals import task as tasks
from tsugiki.studies import _divide
from tsugiki.studies._cells import Cell, Cells, pictures_of, right_of
from tsugiki.studies._divide import Kin
from tsugiki.studies._making import Maker, Method, trains_llm
from tsugiki.training import retained, sources
from tsugiki.training.limits import Retention
from tsugiki.types import Sample, Score

AUTO: tuple[Method, ...] = (("projector",), ("cross_attention",), ("lora",), ("wings",))
"""Candidates of `auto`: of all whose text is exact those that one stage of training makes, the smallest first."""
TASK = "methods, inner folds"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and by which figures."""

    method: Method
    scores: tuple[Score, ...]
    """Right answers of each candidate on the inner folds, and the best one's difference to each other."""
    out: Mapping[str, str]
    """Candidates that were left out, and why."""
    sentences: tuple[str, ...]


def candidates(method: str | Sequence[str]) -> list[Method]:
    """What `fit(method=)` names: one method, or several to choose from.

    Args:
        method: a name; names with commas between, or "auto", to choose from; names with "+" between, or a sequence of
            names, are stacked.

    Raises:
        UnknownNameError: no such method; names the nearest.
        InputError: none, or one twice.
    """
    if method == "auto":
        return list(AUTO)
    if isinstance(method, str):
        found = [tuple(name.strip() for name in one.split("+")) for one in method.split(",")]
    else:
        found = [tuple(method)]
    for name in (name for one in found for name in one):
        if name not in build.methods():
            raise UnknownNameError("method", name, ["auto", *build.methods()], where="method")
    if not found[0] or len(set(found)) != len(found):
        raise InputError(f"methods {method!r}", expected="one or more, each once", where="method")
    return found


def check(maker: Maker, found: Sequence[Method], limits: Retention) -> None:
    """What can be wrong with a choice, before the first training.

    Raises:
        InputError: a recipe, and several methods.
        AssetError, DataError: no texts to measure with, where a candidate trains the LLM.
    """
    if len(found) > 1 and maker.recipe is not None:
        raise InputError(
            f"one recipe for {len(found)} methods",
            expected="each method's own recipe, or one method",
            fix="Leave the recipe out; key=value changes hold for every method.",
            where="recipe",
        )
    if any(trains_llm(maker.plan(one)) for one in found) and len(found) > 1:
        retained.texts(limits)


def choose(
    maker: Maker, samples: Sequence[Sample], found: Sequence[Method], folder: Path, *, inner: int, kin: Kin,
    limits: Retention,
) -> Choice:  # fmt: skip
    """Train and ask each candidate on the inner folds of the samples; the same call continues.

    Args:
        inner: folds.
        kin: which samples keep together, see `_divide.alike`.
        limits: what text may lose.

    Raises:
        DataError: more inner folds than pictures, or nothing with one right answer.
        RecipeError: no candidate keeps its text, or another choice stands in the folder.
    """
    parts = _divide.fold(samples, inner, kin, seed=maker.seed)
    content = {**maker.content(found), "data": sources.digest(samples), "folds": inner, "seed": maker.seed,
               "budget": limits.budget, "texts": digest(limits.texts)}  # fmt: skip
    cells = Cells(folder, content, inner * len(found), maker.tell)
    by_method: dict[Method, list[Cell]] = {one: [] for one in found}
    for i, part in enumerate(parts):  # fold by fold: a comparison that was stopped is one of equals
        for one in found:
            maker.tell(f"{_name(one)}, inner fold {i + 1} of {inner}: learning from {len(part.train)} samples")
            cell = cells(f"{_name(one)}-{i}", _trained(maker, one, part, limits), fold=i)
            by_method[one].append(cell)
    return compared(by_method, limits.budget)


def _trained(maker: Maker, method: Method, part: _divide.Parts, limits: Retention) -> Callable[[Path], Cell]:
    # The weights of the best mark: to compare methods, one training of each is enough.
    return lambda run: maker.cell(method, part, run, refit=False, limits=limits)


def compared(by_method: Mapping[Method, Sequence[Cell]], budget: float) -> Choice:
    """The candidate with the most right answers among those that keep their text; of equals the first.

    Args:
        by_method: candidate -> its cells, of the same folds.
        budget: of the text loss, nats a token.

    Raises:
        DataError: nothing with one right answer.
        RecipeError: no candidate keeps its text.
    """
    out = {}
    for method, cells in by_method.items():
        lost = [cell["lost"] for cell in cells if cell["lost"]]
        if not all(one["held"] for one in lost):
            most = max(one["worst"] for one in lost)
            out[_name(method)] = f"its text loss may rise by {most:.3f} nats a token, over the budget of {budget:g}"
    kept = [method for method in by_method if _name(method) not in out]
    if not kept:
        raise RecipeError(
            f"no candidate keeps its text: {'; '.join(f'{name}: {why}' for name, why in out.items())}",
            expected="one or more within the budget",
            fix="Add a method whose text is exact, such as projector, or raise the budget.",
            where="method",
        )
    rows = {method: [row for cell in cells for row in cell["rows"]] for method, cells in by_method.items()}
    right = {method: right_of(found) for method, found in rows.items()}
    asked = list(right[kept[0]])
    if not asked:
        raise DataError(
            "no question in the data has one right answer, so methods can't be compared",
            expected="classes, boxes or short answers",
            fix="Name one method.",
            where="method",
        )
    pictures = {f"{row['task']} {row['id']}": row for row in rows[kept[0]]}
    groups = pictures_of([pictures[key] for key in asked])
    values = {method: [right[method][key] for key in asked] for method in by_method}
    best = max(kept, key=lambda method: float(np.mean(values[method])))
    common: dict[str, Any] = {"groups": groups}
    scores = [stats.score(TASK, _name(one), v, note=out.get(_name(one), ""), **common) for one, v in values.items()]
    others = [one for one in kept if one != best]
    gaps = {one: tasks.difference(TASK, f"{_name(best)} minus {_name(one)}", values[best], values[one], **common)
            for one in others}  # fmt: skip
    said = _sentences(best, scores, {_name(one): gap for one, gap in gaps.items()}, out)
    return Choice(method=best, scores=(*scores, *gaps.values()), out=out, sentences=tuple(said))


def _sentences(best: Method, scores: Sequence[Score], gaps: Mapping[str, Score], out: Mapping[str, str]) -> list[str]:
    shares = [f"{s.metric} {100 * s.value:.0f} %{_ends(s)}" for s in scores]
    said = [f"Method chosen on inner folds: {_name(best)}. Right answers of {scores[0].n}: {', '.join(shares)}."]
    close = [name for name, gap in gaps.items() if gap.low is None or gap.low <= 0]
    if close:
        listed = ", ".join(
            f"{name} (difference {100 * gaps[name].value:+.0f} points{_ends(gaps[name])})" for name in close
        )
        said.append(f"{_name(best)} is not told apart from {listed} by these items.")
    said += [f"{name} is out: {why}." for name, why in out.items()]
    return said


def _ends(score: Score) -> str:
    return "" if score.low is None or score.high is None else f" [{100 * score.low:.0f} to {100 * score.high:.0f}]"


def _name(method: Method) -> str:
    return "+".join(method)


def digest(texts: Path | None) -> str | None:
    """SHA-256 of the file that a text loss is measured on."""
    return None if texts is None or not texts.is_file() else sha256_file(texts)
