"""Instructions that a program can check: number of words, letter case, first and last words, JSON, lists, language.

A rule has a name, arguments, a wording and a check. `instructions` makes prompts from them, with a seed; `follows`
judges an answer. The wordings and topics are our own.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.errors import DataError, UnknownNameError

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_BULLET, _NUMBERED = re.compile(r"^\s*[-*•]\s+\S"), re.compile(r"^\s*\d+[.)]\s+\S")
_COMMON = {
    "en": "the of and to in is that it for with as are on this by from be which an or",
    "fr": "le la les de des du et est un une en que qui dans pour avec sur il elle ce",
    "es": "el la los las de del y es un una en que por con para su se como más al",
    "de": "der die das und ist ein eine den dem von zu mit auf für nicht im sich es als auch",
}
_LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German", "ja": "Japanese"}


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of instruction."""

    check: Callable[..., bool]
    """(answer, **arguments) -> is it followed?"""
    wording: str
    """What is asked, with the arguments' names in braces."""
    draw: Callable[[random.Random], dict[str, Any]] = lambda rng: {}
    """Arguments for a made prompt."""
    question: bool = False
    """It goes with a question of yes or no, not with a topic."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """A prompt and the rules that its answer has to keep."""

    id: str
    prompt: str
    checks: tuple[tuple[str, Mapping[str, Any]], ...]
    """(name of the rule, arguments)."""

    def document(self) -> dict[str, Any]:
        """As a row of an lm-eval task; rules differ in their arguments, so they travel as JSON."""
        return {"id": self.id, "context": self.prompt, "checks": json.dumps(self.checks, ensure_ascii=False)}


def instructions(n: int, *, seed: int = 0) -> list[Instruction]:
    """`n` prompts of one rule each, every rule once in a round; the first k of a longer run are the run of k."""
    rng = random.Random(f"instructions {seed}")
    names = list(RULES)
    out = []
    for i in range(n):
        # Each round begins one rule later, so that every other prompt is not every other rule.
        name = names[(i + i // len(names)) % len(names)]
        arguments = RULES[name].draw(rng)
        shown = {k: _LANGUAGES.get(v, v) if k == "language" else _shown(v) for k, v in arguments.items()}
        topic = rng.choice(QUESTIONS if RULES[name].question else TOPICS)
        prompt = f"{topic} {RULES[name].wording.format(**shown)}"
        out.append(Instruction(f"instruction-{i}", prompt, ((name, arguments),)))
    return out


def follows(answer: str, checks: Sequence[Sequence[Any]]) -> bool:
    """Does an answer keep all the rules? An empty answer keeps none.

    Args:
        checks: pairs (name of the rule, arguments).

    Raises:
        UnknownNameError: no such rule; says the nearest.
        DataError: arguments that the rule does not take.
    """
    text = answer.strip()
    return bool(text) and all(_kept(text, name, arguments) for name, arguments in checks)


def unread(answers: Sequence[str], items: Sequence[Instruction]) -> float:
    """The chance level of free answers: how often a rule is kept by an answer that was not given to it.

    Each rule is tried on the answer to the next prompt. Rules such as "avoid a letter" are kept by many answers
    without being read; one that nothing keeps by accident adds 0.

    Args:
        answers: one an item, in their order.
    """
    if len(items) < 2:
        return 0.0
    others = (*answers[1:], answers[0])
    return sum(follows(a, item.checks) for a, item in zip(others, items, strict=True)) / len(items)


def judge(document: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """lm-eval's `process_results` of the tasks that generate: 1 where the document's rules are kept."""
    return {"acc": float(follows(answers[0], json.loads(document["checks"])))}


def _kept(text: str, name: str, arguments: Mapping[str, Any]) -> bool:
    if name not in RULES:
        raise UnknownNameError("rule", name, RULES)
    try:
        return RULES[name].check(text, **arguments)
    except TypeError as error:
        raise DataError(f"the rule {name} with {dict(arguments)} ({error})", expected="its own arguments") from error


# --- checks; texts are stripped and not empty ---


def _plain(text: str) -> str:
    """Whatever the case, the spaces and a stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".!。")


def _words_at_most(text: str, n: int) -> bool:
    return len(_WORD.findall(text)) <= n


def _words_at_least(text: str, n: int) -> bool:
    return len(_WORD.findall(text)) >= n


def _lower_case(text: str) -> bool:
    return text == text.lower() and text != text.upper()


def _upper_case(text: str) -> bool:
    return text == text.upper() and text != text.lower()


def _starts_with(text: str, start: str) -> bool:
    return text.startswith(start)


def _ends_with(text: str, end: str) -> bool:
    return text.rstrip('"”').endswith(end)


