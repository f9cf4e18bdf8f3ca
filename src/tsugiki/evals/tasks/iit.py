"""IIT: what turns before the last one, with and without pictures, do to answers; see `tsugiki.synth.iit`.

A score is the accuracy of one kind of conversation. The bare LLM reads the same conversation without its pictures: of
kinds whose last question is in words (T, TT, TTT, VT) it can answer all, of the others it has the words alone, and the
note says so. TT, TTT and VT are also compared with T, and TV and TTV with V, item by item. With a picture in an earlier
turn a text answer is measured here, not proven: VT is what exactness does not cover.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki import assets
from tsugiki.data.files import sha256_file
from tsugiki.evals import stats
from tsugiki.evals._sentences import SentenceEncoder
from tsugiki.evals.asking import chosen, refuse_few
from tsugiki.evals.task import Answer, Result, Settings, difference, message_text, picture_groups
from tsugiki.evals.tasks import decisions
from tsugiki.evals.text_items import Choice, definition_choice, next_sentence, title_choice
from tsugiki.synth.iit import KINDS, checked, generate
from tsugiki.types import ImagePart, Message, Sample, Score

VERSION = 1
DESCRIPTION = "conversations of synth.iit, or questions about one picture with options, of which they are made"
BY_NAME = True
"""Runs only where it is asked for: what has options is scored by decisions."""
WHOLE = True
"""Conversations of one last item belong together: `measure` shuffles and cuts."""

ITEMS = 100
"""Last items of each kind where `limit` is not set."""
POOL = 200
"""Text questions of each sort, from which last and earlier turns are taken."""
SORTS = {"title": title_choice, "next": next_sentence, "definition": definition_choice}


def own_samples(settings: Settings) -> list[Sample]:
    """Questions about drawn scenes of the generator's test split, beside the text questions.

    Raises:
        AssetError: an asset (wiki, minilm, openmoji, fabric) is missing.
    """
    return conversations(scenes(settings.limit or ITEMS, seed=settings.seed), settings.limit or ITEMS, settings.seed)


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Conversations, where there are any, in which no earlier turn gives an option away; else questions about a
    picture.

    Raises:
        DataError: an option occurs in an earlier turn, or a gold answer is none of the options.
    """
    made = [s for s in samples if s.task == "iit" and {"turns", "item"} <= s.meta.keys()]
    if made:
        return [checked(s) for s in decisions.select(made)]
    roles = ("user", "assistant")
    return [s for s in decisions.select(samples) if len(s.images) == 1 and tuple(m.role for m in s.messages) == roles]


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Ask the last questions, all kinds about one item after one another, until the time is up. No demos are shown.

    Raises:
        DataError: too few last items for an interval.
    """
    if any(s.task != "iit" for s in samples):
        samples = conversations(samples, settings.limit or ITEMS, settings.seed)
    asked = _by_item(samples, settings)
    for last in KINDS:
        refuse_few(f"iit with {last} last", [s for s in asked if s.meta["turns"] == last])
    answers: list[Answer] = []
    tolerance = settings.tolerance if settings.normalise == "sum" else None  # a mean needs finished options
    for sample, scores, other in chosen("iit", model, asked, replace(settings, demos=None), tolerance):
        gold, text = message_text(sample.answer), scores.best(settings.normalise)
        said = None if other is None else other.best(settings.normalise)
        answers.append(Answer(
            task="iit", sample=sample, text=text, gold=gold, correct=text == gold, base_text=said,
            probabilities=scores.probabilities(settings.normalise),
        ))  # fmt: skip
    return Result(task="iit", scores=score(answers), answers=answers)


def score(answers: Sequence[Answer]) -> list[Score]:
    """Accuracy of each kind, and its difference to the kind without earlier turns over the items that both have."""
    scores: list[Score] = []
    for alone, *others in KINDS.values():
        by_kind = {kind: {a.sample.meta["item"]: a for a in answers if a.sample.meta["turns"] == kind}
                   for kind in (alone, *others)}  # fmt: skip
        for kind, found in by_kind.items():
            if found:
                scores.append(_accuracy(kind, list(found.values())))
            both = [(a, by_kind[alone][item]) for item, a in found.items() if item in by_kind[alone]]
            if kind != alone and both:
                change = [[a.correct for a in side] for side in zip(*both, strict=True)]
                groups = _groups(kind, [a for a, _ in both])
                name = f"accuracy minus {alone}"
                scores.append(difference(f"iit/{kind}", name, *change, groups=groups, version=VERSION))
    return scores


def conversations(pictures: Sequence[Sample], n: int, seed: int) -> list[Sample]:
    """At most `n` last items of each kind, of held-out text questions and the questions about pictures given.

    Raises:
        AssetError: the asset `wiki` or `minilm` is missing.
        DataError: see `synth.iit.generate`.
    """
    texts = [question(c) for make in SORTS.values() for c in make(POOL, seed=seed)]
    return generate(texts, pictures, SentenceEncoder(), n=n, seed=seed)


def sources(data: str | Path | None = None, licence: str = "") -> list[dict[str, str]]:
    """For the card of written conversations: name, version and licence of what they are made of and with.

    Args:
        data: the file of the questions about pictures, under `licence`; None = drawn scenes.
    """
    names = ("wiki", "minilm", *(("openmoji", "fabric") if data is None else ()))
    found = [{"name": a.name, "version": a.version, "licence": a.licence} for a in map(assets.get, names)]
    if data is not None:
        found.append({"name": Path(data).name, "version": f"sha256 {sha256_file(data)}", "licence": licence})
    return found


def question(choice: Choice) -> Sample:
    """A text question as a conversation; `meta["source"]` is the article, whose questions tell of each other."""
    sort, _, article = choice.id.partition("-")
    messages = (Message.of("user", choice.context), Message.of("assistant", choice.options[choice.answer]))
    return Sample(id=choice.id, messages=messages, task=sort, options=choice.options, meta={"source": article})


def scenes(n: int, *, seed: int = 0) -> list[Sample]:
    """`n` English questions with options about drawn scenes of the test split, one a picture, which is held in memory.

    Raises:
        AssetError: the asset openmoji or fabric is missing.
    """
    from tsugiki.synth.scenes import generate as draw

    asked = {"tasks": ("naming", "colour", "count", "place"), "languages": ("en",), "forms": ("short",), "options": 4}
    with tempfile.TemporaryDirectory() as folder:
        made: list[Sample] = draw(n, out=Path(folder) / "scenes", split="test", seed=seed, **asked)  # type: ignore[arg-type]
        return [replace(s, messages=tuple(map(_held, s.messages))) for s in made]


def _held(message: Message) -> Message:
    """The same message with its pictures' bytes in place of their files."""
    parts = (ImagePart(Path(str(p.source)).read_bytes()) if isinstance(p, ImagePart) else p for p in message.parts)
    return replace(message, parts=tuple(parts))


