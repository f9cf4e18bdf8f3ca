"""Defects on nominal photographs: scratches, holes, stains, missing threads, with questions, exact boxes and masks.

Everything is drawn from (seed, split, number of the picture) alone, as in `scenes.py`. Pictures and masks are PNG: what
a mask marks is what differs from the photograph, pixel for pixel, and nothing else does. Training and test show other
photographs; seeds and sizes do not change which.

The photographs have to be filled by the material: a defect may be anywhere on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.images import open_image
from tsugiki.errors import DataError
from tsugiki.synth.backgrounds import Split
from tsugiki.synth.flaws import SEVERITIES, SIZES, TYPES, Damaged, damage
from tsugiki.synth.inspection import ON_CLEAN, TASKS, Choices, ask
from tsugiki.synth.layout import pick
from tsugiki.synth.nominal import Nominal
from tsugiki.synth.phrases import LANGUAGES
from tsugiki.synth.phrases.base import FORMS
from tsugiki.synth.runs import Weights, known_names, prepared, refuse, weights_of, write_picture, written
from tsugiki.synth.wording import Question
from tsugiki.types import ImagePart, Message, Sample

VERSION = 1
"""Of the generator: another one makes other pictures from the same seed."""
DEFAULT_TASKS = {"type": 3, "box": 4, "severity": 2, "absent": 2, "presence": 3, "caption": 1}
DEFAULT_FORMS = {"short": 2, "full": 1, "boxes": 1}
DEFAULT_SIZES = {"small": 1, "medium": 2, "large": 2}
MOST = len(TYPES) - 1
"""Defects on a photograph: one type is always missing, so that it can be asked for."""

_SPLITS = {"train": 0, "test": 1}


def generate(
    n: int,
    *,
    out: str | Path,
    split: Split = "train",
    seed: int = 0,
    size: int = 224,
    photos: str | Path | None = None,
    test_share: float = 0.2,
    defects: tuple[int, int] = (1, 2),
    types: Weights = tuple(TYPES),
    severities: Weights = tuple(SEVERITIES),
    sizes: Weights | None = None,
    negatives: float = 0.25,
    tasks: Weights | None = None,
    languages: Weights = ("en", "ja"),
    forms: Weights | None = None,
    questions_per_picture: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """Make `n` pictures with `questions_per_picture` questions each, and write them with their masks and
    `samples.jsonl` to the folder `out`.

    A folder that holds the same run already is read, not made again. `samples.jsonl` is written last and whole: where
    it is, the pictures are.

    Args:
        n: number of pictures.
        out: a new or empty folder, or that of an earlier run, whose pictures are replaced.
        split: "train" or "test".
        seed: of everything but the split of the photographs, not negative.
        size: longer side of the pictures, 64 to 1024 pixels; smaller photographs stay as they are.
        photos: folder of photographs without a defect; None = those of the asset "fabric" that are in no split of
            `fabric.draw` (100 for training, 50 for the test).
        test_share: of the photographs of `photos`, between 0 and 1; see `nominal.Nominal`.
        defects: fewest and most on a picture, within 1 to `MOST`, each of another type.
        types: names or weights of `flaws.TYPES`.
        severities: names or weights of `flaws.SEVERITIES`.
        sizes: names or weights of `flaws.SIZES`; None = `DEFAULT_SIZES`.
        negatives: share of pictures without a defect, 0 to 1.
        tasks: names or weights of `inspection.TASKS`; None = `DEFAULT_TASKS`. Pictures without a defect take those of
            `inspection.ON_CLEAN`.
        languages: names or weights of "en" and "ja".
        forms: names or weights of "short", "full", "boxes"; None = `DEFAULT_FORMS`.
        questions_per_picture: of different tasks as long as there are different ones.
        progress: called with (pictures made, n).

    Returns:
        Samples with absolute picture paths; `_meta` says what their `meta` holds.

    Raises:
        UnknownNameError: an unknown split, type, severity, size, task, language or form.
        DataError: numbers that can't be, no photographs, one that holds no such defect, or a folder with other content.
        ImageError: a photograph can't be read.
        AssetError: the asset is missing.
        StoreError: the folder can't be written.
    """
    known_names("split", [split], _SPLITS)
    run = _Run(
        n=n,
        split=split,
        seed=seed,
        size=size,
        defects=(defects[0], defects[1]),
        types=weights_of("type", types, TYPES),
        severities=weights_of("severity", severities, SEVERITIES),
        sizes=weights_of("size", DEFAULT_SIZES if sizes is None else sizes, SIZES),
        tasks=weights_of("task", DEFAULT_TASKS if tasks is None else tasks, TASKS),
        languages=weights_of("language", languages, LANGUAGES),
        per_picture=questions_per_picture,
        choices=Choices(
            forms=weights_of("form", DEFAULT_FORMS if forms is None else forms, FORMS), negatives=negatives
        ),
    )
    _check(run)
    nominal = Nominal.of(split, None if photos is None else Path(photos), test_share)
    stamp = json.dumps(
        {"version": VERSION, "photos": nominal.names, "folder": photos, **asdict(run)},
        ensure_ascii=False, indent=1, default=str,
    )  # fmt: skip
    folder = Path(out).resolve()
    if prepared(folder, stamp, n, nominal.attribution, beside=["masks"]):
        return schema.load(folder / "samples.jsonl")
    return written(folder, n, lambda index: _picture(run, index, nominal, folder), progress)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The checked arguments of `generate`; as JSON they say whether a folder holds the same run."""

    n: int
    split: Split
    seed: int
    size: int
    defects: tuple[int, int]
    types: Mapping[str, float]
    severities: Mapping[str, float]
    sizes: Mapping[str, float]
    tasks: Mapping[str, float]
    languages: Mapping[str, float]
    per_picture: int
    choices: Choices


