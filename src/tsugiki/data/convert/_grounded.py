"""What formats with boxes have in common: pictures with boxes by class -> "Where is the X?", and what is not there."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.data.convert._problems import Problems, picture
from tsugiki.data.images import image_size
from tsugiki.errors import DataError, InputError
from tsugiki.types import Box, BoxPart, Message, Part, Sample, TextPart

OVERHANG = 1.0
"""Pixels by which tools let boxes stand over the edge; such boxes are cut."""

QUESTION = "Where is the {name}?"
ABSENT_ANSWER = "There is none."


@dataclass
class Annotated:
    """One picture and what is marked on it."""

    path: Path
    size: tuple[int, int]
    name: str
    """Its path in the foreign file; begins the ids of its samples."""
    where: str
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    """By class, in pixels."""
    seen: set[str] = field(default_factory=set)
    """Classes with any annotation, also one that is wrong or no box: never asked for as absent."""
    broken: set[str] = field(default_factory=set)
    """Classes with a wrong annotation: not asked for, an answer that lacks a box would teach a mistake."""
    crowds: set[str] = field(default_factory=set)
    """Classes of which some are there without a box of their own."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, name: str, said: tuple[Any, Any], where: str, **more: Any) -> Annotated:
        """A picture of `folder`, whose (width, height) the annotations give as `said`; None = they don't.

        Raises:
            ImageError: it does not exist or can't be read.
            DataError: it has another size.
        """
        if any(isinstance(value, int | float) and value <= 0 for value in said):
            raise DataError(
                f"a picture of {_plain(said[0])}x{_plain(said[1])} pixels",
                expected="a positive width and height",
                fix="Correct them.",
                where=where,
            )
        file = picture(folder, name, where)
        size = image_size(file, where=where)
        width, height = (value if given is None else given for given, value in zip(said, size, strict=True))
        if (width, height) != size:
            raise DataError(
                f"{_plain(width)}x{_plain(height)} pixels, but {name} has {size[0]}x{size[1]} (after EXIF rotation)",
                expected="the size of the picture that the boxes were drawn on",
                fix="Use the pictures that were labelled, or turn the boxes with the picture.",
                where=where,
            )
        return cls(file, size, name, where, **more)

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """A block that reads an annotation of the class `name`."""
        self.seen.add(name)
        try:
            yield
        except InputError:
            self.broken.add(name)
            raise

    def add(self, name: str, box: Box, where: str) -> None:
        """Add a box in pixels; one that stands over the edge by no more than `OVERHANG` is cut.

        Raises:
            BoxError: of no or negative size, or outside the picture.
        """
        width, height = self.size
        if min(box.x1, box.y1) >= -OVERHANG and box.x2 <= width + OVERHANG and box.y2 <= height + OVERHANG:
            box = PaddedSquare(width, height).clip(box) or box
        BoxCodec.validate(box, self.size, where=where)
        self.boxes.setdefault(name, []).append(box)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How questions are put; the fields are keyword arguments of the converters."""

    question: str
    """{name} becomes the class."""
    absent: int
    """Questions a picture about classes that are not in it."""
    absent_answer: str
    seed: int
    """Chooses the absent classes."""

    def __post_init__(self) -> None:
        if not isinstance(self.absent, int) or self.absent < 0:
            raise DataError(
                f"{self.absent!r}", expected="a number of questions, 0 or more", fix="Correct it.", where="absent"
            )

    def samples(self, found: Iterable[Annotated], names: Sequence[str], wrong: Problems) -> list[Sample]:
        """For each class of each picture one question, answered by all its boxes from left to right; then the absent
        ones, out of `names`. Tasks are "box" and "absent". A picture that comes again goes to `wrong`."""
        samples: list[Sample] = []
        places: dict[Path, str] = {}
        for about in found:
            with wrong.caught():
                _check_new(about, places)
                samples += self._present(about) + self._absent(about, names)
        return samples

    def _present(self, about: Annotated) -> list[Sample]:
        right = {name: boxes for name, boxes in about.boxes.items() if name not in about.broken}
        return [self._sample(about, name, _answer(boxes, name), "box") for name, boxes in right.items()]

    def _absent(self, about: Annotated, names: Sequence[str]) -> list[Sample]:
        missing = [name for name in dict.fromkeys(names) if name not in about.seen]
        rng = random.Random(f"{self.seed}/absent/{about.name}")
        drawn = rng.sample(missing, min(self.absent, len(missing)))
        return [self._sample(about, name, (TextPart(self.absent_answer),), "absent") for name in drawn]

    def _sample(self, about: Annotated, name: str, answer: tuple[Part, ...], task: str) -> Sample:
        question = Message.of("user", self.question.replace("{name}", name), (about.path,))
        return Sample(
            id=f"{about.name}#{name}",
            messages=(question, Message("assistant", answer)),
            task=task,
            meta={"category": name, **({"crowds": sorted(about.crowds)} if about.crowds else {}), **about.meta},
            where=about.where,
        )


def _check_new(about: Annotated, places: dict[Path, str]) -> None:
    if about.path in places:
        raise DataError(
            f"the picture {about.name!r} again, first at {places[about.path]}",
            expected="one entry for each picture",
            fix="Merge the two, or remove one.",
            where=about.where,
        )
    places[about.path] = about.where


def _answer(boxes: list[Box], name: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    for box in sorted(boxes, key=lambda b: (b.x1, b.y1)):
        parts += [TextPart(" ")] if parts else []
        parts.append(BoxPart(box, 0, name))
    return tuple(parts)


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value
