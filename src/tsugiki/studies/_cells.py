"""Cells of a study: what one graft and its rivals said about the held-out samples of one fold, kept and pooled.

    <study>/  study.json (its settings)  cells/*.json  runs/*/ (the trainings)

A finished cell is written at once and not made again by the next call with the same settings. Of one sample a cell has
a row: the figures of each side (the model, the bare LLM, the yardsticks), and the model's answer.

Two errors, apart: an interval is over pictures, with the trained grafts as they are; the spread of the folds' figures
also has what training on other pictures changes, but of few folds it is a rough guess.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.data.boxes import PaddedSquare
from tsugiki.data.files import atomic_write
from tsugiki.data.images import content_key, image_size
from tsugiki.errors import RecipeError
from tsugiki.evals import stats, yardsticks
from tsugiki.evals import task as tasks
from tsugiki.evals._boxes import Reply
from tsugiki.evals._charts import Point
from tsugiki.evals.task import Answer, Settings
from tsugiki.evals.tasks import decisions, grounding, vqa
from tsugiki.studies._words import HEADLINES
from tsugiki.training.report import clock
from tsugiki.types import Box, Sample, Score

Row = dict[str, Any]
Cell = dict[str, Any]
"""`rows`, `seconds`, and what its study adds; JSON values."""

MODEL, BASE = "model", "bare LLM"
PLACES: Mapping[str, Callable[[tuple[Box, ...], tuple[Box, ...]], float]] = {
    "Acc@0.5": grounding.hit,
    "Acc@0.5 any box": grounding.any_hit,
    "centre hit": grounding.centre_hit,
    "mean IoU": grounding.overlap,
}
TASKS = ("decisions", "grounding", "vqa")
"""What can be asked fold by fold: figures of one sample each."""


class Cells:
    """The cells of one study's folder.

    Args:
        content: what the study's figures depend on, JSON values.
        total: how many cells it will have; for the time that is left.
        later: what only some cells depend on: written by the first call that has them, and the same from then on.

    Raises:
        RecipeError: the folder holds a study with other settings; names the first that differs.
    """

    def __init__(
        self,
        folder: Path,
        content: Mapping[str, Any],
        total: int,
        say: Callable[[str], None],
        later: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.total, self.say = folder, total, say
        self.done: list[Cell] = []
        own, added = json.loads(json.dumps([content, later or {}], ensure_ascii=False))
        _begin(folder / "study.json", own, added)

    def __call__(self, name: str, make: Callable[[Path], Cell], **about: Any) -> Cell:
        """The cell of that name; where it is not there, `make` makes it, given a folder for its training."""
        file = self.folder / "cells" / f"{name}.json"
        if not file.is_file():
            cell = {**about, **make(self.folder / "runs" / name)}
            atomic_write(file, json.dumps(cell, ensure_ascii=False) + "\n")
        self.done.append(json.loads(file.read_text(encoding="utf-8")))
        if left := self.total - len(self.done):
            each = sum(cell["seconds"] for cell in self.done) / len(self.done)
            self.say(f"{len(self.done)} of {self.total} trainings done, about {clock(each * left)} left")
        return self.done[-1]


def _begin(file: Path, content: Mapping[str, Any], later: Mapping[str, Any]) -> None:
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else content
    asked = {**content, **{key: value for key, value in later.items() if key in known}}
    for key, value in asked.items():
        if known.get(key) != value:
            raise RecipeError(
                f"{key} is {value!r}, but the study in this folder was started with {known.get(key)!r}",
                expected="the same settings and data to continue",
                fix="Change it back, or choose another folder.",
                where=str(file.parent),
            )
    if not file.is_file() or later.keys() - known.keys():
        atomic_write(file, json.dumps({**known, **later}, indent=1, ensure_ascii=False) + "\n")


def rows_of(model: Any, samples: Sequence[Sample], only: Sequence[str] = TASKS, **settings: Any) -> list[Row]:
    """What the model, the bare LLM and the yardsticks say about held-out samples.

    Args:
        only: tasks.
        settings: fields of `evals.task.Settings`; yardsticks learn from `train`.
    """
    # A sample with options is a decision; asked freely as well, it would count twice.
    taken = {name: [s for s in samples if name != "vqa" or not s.options] for name in only}
    names = [name for name, own in taken.items() if tasks.load(name).select(own)]
    asked = {**settings, "train": ()}  # the yardsticks are asked here, once
    chosen, rows = Settings.of(**settings), []
    for name, result in (tasks.measure(model, names, taken, **asked) if names else {}).items():
        for kind, group in tasks.by_kind(result.answers).items():
            rivals = _rivals(name, kind, group, chosen, model)
            for i, answer in enumerate(group):
                said = {MODEL: _said(answer, answer.text, answer.boxes)}
                if answer.base_text is not None:
                    said[BASE] = _said(answer, answer.base_text, _boxes(answer, model))
                said |= {side: values[i] for side, values in rivals.items()}
                rows.append({"task": f"{name}/{kind}", **_row(answer, said)})
    return rows


def _rivals(
    name: str, kind: str, answers: Sequence[Answer], settings: Settings, model: Any
) -> Mapping[str, Sequence[Any]]:
    asked = [a.sample for a in answers]
    if name == "decisions":
        return yardsticks.choices(kind, asked, settings, model)
    if name == "grounding":
        return {side: [(b,) for b in v] for side, v in yardsticks.places(kind, asked, settings, model).items()}
    common = yardsticks.commonest(filter(None, (tasks.short_answer(s) for s in settings.train if s.task == kind)))
    return {} if common is None else {"constant": [common] * len(asked)}


def _said(answer: Answer, text: str, boxes: tuple[Box, ...]) -> Any:
    return boxes if answer.task == "grounding" else text


def _boxes(answer: Answer, model: Any) -> tuple[Box, ...]:
    """The bare LLM's; it has not seen the picture."""
    if answer.task != "grounding":
        return ()
    square = PaddedSquare(*image_size(answer.sample.images[0]))
    return Reply.read(answer.base_text or "", model.processor.collator().codec, square).boxes