def reduced(photo: Image.Image, size: int) -> Image.Image:
    """The photograph with its longer side at most `size`: what a picture is before defects are drawn."""
    scale = size / max(photo.size)
    if scale >= 1:
        return photo
    return photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))), Image.Resampling.BOX)


def _picture(run: _Run, index: int, nominal: Nominal, folder: Path) -> list[Sample]:
    """Make and write one picture and its masks; its samples."""
    rng = np.random.default_rng((run.seed, _SPLITS[run.split], index, VERSION))
    name = nominal.names[int(rng.integers(len(nominal.names)))]
    photo = reduced(open_image(nominal.folder / name, where="photos"), run.size)
    clean = rng.random() < run.choices.negatives
    try:
        damaged = damage(photo, [] if clean else _wanted(run, rng), rng)
    except DataError as error:
        where = str(nominal.folder / name)
        raise DataError(error.found, expected=error.expected, fix=error.fix, where=where) from None
    file = folder / "images" / f"{index:06d}.png"
    write_picture(damaged.image, file)
    masks = [f"masks/{index:06d}-{number}.png" for number in range(len(damaged.objects))]
    for mask, defect in zip(masks, damaged.objects, strict=True):
        write_picture(Image.fromarray(defect.mask.astype(np.uint8) * 255), folder / mask)
    return [
        Sample(
            id=f"defect-{run.split}-{run.seed}-{index:06d}-{number}",
            messages=(Message("user", (ImagePart(file), *q.question)), Message("assistant", q.answer)),
            task=q.task,
            options=q.options,
            meta=_meta(run, name, damaged, masks, q),
        )
        for number, q in enumerate(_questions(run, damaged, rng))
    ]


def _wanted(run: _Run, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(type, severity, size) of each defect of a picture; the types differ."""
    left = dict(run.types)
    wanted = []
    for _ in range(int(rng.integers(run.defects[0], run.defects[1] + 1))):
        kind = pick(left, rng)
        del left[kind]
        wanted.append((kind, pick(run.severities, rng), pick(run.sizes, rng)))
    return wanted


def _questions(run: _Run, damaged: Damaged, rng: np.random.Generator) -> list[Question]:
    possible = run.tasks if damaged.objects else {task: w for task, w in run.tasks.items() if task in ON_CLEAN}
    asked: list[Question] = []
    for _ in range(run.per_picture):
        done = {q.task for q in asked}
        left = {task: weight for task, weight in possible.items() if task not in done} or possible
        asked.append(ask(pick(left, rng), damaged, pick(run.languages, rng), run.choices, rng))
    return asked


def _meta(run: _Run, photo: str, damaged: Damaged, masks: list[str], asked: Question) -> dict[str, Any]:
    """What scorers and readers may want to know of a sample; plain JSON values.

    language, form, kind (the key of the phrases), short (the answer as a word or two, "" for boxes and captions),
    targets (indices into defects), split, photo (of `Nominal.names`), size (pixels), caption (English content words),
    defects: type, severity, size (keys of TYPES, SEVERITIES, SIZES), contrast, box (xyxy pixels), fraction (longer side
    of the box / of the picture), mask (path beside samples.jsonl; 255 = changed).
    """
    side = max(damaged.image.size)
    return {
        "language": asked.language,
        "form": asked.form,
        "kind": asked.kind,
        "short": asked.short,
        "targets": list(asked.targets),
        "split": run.split,
        "photo": photo,
        "size": list(damaged.image.size),
        "caption": ", ".join(d.name("en") for d in damaged.objects) or "no defect",
        "defects": [
            {
                "type": d.type,
                "severity": d.severity,
                "size": d.size,
                "contrast": round(d.contrast, 4),
                "box": [d.box.x1, d.box.y1, d.box.x2, d.box.y2],
                "fraction": round(max(d.box.width, d.box.height) / side, 4),
                "mask": mask,
            }
            for d, mask in zip(damaged.objects, masks, strict=True)
        ],
    }


def _check(run: _Run) -> None:
    low, high = run.defects
    most = min(MOST, len(run.types))
    negatives = run.choices.negatives
    with_clean = negatives == 0 or bool(set(ON_CLEAN) & run.tasks.keys())
    checks = (
        (run.n >= 0, f"{run.n} pictures", "0 or more", "n"),
        (run.seed >= 0, f"seed {run.seed}", "0 or more", "seed"),
        (64 <= run.size <= 1024, f"{run.size} px", "64 to 1024", "size"),
        (1 <= low <= high <= most, f"{low} to {high} defects", f"1 to {most}, the fewest first", "defects"),
        (0 <= negatives <= 1, f"a share of {negatives}", "0 to 1", "negatives"),
        (with_clean, "pictures without a defect, but no task for them", f"one of {', '.join(ON_CLEAN)}", "tasks"),
        (run.per_picture >= 1, f"{run.per_picture} questions", "1 or more", "questions_per_picture"),
        (
            "box" not in run.tasks or "boxes" in run.choices.forms,
            "the task box without the form boxes",
            "both",
            "forms",
        ),
    )
    refuse(checks)
