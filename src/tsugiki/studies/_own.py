"""A user's own pictures, in any format that `data.convert` knows: which one is found by looking.

Mistakes in labels, boxes and tables stop with one line. A picture that can't be read is left out and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tsugiki.data import _fields, schema
from tsugiki.data.convert import coco, csv, imagefolder, llava
from tsugiki.data.convert._rows import Wording
from tsugiki.data.detail import instruct
from tsugiki.data.images import image_files, open_image
from tsugiki.errors import DataError, ImageError, InputError
from tsugiki.evals.tasks import decisions
from tsugiki.types import Sample

KINDS = "one folder of pictures for each class, a CSV, a COCO or LLaVA JSON, or a JSONL"
WHERE_IS = "Where is the {name}?"


@dataclass(frozen=True)
class Own:
    """What was found."""

    kind: str
    """imagefolder | csv | coco | llava | jsonl | samples."""
    samples: list[Sample]
    left_out: list[ImageError]
    """Pictures that can't be read; the samples about them are left out."""


def read(data: str | Path | Sequence[Sample], *, question: str | None = None) -> Own:
    """Samples of a user's data; every picture is opened once.

    Where the data has labels or boxes but no questions, they are asked in the words that `chat` uses: a class with
    detail "short", a box with detail "boxes".

    Args:
        question: for labels, or with {name} for COCO categories; in any language.

    Raises:
        DataError: nothing there, an unknown format, a wrong line or label, or no sample that is left.
        BoxError: a wrong box.
        ImageError: no picture can be read.
    """
    problems: list[InputError] = []
    if isinstance(data, str | Path):
        kind, samples = _convert(Path(data), question, problems)
        where = str(data)
    else:
        kind, samples, where = "samples", list(data), "data"
    wrong = [p for p in problems if not isinstance(p, ImageError)]
    if wrong:
        raise _with_count(wrong[0], len(wrong))
    left_out = [p for p in problems if isinstance(p, ImageError)]
    readable: dict[object, bool] = {}
    samples = [s for s in samples if all(_opens(source, s, readable, left_out) for source in s.images)]
    if left_out and not samples:
        raise _with_count(left_out[0], len(left_out))
    if not samples:
        raise DataError("no sample in it", expected="one or more", fix="Fill it or correct the path.", where=where)
    samples = _captioned(samples)
    decisions.select(samples)  # a gold answer that is no option is found now, not after the training
    return Own(kind, samples, left_out)


def detect(path: Path) -> str:
    """imagefolder, csv, coco, llava or jsonl.

    Raises:
        DataError: nothing there, or nothing of these.
    """
    if path.is_dir():
        if not image_files(path) and not list(path.rglob("metadata.*")):
            raise DataError("no picture in the folder or below", expected=KINDS, fix="Check the path.", where=str(path))
        return "imagefolder"
    if not path.exists():
        raise DataError("it does not exist", expected=KINDS, fix="Correct the path.", where=str(path))
    suffix = path.suffix.lower()
    if suffix in {".csv", ".tsv"}:
        return "csv"
    if suffix == ".jsonl":
        first = next((record for _, record in _fields.jsonl_records(path)), None)
        return "llava" if isinstance(first, dict) and "conversations" in first else "jsonl"
    if suffix == ".json":
        content = _fields.json_file(path)
        if isinstance(content, list):
            return "llava"
        if isinstance(content, dict) and {"images", "annotations", "categories"} & content.keys():
            return "coco"
    raise DataError(
        f"{path.name} is nothing known", expected=KINDS, fix="See `tsugiki data convert --help`.", where=str(path)
    )


def _convert(path: Path, question: str | None, problems: list[InputError]) -> tuple[str, list[Sample]]:
    kind = detect(path)
    if kind == "coco":
        return kind, coco.convert(path, question=instruct(question or WHERE_IS, "boxes"), problems=problems)
    if question is not None and kind in {"jsonl", "llava"}:
        raise DataError(
            "a question, and samples that ask their own",
            expected="one of the two",
            fix="Leave it out.",
            where=str(path),
        )
    if kind == "llava":
        return kind, llava.convert(path, problems=problems)
    if kind == "jsonl":
        found = list(schema.scan_checked(path))
        problems += [item for item in found if not isinstance(item, Sample)]
        return kind, [item for item in found if isinstance(item, Sample)]
    words = Wording()
    wording = {
        "question": instruct(question or words.question, "short"),
        "caption_question": instruct(words.caption_question, "full"),
    }
    if kind == "imagefolder":
        return kind, imagefolder.convert(path, problems=problems, **wording)
    table: dict[str, Any] = {"encoding": _encoding(path), "delimiter": "\t" if path.suffix.lower() == ".tsv" else ","}
    return kind, csv.convert(path, problems=problems, **table, **wording)


def _encoding(path: Path) -> str:
    """UTF-8, or what Japanese spreadsheets write where it is not."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return "cp932"
    except OSError as error:
        raise _fields.unreadable(path, error) from error
    return "utf-8-sig"


def _captioned(samples: Sequence[Sample]) -> list[Sample]:
    """Where answers are boxes only, the names of what is boxed go into meta `caption`: the warm start needs words."""
    said: dict[object, list[str]] = {}
    for sample in samples:
        for part in sample.boxes:
            names = said.setdefault(_key(sample), [])
            if part.label and part.label not in names:
                names.append(part.label)
    done = []
    for sample in samples:
        names = said.get(_key(sample), [])
        wanted = names and len(sample.images) == 1 and "caption" not in sample.meta
        done.append(replace(sample, meta={**sample.meta, "caption": ", ".join(names)}) if wanted else sample)
    return done


def _key(sample: Sample) -> object:
    source = sample.images[0] if sample.images else None
    return source if isinstance(source, str | Path | bytes) else id(source)


def _opens(source: Any, sample: Sample, known: dict[object, bool], left_out: list[ImageError]) -> bool:
    key = source if isinstance(source, str | Path | bytes) else id(source)
    if key not in known:
        try:
            open_image(source, where=sample.where)
            known[key] = True
        except ImageError as error:
            left_out.append(error)
            known[key] = False
    return known[key]


def _with_count(error: InputError, n: int) -> InputError:
    more = f" (and {n - 1} more errors)" if n > 1 else ""
    return type(error)(error.found + more, expected=error.expected, fix=error.fix, where=error.where)
