"""What an arm of a comparison is asked: questions about pictures, item by item, and the suites of text."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsugiki.data.images import source_key
from tsugiki.evals import task as tasks
from tsugiki.evals.retention import retention
from tsugiki.evals.tables import records
from tsugiki.studies._compare_plan import Plan
from tsugiki.types import Box, Sample

Say = Callable[[str], None]


def pictures(
    plan: Plan, model: Any, asked: Mapping[str, list[Sample]], learn: list[Sample], features: Any, say: Say
) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]]:
    """By data and task: which items are right, the scores, and the first answers."""
    wanted = plan.asked
    for data, samples in asked.items():
        for name in wanted.tasks or tasks.scorable(samples, wanted.limit):
            task = tasks.load(name)
            if len(task.select(samples)[: wanted.limit]) < getattr(task, "NEEDED", 1):
                say(f"{data}: too few samples for {name}")
                continue
            done = tasks.measure(
                model, name, samples, features=features, train=learn, limit=wanted.limit, batch_size=16
            )[name]
            title = f"{data}: {name}" if data else name
            say(f"{title}: {len(done.answers)} answers in {done.seconds:.0f} s")
            items = {
                "ids": [a.sample.id for a in done.answers],
                "pictures": _numbered(
                    [source_key(a.sample.images[0]) if a.sample.images else a.sample.id for a in done.answers]
                ),
                "kinds": [a.sample.task for a in done.answers],
                "right": [int(a.correct) for a in done.answers],
            }
            named = [{**record, "data": data} for record in records(done.scores)]
            root = plan.data.ask[data].parent
            yield title, items, named, [_shown(title, a, root) for a in done.answers[: wanted.shown]]


def conversations(
    model: Any, turns: list[Sample], features: Any, seed: int, say: Say
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Which last turns of interleaved conversations are right, and the scores; a kind is that of the turns."""
    if not turns:
        return {}, []
    done = tasks.measure(model, "iit", turns, features=features, batch_size=8, seed=seed)["iit"]
    say(f"iit: {len(done.answers)} answers in {done.seconds:.0f} s")
    about = [(a.sample.meta["turns"], a.sample.meta["item"], a.sample.images[-1:]) for a in done.answers]
    return {
        "ids": [item for _, item, _ in about],
        "pictures": _numbered([source_key(seen[0]) if kind.endswith("V") else item for kind, item, seen in about]),
        "kinds": [kind for kind, _, _ in about],
        "right": [int(a.correct) for a in done.answers],
    }, records(done.scores)


def _numbered(values: Sequence[Hashable]) -> list[int]:
    """The same number for the same value: questions on one picture are no independent items."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(value, len(known)) for value in values]


def _shown(title: str, answer: tasks.Answer, root: Path) -> dict[str, Any]:
    """An answer for the page; every arm is asked the same in the same order. Pictures relative to their data's file."""
    picture = next(iter(answer.sample.images), None)
    place = Path(picture) if isinstance(picture, str | Path) else None
    if place is not None and place.resolve().is_relative_to(root.resolve()):
        place = place.resolve().relative_to(root.resolve())
    return {
        "task": title, "id": answer.sample.id, "text": answer.text[:300], "gold": answer.gold[:300],
        "right": answer.correct, "question": tasks.shown_text(answer.sample.prompt[-1])[:300],
        "picture": None if place is None else place.as_posix(), "boxes": [_corners(b) for b in answer.boxes[:5]],
        "gold_boxes": [_corners(b) for b in answer.gold_boxes[:5]],
    }  # fmt: skip


def _corners(box: Box) -> list[float]:
    return [round(v, 1) for v in (box.x1, box.y1, box.x2, box.y2)]


def text(plan: Plan, model: Any, proven: bool, say: Say) -> list[dict[str, Any]]:
    """What the text lost; where the proof of an exact model holds, its own loss on text requests is the base's."""
    wanted = plan.asked
    if not wanted.retention:
        return []
    options: dict[str, Any] = {"suites": wanted.retention, "n": wanted.items, "after_picture": wanted.after_picture}
    return records(retention(model, measure_exact=not proven, **options, progress=say))
