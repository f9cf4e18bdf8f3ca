"""Pascal VOC: a folder of XML files, one for each picture, with boxes in pixels."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from tsugiki.data import _fields
from tsugiki.data.convert._grounded import ABSENT_ANSWER, QUESTION, Annotated, Asking
from tsugiki.data.convert._problems import Problems, is_there
from tsugiki.errors import DataError, InputError
from tsugiki.types import Box, Sample

DESCRIPTION = "Pascal VOC: a folder of XML files (or with Annotations in it) with filename, size, object and bndbox"

_PICTURES = ("JPEGImages", "images")


def convert(
    path: str | Path,
    *,
    images: str | Path | None = None,
    one_based: bool = False,
    difficult: bool = False,
    question: str = QUESTION,
    absent: int = 0,
    absent_answer: str = ABSENT_ANSWER,
    seed: int = 0,
    problems: list[InputError] | None = None,
) -> list[Sample]:
    """One question for each class of each picture, answered by all its boxes, as `coco.convert`.

    XML with a document type is refused unread: it could define entities or name other files.

    Args:
        path: the folder of the XML files, or the folder above it (with `Annotations` in it).
        images: folder of the pictures; by default the XML's, or `JPEGImages` or `images` in it or beside it.
        one_based: the first pixel is 1 and xmax, ymax lie inside the box, as in the original VOC sets; by default edges
            count from 0 and xmax, ymax lie outside, as most labelling tools write them.
        difficult: take boxes that are marked so; by default they are treated as crowds in COCO.
        question, absent, absent_answer, seed, problems: as in `coco.convert`.

    Raises:
        DataError: no XML, a missing or wrong field, or a picture of another size than the XML says.
        BoxError: a malformed box or one outside its picture; names the object's index.
        ImageError: a picture does not exist or can't be read.
    """
    root, wrong = Path(path), Problems(problems)
    asking = Asking(question=question, absent=absent, absent_answer=absent_answer, seed=seed)
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    files = sorted(folder.glob("*.xml")) if folder.is_dir() else []
    if not root.is_dir():
        raise DataError("no such folder", expected="a folder of *.xml", fix="Correct the path.", where=str(root))
    if not files:
        raise DataError("no XML file in it", expected="a folder of *.xml", fix="Correct the path.", where=str(root))
    found: list[Annotated] = []
    for file in files:
        with wrong.caught():
            tree = _parse(file)
            about = _picture(tree, file, images)
            entries = [(f"{file} object[{index}]", entry) for index, entry in enumerate(tree.findall("object"))]
            # Something without a name may be of any class: then the whole picture is left out.
            for name, (where, entry) in [(_text(entry, "name", where), (where, entry)) for where, entry in entries]:
                with wrong.caught(), about.reading(name):
                    if difficult or (entry.findtext("difficult") or "").strip() != "1":
                        about.add(name, _box(entry, where, int(one_based)), f"{where} bndbox")
            found.append(about)
    names = sorted({name for about in found for name in about.seen})
    return wrong.close(asking.samples(found, names, wrong), str(root))


class _NoDoctype(ET.TreeBuilder):
    """Stops at a document type: before any entity is defined, and where an external one is named."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError(
            f"a document type (<!DOCTYPE {name} ...>)", expected="XML without entities", fix="Remove it from the file."
        )


def _parse(file: Path) -> ET.Element:
    try:
        tree = ET.XML(file.read_bytes(), parser=ET.XMLParser(target=_NoDoctype()))
    except OSError as error:
        raise _fields.unreadable(file, error) from error
    except DataError as error:
        raise DataError(error.found, expected=error.expected, fix=error.fix, where=str(file)) from None
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: encodings
        raise DataError(f"not XML ({error})", expected="a VOC annotation", fix="Correct it.", where=str(file)) from None
    if tree.tag != "annotation":
        raise DataError(f"<{tree.tag}>", expected="<annotation>", fix="Leave other XML out.", where=str(file))
    return tree


def _picture(tree: ET.Element, file: Path, images: str | Path | None) -> Annotated:
    name = _text(tree, "filename", str(file))
    beside = [place / inner for place in (file.parent, file.parent.parent) for inner in _PICTURES]
    folders = [file.parent, *beside] if images is None else [Path(images)]
    folder = next((place for place in folders if is_there(place / name)), folders[0])
    size = tree.find("size")
    said = (None, None) if size is None else tuple(_number(size, side, f"{file} size") for side in ("width", "height"))
    return Annotated.open(folder, name, (said[0], said[1]), str(file))


def _box(entry: ET.Element, where: str, first: int) -> Box:
    box = entry.find("bndbox")
    if box is None:
        raise DataError("missing", expected="xmin, ymin, xmax, ymax", fix="Add it.", where=f"{where} bndbox")
    x1, y1, x2, y2 = (_number(box, edge, f"{where} bndbox") for edge in ("xmin", "ymin", "xmax", "ymax"))
    return Box(x1 - first, y1 - first, x2, y2)


def _text(element: ET.Element, tag: str, where: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise DataError("missing or empty", expected="a text", fix="Fill it.", where=f"{where} {tag}")
    return text


def _number(element: ET.Element, tag: str, where: str) -> float:
    return _fields.number_in(_text(element, tag, where), f"{where} {tag}")
