"""A user's own pictures, in any format that `data.convert` knows: which one is found by looking.

Mistakes in labels, boxes and tables stop with one line. A picture that can't be read is left out and told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tsugiki.data import _fields, schema
from tsugiki.data.convert import coco, csv, imagefolder, labelstudio, llava, voc, yolo
from tsugiki.data.convert._rows import Wording
from tsugiki.data.detail import instruct
from tsugiki.data.images import image_files
from tsugiki.data.looks import look, look_ahead
from tsugiki.errors import DataError, ImageError, InputError
from tsugiki.evals.tasks import decisions
from tsugiki.types import Sample

KINDS = (
    "one folder of pictures for each class, a folder of VOC or YOLO, a CSV, a COCO, LLaVA or Label Studio JSON, or a "
    "JSONL"
)
NAMES = {
    "imagefolder": "one folder for each class",
    "csv": "a CSV",
    "coco": "COCO boxes",
    "voc": "Pascal VOC boxes",
    "yolo": "YOLO boxes",
    "labelstudio": "a Label Studio export",
    "llava": "LLaVA conversations",
    "jsonl": "JSONL",
    "samples": "samples",
}
WHERE_IS = "Where is the {name}?"
BOXED: Mapping[str, Callable[..., list[Sample]]] = {"coco": coco.convert, "voc": voc.convert, "yolo": yolo.convert}
YAMLS = ("data.yaml", "data.yml")


@dataclass(frozen=True)
class Own:
    """What was found."""

    kind: str
    """One of `NAMES`."""
    samples: list[Sample]
    left_out: list[ImageError]
    """Pictures that can't be read; the samples about them are left out."""

    @property
    def found(self) -> str:
        """What it is, in one line."""
        pictures = {_key(s) for s in self.samples if s.images}
        classes = sorted({o for s in self.samples for o in s.options})
        labels = sorted({p.label for s in self.samples for p in s.boxes if p.label})
        names = [f"{kind} {_listed(all_)}" for kind, all_ in (("classes", classes), ("boxes of", labels)) if all_]
        counts = f"{len(self.samples)} samples about {len(pictures)} pictures"
        return f"Found {NAMES[self.kind]}: {'; '.join([counts, *names])}"

    @property
    def notes(self) -> list[str]:
        """What was left out, a sentence."""
        if not self.left_out:
            return []
        shown = "; ".join(str(error) for error in self.left_out[:3])
        return [f"{len(self.left_out)} pictures can't be read and are left out: {shown}"]


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
    look_ahead(source for s in samples for source in s.images)
    samples = [s for s in samples if all(_opens(source, s, readable, left_out) for source in s.images)]
    if left_out and not samples:
        raise _with_count(left_out[0], len(left_out))
    if not samples:
        raise DataError("no sample in it", expected="one or more", fix="Fill it or correct the path.", where=where)
    samples = _told_apart(_captioned(samples))
    decisions.select(samples)  # a gold answer that is no option is found now, not after the training
    return Own(kind, samples, left_out)


def _told_apart(samples: Sequence[Sample]) -> list[Sample]:
    """Ids that come twice (a lot's number, say) get a number behind them: what folds keep is found by its id."""
    taken: set[str] = set()
    found = []
    for sample in samples:
        name, number = sample.id, 1
        while name in taken:
            number += 1
            name = f"{sample.id}#{number}"
        taken.add(name)
        found.append(sample if name == sample.id else replace(sample, id=name))
    return found


def detect(path: Path) -> str:
    """One of `NAMES` but "samples".

    Raises:
        DataError: nothing there, or nothing of these.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise DataError("it does not exist", expected=KINDS, fix="Correct the path.", where=str(path))
    suffix = path.suffix.lower()
    if suffix in {".csv", ".tsv"}:
        return "csv"
    if suffix == ".jsonl":
        first = next((record for _, record in _fields.jsonl_records(path)), None)
        return "llava" if isinstance(first, dict) and "conversations" in first else "jsonl"
    kind = _json(path) if suffix == ".json" else "yolo" if path.name.lower() in YAMLS else None
    if kind is None:
        fix = "See `tsugiki data convert --help`."
        raise DataError(f"{path.name} is nothing known", expected=KINDS, fix=fix, where=str(path))
    return kind


def _folder(path: Path) -> str:
    """What its layout says; annotation files tell more than the names of the folders that hold the pictures."""
    if any(path.glob("*.xml")) or any((path / "Annotations").glob("*.xml")):
        return "voc"
    named = [*YAMLS, "classes.txt", "labels/classes.txt"]
    if (path / "images").is_dir() and any((path / name).is_file() for name in named):
        return "yolo"
    if not image_files(path) and not list(path.rglob("metadata.*")):
        raise DataError("no picture in the folder or below", expected=KINDS, fix="Check the path.", where=str(path))
    return "imagefolder"


def _json(path: Path) -> str | None:
    content = _fields.json_file(path)
    if isinstance(content, list):
        first = content[0] if content else None
        return "labelstudio" if isinstance(first, dict) and {"annotations", "data"} <= first.keys() else "llava"
    if isinstance(content, dict) and {"images", "annotations", "categories"} & content.keys():
        return "coco"
    return None


def _annotated(path: Path) -> Path:
    """Where a folder's pictures are described: the one JSON of COCO or Label Studio at its top, else itself."""
    found = sorted(path.glob("*.json")) if path.is_dir() else []
    if len(found) == 1:
        with suppress(DataError):  # something else that lies there
            return found[0] if _json(found[0]) in ("coco", "labelstudio") else path
    return path


def _convert(path: Path, question: str | None, problems: list[InputError]) -> tuple[str, list[Sample]]:
    path = _annotated(path)
    kind = detect(path)
    where = instruct(question or WHERE_IS, "boxes")
    words = Wording()
    asked = instruct(question or words.question, "short")
    if kind in BOXED:
        return kind, BOXED[kind](path, question=where, problems=problems)
    if kind == "labelstudio":  # what is asked for a box names it; anything else asks for a choice
        if question is not None and "{name}" not in question:
            where = instruct(WHERE_IS, "boxes")
        return kind, labelstudio.convert(path, question=where, choice_question=asked, problems=problems)
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
    wording = {"question": asked, "caption_question": instruct(words.caption_question, "full")}
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
            look(source, where=sample.where)
            known[key] = True
        except ImageError as error:
            left_out.append(error)
            known[key] = False
    return known[key]


def _with_count(error: InputError, n: int) -> InputError:
    more = f" (and {n - 1} more errors)" if n > 1 else ""
    return type(error)(error.found + more, expected=error.expected, fix=error.fix, where=error.where)


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
