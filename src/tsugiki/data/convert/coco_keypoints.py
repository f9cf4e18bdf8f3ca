"""COCO keypoints: the named points of a person (or of anything whose category lists `keypoints`), one question each.

A point is written as a small box around it, whose centre it is: so that coordinates have one form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugiki.data import _fields
from tsugiki.data.convert import coco
from tsugiki.data.convert._grounded import Annotated
from tsugiki.data.convert._problems import Problems
from tsugiki.errors import DataError, InputError
from tsugiki.types import Box, BoxPart, ImagePart, Message, Part, Sample, TextPart

DESCRIPTION = "COCO keypoints JSON: annotations with bbox and keypoints [x, y, v, ...], categories with keypoints"
QUESTION = "Where are the key points of the {name} in the box {box}?"
SHARE = 0.05
"""Side of the box around a point, as a share of the longer side of its thing's box."""
SMALLEST = 2.0
"""Pixels."""


def convert(
    path: str | Path,
    *,
    images: str | Path | None = None,
    question: str = QUESTION,
    separator: str = "; ",
    problems: list[InputError] | None = None,
) -> list[Sample]:
    """One question for each annotation with a visible or hidden but labelled point (v = 1 or 2); the answer names each
    point with its box, in the category's order. The task is "keypoints".

    Args:
        images: folder of the pictures; by default the JSON's folder, or `images` in it.
        question: {name} becomes the category, {box} the thing's box.
        separator: between points.
        problems: a list that takes the errors of wrong entries, which are then left out.

    Raises:
        DataError: not COCO, an unknown id, or another number of keypoints than the category lists.
        BoxError: a box or a point outside its picture.
        ImageError: a picture does not exist or can't be read.
    """
    path, wrong = Path(path), Problems(problems)
    data = _fields.mapping(_fields.json_file(path), str(path))
    names, points = coco.read_categories(data, path), _points(data, path)
    pictures = coco.read_pictures(data, path, images, wrong)
    samples: list[Sample] = []
    for number, (where, entry) in enumerate(coco.entries(data, "annotations", path)):
        with wrong.caught():
            about = pictures[coco.known_id(entry, "image_id", pictures, where)]
            category = coco.known_id(entry, "category_id", names, where)
            if about is None or entry.get("iscrowd") or not entry.get("keypoints"):
                continue
            asked = _question(about, entry, names[category], where, question)
            answer = _answer(about, entry, points[category], where, separator)
            if answer:
                messages = (Message("user", (ImagePart(about.path), *asked)), Message("assistant", answer))
                meta = {"category": names[category]}
                samples.append(
                    Sample(f"{about.name}#keypoints{number}", messages, task="keypoints", meta=meta, where=where)
                )
    return wrong.close(samples, str(path))


def _question(about: Annotated, entry: Any, name: str, where: str, question: str) -> tuple[Part, ...]:
    about.boxes.pop(name, None)
    about.add(name, coco.read_box(entry, where), f"{where} bbox")
    before, found, after = question.replace("{name}", name).partition("{box}")
    (box,) = about.boxes.pop(name)
    parts = (TextPart(before), BoxPart(box, label=name), TextPart(after)) if found else (TextPart(before),)
    return tuple(p for p in parts if not isinstance(p, TextPart) or p.text)


def _answer(about: Annotated, entry: Any, names: list[str], where: str, separator: str) -> tuple[Part, ...]:
    values = _fields.sequence(entry["keypoints"], f"{where} keypoints")
    if len(values) != 3 * len(names):
        raise DataError(
            f"{len(values)} numbers", expected=f"3 for each of the category's {len(names)} keypoints: x, y, v",
            fix="Correct it.", where=f"{where} keypoints",
        )  # fmt: skip
    outer = coco.read_box(entry, where)
    half = max(SMALLEST, SHARE * max(outer.width, outer.height)) / 2
    parts: list[Part] = []
    for number, name in enumerate(names):
        x, y, seen = (_fields.number(v, f"{where} keypoints") for v in values[3 * number : 3 * number + 3])
        if seen > 0:
            parts += [TextPart((separator if parts else "") + name + " ")]
            parts.append(BoxPart(_around(x, y, half, about, f"{where} keypoints, {name}"), label=name))
    return tuple(parts)


def _around(x: float, y: float, half: float, about: Annotated, where: str) -> Box:
    """A square whose centre is the point; smaller where the picture ends."""
    width, height = about.size
    half = min(half, x, y, width - x, height - y)
    if half <= 0:
        raise DataError(
            f"the point ({x:g}, {y:g}) is not inside the picture of {width}x{height}", expected="pixels of it",
            fix="Correct it, or set its v to 0.", where=where,
        )  # fmt: skip
    return Box(x - half, y - half, x + half, y + half)


def _points(data: Mapping[str, Any], path: Path) -> dict[Any, list[str]]:
    """The names of the points by category, with spaces."""
    found = {}
    for where, entry in coco.entries(data, "categories", path):
        listed = _fields.sequence(entry.get("keypoints") or [], f"{where} keypoints")
        found[entry["id"]] = [_fields.text(n, f"{where} keypoints").replace("_", " ") for n in listed]
    return found
