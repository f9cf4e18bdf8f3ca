"""COCO detection: boxes as answers to "Where is the X?"."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.data import _fields
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.data.convert._problems import Problems, picture
from tsugiki.data.images import image_size
from tsugiki.errors import DataError, InputError
from tsugiki.types import Box, BoxPart, Message, Part, Sample, TextPart

DESCRIPTION = "COCO detection JSON: images, annotations with bbox [x, y, width, height], categories"
_OVERHANG = 1.0  # pixels by which tools let boxes stand over the edge; such boxes are cut


@dataclass(frozen=True)
class _Image:
    path: Path
    size: tuple[int, int]
    name: str
    where: str


def convert(
    path: str | Path,
    *,
    images: str | Path | None = None,
    question: str = "Where is the {name}?",
    absent: int = 0,
    absent_answer: str = "There is none.",
    seed: int = 0,
    problems: list[InputError] | None = None,
) -> list[Sample]:
    """One question for each category of each picture, answered by all its boxes from left to right.

    Annotations with `iscrowd` are left out; what has one is never asked for as absent. Tasks are "box" and "absent".

    Args:
        images: folder of the pictures; by default the JSON's folder, or `images` in it.
        question: {name} becomes the category.
        absent: questions a picture about categories that are not in it.
        absent_answer: the answer to those.
        seed: chooses the absent categories.
        problems: a list that takes the errors of wrong entries, which are then left out.

    Raises:
        DataError: not COCO, an unknown id, or a picture of another size than the JSON says.
        BoxError: a malformed box or one outside its picture; names the annotation's index and id.
        ImageError: a picture does not exist or can't be read.
    """
    path = Path(path)
    data = _fields.mapping(_fields.json_file(path), str(path))
    wrong = Problems(problems)
    names = _categories(data, path)
    pictures = _pictures(data, path, images, wrong)
    boxes, present = _boxes(data, path, names, pictures, wrong)
    samples = []
    for image, by_category in boxes.items():
        about = pictures[image]
        assert about is not None
        for category, found in by_category.items():
            samples.append(_sample(about, question, names[category], _answer(found, names[category]), "box"))
        missing = [c for c in names if (image, c) not in present]
        for category in random.Random(f"{seed}/absent/{about.name}").sample(missing, min(absent, len(missing))):
            samples.append(_sample(about, question, names[category], (TextPart(absent_answer),), "absent"))
    return wrong.close(samples, str(path))


def _boxes(
    data: Any, path: Path, names: dict[Any, str], pictures: dict[Any, _Image | None], wrong: Problems
) -> tuple[dict[Any, dict[Any, list[Box]]], set[tuple[Any, Any]]]:
    """Boxes by picture and category, and which (picture, category) have any annotation.

    Where one box is wrong the category is left out: an answer that lacks a box would teach a mistake.
    """
    boxes: dict[Any, dict[Any, list[Box]]] = {image: {} for image, about in pictures.items() if about is not None}
    present: set[tuple[Any, Any]] = set()
    broken: set[tuple[Any, Any]] = set()
    for where, entry in _entries(data, "annotations", path):
        with wrong.caught():
            where = f"{where} (id {entry.get('id')})"
            image = _known(entry, "image_id", pictures, where)
            category = _known(entry, "category_id", names, where)
            about = pictures[image]
            present.add((image, category))
            if about is None or entry.get("iscrowd"):
                continue
            try:
                boxes[image].setdefault(category, []).append(_box(entry, about.size, where))
            except InputError:
                broken.add((image, category))
                raise
    for image, category in broken:
        boxes[image].pop(category, None)
    return boxes, present


def _entries(data: Any, key: str, path: Path) -> Iterator[tuple[str, Any]]:
    for index, entry in enumerate(_fields.sequence(data.get(key), f"{path} {key}")):
        yield f"{path} {key}[{index}]", _fields.mapping(entry, f"{path} {key}[{index}]")


def _categories(data: Any, path: Path) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for where, entry in _entries(data, "categories", path):
        names[_id(entry, "id", where)] = _fields.text(entry.get("name"), f"{where} name")
    return names


def _pictures(data: Any, path: Path, images: str | Path | None, wrong: Problems) -> dict[Any, _Image | None]:
    """By id; None for a picture that is wrong, which is told once and not again for each of its boxes."""
    folder = Path(images) if images is not None else path.parent
    found: dict[Any, _Image | None] = {}
    for where, entry in _entries(data, "images", path):
        with wrong.caught():
            key = _id(entry, "id", where)
            found[key] = None
            name = _fields.text(entry.get("file_name"), f"{where} file_name")
            inner = folder / "images"
            here = inner if images is None and not (folder / name).exists() and (inner / name).exists() else folder
            file = picture(here, name, where)
            size = image_size(file, where=where)
            said = (entry.get("width", size[0]), entry.get("height", size[1]))
            if said != size:
                raise DataError(
                    f"{said[0]}x{said[1]} pixels, but {name} has {size[0]}x{size[1]} (after EXIF rotation)",
                    expected="the size of the picture that the boxes were drawn on",
                    fix="Use the pictures that were labelled, or turn the boxes with the picture.",
                    where=where,
                )
            found[key] = _Image(file, size, name, where)
    return found


def _box(entry: Any, size: tuple[int, int], where: str) -> Box:
    values = _fields.sequence(entry.get("bbox"), f"{where} bbox")
    if len(values) != 4:
        raise DataError(
            f"{len(values)} numbers", expected="4: x, y, width, height", fix="Correct it.", where=f"{where} bbox"
        )
    x, y, w, h = (_fields.number(v, f"{where} bbox") for v in values)
    box = Box(x, y, x + w, y + h)
    width, height = size
    if box.x1 >= -_OVERHANG and box.y1 >= -_OVERHANG and box.x2 <= width + _OVERHANG and box.y2 <= height + _OVERHANG:
        box = PaddedSquare(width, height).clip(box) or box
    BoxCodec.validate(box, size, where=f"{where} bbox")
    return box


def _answer(boxes: list[Box], name: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    for box in sorted(boxes, key=lambda b: (b.x1, b.y1)):
        parts += [TextPart(" ")] if parts else []
        parts.append(BoxPart(box, 0, name))
    return tuple(parts)


def _sample(image: _Image, question: str, name: str, answer: tuple[Part, ...], task: str) -> Sample:
    return Sample(
        id=f"{image.name}#{name}",
        messages=(Message.of("user", question.replace("{name}", name), (image.path,)), Message("assistant", answer)),
        task=task,
        meta={"category": name},
        where=image.where,
    )


def _known(entry: Any, key: str, known: Mapping[Any, object], where: str) -> Any:
    value = _id(entry, key, where)
    if value not in known:
        raise DataError(f"{key} {value!r} is not listed", expected="a known id", fix="Correct it.", where=where)
    return value


def _id(entry: Any, key: str, where: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise DataError(f"{value!r}", expected="an id", fix="Correct it.", where=f"{where} {key}")
    return value
