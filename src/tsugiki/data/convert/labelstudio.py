"""Label Studio: its JSON export, with rectangles in percent and choices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tsugiki.data import _fields
from tsugiki.data.convert._grounded import ABSENT_ANSWER, QUESTION, Annotated, Asking
from tsugiki.data.convert._problems import Problems
from tsugiki.data.convert._rows import Wording
from tsugiki.errors import DataError, InputError
from tsugiki.types import Box, Message, Sample

DESCRIPTION = "Label Studio's JSON export: rectanglelabels (boxes) and choices (decisions)"

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file


def convert(
    path: str | Path,
    *,
    images: str | Path | None = None,
    image_field: str = "image",
    question: str = QUESTION,
    absent: int = 0,
    absent_answer: str = ABSENT_ANSWER,
    choice_question: str = Wording.question,
    seed: int = 0,
    problems: list[InputError] | None = None,
) -> list[Sample]:
    """One question for each label of each picture, answered by all its boxes, as `coco.convert`; and one question of
    the task "decision" for each choice that was made about a whole picture.

    Of several annotations of a task the one that is marked as ground truth is taken, else the first; cancelled ones and
    tasks without any are left out. Regions of another shape (polygons, brushes, ...) give no box, and their labels are
    never asked for as absent. Rotated rectangles are refused.

    Args:
        images: folder of the pictures, found there by the end of the exported path; by default the JSON's folder, or
            `images` in it.
        image_field: the key of a task's `data` that holds the picture.
        choice_question: {name} becomes the name of the choice's control, {options} the choices.
        question, absent, absent_answer, seed, problems: as in `coco.convert`.

    Raises:
        DataError: not such an export, a malformed result (names task and result), or a picture of another size.
        BoxError: a malformed box or one outside its picture.
        ImageError: a picture does not exist or can't be read.
    """
    path, wrong = Path(path), Problems(problems)
    asking = Asking(question=question, absent=absent, absent_answer=absent_answer, seed=seed)
    folders = [Path(images)] if images is not None else [path.parent, path.parent / "images"]
    found: list[_Task] = []
    for index, task in enumerate(_fields.sequence(_fields.json_file(path), str(path))):
        with wrong.caught():
            where = f"{path}[{index}]"
            entry = _fields.mapping(task, where)
            results = _results(entry, where)
            if results is not None:
                found.append(_task(entry, results, folders, image_field, where, wrong))
    names = sorted({name for task in found for name in task.about.seen})
    samples = asking.samples([task.about for task in found], names, wrong)
    return wrong.close(samples + _decisions(found, choice_question), str(path))


@dataclass
class _Task:
    about: Annotated
    choices: dict[str, str] = field(default_factory=dict)
    """Name of the control -> what was chosen."""


def _results(task: Any, where: str) -> list[tuple[str, Any]] | None:
    """(where, result) of the annotation that counts; None where there is none."""
    if "annotations" not in task:
        raise DataError(
            "no annotations", expected="tasks as the format JSON exports them", fix="Not JSON-MIN.", where=where
        )
    annotations = [
        (f"{where} annotations[{i}]", _fields.mapping(a, f"{where} annotations[{i}]"))
        for i, a in enumerate(_fields.sequence(task["annotations"], f"{where} annotations"))
    ]
    valid = [(at, a) for at, a in annotations if not a.get("was_cancelled")]
    at, chosen = next((pair for pair in valid if pair[1].get("ground_truth")), valid[0] if valid else ("", None))
    if chosen is None:
        return None
    results = _fields.sequence(chosen.get("result"), f"{at} result")
    return [(f"{at} result[{i}]", _fields.mapping(r, f"{at} result[{i}]")) for i, r in enumerate(results)]


def _task(
    entry: Any, results: Sequence[tuple[str, Any]], folders: Sequence[Path], key: str, where: str, wrong: Problems
) -> _Task:
    data = _fields.mapping(entry.get("data"), f"{where} data")
    folder, name = _place(_fields.text(data.get(key), f"{where} data.{key}"), folders)
    said = next(((r["original_width"], r.get("original_height")) for _, r in results if "original_width" in r), None)
    task = _Task(Annotated.open(folder, name, said or (None, None), where))
    # A region whose labels can't be read may be any: then the whole picture is left out.
    for labels, (at, result) in [(_labels(result, at), (at, result)) for at, result in results]:
        for label in labels:
            with wrong.caught(), task.about.reading(label):
                if result["type"] == "rectanglelabels":
                    task.about.add(label, _box(result, task.about.size, at), f"{at} value")
        if result["type"] == "choices":
            with wrong.caught():
                task.choices.update(_choice(result, at))
    return task


def _place(exported: str, folders: Sequence[Path]) -> tuple[Path, str]:
    """Folder and name of a picture: the export has the path as the server saw it, or an address."""
    try:
        address = urlsplit(exported)
        path = parse_qs(address.query).get("d", [""])[0] or unquote(address.path)  # /data/local-files/?d=folder/a.png
    except ValueError:  # brackets that no address may have
        path = exported
    parts = [part for part in path.split("/") if part not in ("", "..")] or [exported]
    names = [exported, *("/".join(parts[i:]) for i in range(len(parts))), _UPLOADED.sub("", parts[-1], count=1)]
    for name in names:
        for folder in folders:
            with suppress(OSError, ValueError):  # a name too long, or with a zero byte
                if (folder / name).is_file():
                    return folder, name
    return folders[0], parts[-1]


def _labels(result: Any, where: str) -> list[str]:
    """What a region is labelled with."""
    kind = _fields.text(result.get("type"), f"{where} type")
    if not kind.endswith("labels"):
        return []
    value = _fields.mapping(result.get("value"), f"{where} value")
    return [_fields.text(label, f"{where} {kind}") for label in _fields.sequence(value.get(kind), f"{where} {kind}")]


def _box(result: Any, size: tuple[int, int], where: str) -> Box:
    value = result["value"]
    for holder, key in ((value, "rotation"), (result, "image_rotation")):
        if _fields.number(holder.get(key) or 0, f"{where} {key}") % 360:
            raise DataError(
                f"{key} {holder[key]}", expected="upright rectangles", fix="Draw it again.", where=f"{where} value"
            )
    x, y, w, h = (_fields.number(value.get(k), f"{where} value.{k}") / 100 for k in ("x", "y", "width", "height"))
    width, height = size
    return Box(x * width, y * height, (x + w) * width, (y + h) * height)


def _choice(result: Any, where: str) -> dict[str, str]:
    """Control -> what was chosen; none for a choice about a region."""
    value = _fields.mapping(result.get("value"), f"{where} value")
    if "x" in value or "points" in value:
        return {}
    chosen = _fields.sequence(value.get("choices"), f"{where} choices")
    if len(chosen) != 1:
        raise DataError(
            f"{len(chosen)} choices", expected="one", fix="Ask several questions instead.", where=f"{where} choices"
        )
    return {_fields.text(result.get("from_name"), f"{where} from_name"): _fields.text(chosen[0], f"{where} choices")}


def _decisions(tasks: Sequence[_Task], question: str) -> list[Sample]:
    """One sample for each choice; the options are all that was chosen anywhere."""
    controls = sorted({control for task in tasks for control in task.choices})
    if len(controls) > 1 and "{name}" not in question:
        raise DataError(
            f"choices of {len(controls)} kinds ({', '.join(controls)})",
            expected="a question that tells them apart",
            fix='Give choice_question="... {name} ...".',
            where="choice_question",
        )
    samples = []
    for control in controls:
        options = tuple(sorted({task.choices[control] for task in tasks if control in task.choices}))
        text = question.replace("{name}", control).replace("{options}", ", ".join(options))
        for task in tasks:
            if control in task.choices:
                label = task.choices[control]
                samples.append(
                    Sample(
                        id=f"{task.about.name}:{control}",
                        messages=(Message.of("user", text, (task.about.path,)), Message.of("assistant", label)),
                        task="decision",
                        options=options,
                        meta={"label": label, "control": control},
                        where=task.about.where,
                    )
                )
    return samples
