"""A folder of pictures: one folder per class, or with metadata.jsonl (or .csv) as the datasets library writes it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsugiki.data import _fields
from tsugiki.data.convert import csv
from tsugiki.data.convert._problems import Problems
from tsugiki.data.convert._rows import Wording, sample_from_row, with_options
from tsugiki.data.images import image_files
from tsugiki.errors import DataError, InputError
from tsugiki.types import Sample

DESCRIPTION = (
    "one folder per class, or a folder with metadata.jsonl (file_name and text, label, or question and answer)"
)
SPLITS = frozenset({"train", "training", "test", "testing", "validation", "valid", "val", "dev"})


def convert(path: str | Path, *, problems: list[InputError] | None = None, **wording: str) -> list[Sample]:
    """Samples of a folder; a first level of train, test, ... goes into `meta["split"]`.

    Folder names are the classes and, sorted, the closed set of answers, in any language. The class is the first
    folder below the root (or below the split).

    Args:
        problems: a list that takes the errors of wrong items, which are then left out.
        wording: question, answer, caption_question, task; see `Wording`.

    Raises:
        DataError: no folder, pictures without a class, a class without pictures, or a wrong line of metadata.
        UnknownNameError: an unknown option.
        ImageError: metadata names a picture that does not exist.
    """
    root, form = Path(path), Wording.of(wording)
    if not root.is_dir():
        found = "it is a file" if root.exists() else "the folder does not exist"
        raise DataError(found, expected="a folder of pictures", fix="Correct the path.", where=str(root))
    wrong = Problems(problems)
    samples: list[Sample] = []
    for folder, split in _split_folders(root):
        metadata = next((f for f in (folder / "metadata.jsonl", folder / "metadata.csv") if f.is_file()), None)
        rows = _class_rows(folder, root) if metadata is None else _metadata_rows(metadata)
        for where, row in rows:
            with wrong.caught():
                if isinstance(row, DataError):
                    raise row
                samples.append(sample_from_row({"split": split, **row}, folder, where, form))
    return wrong.close(with_options(_unique(samples), form), str(root))


def _split_folders(root: Path) -> list[tuple[Path, str | None]]:
    below = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if below and all(p.name.lower() in SPLITS for p in below) and not (root / "metadata.jsonl").is_file():
        return [(p, p.name) for p in below]
    return [(root, None)]


def _class_rows(folder: Path, root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(
            "no folder in it" if not image_files(folder) else "pictures, but no folder of a class",
            expected="one folder for each class, or a metadata.jsonl",
            fix="Sort the pictures into folders that are named by their class.",
            where=str(folder),
        )
    for place in classes:
        files = image_files(place)
        if not files:
            raise DataError(
                f"the class {place.name!r} has no picture",
                expected="one or more",
                fix="Fill or remove it.",
                where=str(place),
            )
        for file in files:
            # File systems of macOS store か + ゛ for が; answers use the usual form.
            label = unicodedata.normalize("NFC", place.name)
            name = file.relative_to(folder).as_posix()
            yield str(file), {"file_name": name, "id": file.relative_to(root).as_posix(), "label": label}


def _metadata_rows(metadata: Path) -> Iterator[tuple[str, Any]]:
    if metadata.suffix == ".csv":
        yield from csv.rows(metadata)
        return
    for number, record in _fields.jsonl_records(metadata):
        where = f"{metadata}:{number}"
        if not isinstance(record, (dict, DataError)):
            record = DataError(_fields.short(record), expected="a map {...}", fix="Correct it.", where=where)
        yield where, record


def _unique(samples: list[Sample]) -> list[Sample]:
    """Several lines of metadata may ask about one picture: their ids get a number."""
    seen: dict[str, int] = {}
    done = []
    for sample in samples:
        count = seen[sample.id] = seen.get(sample.id, 0) + 1
        done.append(replace(sample, id=f"{sample.id}#{count}") if count > 1 else sample)
    return done
