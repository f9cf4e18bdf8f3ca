"""Scores of mixed grafts for a search: tasks on the user's samples and retention on texts, each in two halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tsugiki.data import schema, splits
from tsugiki.errors import InputError
from tsugiki.evals import task as evaluation
from tsugiki.evals.budget import Budget, check_lines, suites_of
from tsugiki.evals.retention import Material, retention
from tsugiki.identity import hash_json
from tsugiki.training import sources
from tsugiki.types import Sample, Score

RETENTION = "retention"


@dataclass(frozen=True, kw_only=True)
class Graded:
    """Scores a saved graft.

    Args:
        load: folder -> model.
        tasks: of `evals`.
        data: what they ask.
        budget: its lines say which texts are read.
        material: those texts.
    """

    load: Callable[[Path], Any]
    tasks: Sequence[str]
    data: Sequence[Sample]
    budget: Budget
    material: Material
    limit: int | None = None

    @property
    def key(self) -> str:
        """Of all that is asked."""
        read = self.material
        texts = [read.texts, read.choices, read.instructions, read.prompts]
        asked = [sources.digest(self.data), list(self.tasks), self.limit, hash_json([repr(text) for text in texts])]
        return hash_json(asked)

    def __call__(self, folder: Path) -> list[Score]:
        model = self.load(folder)
        scores = evaluation.evaluate(model, self.tasks, self.data, limit=self.limit)
        suites, after_picture, int8 = suites_of(self.budget)
        read = retention(model, suites=suites, after_picture=after_picture, int8=int8, material=self.material)
        return [*scores, *read]


def both(
    tasks: Sequence[str],
    data: str | Path,
    unseen: str | Path,
    *,
    load: Callable[[Path], Any],
    budget: Budget,
    items: int = 100,
    limit: int | None = None,
) -> tuple[Graded, Graded]:
    """What a search measures, and the same on items that it does not see.

    Args:
        data, unseen: JSONL files without a common picture.
        items: texts of a retention suite in each half.
        limit: samples of a task.

    Raises:
        DataError: a picture is in both files, or a line of the budget judges nothing of the bundled suites.
        InputError: no task, or retention among them: the budget names what of it is read.
        AssetError: the asset `wiki` is not fetched.
    """
    named = [name for name in tasks if name != RETENTION]
    if not named:
        raise InputError("no task", expected=f"some of {', '.join(evaluation.available())}", where="--task")
    files = {"data": schema.load(data), "unseen": schema.load(unseen)}
    splits.check_disjoint(files)
    suites, after_picture, int8 = suites_of(budget)
    material = Material.wiki(2 * items, suites)
    check_lines(budget, material.measured(suites), after_picture, int8)
    halves = _halves(material)
    seen, other = (
        Graded(load=load, tasks=named, data=samples, budget=budget, material=material, limit=limit)
        for samples, material in zip(files.values(), halves, strict=True)
    )
    return seen, other


def _halves(material: Material) -> tuple[Material, Material]:
    """Every other item: they come in random order, prompts by kind."""
    one, two = (
        replace(
            material,
            texts=material.texts[i::2],
            choices={name: items[i::2] for name, items in material.choices.items()},
            instructions=material.instructions[i::2],
            prompts=material.prompts[i::2],
        )
        for i in (0, 1)
    )
    return one, two
