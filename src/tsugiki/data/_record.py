"""One parsed line of the JSONL format -> one Sample; every value is checked where it is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from tsugiki.data import _fields
from tsugiki.data.boxes import BoxCodec
from tsugiki.errors import DataError
from tsugiki.types import DEMO_FORMS, Box, BoxPart, DemoPart, ImagePart, Message, Part, Sample, TextPart

ROLES = ("system", "user", "assistant")
_KEYS = ("id", "messages", "task", "options", "meta")
_PART_KEYS = {
    "text": ("type", "text"),
    "image": ("type", "image"),
    "demo": ("type", "image", "text", "form"),
    "box": ("type", "box", "image", "label"),
}


def from_record(record: object, *, folder: Path, where: str, default_id: str = "") -> Sample:
    """Build a sample from a parsed line.

    Raises:
        DataError: an unknown key or role, a wrong type, an image part without an image, a box without its picture.
        BoxError: a box of no or negative size, or with a negative edge.
    """
    line = _fields.mapping(record, where, _KEYS)
    messages = _fields.sequence(line.get("messages"), f"{where} messages")
    if not messages:
        raise DataError("no message", expected="at least one", fix="Leave the line out.", where=f"{where} messages")
    built = tuple(_message(m, folder, f"{where} messages[{i}]") for i, m in enumerate(messages))
    identifier = line.get("id", default_id)
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    sample = Sample(
        id=_fields.text(identifier, f"{where} id"),
        messages=built,
        task=_fields.text(line.get("task", "chat"), f"{where} task"),
        options=tuple(
            _fields.text(o, f"{where} options[{i}]")
            for i, o in enumerate(_fields.sequence(line.get("options") or [], f"{where} options"))
        ),
        meta=dict(_fields.mapping(line.get("meta") or {}, f"{where} meta")),
        where=where,
    )
    _check_references(sample)
    return sample


def _message(value: object, folder: Path, where: str) -> Message:
    entry = _fields.mapping(value, where, ("role", "content"))
    role = entry.get("role")
    if role not in ROLES:
        raise DataError(
            f"unknown role {role!r}",
            expected=f"one of {', '.join(ROLES)}",
            fix=_fields.nearest(role, ROLES),
            where=f"{where}.role",
        )
    content = entry.get("content")
    if isinstance(content, str):
        return Message(role, (TextPart(_fields.text(content, f"{where}.content")),))
    parts = _fields.sequence(content, f"{where}.content", or_text=True)
    return Message(role, tuple(_part(p, folder, f"{where}.content[{i}]") for i, p in enumerate(parts)))


def _part(value: object, folder: Path, where: str) -> Part:
    entry = _fields.mapping(value, where)
    kind = entry.get("type")
    if kind not in tuple(_PART_KEYS):
        raise DataError(
            f"unknown part type {kind!r}",
            expected=f"one of {', '.join(_PART_KEYS)}",
            fix=_fields.nearest(kind, _PART_KEYS),
            where=f"{where}.type",
        )
    _fields.mapping(entry, where, _PART_KEYS[kind])
    if kind == "text":
        return TextPart(_fields.text(entry.get("text"), f"{where}.text"))
    if kind == "image":
        return ImagePart(_image_path(entry.get("image"), folder, f"{where}.image"))
    if kind == "demo":
        return _demo(entry, folder, where)
    image, label = entry.get("image", 0), entry.get("label")
    if not isinstance(image, int) or isinstance(image, bool) or image < 0:
        raise DataError(
            f"{image!r}", expected="the number of the box's picture, from 0", fix="Correct it.", where=f"{where}.image"
        )
    return BoxPart(_box(entry.get("box"), f"{where}.box"), image, None if label is None else _fields.text(label, where))


def _demo(entry: Mapping[str, object], folder: Path, where: str) -> DemoPart:
    form = entry.get("form", DEMO_FORMS[0])
    if form not in DEMO_FORMS:
        raise DataError(
            f"unknown form {form!r}",
            expected=f"one of {', '.join(DEMO_FORMS)}",
            fix=_fields.nearest(form, DEMO_FORMS),
            where=f"{where}.form",
        )
    said = _fields.text(entry.get("text"), f"{where}.text")
    return DemoPart(_image_path(entry.get("image"), folder, f"{where}.image"), said, str(form))


def _image_path(value: object, folder: Path, where: str) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            "an image part without an image" if value in (None, "") else f"{value!r} is no path",
            expected="a path relative to the JSONL file",
            fix='Write {"type": "image", "image": "folder/picture.jpg"}.',
            where=where,
        )
    if "://" in value or value.startswith("data:"):
        raise DataError(
            f"an address ({value[:60]})",
            expected="a path",
            fix="Download the picture; nothing is fetched.",
            where=where,
        )
    return folder / _fields.text(value, where)


def _box(value: object, where: str) -> Box:
    numbers = value if isinstance(value, list) else []
    plain = [float(v) for v in numbers if isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9]
    if len(plain) != 4 or len(numbers) != 4 or not all(map(math.isfinite, plain)):
        raise DataError(
            f"{_fields.short(value)}", expected="four finite numbers [x1, y1, x2, y2]", fix="Correct it.", where=where
        )
    return Box(*plain)


def _check_references(sample: Sample) -> None:
    count = len(sample.images)
    for m, message in enumerate(sample.messages):
        for p, part in enumerate(message.parts):
            if not isinstance(part, BoxPart):
                continue
            where = f"{sample.where} messages[{m}].content[{p}]"
            if part.image >= count:
                raise DataError(
                    f"a box in picture {part.image}, but the sample has {count}",
                    expected="a number from 0 of one of its image parts",
                    fix="Add the image part, or correct the number.",
                    where=f"{where}.image",
                )
            BoxCodec.validate(part.box, None, where=f"{where}.box")  # the size is not known yet: opening comes later
