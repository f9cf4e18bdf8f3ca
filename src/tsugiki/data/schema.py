"""The one format on disk: a line of JSONL is one conversation of text, image and box parts.

    {"id": "7", "task": "place", "options": [], "meta": {}, "messages": [
      {"role": "user", "content": [{"type": "image", "image": "pictures/7.jpg"},
                                   {"type": "text", "text": "Where is the cup?"}]},
      {"role": "assistant", "content": [{"type": "box", "box": [12, 30, 80, 96], "image": 0, "label": "cup"}]}]}

`content` may be a plain string; only `messages` is needed. Paths are relative to the JSONL. Boxes are pixels of the
upright original, xyxy; `image` is the number of the picture in the sample, `label` is for people and is not shown to
the model. Every error names file, line and field.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tsugiki.data import _fields
from tsugiki.data._record import ROLES, from_record
from tsugiki.data.boxes import BoxCodec
from tsugiki.data.files import atomic_write
from tsugiki.data.images import MAX_PIXELS, content_key, open_image
from tsugiki.data.steps import marked, weights
from tsugiki.errors import DataError, InputError
from tsugiki.types import BoxPart, DemoPart, ImagePart, ImageSource, Message, Part, Sample, TextPart

__all__ = [
    "ROLES",
    "check",
    "from_record",
    "load",
    "message_text",
    "read",
    "scan",
    "scan_checked",
    "to_record",
    "write",
]


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a JSONL file, one by one; pictures are not opened.

    Raises:
        DataError: the file is missing, or at its first wrong line.
        BoxError: a box of no or negative size, or with a negative edge.
    """
    for item in scan(path):
        if isinstance(item, InputError):
            raise item
        yield item


def load(path: str | Path) -> list[Sample]:
    """All samples of a JSONL file.

    Raises:
        DataError: as `read`.
    """
    return list(read(path))


def scan(path: str | Path) -> Iterator[Sample | InputError]:
    """One sample or one error for each line that is not blank.

    Raises:
        DataError: the file is missing or can't be read.
    """
    path = Path(path)
    for number, record in _fields.jsonl_records(path):
        if isinstance(record, DataError):
            yield record
            continue
        try:
            yield from_record(record, folder=path.parent, where=f"{path}:{number}", default_id=str(number))
        except InputError as error:
            yield error


def to_record(sample: Sample, image: Mapping[int, str]) -> dict[str, Any]:
    """A sample as plain JSON values; `image` maps the number of each picture to its path in the file."""
    count = 0
    messages = []
    for message in sample.messages:
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
            elif isinstance(part, DemoPart):
                content.append({"type": "demo", "image": image[count], "text": part.text, "form": part.form})
                count += 1
            elif isinstance(part, ImagePart):
                content.append({"type": "image", "image": image[count]})
                count += 1
            else:
                b = part.box
                entry = {"type": "box", "box": [b.x1, b.y1, b.x2, b.y2], "image": part.image, "label": part.label}
                content.append({k: v for k, v in entry.items() if v is not None})
        plain = content[0]["text"] if len(content) == 1 and content[0]["type"] == "text" else content
        messages.append({"role": message.role, "content": plain})
    record: dict[str, Any] = {"id": sample.id, "task": sample.task, "messages": messages}
    if sample.options:
        record["options"] = list(sample.options)
    if sample.meta:
        record["meta"] = dict(sample.meta)
    return record


