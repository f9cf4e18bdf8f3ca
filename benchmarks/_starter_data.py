"""What the starter graft learns from and is scored on: drawn pictures, and questions about text; no photograph at all.

Training and test differ by rendering, backgrounds, words and type faces, as the generators have it. What chooses
between combinations and what the chosen one is reported on are different pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from boxes import scored

from tsugiki import assets
from tsugiki.data import schema
from tsugiki.data.boxes import PaddedSquare
from tsugiki.data.images import image_size
from tsugiki.evals._learners import Probe
from tsugiki.evals.free import FreeAnswerer
from tsugiki.evals.options import OptionScorer
from tsugiki.evals.task import message_text
from tsugiki.evals.tasks import grounding
from tsugiki.evals.text_items import articles
from tsugiki.evals.yardsticks import pooled
from tsugiki.types import ImagePart, Message, Sample

NAMES, OPTIONS, SIZE = 120, 50, 448
ASSETS = ("openmoji", "font-ja", "font-latin", "wiki")
DRAWN: dict[str, Any] = {"size": SIZE, "backgrounds": ("plain", "texture")}
"""The other backgrounds of the generators are fabric photographs."""
ONE = {"naming": 12, "colour": 2, "place": 2, "box": 3, "absent": 1, "presence": 1, "caption": 1}
FEW = {"naming": 2, "colour": 2, "count": 5, "place": 2, "box": 5, "absent": 2, "presence": 5, "caption": 1}
FORMS = {"short": 8, "full": 1, "boxes": 1}
LANGUAGES = {"en": 4, "ja": 1}
QUESTIONS = 4
"""About each picture."""
NAMELESS = ("naming", "caption")
READ = ("read", "field", "gauge", "cell", "text box")
ASKED_OF_TEXT = (
    "What is {}?",
    "Tell me about {} in one sentence.",
    "Write a question about {}.",
    "Who needs {}, and why?",
)
TASKS = ("naming", "box", "presence", "count")


def questions(folder: Path, n: int) -> tuple[list[Sample], list[Sample]]:
    """`QUESTIONS` questions about each of n pictures of one object, and about each of n of one to three."""
    from tsugiki.synth import scenes

    for name in ASSETS:
        assets.fetch(name)
    common: dict[str, Any] = {**DRAWN, "pictograms": NAMES, "forms": FORMS, "languages": LANGUAGES}
    common |= {"options": OPTIONS, "questions_per_picture": QUESTIONS}
    one = scenes.generate(n, out=folder / f"one-{n}", objects=(1, 1), tasks=ONE, **common)
    return one, scenes.generate(n, out=folder / f"few-{n}", objects=(1, 3), tasks=FEW, seed=1, **common)


def learn(folder: Path, n: int, texts: int = 160) -> dict[str, list[Sample]]:
    """The sources of the recipe: what single objects are called, a conversation about each picture of `questions`,
    n / 8 pictures to read, and questions as text."""
    from tsugiki.synth import ocr

    one, few = questions(folder, n)
    names = [s for s in one if s.task == "naming" and s.meta["form"] == "short"]
    scenes = [conversation(of) for of in by_turns(one, few)]
    words = ocr.generate(n // 8, out=folder / f"words-{n}", tasks=READ, languages=LANGUAGES, **DRAWN)
    titles = [article.title for article in articles("train")[:texts]]
    text = [ASKED_OF_TEXT[i % len(ASKED_OF_TEXT)].format(title) for i, title in enumerate(titles)]
    return {"names": names, "scenes": scenes, "words": words, "text": [_question(i, t) for i, t in enumerate(text)]}


def by_turns(one: Sequence[Sample], few: Sequence[Sample]) -> list[list[Sample]]:
    """The questions about each picture, one and few by turns: what looks at the first ones alone (the fit of places, a
    ridge regression) sees both kinds."""
    parts = [[list(of) for _, of in groupby(part, key=lambda s: s.images[0])] for part in (one, few)]
    return [of for pair in zip(*parts, strict=True) for of in pair]


def conversation(samples: Sequence[Sample]) -> Sample:
    """All questions about one picture, one after the other: the tokens of the picture are read once for all of them.

    What asks for names, or what all is there, comes first, since the other questions tell names.
    """
    first, *later = sorted(samples, key=lambda s: s.task not in NAMELESS)
    turns = [
        replace(m, parts=tuple(p for p in m.parts if not isinstance(p, ImagePart))) for s in later for m in s.messages
    ]
    return replace(first, task="conversation", messages=(*first.messages, *turns), options=())


def _question(number: int, text: str) -> Sample:
    # The answer stands for the base's own, which the recipe asks for.
    return Sample(f"text-{number}", (Message.of("user", text), Message.of("assistant", "")), task="text")


def answered(model: Any, samples: Sequence[Sample], file: Path, tokens: int) -> list[Sample]:
    """Questions with the bare LLM's own greedy answers, made once; `model` has an exact text path."""
    if not file.is_file():
        said = FreeAnswerer(model, batch_size=16, max_new_tokens=tokens)(samples)
        turns = [(*s.prompt, Message.of("assistant", text)) for s, text in zip(samples, said, strict=True)]
        schema.write(file, [replace(s, messages=m) for s, m in zip(samples, turns, strict=True)])
    return schema.load(file)


