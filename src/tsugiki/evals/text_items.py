"""Held-out text and multiple-choice questions from the asset `wiki` (lead paragraphs of English Wikipedia, CC BY-SA).

Whoever trains on these articles takes the split "train": the questions here are made from "test".
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from tsugiki import assets
from tsugiki.errors import AssetError, DataError

Split = Literal["train", "test"]

OPTIONS = 4
CHANCE = 1 / OPTIONS
TEST_SHARE = 30  # per cent of the articles
_SENTENCE = re.compile(r"(?<=[a-z0-9)\"”%][.!?])\s+(?=[A-Z\"“(])")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Article:
    title: str
    text: str
    topic: str
    description: str = ""
    """What it is, in a few words."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with `OPTIONS` continuations, one of them right."""

    id: str
    context: str
    """What stands before the options, without a space at its end."""
    options: tuple[str, ...]
    answer: int

    def document(self) -> dict[str, Any]:
        """As a row of an lm-eval task."""
        return {"id": self.id, "context": self.context, "options": list(self.options), "answer": self.answer}


@lru_cache(maxsize=4)
def articles(split: Split = "test", language: str = "en-us") -> tuple[Article, ...]:
    """Articles of a split, in a fixed order. The split is by the title's hash: it never moves.

    Raises:
        AssetError: the asset is not fetched, or does not hold the language.
    """
    found = sorted(assets.path("wiki").rglob(f"summaries_{language}.json"))
    if not found:
        raise AssetError(f"no articles in {language!r}", expected="en-us, es-es or fr-fr", where="wiki")
    rows = json.loads(found[0].read_text(encoding="utf-8"))
    every = (_article(r) for r in rows.values())
    return tuple(sorted((a for a in every if a.text and _split(a.title) == split), key=lambda a: a.title))


def passages(n: int, *, seed: int = 0, split: Split = "test", least: int = 200, most: int = 500) -> list[str]:
    """`n` paragraphs of at least `least` characters, cut at the sentence that passes `most`.

    Raises:
        DataError: there are fewer.
    """
    out = []
    for article in _shuffled(articles(split), seed):
        text = ""
        for sentence in sentences(article.text):
            if text and len(text) + len(sentence) > most:
                break
            text = f"{text} {sentence}".strip()
        if least <= len(text) <= most:
            out.append(text)
        if len(out) == n:
            return out
    raise DataError(f"{len(out)} passages of {least} to {most} characters", expected=f"{n}", where="wiki")


def title_choice(n: int, *, seed: int = 0, split: Split = "test") -> list[Choice]:
    """Which of four titles of one topic belongs to a text that does not name it?"""
    pool = articles(split)
    by_topic: dict[str, list[Article]] = {}
    for article in pool:
        by_topic.setdefault(article.topic, []).append(article)
    rng = random.Random(f"title {seed}")
    items = []
    for article in _shuffled(pool, seed):
        title = re.sub(r"\s*\(.*?\)$", "", article.title)
        body = " ".join(sentences(article.text)[1:3])
        others = [a for a in by_topic[article.topic] if a is not article]
        if not 80 <= len(body) <= 400 or len(others) < OPTIONS - 1 or _named(title, body):
            continue
        wrong = [re.sub(r"\s*\(.*?\)$", "", a.title) for a in rng.sample(others, OPTIONS - 1)]
        if len({title, *wrong}) < OPTIONS or any(_named(w, body) for w in wrong):
            continue
        items.append(_choice(f"title-{article.title}", f"Text: {body}\nThe text is about:", title, wrong, rng))
        if len(items) == n:
            return items
    raise DataError(f"{len(items)} articles with a text that does not name its title", expected=f"{n}", where="wiki")


def next_sentence(n: int, *, seed: int = 0, split: Split = "test") -> list[Choice]:
    """Which of four sentences comes next? The wrong ones are from other articles of the topic, in the same place."""
    pool = [(a, s) for a in articles(split) if len(s := sentences(a.text)) >= 3]
    by_topic: dict[str, list[tuple[Article, list[str]]]] = {}
    for article, parts in pool:
        if 40 <= len(parts[1]) <= 160:
            by_topic.setdefault(article.topic, []).append((article, parts))
    rng = random.Random(f"next {seed}")
    items = []
    for article, parts in _shuffled(pool, seed):
        others = [p[1] for a, p in by_topic.get(article.topic, []) if a is not article]
        if not 40 <= len(parts[1]) <= 160 or not 60 <= len(parts[0]) <= 300 or len(others) < OPTIONS - 1:
            continue
        items.append(_choice(f"next-{article.title}", parts[0], parts[1], rng.sample(others, OPTIONS - 1), rng))
        if len(items) == n:
            return items
    raise DataError(f"{len(items)} articles with two sentences of the wanted length", expected=f"{n}", where="wiki")


def definition_choice(n: int, *, seed: int = 0, split: Split = "test") -> list[Choice]:
    """Which of four descriptions belongs to a title? The wrong ones are of the same topic; none repeats the title."""
    pool = [a for a in articles(split) if 10 <= len(a.description) <= 60 and not _named(a.title, a.description)]
    by_topic: dict[str, list[Article]] = {}
    for article in pool:
        by_topic.setdefault(article.topic, []).append(article)
    rng = random.Random(f"definition {seed}")
    items = []
    for article in _shuffled(pool, seed):
        texts = {a.description for a in by_topic[article.topic]} - {article.description}
        others = sorted(t for t in texts if not _named(article.title, t) and not _alike(t, article.description))
        if len(others) < OPTIONS - 1:
            continue
        wrong = rng.sample(others, OPTIONS - 1)
        context = f"Term: {article.title}\nMeaning:"
        items.append(_choice(f"definition-{article.title}", context, article.description, wrong, rng))
        if len(items) == n:
            return items
    raise DataError(f"{len(items)} articles with a short description", expected=f"{n}", where="wiki")


def sentences(text: str) -> list[str]:
    """Sentences of an English text, by punctuation before a capital (abbreviations of one letter don't end one)."""
    return [s.strip() for s in _SENTENCE.split(text) if s.strip()]


def _choice(name: str, context: str, right: str, wrong: Sequence[str], rng: random.Random) -> Choice:
    options = [right, *wrong]
    rng.shuffle(options)
    return Choice(name, context, tuple(options), options.index(right))


def _named(title: str, text: str) -> bool:
    """Does a long word of the title (its stem) stand in the text?"""
    words = {w.lower() for w in _WORD.findall(title) if len(w) > 3}
    body = text.lower()
    return any(w[:5] in body for w in words) or title.lower() in body


def _alike(a: str, b: str) -> bool:
    """Do two descriptions say much the same ("French painter", "French painter (1840-1926)")? By half of the words."""
    one, other = ({w.lower() for w in _WORD.findall(t) if not w.isdigit()} for t in (a, b))
    return 2 * len(one & other) > min(len(one), len(other))


def _article(row: dict[str, Any]) -> Article:
    text = " ".join(row["extract"].split())
    return Article(row["title"], text, row.get("topic") or "", " ".join((row.get("description") or "").split()))


def _split(title: str) -> Split:
    return "test" if int(hashlib.sha256(title.encode()).hexdigest(), 16) % 100 < TEST_SHARE else "train"


def _shuffled(items: Sequence[Any], seed: int) -> Iterator[Any]:
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    return (items[i] for i in order)
