"""Cells of a study: a file each, written when it is finished, and read by the next call with the same settings.

A cell is JSON: `size` (pictures to learn from), `fold`, and `rows`, one for each question, with the key of its picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsugiki.data.files import atomic_write
from tsugiki.errors import RecipeError, StoreError

Cell = dict[str, Any]


def begin(folder: Path, content: Mapping[str, Any]) -> None:
    """Write down what the study is, or refuse to mix two.

    Raises:
        RecipeError: the folder holds a study with other settings; names the first one.
        StoreError: the folder can't be written, or its study.json is damaged.
    """
    file = folder / "study.json"
    if not file.is_file():
        atomic_write(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return
    known = _read(file)
    for key, value in content.items():
        if known.get(key) != value:
            raise RecipeError(
                f"{key} is {value!r}, but the study in this folder was started with {known.get(key)!r}",
                expected="the same settings and data to continue",
                fix="Change it back, or choose another folder.",
                where=str(folder),
            )


def known(file: Path) -> Cell | None:
    """The cell in a file; None where it is not finished.

    Raises:
        StoreError: the file is damaged.
    """
    return _read(file) if file.is_file() else None


def keep(file: Path, cell: Cell) -> None:
    """Write a finished cell, whole or not at all."""
    atomic_write(file, json.dumps(cell, ensure_ascii=False) + "\n")


def by_size(cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    """Cells of each size, sizes and folds in order."""
    found: dict[int, list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: (c["size"], c["fold"])):
        found.setdefault(cell["size"], []).append(cell)
    return found


def grouping(rows: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """For paired statistics, as `evals.task.picture_groups`: None where every row has its own."""
    found = [str(row["picture"]) for row in rows]
    return None if len(set(found)) == len(found) else found


def _read(file: Path) -> Cell:
    try:
        content: Cell = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"can't be read ({error})", expected="what a study wrote", fix="Delete it.", where=str(file)
        ) from error
    return content
