"""Text on pictures: words, labels, nameplates, gauges and small tables, with questions, true answers and exact boxes.

Everything is drawn from (seed, split, number of the picture) alone, as in `scenes.py`. The test differs from training
by its words and codes (`pages.belongs`), its faces (`fonts.SPLITS`) and its backgrounds. Some pictures are blurred,
turned or low in contrast; boxes are those of the letters as they are seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from tsugiki.data import schema
from tsugiki.synth.backgrounds import KINDS, Backgrounds, Split
from tsugiki.synth.fonts import FACES, SPLITS
from tsugiki.synth.layout import pick
from tsugiki.synth.lettering import RGB, Sheet, Written
from tsugiki.synth.pages import PAGES, Gauge, Maker, draw
from tsugiki.synth.phrases import TEXTS
from tsugiki.synth.reading import ON_PAGE, TASKS, Asked, Page, ask
from tsugiki.synth.runs import Weights, known_names, prepared, refuse, weights_of, write_picture, written
from tsugiki.types import ImagePart, Message, Sample

VERSION = 1
"""Of the generator: another one makes other pictures from the same seed."""
DEFAULT_PAGES = {"words": 2, "label": 2, "nameplate": 3, "gauge": 2, "table": 2}
DEFAULT_CONDITIONS = {"clean": 3, "blur": 1, "rotation": 1, "low contrast": 1}
CONDITIONS = tuple(DEFAULT_CONDITIONS)

ATTRIBUTION = (
    "Text: Noto Sans (OFL-1.1), IPAexGothic (IPA Font License). Fabric photographs: conformal-clip-data (MIT)."
)
_SPLITS = {"train": 0, "test": 1}
_FORMATS = {"jpeg": "jpg", "png": "png"}
_BLUR, _TURN = (0.9, 1.7), (5.0, 15.0)  # radius in pixels of a picture of 224; degrees


def generate(
    n: int,
    *,
    out: str | Path,
    split: Split = "train",
    seed: int = 0,
    size: int = 224,
    pages: Weights | None = None,
    conditions: Weights | None = None,
    fonts: Weights | None = None,
    tasks: Weights = TASKS,
    languages: Weights = ("en", "ja"),
    questions_per_picture: int = 1,
    backgrounds: Weights = KINDS,
    picture_format: str = "jpeg",
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
        size: side of the pictures, 160 to 1024 pixels.
        pages: names or weights of `pages.PAGES`; None = `DEFAULT_PAGES`.
        conditions: names or weights of `CONDITIONS`; None = `DEFAULT_CONDITIONS`.
        fonts: names or weights of `fonts.FACES`; None = those of the split. Each language needs one.
        tasks: names or weights of `reading.TASKS`; a page is asked those of `reading.ON_PAGE`.
        languages: names or weights of "en" and "ja"; a picture and its questions have one.
        questions_per_picture: of different tasks as long as there are different ones.
        backgrounds: names or weights of `backgrounds.KINDS`.
        picture_format: "jpeg" (quality 92) or "png".
        photographs: files for photographic backgrounds instead of the listed ones of the asset "fabric".
        progress: called with (pictures made, n).

    Returns:
        Samples with absolute picture paths; `_meta` says what their `meta` holds.

    Raises:
        UnknownNameError: an unknown split, page, condition, font, task, language, background or format.
        DataError: numbers that can't be, a language without a font, tasks that no page can be asked, a font that the
            test keeps for itself in training, or a folder with other content.
        AssetError: a font or another asset is missing.
        StoreError: the folder can't be written.
    """
    known_names("split", [split], _SPLITS)
    known_names("picture format", [picture_format], _FORMATS)
    run = _Run(
        n=n,
        split=split,
        seed=seed,
        size=size,
        pages=weights_of("page", DEFAULT_PAGES if pages is None else pages, PAGES),
        conditions=weights_of("condition", DEFAULT_CONDITIONS if conditions is None else conditions, CONDITIONS),
        faces=weights_of("font", SPLITS[split] if fonts is None else fonts, FACES),
        tasks=weights_of("task", tasks, TASKS),
        languages=weights_of("language", languages, TEXTS),
        per_picture=questions_per_picture,
        backgrounds=weights_of("background", backgrounds, KINDS),
        format=picture_format,
    )
    _check(run)
    stamp = json.dumps(
        {"version": VERSION, "photographs": photographs, **asdict(run)}, ensure_ascii=False, indent=1, default=str
    )
    folder = Path(out).resolve()
    if prepared(folder, stamp, n, ATTRIBUTION):
        return schema.load(folder / "samples.jsonl")
    grounds = Backgrounds(split, size, photographs)
    return written(folder, n, lambda index: _picture(run, index, grounds, folder), progress)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The checked arguments of `generate`; as JSON they say whether a folder holds the same run."""

    n: int
    split: Split
    seed: int
    size: int
    pages: Mapping[str, float]
    conditions: Mapping[str, float]
    faces: Mapping[str, float]
    tasks: Mapping[str, float]
    languages: Mapping[str, float]
    per_picture: int
    backgrounds: Mapping[str, float]
    format: str

    def asked(self, page: str) -> dict[str, float]:
        """The tasks that a page can be asked."""
        return {task: weight for task, weight in self.tasks.items() if task in ON_PAGE[page]}

    def faces_of(self, language: str) -> dict[str, float]:
        """The faces that have a language's letters; its own before those that have them too."""
        found = {name: w for name, w in self.faces.items() if language in FACES[name].languages}
        own = {name: w for name, w in found.items() if FACES[name].languages[0] == language}
        return own or found