def _contains(text: str, word: str) -> bool:
    return word.casefold() in (w.casefold() for w in _WORD.findall(text))


def _avoids_letter(text: str, letter: str) -> bool:
    return letter.casefold() not in text.casefold()


def _json_keys(text: str, keys: Sequence[str]) -> bool:
    """A JSON object of exactly these keys, with or without a Markdown fence."""
    inner = re.sub(r"^```(?:json)?\s*|\s*```$", "", text)
    try:
        found = json.loads(inner)
    except ValueError:
        return False
    return isinstance(found, dict) and set(found) == set(keys)


def _bullets(text: str, n: int) -> bool:
    return sum(bool(_BULLET.match(line)) for line in text.splitlines()) == n


def _numbered(text: str, n: int) -> bool:
    return sum(bool(_NUMBERED.match(line)) for line in text.splitlines()) == n


def _one_of(text: str, options: Sequence[str]) -> bool:
    return _plain(text) in {_plain(o) for o in options}


def _quoted(text: str) -> bool:
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


def _language(text: str, language: str) -> bool:
    """Japanese by its letters, the others by which language's commonest words there are most of."""
    letters = [c for c in text if c.isalpha()]
    kana = sum("\u3040" <= c <= "\u30ff" for c in letters)
    if language == "ja":
        return kana * 4 >= len(letters) > 0
    words = [w.lower() for w in _WORD.findall(text)]
    counts = {name: sum(w in common.split() for w in words) for name, common in _COMMON.items()}
    return not kana and counts[language] > max(v for name, v in counts.items() if name != language)


def _shown(value: Any) -> Any:
    return ", ".join(f'"{v}"' for v in value) if isinstance(value, list) else value


def _number(low: int, high: int) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {"n": rng.randint(low, high)}


def _of(name: str, *values: Any) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {name: rng.choice(values)}


RULES: dict[str, Rule] = {
    "words_at_most": Rule(_words_at_most, "Use no more than {n} words.", _number(5, 15)),
    "words_at_least": Rule(_words_at_least, "Write {n} words or more.", _number(25, 35)),
    "lower_case": Rule(_lower_case, "Write every letter small, without any capital."),
    "upper_case": Rule(_upper_case, "Write everything in capital letters."),
    "starts_with": Rule(
        _starts_with, 'Let the very first word be "{start}".', _of("start", "Well", "Today", "Imagine", "First")
    ),
    "ends_with": Rule(
        _ends_with, 'Close with exactly these words: "{end}"', _of("end", "That is all.", "Good luck.", "The end.")
    ),
    "contains": Rule(
        _contains, 'The word "{word}" has to occur in it.', _of("word", "window", "river", "morning", "silver")
    ),
    "avoids_letter": Rule(
        _avoids_letter, 'Do not use the letter "{letter}" at all.', _of("letter", "z", "q", "w", "k")
    ),
    "json_keys": Rule(
        _json_keys,
        "Reply with one JSON object that has the keys {keys}, and with nothing else.",
        lambda rng: {"keys": rng.sample(["name", "summary", "colour", "use", "size"], 2)},
    ),
    "bullets": Rule(_bullets, 'Give a list of {n} points, each on a line that begins with "- ".', _number(2, 4)),
    "numbered": Rule(_numbered, "Number {n} points 1., 2. and so on, one a line.", _number(2, 4)),
    "one_of": Rule(
        _one_of,
        "Reply with one of {options}, and with no other word.",
        lambda rng: {"options": rng.choice([["yes", "no"], ["true", "false"]])},
        question=True,
    ),
    "quoted": Rule(_quoted, "Put your whole reply between double quotation marks."),
    "language": Rule(_language, "Reply in {language}.", _of("language", *_LANGUAGES)),
}
"""Rules that prompts are made of."""

TOPICS = (
    "Say what a bicycle is for.", "Explain why leaves fall in autumn.", "Describe a harbour at dawn.",
    "Tell me how tea is made.", "Give advice to someone who starts to run.", "Say what a library offers.",
    "Explain what a magnet does.", "Describe your idea of a good breakfast.", "Tell a visitor about snow.",
    "Say why sleep matters.", "Explain how a candle burns.", "Describe a busy market.",
    "Tell a child what a bridge is.", "Say how one keeps a plant alive.", "Explain what a map shows.",
    "Describe an old clock.",
)  # fmt: skip

QUESTIONS = (
    "Can a whale fly?", "Is ice cold?", "Do trees have roots?", "Is a stone soft?", "Does the sun rise in the east?",
    "Is a minute longer than an hour?", "Do birds lay eggs?", "Can a shoe sing?",
)  # fmt: skip
