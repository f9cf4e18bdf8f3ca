"""YOLO as Ultralytics lays it out: images/, labels/ with a line "class cx cy w h" for each box, names in data.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tsugiki.data import _fields
from tsugiki.data.convert._grounded import ABSENT_ANSWER, QUESTION, Annotated, Asking
from tsugiki.data.convert._problems import Problems
from tsugiki.data.convert.imagefolder import SPLITS
from tsugiki.data.images import image_files
from tsugiki.errors import DataError, InputError
from tsugiki.types import Box, Sample

DESCRIPTION = "YOLO: images/ and labels/*.txt (class cx cy w h, or a polygon), names in data.yaml or classes.txt"

_OVER = 0.01  # of a side; numbers beyond are no fractions. What is left over the edge is judged as in COCO, in pixels


def convert(
    path: str | Path,
    *,
    question: str = QUESTION,
    absent: int = 0,
    absent_answer: str = ABSENT_ANSWER,
    seed: int = 0,
    problems: list[InputError] | None = None,
) -> list[Sample]:
    """One question for each class of each picture, answered by all its boxes, as `coco.convert`.

    The labels of `.../images/train/a.jpg` are in `.../labels/train/a.txt`; a folder train, val, ... goes into
    `meta["split"]`. A picture without a label file has no object, as in Ultralytics. Of a segment's polygon the
    bounding box is taken; keypoints are refused.

    Args:
        path: the folder, or the data.yaml in it (its paths are not followed).
        question, absent, absent_answer, seed, problems: as in `coco.convert`.

    Raises:
        DataError: no names or pictures, a malformed line (file:line), or labels without their picture.
        BoxError: a box of no or negative size, or outside its picture.
        ImageError: a picture can't be read.
    """
    root, wrong = Path(path), Problems(problems)
    asking = Asking(question=question, absent=absent, absent_answer=absent_answer, seed=seed)
    root, names = (root.parent, _yaml_names(root)) if root.is_file() else (root, _names(root))
    if not root.is_dir():
        raise DataError("no such folder", expected="a folder with images/ and labels/", where=str(root))
    left = {file for file in root.rglob("*.txt") if "labels" in file.relative_to(root).parts}
    left = {file for file in left if file.name != "classes.txt"}
    found: list[Annotated] = []
    for file in image_files(root):
        inner = file.relative_to(root)
        if "images" not in inner.parts[:-1]:
            continue
        labels = root / _labels(inner)
        left.discard(labels)
        with wrong.caught():
            split = next((part for part in inner.parts if part.lower() in SPLITS), None)
            about = Annotated.open(
                root, inner.as_posix(), (None, None), str(file), meta={"split": split} if split else {}
            )
            _read(labels, about, names, wrong)
            found.append(about)
    for labels in sorted(left):
        with wrong.caught():
            raise DataError("labels without a picture", expected="one in images/", fix="Add it.", where=str(labels))
    return wrong.close(asking.samples(found, list(names.values()), wrong), str(root))


def _labels(picture: Path) -> Path:
    """The last `images` of a path becomes `labels`."""
    parts = list(picture.with_suffix(".txt").parts)
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _read(file: Path, about: Annotated, names: Mapping[int, str], wrong: Problems) -> None:
    if not file.exists():
        return
    lines = [(f"{file}:{n}", line.split()) for n, line in enumerate(_text(file).splitlines(), 1) if line.strip()]
    # A line of no known class may be of any: then the whole picture is left out.
    for name, (where, words) in [(_name(words[0], names, where), (where, words)) for where, words in lines]:
        with wrong.caught(), about.reading(name):
            about.add(name, _box(words[1:], about.size, where), where)


def _name(word: str, names: Mapping[int, str], where: str) -> str:
    number = _fields.number_in(word, f"{where} class")
    if number not in names:
        raise DataError(
            f"class {word} has no name", expected=f"one of {', '.join(map(str, names))}", fix="Correct it.", where=where
        )
    return names[int(number)]


def _box(words: list[str], size: tuple[int, int], where: str) -> Box:
    values = [_fraction(word, where) for word in words]
    if len(values) == 4:
        cx, cy, w, h = values
        x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        x1, y1, x2, y2 = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    else:
        raise DataError(
            f"{len(values)} numbers after the class",
            expected="4 (cx cy w h), or the x and y of three corners or more",
            fix="Correct it; leave out confidences.",
            where=where,
        )
    width, height = size
    return Box(x1 * width, y1 * height, x2 * width, y2 * height)


def _fraction(word: str, where: str) -> float:
    value = _fields.number_in(word, where)
    if abs(value) > 1 + _OVER:
        raise DataError(
            word, expected="a fraction of the side, 0 to 1", fix="Divide pixels by width or height.", where=where
        )
    return value


def _names(root: Path) -> dict[int, str]:
    """Class number -> name."""
    if (root / "data.yaml").is_file():
        return _yaml_names(root / "data.yaml")
    for file in (root / "classes.txt", root / "labels" / "classes.txt"):
        if file.is_file():
            lines = [line.strip() for line in _text(file).splitlines()]
            return _checked(dict(enumerate(line for line in lines if line)), str(file))
    raise DataError(
        "neither data.yaml nor classes.txt in it",
        expected="the names of the classes",
        fix="Add one, or give the path of the YAML.",
        where=str(root),
    )


def _yaml_names(file: Path) -> dict[int, str]:
    try:
        loaded = yaml.safe_load(_text(file))
    except DataError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date, a thousand brackets
        raise DataError(
            f"not YAML ({error})", expected="a map with names", fix="Correct it.", where=str(file)
        ) from None
    content = _fields.mapping(loaded, str(file))
    if "kpt_shape" in content:
        raise DataError("keypoints (kpt_shape)", expected="boxes or segments", where=str(file))
    given: Any = content.get("names")
    if isinstance(given, list):
        given = dict(enumerate(given))
    names = _checked(_fields.mapping(given, f"{file} names"), f"{file} names")
    if content.get("nc", len(names)) != len(names):
        raise DataError(
            f"nc {content['nc']}, but {len(names)} names", expected="as many", fix="Correct it.", where=str(file)
        )
    return names


def _checked(names: Mapping[Any, Any], where: str) -> dict[int, str]:
    for number, name in names.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise DataError(f"class {number!r}", expected="a whole number", fix="Correct it.", where=where)
        _fields.text(name, f"{where}[{number}]")
    if not names:
        raise DataError("no name", expected="a name for each class", fix="Add them.", where=where)
    return dict(names)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise _fields.unreadable(file, error) from error