def write(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write samples as JSONL, whole or not at all; open pictures and bytes are stored in `<stem>_images` beside it.

    Raises:
        DataError: a value in `meta` that JSON can't hold, or text that is not valid Unicode.
        StoreError: the disk is full.
    """
    path = Path(path)
    lines = []
    for number, sample in enumerate(samples, 1):
        names = {i: _stored(source, path) for i, source in enumerate(sample.images)}
        try:
            line = json.dumps(to_record(sample, names), ensure_ascii=False, allow_nan=False)
            line.encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"sample {sample.id!r} can't be written as JSON ({error})",
                expected="texts, finite numbers, lists and maps",
                fix="Correct its meta or text.",
                where=f"{path}:{number}",
            ) from error
        lines.append(line + "\n")
    atomic_write(path, "".join(lines))


def check(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> list[InputError]:
    """All that is wrong with a JSONL file and its pictures, in order of lines; every picture is decoded once.

    Returns DataError, ImageError and BoxError, at most one for each line. An empty file is one error.
    """
    return [item for item in scan_checked(path, max_pixels=max_pixels) if isinstance(item, InputError)]


def scan_checked(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Iterator[Sample | InputError]:
    """As `scan`, and opens every picture, checks boxes against it, ids, and options and marks of steps against the
    answer."""
    checker = _Checker(max_pixels)
    empty = True
    try:
        for item in scan(path):
            empty = False
            yield checker.check(item) if isinstance(item, Sample) else item
    except DataError as error:
        yield error
    else:
        if empty:
            yield DataError("no sample in it", expected="one JSON object a line", fix="Fill it.", where=str(path))


def message_text(message: Message) -> str:
    """The text of a message without its pictures and boxes."""
    return "".join(p.text for p in message.parts if isinstance(p, TextPart))


class _Checker:
    """What needs more than one line or the pictures; each picture is decoded once."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.sizes: dict[ImageSource, tuple[int, int] | InputError] = {}
        self.ids: dict[str, str] = {}

    def check(self, sample: Sample) -> Sample | InputError:
        """The sample, or the first thing that is wrong with it."""
        first = self.ids.setdefault(sample.id, sample.where)
        try:
            if first != sample.where:
                raise DataError(
                    f"id {sample.id!r} again, first at {first}",
                    expected="another id for each line",
                    fix="Rename one.",
                    where=f"{sample.where} id",
                )
            sizes = [self._size(p, where) for where, p in _parts(sample) if isinstance(p, ImagePart)]
            for where, part in _parts(sample):
                if isinstance(part, BoxPart):
                    BoxCodec.validate(part.box, sizes[part.image], where=f"{where}.box")
            _check_options(sample)
            marked(sample, where=sample.where)
            weights(sample, where=sample.where)
        except InputError as error:
            return error
        return sample

    def _size(self, part: ImagePart, where: str) -> tuple[int, int]:
        if part.source not in self.sizes:
            try:
                self.sizes[part.source] = open_image(part.source, max_pixels=self.max_pixels).size
            except InputError as error:
                self.sizes[part.source] = error
        known = self.sizes[part.source]
        if isinstance(known, InputError):
            raise type(known)(known.found, expected=known.expected, fix=known.fix, where=f"{where}.image")
        return known


def _check_options(sample: Sample) -> None:
    answer = sample.answer
    if sample.options and answer is not None and (text := message_text(answer)) not in sample.options:
        raise DataError(
            f"answer {_fields.short(text)} is not an option",
            expected=f"one of {_fields.short(list(sample.options))}",
            fix=_fields.nearest(text, sample.options),
            where=f"{sample.where} options",
        )


def _parts(sample: Sample) -> Iterator[tuple[str, Part]]:
    for m, message in enumerate(sample.messages):
        for p, part in enumerate(message.parts):
            yield f"{sample.where} messages[{m}].content[{p}]", part


def _stored(source: ImageSource, path: Path) -> str:
    """The path to write for a picture; what is not a file yet becomes one."""
    if not isinstance(source, (str, Path)):
        folder = path.parent / f"{path.stem}_images"
        target = folder / f"{content_key(source)[:32]}.png"
        if not target.exists():
            buffer = io.BytesIO()
            open_image(source).save(buffer, "PNG")
            atomic_write(target, buffer.getvalue())
        source = target
    try:
        return Path(os.path.relpath(source, path.parent)).as_posix()
    except ValueError:  # another drive
        return Path(source).absolute().as_posix()