@dataclass(frozen=True, slots=True)
class _Look:
    """How a picture came about."""

    page: str
    condition: str
    face: str
    background: str
    angle: float
    """Degrees, counter-clockwise."""


def _picture(run: _Run, index: int, grounds: Backgrounds, folder: Path) -> list[Sample]:
    """Make and write one picture; its samples."""
    rng = np.random.default_rng((run.seed, _SPLITS[run.split], index, VERSION))
    language = pick(run.languages, rng)
    look = _Look(
        pick({page: weight for page, weight in run.pages.items() if run.asked(page)}, rng),
        pick(run.conditions, rng),
        pick(run.faces_of(language), rng),
        pick(run.backgrounds, rng),
        float(rng.uniform(*_TURN)) * (1 if rng.random() < 0.5 else -1),
    )
    if look.condition != "rotation":
        look = _Look(look.page, look.condition, look.face, look.background, 0.0)
    image, page = _drawn(run, look, language, grounds, rng)
    file = folder / "images" / f"{index:06d}.{_FORMATS[run.format]}"
    write_picture(image, file)
    return [
        Sample(
            id=f"ocr-{run.split}-{run.seed}-{index:06d}-{number}",
            messages=(Message("user", (ImagePart(file), *q.question)), Message("assistant", q.answer)),
            task=q.task,
            meta=_meta(run, look, page, q),
        )
        for number, q in enumerate(_questions(run, page, rng))
    ]


def _drawn(
    run: _Run, look: _Look, language: str, grounds: Backgrounds, rng: np.random.Generator
) -> tuple[Image.Image, Page]:
    ground = grounds.make(look.background, rng)
    maker = Maker(Sheet(run.size, look.face), TEXTS[language], run.split, rng, look.condition == "low contrast")
    red, green, blue = np.asarray(ground, dtype=np.float64).mean((0, 1)).round().astype(int).tolist()
    mean: RGB = (red, green, blue)
    draw(look.page, maker, mean)
    image, written = maker.sheet.lay(ground, look.angle)
    if look.condition == "blur":
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(*_BLUR)) * run.size / 224))
    return image, Page(look.page, TEXTS[language], written, maker.gauge)


def _questions(run: _Run, page: Page, rng: np.random.Generator) -> list[Asked]:
    asked: list[Asked] = []
    for _ in range(run.per_picture):
        done = {q.task for q in asked}
        left = {task: w for task, w in run.asked(page.kind).items() if task not in done} or run.asked(page.kind)
        asked.append(ask(pick(left, rng), page, rng))
    return asked


def _meta(run: _Run, look: _Look, page: Page, asked: Asked) -> dict[str, Any]:
    """What scorers and readers may want to know of a sample; plain JSON values.

    language, form ("short"; "boxes" where boxes are wanted, "full" for a table), kind (the key of the phrases), short
    (the answer where it is one text), targets (indices into texts), split, page, condition, font, background, angle
    (degrees), size (pixels), caption (all texts), texts: text, role, key, row, box (xyxy pixels); of gauges value,
    unit, low, high, step.
    """
    gauge: Gauge | None = page.gauge
    return {
        "language": page.texts.language,
        "form": asked.form,
        "kind": asked.kind,
        "short": asked.short,
        "targets": list(asked.targets),
        "split": run.split,
        "page": look.page,
        "condition": look.condition,
        "font": look.face,
        "background": look.background,
        "angle": round(look.angle, 3),
        "size": [run.size, run.size],
        "caption": ", ".join(t.text for t in page.written),
        "texts": [_told(text) for text in page.written],
        **({"gauge": asdict(gauge)} if gauge is not None else {}),
    }


def _told(text: Written) -> dict[str, Any]:
    box = [text.box.x1, text.box.y1, text.box.x2, text.box.y2]
    return {"text": text.text, "role": text.role, "key": text.key, "row": text.row, "box": box}


def _check(run: _Run) -> None:
    held_out = sorted(set(run.faces) & set(SPLITS["test"])) if run.split == "train" else []
    bare = [language for language in run.languages if not run.faces_of(language)]
    refuse(
        (
            (run.n >= 0, f"{run.n} pictures", "0 or more", "n"),
            (run.seed >= 0, f"seed {run.seed}", "0 or more", "seed"),
            (160 <= run.size <= 1024, f"{run.size} px", "160 to 1024", "size"),
            (run.per_picture >= 1, f"{run.per_picture} questions", "1 or more", "questions_per_picture"),
            (
                any(run.asked(page) for page in run.pages),
                f"the tasks {', '.join(run.tasks)} on the pages {', '.join(run.pages)}",
                "a task that one of the pages can be asked",
                "tasks",
            ),
            (
                not held_out,
                f"the font {', '.join(held_out)} in training",
                "fonts that the test does not keep for itself",
                "fonts",
            ),
            (not bare, f"no font for the language {', '.join(bare)}", f"one of {_of(bare)}", "fonts"),
        )
    )


def _of(languages: Sequence[str]) -> str:
    return ", ".join(name for name, f in FACES.items() if set(languages) & set(f.languages))