def _figures(answer: Answer, said: Any) -> dict[str, float]:
    if answer.task == "decisions":
        return {"accuracy": float(said == answer.gold)}
    if answer.task == "vqa":
        return {"exact match": float(vqa.matches(said, answer.sample))}
    if not answer.gold_boxes:
        return {grounding.FALSE_POSITIVES: float(bool(said))}
    return {name: measure(said, answer.gold_boxes) for name, measure in PLACES.items()}


def _row(answer: Answer, said: Mapping[str, Any]) -> Row:
    images = answer.sample.images
    plain = {key: getattr(answer, key) for key in ("text", "base_text", "correct", "numbers")}
    return {
        "id": answer.sample.id,
        "picture": content_key(images[0]) if images else answer.sample.id,
        "sides": {side: _figures(answer, value) for side, value in said.items()},
        "said": {side: value for side, value in said.items() if isinstance(value, str)},
        "answer": {
            **plain,
            "probabilities": dict(answer.probabilities),
            "boxes": [[b.x1, b.y1, b.x2, b.y2] for b in answer.boxes],
        },
    }


def answers_of(rows: Sequence[Row], samples: Sequence[Sample]) -> list[Answer]:
    """The model's answers again.

    Args:
        samples: those that the rows are about, each with an id of its own.
    """
    known = {s.id: s for s in samples}
    found = []
    for row in rows:
        sample, name = known[row["id"]], row["task"].partition("/")[0]
        kept = {**row["answer"], "boxes": tuple(Box(*box) for box in row["answer"]["boxes"])}
        kept["numbers"] = tuple(kept["numbers"])
        places = grounding.gold(sample) if name == "grounding" else ()
        gold = tasks.shown_text(sample.answer) if places else tasks.message_text(sample.answer)
        found.append(Answer(task=name, sample=sample, gold=gold, gold_boxes=places, **kept))
    return found


