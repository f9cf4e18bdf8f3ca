"""COCO detection: boxes as answers to "Where is the X?"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tsugiki.data import _fields
from tsugiki.data.convert._grounded import ABSENT_ANSWER, QUESTION, Annotated, Asking
from tsugiki.data.convert._problems import Problems, is_there
from tsugiki.errors import BoxError, DataError, InputError
from tsugiki.types import Box, Sample

DESCRIPTION = "COCO detection JSON: images, annotations with bbox [x, y, width, height], categories"


def convert(
    path: str | Path,
    *,
    images: str | Path | None = None,
    question: str = QUESTION,
    absent: int = 0,
    absent_answer: str = ABSENT_ANSWER,
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
        DataError: not COCO, an unknown or repeated id, or a picture of another size than the JSON says.
        BoxError: a malformed box or one outside its picture; names the annotation's index and id.
        ImageError: a picture does not exist or can't be read.
    """
    path, wrong = Path(path), Problems(problems)
    asking = Asking(question=question, absent=absent, absent_answer=absent_answer, seed=seed)
    data = _fields.mapping(_fields.json_file(path), str(path))
    names = read_categories(data, path)
    pictures = read_pictures(data, path, images, wrong)
    first: dict[Any, str] = {}
    for where, entry in entries(data, "annotations", path):
        with wrong.caught():
            _read(entry, pictures, names, f"{where} (id {entry.get('id')})", first)
    found = [about for about in pictures.values() if about is not None]
    return wrong.close(asking.samples(found, list(names.values()), wrong), str(path))


def _read(
    entry: Any,
    pictures: Mapping[Any, Annotated | None],
    names: Mapping[Any, str],
    where: str,
    first: dict[Any, str],
) -> None:
    """Add one annotation to its picture; `first` remembers where each id came first."""
    image = known_id(entry, "image_id", pictures, where)
    name = names[known_id(entry, "category_id", names, where)]
    about = pictures[image]
    if about is None:
        return
    with about.reading(name):
        if entry.get("id") is not None and first.setdefault(_id(entry, "id", where), where) != where:
            raise DataError(
                f"id {entry['id']!r} again, first at {first[entry['id']]}",
                expected="another id for each annotation",
                fix="Leave one out, or give it an id of its own.",
                where=where,
            )
        if entry.get("iscrowd"):
            about.crowds.add(name)
        else:
            about.add(name, read_box(entry, where), f"{where} bbox")


def entries(data: Any, key: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of a list of the file, each with where it stands."""
    for index, entry in enumerate(_fields.sequence(data.get(key), f"{path} {key}")):
        yield f"{path} {key}[{index}]", _fields.mapping(entry, f"{path} {key}[{index}]")


def read_categories(data: Any, path: Path) -> dict[Any, str]:
    """Names by id."""
    names: dict[Any, str] = {}
    for where, entry in entries(data, "categories", path):
        names[_new(entry, names, where)] = _fields.text(entry.get("name"), f"{where} name")
    return names


def read_pictures(data: Any, path: Path, images: str | Path | None, wrong: Problems) -> dict[Any, Annotated | None]:
    """By id; None for a picture that is wrong, which is told once and not again for each of its boxes."""
    folder = Path(images) if images is not None else path.parent
    found: dict[Any, Annotated | None] = {}
    for where, entry in entries(data, "images", path):
        with wrong.caught():
            key = _new(entry, found, where)
            found[key] = None
            name = _fields.text(entry.get("file_name"), f"{where} file_name")
            inner = folder / "images"
            here = inner if images is None and not is_there(folder / name) and is_there(inner / name) else folder
            found[key] = Annotated.open(here, name, (entry.get("width"), entry.get("height")), where)
    return found


def read_box(entry: Any, where: str) -> Box:
    """The bbox of an annotation, xyxy."""
    values = _fields.sequence(entry.get("bbox"), f"{where} bbox")
    if len(values) != 4:
        raise DataError(
            f"{len(values)} numbers", expected="4: x, y, width, height", fix="Correct it.", where=f"{where} bbox"
        )
    x, y, w, h = (_fields.number(v, f"{where} bbox") for v in values)
    if w <= 0 or h <= 0:
        raise BoxError(
            f"width {w:g} and height {h:g} in [{x:g}, {y:g}, {w:g}, {h:g}]",
            expected="x, y, width, height, the last two above 0",
            fix="Correct it.",
            where=f"{where} bbox",
        )
    return Box(x, y, x + w, y + h)


def known_id(entry: Any, key: str, known: Mapping[Any, object], where: str) -> Any:
    """The id under `key`, which has to be among the known ones."""
    value = _id(entry, key, where)
    if value not in known:
        raise DataError(f"{key} {value!r} is not listed", expected="a known id", fix="Correct it.", where=where)
    return value


def _new(entry: Any, known: Mapping[Any, object], where: str) -> Any:
    value = _id(entry, "id", where)
    if value in known:
        raise DataError(f"id {value!r} again", expected="another id for each", fix="Correct it.", where=where)
    return value


def _id(entry: Any, key: str, where: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise DataError(f"{value!r}", expected="an id", fix="Correct it.", where=f"{where} {key}")
    return value