def ask(folder: Path, seed: int, n: int) -> list[Sample]:
    """n pictures of one object to name among `OPTIONS` names, and n of one to three with a question each for a box,
    for presence and for a count; in English, unseen renderings on unseen backgrounds."""
    from tsugiki.synth import scenes

    common: dict[str, Any] = {**DRAWN, "pictograms": NAMES, "languages": ("en",), "split": "test", "seed": seed}
    names = scenes.generate(
        n,
        out=folder / f"ask-one-{seed}-{n}",
        objects=(1, 1),
        tasks=["naming"],
        forms=["short"],
        options=OPTIONS,
        **common,
    )
    # Questions for a box have no other form; the others are to be short.
    others = scenes.generate(
        n, out=folder / f"ask-few-{seed}-{n}", objects=(1, 3), tasks=["box", "presence", "count"],
        forms={"short": 1, "boxes": 1e-9}, questions_per_picture=3, **common,
    )  # fmt: skip
    return [s for s in (*names, *others) if s.task == "box" or s.options]


def score(model: Any, samples: Sequence[Sample], features: Any) -> dict[str, Any]:
    """Which answers are right, 0 or 1 a sample, by kind of question, and the figure that ranks.

    Names, yes and no, and numbers are chosen by likelihood among the options; boxes are generated, and right where the
    first one overlaps the gold box by half or more.
    """
    by_task = {task: [s for s in samples if s.task == task] for task in TASKS}
    found: dict[str, Any] = {}
    choose = OptionScorer(model, features=features, tolerance=0.0)
    for task in ("naming", "presence", "count"):
        own = choose(by_task[task])
        right = [int(o.best() == message_text(s.answer)) for o, s in zip(own, by_task[task], strict=True)]
        found[task] = {"ids": [s.id for s in by_task[task]], "right": right}
    asked = by_task["box"]
    texts = FreeAnswerer(model, features=features, batch_size=16, max_new_tokens=24)(asked)
    squares = [PaddedSquare(*image_size(s.images[0])) for s in asked]
    boxes = [tuple(model.processor.codec.parse(t, q)) for t, q in zip(texts, squares, strict=True)]
    marks = scored(boxes, asked)
    found["box"] = {
        "ids": [s.id for s in asked], "right": marks["hit"], "centre": marks["centre"], "texts": texts,
        "sizes": [grounding.size_class(s, grounding.gold(s)[0]) for s in asked],
    }  # fmt: skip
    chance = chances(by_task)
    shares = {task: sum(found[task]["right"]) / len(found[task]["right"]) for task in TASKS}
    found["figure"] = sum((shares[t] - chance[t]) / (1 - chance[t]) for t in TASKS) / len(TASKS)
    return found | {"shares": shares, "chance": chance}


def chances(by_task: dict[str, list[Sample]]) -> dict[str, float]:
    """What is right without looking: one name in `OPTIONS`, the commonest yes or no and number, no box."""

    def commonest(task: str) -> float:
        return max(Counter(message_text(s.answer) for s in by_task[task]).values()) / len(by_task[task])

    return {"naming": 1 / OPTIONS, "box": 0.0, "presence": commonest("presence"), "count": commonest("count")}


def probe(features: Any, learn: Sequence[Sample], samples: Sequence[Sample], seed: int = 0) -> list[int]:
    """Which pictures to name a linear probe has right, that learned from every training picture of one object,
    whatever was asked about it and in which language."""
    known = list({s.images[0]: s for s in learn if len(s.meta["objects"]) == 1}.values())
    asked = [s for s in samples if s.task == "naming"]
    names = [str(s.meta["objects"][0]["name"]) for s in known]
    fitted = Probe.fit(pooled(features, [s.images[0] for s in known]), names, seed=seed)
    chosen = fitted.choose(pooled(features, [s.images[0] for s in asked]), [s.options for s in asked])
    return [int(c == message_text(s.answer)) for c, s in zip(chosen, asked, strict=True)]
