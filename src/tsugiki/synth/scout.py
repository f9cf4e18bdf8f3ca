"""SCouT: questions that need several objects and their relation, answered step by step with true boxes.

After LynX (2410.10491; no code was published), whose data set of that name a grounding model wrote about photographs.
Known of it: answers in steps with boxes, relations between objects, and a loss for each step (`loss: per_step`).
**Reconstructed here**, because prompt, templates, number of steps and filters were not published: the kinds of
questions (`stepwise.py`) and their sentences (`phrases/`), one step for each object, the margins of relations
(`relations.py`), the levels of difficulty, the share of questions about what is not there, and the filters.
Deliberately different: boxes are annotated or drawn, never guessed by a model, so every statement can be checked.

Levels: 1 = one object is located; 2 = two objects and how they relate; 3 = three objects, or a chain of two relations.
Questions name all that they ask about, so that they are true where annotations do not cover everything in a picture;
"the cup" is only said where one box has that name, and where several have it ("which scratch is largest?") all of
them are looked at.

An answer is one message, a line for each step; `meta["steps"]` has the number of parts of each (`data/steps.py`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.data import detail, schema
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.errors import DataError, InputError
from tsugiki.synth import annotated, scenes
from tsugiki.synth.annotated import Picture
from tsugiki.synth.phrases import LANGUAGES
from tsugiki.synth.phrases.base import Phrases
from tsugiki.synth.pictograms import choose
from tsugiki.synth.runs import Weights, refuse, weights_of
from tsugiki.synth.stepwise import LEVELS, Draft, draw, draw_absent
from tsugiki.synth.wording import cut
from tsugiki.types import BoxPart, ImagePart, Message, Part, Sample, TextPart

PAPER = "https://arxiv.org/abs/2410.10491"
FILE = "scout.jsonl"
"""What `generate` writes beside the scenes' own samples."""

_TRIES = 60


def convert(
    path: str | Path,
    *,
    images: str | Path | None = None,
    questions: int = 3,
    levels: Sequence[int] = LEVELS,
    languages: Weights | None = None,
    absent: float = 0.1,
    seed: int = 0,
    codec: BoxCodec | None = None,
    problems: list[InputError] | None = None,
    left_out: Counter[str] | None = None,
) -> list[Sample]:
    """Questions about the annotated pictures of a COCO file (`.json`) or of samples with labelled boxes (`.jsonl`).

    Args:
        images: folder of COCO's pictures; by default the JSON's folder, or `images` in it.
        questions: about each picture, at most.
        levels: those that are asked for, equally often where a picture allows it.
        languages: names or weights of "en" and "ja"; None = that of a picture's names.
        absent: share of questions about what is not there, of pictures for which something is known not to be there.
        seed: of all choices.
        codec: that boxes have to get through.
        problems: takes the errors of wrong entries; None = they are errors.
        left_out: takes counts of what is right and of no use, by reason.

    Raises:
        InputError: the file can't be read, or is wrong somewhere and `problems` is None.
        DataError: nothing is wrong, and nothing can be asked.
    """
    wrong: list[InputError] = [] if problems is None else problems
    left_out = Counter() if left_out is None else left_out
    chosen = None if languages is None else weights_of("language", languages, LANGUAGES)
    settings = _Settings(questions, tuple(levels), absent, seed, codec or BoxCodec())
    found = annotated.read(path, images=images, seed=seed, codec=codec, problems=wrong, left_out=left_out)
    if problems is None and wrong:
        raise wrong[0]
    samples: list[Sample] = []
    for picture in found:
        spoken = chosen or {detail.language(" ".join([*picture.things, *picture.absent])): 1.0}
        samples += _ask(dict.fromkeys(spoken, picture), spoken, settings, left_out)
    useful = any(sample.task == "scout" for sample in samples)  # only what is absent would teach to say so always
    if not useful and not wrong:
        raise DataError(
            f"{len(found)} pictures, and nothing to ask about what is on them",
            expected="boxes with names; for a relation, two on one picture",
            fix="Check the annotations.",
            where=str(path),
        )
    return samples if useful else []


def generate(
    n: int,
    *,
    out: str | Path,
    questions: int = 1,
    levels: Sequence[int] = LEVELS,
    languages: Weights = ("en", "ja"),
    absent: float = 0.1,
    seed: int = 0,
    codec: BoxCodec | None = None,
    left_out: Counter[str] | None = None,
    **scene: Any,
) -> list[Sample]:
    """Draw `n` scenes into the folder `out`, and write questions about them to `scout.jsonl` in it.

    `samples.jsonl` there has the scenes' own questions, for captions and boxes.

    Args:
        scene: further arguments of `scenes.generate`, such as split, size, pictograms and progress; by default three
            to five objects.

    Raises:
        As `scenes.generate`; DataError for levels or shares that can't be.
    """
    left_out = Counter() if left_out is None else left_out
    spoken = weights_of("language", languages, LANGUAGES)
    settings = _Settings(questions, tuple(levels), absent, seed, codec or BoxCodec())
    folder = Path(out).resolve()
    if (folder / "synth.json").is_file():  # an earlier run's questions would be about other pictures until the end
        (folder / FILE).unlink(missing_ok=True)
    # "box" puts several of one name on part of the scenes.
    own = {"objects": (3, 5), "tasks": ("caption", "box"), "forms": ("boxes",), **scene}
    drawn = scenes.generate(n, out=folder, seed=seed, languages=spoken, **own)
    known = choose(scene.get("pictograms"))
    names = {language: [p.name(language) for p in known] for language in spoken}
    samples: list[Sample] = []
    for sample in drawn:
        views = {
            language: annotated.from_scene(sample, names[language], "ja" if language == "ja" else "name")
            for language in spoken
        }
        samples += _ask(views, spoken, settings, left_out)
    schema.write(folder / FILE, samples)
    return samples


