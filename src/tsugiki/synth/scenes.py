"""Scenes: a few pictograms on a background, with questions and true answers, in English and Japanese.

Everything is drawn from (seed, split, number of the picture) alone: picture 7 is the same in a run of 10 and of 10,000,
in any process. The test differs from training by its backgrounds (`backgrounds.py`) and by one rendering that training
never shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.data import schema
from tsugiki.errors import DataError
from tsugiki.synth.backgrounds import KINDS, Split
from tsugiki.synth.layout import HELD_OUT, Layout, Scene, Studio, compose, pick
from tsugiki.synth.phrases import LANGUAGES
from tsugiki.synth.phrases.base import FORMS
from tsugiki.synth.pictograms import ATTRIBUTION, RENDERINGS, choose
from tsugiki.synth.questions import TASKS, Choices, ask
from tsugiki.synth.runs import Weights, known_names, prepared, refuse, weights_of, write_picture, written
from tsugiki.synth.wording import Question
from tsugiki.types import ImagePart, Message, Sample

VERSION = 1
"""Of the generator: another one makes other pictures from the same seed."""
DEFAULT_TASKS = {"naming": 4, "colour": 2, "count": 2, "place": 2, "box": 3, "absent": 2, "presence": 2, "caption": 1}
DEFAULT_FORMS = {"short": 2, "full": 1, "boxes": 1}

_SPLITS = {"train": 0, "test": 1}
_FORMATS = {"jpeg": "jpg", "png": "png"}


def generate(
    n: int,
    *,
    out: str | Path,
    split: Split = "train",
    seed: int = 0,
    size: int = 224,
    pictograms: Sequence[str] | int | None = None,
    objects: tuple[int, int] = (1, 3),
    tasks: Weights | None = None,
    languages: Weights = ("en", "ja"),
    forms: Weights | None = None,
    options: int | None = 25,
    questions_per_picture: int = 1,
    renderings: Weights | None = None,
    backgrounds: Weights = KINDS,
    picture_format: str = "jpeg",
    svg_folder: Path | None = None,
    photographs: Sequence[Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """Make `n` pictures with `questions_per_picture` questions each, and write them with `samples.jsonl` to the folder
    `out`.

    A folder that holds the same run already is read, not made again. `samples.jsonl` is written last and whole: where
    it is, the pictures are.

    Args:
        n: number of pictures.
        out: a new or empty folder, or that of an earlier run, whose pictures are replaced.
        split: "train" or "test".
        seed: of everything, not negative.
        size: side of the pictures, 64 to 1024 pixels.
        pictograms: English names, or the first k of the table, or None = all.
        objects: fewest and most objects on a picture, within 1 to 9.
        tasks: names or weights of `questions.TASKS`; None = `DEFAULT_TASKS`.
        languages: names or weights of "en" and "ja".
        forms: names or weights of "short", "full", "boxes"; None = `DEFAULT_FORMS`.
        options: how many names a naming question offers; None = all.
        questions_per_picture: of different tasks as long as there are different ones.
        renderings: names or weights of `pictograms.RENDERINGS`; None = for "train" all but `HELD_OUT`, for "test" only
            that.
        backgrounds: names or weights of `backgrounds.KINDS`.
        picture_format: "jpeg" (quality 92) or "png".
        svg_folder: pictograms from there instead of the asset "openmoji".
        photographs: files for photographic backgrounds instead of the listed ones of the asset "fabric".
        progress: called with (pictures made, n).

    Returns:
        Samples with absolute picture paths; `_meta` says what their `meta` holds.

    Raises:
        UnknownNameError: an unknown split, task, language, form, rendering, background, format or pictogram.
        DataError: numbers that can't be, the held-out rendering in training, or a folder with other content.
        AssetError: an asset is missing.
        StoreError: the folder can't be written.
    """
    known_names("split", [split], _SPLITS)
    known_names("picture format", [picture_format], _FORMATS)
    seen = [name for name in RENDERINGS if name != HELD_OUT] if split == "train" else [HELD_OUT]
    run = _Run(
        n=n,
        split=split,
        seed=seed,
        tasks=weights_of("task", DEFAULT_TASKS if tasks is None else tasks, TASKS),
        languages=weights_of("language", languages, LANGUAGES),
        per_picture=questions_per_picture,
        format=picture_format,
        layout=Layout(
            size=size,
            pictograms=choose(pictograms),
            objects=(objects[0], objects[1]),
            renderings=weights_of("rendering", seen if renderings is None else renderings, RENDERINGS),
            backgrounds=weights_of("background", backgrounds, KINDS),
        ),
        choices=Choices(
            pictograms=choose(pictograms),
            forms=weights_of("form", DEFAULT_FORMS if forms is None else forms, FORMS),
            options=options,
            largest=objects[1],
        ),
    )
    _check(run)
    sources = [None if svg_folder is None else [svg_folder], photographs]
    stamp = json.dumps(
        {"version": VERSION, "sources": sources, **asdict(run)}, ensure_ascii=False, indent=1, default=str
    )
    folder = Path(out).resolve()
    if prepared(folder, stamp, n, ATTRIBUTION):
        return schema.load(folder / "samples.jsonl")
    studio = Studio(split, size, svg_folder, photographs)
    return written(folder, n, lambda index: _picture(run, index, studio, folder), progress)


def captions(samples: Iterable[Sample]) -> tuple[list[Path], list[str]]:
    """Every picture once, and what is on it in English content words ("dog, red car"): what a projector's warm start
    needs."""
    found: dict[Path, str] = {}
    for sample in samples:
        for source in sample.images:
            if isinstance(source, str | Path) and "caption" in sample.meta:
                found.setdefault(Path(source), str(sample.meta["caption"]))
    return list(found.keys()), list(found.values())


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The checked arguments of `generate`; as JSON they say whether a folder holds the same run."""

    n: int
    split: Split
    seed: int
    tasks: Mapping[str, float]
    languages: Mapping[str, float]
    per_picture: int
    format: str
    layout: Layout
    choices: Choices