def scores_of(cells: Sequence[Cell], name: Callable[[str], str] = str) -> list[Score]:
    """Figures over all cells, beside the bare LLM and the yardsticks, and the difference of the headline to them.

    Args:
        name: what a task and kind ("decisions/decision") is called; those of one name are pooled.
    """
    scores: list[Score] = []
    for task, parts in _by_task(cells, name).items():
        rows = [row for part in parts for row in part]
        version = tasks.load(rows[0]["task"].partition("/")[0]).VERSION
        for metric in rows[0]["sides"][MODEL]:
            sides = sides_of(rows, metric)
            rivals = {side: values for side, values in sides.items() if side not in (MODEL, BASE)}
            shares = {side: float(np.mean(values)) for side, values in rivals.items()}
            common: dict[str, Any] = {"groups": pictures_of(rows), "version": version}
            found = stats.score(task, metric, sides[MODEL], sides.get(BASE), yardsticks=shares, **common)
            each = [float(np.mean(sides_of(part, metric)[MODEL])) for part in parts]
            scores.append(replace(found, note=_spread(each)))
            if metric in HEADLINES:
                scores += [
                    tasks.difference(task, f"{metric} minus {side}", sides[MODEL], values, **common)
                    for side, values in rivals.items()
                ]
    return scores


def by_class(cells: Sequence[Cell], samples: Sequence[Sample]) -> list[Score]:
    """Of decisions, over all cells: macro-F1 and the recall of each class."""
    scores: list[Score] = []
    for task, parts in _by_task(cells, str).items():
        rows = [row for part in parts for row in part]
        if task.startswith("decisions/"):
            sides = [side for side in shared_sides(rows) if side not in (MODEL, BASE)]
            rivals = {side: [row["said"][side] for row in rows] for side in sides}
            found = decisions.score(task, answers_of(rows, samples), rivals)
            scores += [s for s in found if not s.metric.startswith("accuracy")]
    return scores


def points_of(cells: Mapping[int, Sequence[Cell]]) -> dict[str, list[Point]]:
    """Side -> its headline by amount of data, with the interval over pictures and each fold's figure, of amounts of
    data and the cells of each; the bare LLM is left out. Where there are several kinds of questions, all together."""
    points: dict[str, list[Point]] = {}
    for amount, group in sorted(cells.items()):
        parts = [part for cell in group if (part := _headlines(cell["rows"]))]
        rows = [row for part in parts for row in part]
        for side in shared_sides(rows):
            if side == BASE:
                continue
            found = stats.score("", side, [row["sides"][side] for row in rows], groups=pictures_of(rows))
            assert found.low is not None and found.high is not None
            each = tuple(float(np.mean([row["sides"][side] for row in part])) for part in parts)
            points.setdefault(side, []).append(Point(amount, found.value, found.low, found.high, each))
    return points


def right_of(rows: Sequence[Row]) -> dict[str, float]:
    """Kind and sample -> 1 where the model is right, by the figure of its kind; rows without one are left out."""
    return {f"{row['task']} {row['id']}": row["sides"][MODEL] for row in _headlines(rows)}


def _headlines(rows: Sequence[Row]) -> list[Row]:
    """The rows with one figure a side."""
    found = []
    for row in rows:
        metric = next((m for m in HEADLINES if m in row["sides"][MODEL]), None)
        if metric is not None:
            found.append({**row, "sides": {side: figures[metric] for side, figures in row["sides"].items()}})
    return found


def sides_of(rows: Sequence[Row], metric: str) -> dict[str, list[float]]:
    """Side -> its figure in each row."""
    return {side: [row["sides"][side][metric] for row in rows] for side in shared_sides(rows)}


def shared_sides(rows: Sequence[Row]) -> list[str]:
    """Sides that all rows have: a learner needs a few training pictures."""
    return [side for side in (rows[0]["sides"] if rows else ()) if all(side in row["sides"] for row in rows)]


def pictures_of(rows: Sequence[Row]) -> list[str] | None:
    """For paired statistics, as `picture_groups`: None where every row has its own."""
    pictures = [str(row["picture"]) for row in rows]
    return None if len(set(pictures)) == len(pictures) else pictures


def _spread(each: Sequence[float]) -> str:
    if len(each) < 2:
        return ""
    listed = ", ".join(f"{value:.3f}" for value in each)
    return f"folds {listed}; their standard deviation {np.std(each, ddof=1):.3f}"


def _by_task(cells: Sequence[Cell], name: Callable[[str], str]) -> dict[str, list[list[Row]]]:
    """Name -> the rows of each cell that has some."""
    found: dict[str, list[list[Row]]] = {}
    for cell in cells:
        own: dict[str, list[Row]] = {}
        for row in cell["rows"]:
            own.setdefault(name(row["task"]), []).append(row)
        for task, rows in own.items():
            found.setdefault(task, []).append(rows)
    return dict(sorted(found.items()))