@dataclass(frozen=True, slots=True)
class _Settings:
    """What all pictures of a run have in common."""

    questions: int
    levels: tuple[int, ...]
    absent: float
    seed: int
    codec: BoxCodec

    def __post_init__(self) -> None:
        checks = (
            (self.questions >= 1, f"{self.questions} questions", "1 or more", "questions"),
            (
                bool(self.levels) and set(self.levels) <= set(LEVELS),
                f"levels {self.levels}",
                "some of 1, 2, 3",
                "levels",
            ),
            (0 <= self.absent < 1, f"a share of {self.absent}", "0 or more, less than 1", "absent"),
        )
        refuse(checks)


def _ask(
    views: Mapping[str, Picture], languages: Mapping[str, float], settings: _Settings, left_out: Counter[str]
) -> list[Sample]:
    """Different questions about one picture, whose things `views` names in each language."""
    first = next(iter(views.values()))
    rng = random.Random(f"{settings.seed}/scout/{first.name}")
    samples: list[Sample] = []
    asked: set[tuple[str, ...]] = set()
    for number in range(settings.questions):
        language = rng.choices(list(languages), list(languages.values()))[0]
        picture, phrases = views[language], LANGUAGES[language]
        nothing = bool(picture.absent) and rng.random() < settings.absent
        for level in rng.sample(settings.levels, len(settings.levels)):
            draft = _draft(picture, phrases, level, nothing, rng, asked)
            if draft is not None:
                break
        else:
            if not number:
                left_out["picture without a clear question"] += 1
            break
        sample = _worded(draft, level, picture, phrases, rng, f"scout-{first.name}-{number}")
        reason = fault(sample, picture, settings.codec)
        if reason:
            left_out[reason] += 1
        else:
            samples.append(sample)
    return samples


def _draft(
    picture: Picture, phrases: Phrases, level: int, nothing: bool, rng: random.Random, asked: set[tuple[str, ...]]
) -> Draft | None:
    """A question of a level that was not asked yet."""
    for _ in range(_TRIES if nothing or picture.things else 0):
        draft = (draw_absent if nothing else draw)(picture, phrases, level, rng)
        if draft is not None:
            key = (draft.kind, draft.relation, phrases.language, *draft.fields.values())
            if key not in asked:
                asked.add(key)
                return draft
    return None


def _worded(
    draft: Draft, level: int, picture: Picture, phrases: Phrases, rng: random.Random, identifier: str
) -> Sample:
    words = phrases.stepwise
    question = rng.choice(words.questions[draft.kind]).format(**draft.fields)
    answer: list[Part] = []
    counts = []
    for number, step in enumerate(draft.steps, 1):
        end = "\n" if number < len(draft.steps) else ""  # the last one ends with its turn
        marked = [] if step.box is None else [(step.box, step.name)]
        parts = cut(words.steps[step.kind] + end, step.fields, marked, phrases)
        answer += parts
        counts.append(len(parts))
    asked = TextPart(question + phrases.space + rng.choice(words.hints))
    return Sample(
        id=identifier,
        messages=(Message("user", (ImagePart(picture.source), asked)), Message("assistant", tuple(answer))),
        task="scout" if any(step.box for step in draft.steps) else "absent",
        meta={
            "language": phrases.language,
            "form": "boxes",
            "kind": draft.kind,
            "level": level,
            "relation": draft.relation,
            "short": draft.short,
            "steps": counts,
            "caption": picture.caption,
        },
    )


def fault(sample: Sample, picture: Picture, codec: BoxCodec) -> str:
    """Why a sample is not to be used; "" if it is.

    Its boxes are read back from their text, no step says the same as an earlier one, and what has a box is named in
    the question or annotated.
    """
    question, answer = sample.messages
    asked, square = schema.message_text(question), PaddedSquare(*picture.size)
    said: list[str] = []
    at = 0
    for count in sample.meta["steps"]:
        text = ""
        for part in answer.parts[at : at + count]:
            if isinstance(part, BoxPart):
                if not annotated.readable(part.box, codec, square):
                    return "question with a box that the codec does not bring back"
                if part.label not in picture.things and str(part.label) not in asked:
                    return "question with a name that is neither asked for nor annotated"
                text += codec.encode(part.box, square)
            elif isinstance(part, TextPart):
                text += part.text
        said.append(text.strip())
        at += count
    return "question with the same step twice" if len(set(said)) < len(said) else ""