def _picture(run: _Run, index: int, studio: Studio, folder: Path) -> list[Sample]:
    """Make and write one picture; its samples."""
    rng = np.random.default_rng((run.seed, _SPLITS[run.split], index, VERSION))
    scene, asked = _scene_and_questions(run, studio, rng)
    file = folder / "images" / f"{index:06d}.{_FORMATS[run.format]}"
    write_picture(scene.image, file)
    return [
        Sample(
            id=f"scene-{run.split}-{run.seed}-{index:06d}-{number}",
            messages=(Message("user", (ImagePart(file), *q.question)), Message("assistant", q.answer)),
            task=q.task,
            options=q.options,
            meta=_meta(run, scene, q),
        )
        for number, q in enumerate(asked)
    ]


def _scene_and_questions(run: _Run, studio: Studio, rng: np.random.Generator) -> tuple[Scene, list[Question]]:
    """A scene that allows the drawn tasks, and its questions."""
    tasks: list[str] = []
    for _ in range(run.per_picture):
        left = {task: weight for task, weight in run.tasks.items() if task not in tasks} or run.tasks
        tasks.append(pick(left, rng))
    scene = compose(
        run.layout,
        studio,
        rng,
        colour="colour" in tasks,
        single="colour" in tasks or "place" in tasks,
        repeats=bool({"count", "box", "detect"} & set(tasks)),
    )
    return scene, [ask(task, scene, pick(run.languages, rng), run.choices, rng) for task in tasks]


def _meta(run: _Run, scene: Scene, asked: Question) -> dict[str, Any]:
    """What scorers and readers may want to know of a sample; plain JSON values.

    language, form, kind (the key of the phrases), short (the answer as a word or two, "" for boxes and captions),
    category (of detection questions alone: the name asked for, "" for all), targets (indices into objects), split,
    background, size (pixels), caption (English content words), objects: code, name (English), ja, rendering, colour
    (hue or ink, or None), angle (degrees), box (xyxy pixels), fraction (area of the box / of the picture), cell.
    """
    return {
        "language": asked.language,
        "form": asked.form,
        "kind": asked.kind,
        "short": asked.short,
        **({"category": asked.category} if asked.task == "detect" else {}),
        "targets": list(asked.targets),
        "split": run.split,
        "background": scene.background,
        "size": [run.layout.size, run.layout.size],
        "caption": ", ".join(f"{o.hue} {o.pictogram.en}" if o.hue else o.pictogram.en for o in scene.objects),
        "objects": [
            {
                "code": o.pictogram.code,
                "name": o.pictogram.en,
                "ja": o.pictogram.ja,
                "rendering": o.rendering,
                "colour": o.colour,
                "angle": o.angle,
                "box": [o.box.x1, o.box.y1, o.box.x2, o.box.y2],
                "fraction": round(o.fraction, 6),
                "cell": o.cell,
            }
            for o in scene.objects
        ],
    }


def _check(run: _Run) -> None:
    low, high = run.layout.objects
    names = len(run.layout.pictograms)
    checks = (
        (run.n >= 0, f"{run.n} pictures", "0 or more", "n"),
        (run.seed >= 0, f"seed {run.seed}", "0 or more", "seed"),
        (64 <= run.layout.size <= 1024, f"{run.layout.size} px", "64 to 1024", "size"),
        (1 <= low <= high <= 9, f"{low} to {high} objects", "1 to 9, the fewest first", "objects"),
        (names > high, f"{names} pictograms for up to {high} objects", "more pictograms than objects", "pictograms"),
        (run.choices.options is None or run.choices.options >= 2, f"{run.choices.options}", "2 or more", "options"),
        (run.per_picture >= 1, f"{run.per_picture} questions", "1 or more", "questions_per_picture"),
        *(
            (
                task not in run.tasks or "boxes" in run.choices.forms,
                f"the task {task} without the form boxes",
                "both",
                "forms",
            )
            for task in ("box", "detect")
        ),
    )
    refuse(checks)
    if run.split == "train" and HELD_OUT in run.layout.renderings:
        raise DataError(
            f"the rendering {HELD_OUT!r} in training",
            expected="renderings that the test does not keep for itself",
            fix='Leave it out, or use split="test".',
            where="renderings",
        )
