"""Reading of untrusted JSON: every value is checked where it is taken, and every error names its field."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsugiki.errors import DataError


def jsonl_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, parsed value or DataError) of every line that is not blank.

    Raises:
        DataError: the file is missing or can't be read.
    """
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    with file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield number, _parse(raw.rstrip(), f"{path}:{number}", "one JSON object a line")


def json_file(path: Path) -> Any:
    """A whole JSON file.

    Raises:
        DataError: missing, not UTF-8, or not JSON.
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    value = _parse(raw.removeprefix(b"\xef\xbb\xbf"), str(path), "JSON")
    if isinstance(value, DataError):
        raise value
    return value


def _parse(raw: bytes, where: str, expected: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return DataError("bytes that are not UTF-8", expected=expected, fix="Save the file as UTF-8.", where=where)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if "\n" in error.doc.rstrip() else f"column {error.colno}"
        return DataError(f"not JSON ({error.msg} at {place})", expected=expected, fix="Correct the line.", where=where)
    except (ValueError, RecursionError) as error:  # an endless number, a thousand brackets
        return DataError(f"not usable JSON ({error})", expected=expected, fix="Correct the line.", where=where)


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a data file that can't be opened."""
    if isinstance(error, FileNotFoundError):
        found = "the file does not exist"
    elif os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises on a name that is too long)
        found = "it is a folder"
    else:
        found = f"the file can't be read ({getattr(error, 'strerror', None) or error})"
    return DataError(found, expected="a data file", fix="Correct the path.", where=str(path))


def mapping(value: object, where: str, keys: Sequence[str] | None = None) -> Mapping[str, Any]:
    """The value as a map; with `keys`, no other key is allowed.

    Raises:
        DataError: another type, or an unknown key with the nearest one that exists.
    """
    if not isinstance(value, Mapping):
        raise DataError(short(value), expected="a map {...}", fix="Correct it.", where=where)
    for key in value:
        if keys is not None and key not in keys:
            extra = " Own fields go into meta." if "meta" in keys else ""
            raise DataError(
                f"unknown field {key!r}",
                expected=f"one of {', '.join(keys)}",
                fix=nearest(key, keys) + extra,
                where=where,
            )
    return value


def sequence(value: object, where: str, *, or_text: bool = False) -> Sequence[Any]:
    """The value as a list.

    Raises:
        DataError: another type, or missing.
    """
    if not isinstance(value, (list, tuple)):
        expected = "a text or a list of parts" if or_text else "a list [...]"
        found = "missing" if value is None else short(value)
        raise DataError(found, expected=expected, fix="Correct it.", where=where)
    return value


def text(value: object, where: str) -> str:
    """The value as text that UTF-8 can hold.

    Raises:
        DataError: another type, missing, or a lone half of a surrogate pair.
    """
    if not isinstance(value, str):
        found = "missing" if value is None else short(value)
        raise DataError(found, expected="a text", fix="Correct it.", where=where)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"half of a surrogate pair at character {error.start}",
            expected="valid Unicode",
            fix="Remove it.",
            where=where,
        ) from error
    return value


def number(value: object, where: str) -> float:
    """The value as a finite number.

    Raises:
        DataError: another type, missing, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        found = "missing" if value is None else short(value)
        raise DataError(found, expected="a finite number", fix="Correct it.", where=where)
    return float(value)


def number_in(text: str, where: str) -> float:
    """The finite number that a text is.

    Raises:
        DataError: it is none.
    """
    try:
        return number(float(text), where)
    except ValueError:
        raise DataError(short(text), expected="a finite number", fix="Correct it.", where=where) from None


def nearest(name: object, known: Iterable[str]) -> str:
    """ "Did you mean ...?" or "Choose one of these."."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else "Choose one of these."


def short(value: object, limit: int = 80) -> str:
    """A value for an error message, cut."""
    shown = repr(value)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