def _by_item(samples: Sequence[Sample], settings: Settings) -> list[Sample]:
    """Conversations of one item together, items in random order, those of T and V in turn, at most `limit` of each."""
    items: dict[str, dict[str, list[Sample]]] = {last: {} for last in KINDS}
    for s in samples:
        items[str(s.meta["turns"])[-1]].setdefault(str(s.meta["item"]), []).append(s)
    rng = random.Random(settings.seed)
    placed: list[tuple[float, list[Sample]]] = []
    for groups in items.values():
        order = sorted(groups)
        rng.shuffle(order)
        order = order[: settings.limit]
        placed += [((i + 0.5) / len(order), groups[name]) for i, name in enumerate(order)]
    return [s for _, group in sorted(placed, key=lambda pair: pair[0]) for s in group]


def _accuracy(kind: str, answers: Sequence[Answer]) -> Score:
    right = [a.correct for a in answers]
    base = None if any(a.base_text is None for a in answers) else [a.base_text == a.gold for a in answers]
    chance = float(np.mean([1 / len(a.sample.options) for a in answers]))
    words = kind.endswith("T")
    without = "" if "V" not in kind else "; the bare LLM reads it without the picture"
    return stats.score(
        f"iit/{kind}", "accuracy", right, base, groups=_groups(kind, answers), version=VERSION,
        chance=chance if words else None, note=f"chance {chance:.3f}{without}",
    )  # fmt: skip


def _groups(kind: str, answers: Sequence[Answer]) -> Any:
    """Last questions about one picture are drawn together."""
    return picture_groups([a.sample for a in answers]) if kind.endswith("V") else None
