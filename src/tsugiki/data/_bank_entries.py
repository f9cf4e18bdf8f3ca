"""What goes into a demo bank and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tsugiki.data._fields import nearest, short
from tsugiki.errors import DataError

COLUMNS = "id, picture, label, source, image, note, added, withdrawn"
"""Fields of `Entry`, as SQLite's table has them."""


@dataclass(frozen=True, kw_only=True)
class NewEntry:
    """What `Bank.add` takes."""

    picture: str
    """SHA-256 of the pixels (`data.images.pixel_key`): the same picture is in the bank once."""
    label: str
    vector: npt.NDArray[Any]
    """[d], of any length: made a unit vector, stored as fp16."""
    source: str = ""
    """Where the picture came from, for people."""
    image: str = ""
    """Where the picture is now: a path, relative to the bank's folder where it is a copy."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One labelled picture of a bank."""

    id: int
    picture: str
    label: str
    source: str
    image: str
    note: str
    added: str
    """UTC, ISO 8601."""
    withdrawn: str | None = None
    """When it was withdrawn; None = in use."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """An entry and how far it is from a query."""

    entry: Entry
    distance: float
    """1 - cosine, 0 to 2."""


@dataclass(frozen=True, kw_only=True)
class Added:
    """What `Bank.add` did."""

    ids: tuple[int, ...]
    """Of the new entries."""
    known: tuple[int, ...]
    """Of entries that had the same picture and label already."""


def entry_of(row: Sequence[Any]) -> Entry:
    return Entry(**dict(zip(COLUMNS.split(", "), row, strict=True)))


def no_answer(new: NewEntry, answers: Sequence[str]) -> DataError:
    return DataError(
        f"the label {new.label!r} is not in the answer set",
        expected=f"one of {short(answers)}",
        fix=f"{nearest(new.label, answers)} A new class is added with extend=True (--new-class).".strip(),
        where=new.source or new.picture,
    )


def conflict(new: NewEntry, other: int, label: str) -> DataError:
    return DataError(
        f"the picture is in the bank as {label!r} (entry {other}), and here as {new.label!r}",
        expected="one label for a picture",
        fix=f"Withdraw entry {other}, or leave this picture out.",
        where=new.source or new.picture,
    )
