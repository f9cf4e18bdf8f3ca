"""English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tsugiki.data.detail import PHRASES
from tsugiki.synth.phrases.base import CELLS, Phrases, StepPhrases

STANDARD = PHRASES["en"]

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SAME = {"fish", "sheep", "deer", "dice"}
_PLURALS = {"maple leaf": "maple leaves", "tooth": "teeth"}
_SIDES = {"left": "on the left", "right": "on the right", "middle": "in the middle"}


def article(phrase: str) -> str:
    """The indefinite article for a phrase about a name of the table."""
    return "an" if phrase[0] in "aeiou" or phrase.startswith("hour") else "a"


def plural(name: str) -> str:
    """The plural of a name of the table."""
    if name in _SAME:
        return name
    if name in _PLURALS:
        return _PLURALS[name]
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    if name.endswith(("s", "x", "ch", "sh")):
        return f"{name}es"
    return f"{name}es" if name.endswith(("ato", "ano")) else f"{name}s"


def join(items: Sequence[str]) -> str:
    """A list in a sentence: a; a and b; a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _fields(name: str, count: int) -> Mapping[str, str]:
    many = count != 1
    return {
        "name": name,
        "names": plural(name),
        "a_name": f"{article(name)} {name}",
        "name_or_names": plural(name) if many else name,
        "counted": f"{NUMBERS[count]} {plural(name) if many else name}",
        "is_or_are": "are" if many else "is",
    }


def _thing(name: str, colour: str | None, count: int) -> str:
    said = f"{colour} " if colour else ""
    if count == 1:
        return f"{article(said + name)} {said}{name}"
    return f"{NUMBERS[count]} {said}{plural(name)}"


_MORE = {
    "left": "further left",
    "right": "further right",
    "above": "further up",
    "below": "further down",
    "larger": "larger",
}
_OF_A_PAIR = "to the left of, to the right of, above or below"

STEPWISE = StepPhrases(
    hints=("Answer step by step with boxes.", "Go step by step and mark the boxes.", "Give every step with its box."),
    questions={
        "where": ("Where is the {a}?", "Find the {a}.", "Mark the {a}."),
        "side": (
            f"Is the {{a}} {_OF_A_PAIR} the {{b}}?",
            "Seen from the {b}, is the {a} to the left, to the right, above or below?",
        ),
        "more": ("Which is {more}, the {a} or the {b}?", "Which of the two is {more}: the {a} or the {b}?"),
        "most": ("Which {name} is {most}?", "Which of the {names} is {most}?"),
        "chain": (
            "Take the {a} or the {b}, whichever is {which}. Is the {c} to the left of it, to the right of it, above it"
            " or below it?",
            f"Is the {{c}} {_OF_A_PAIR} the one that is {{which}} of the {{a}} and the {{b}}?",
        ),
    },
    steps={
        "at": "The {name} is at {box}.",
        "nth at": "The {nth} {name} is at {box}.",
        "side": "The {a} is {side} the {b}.",
        "more": "The {a} is {more} than the {b}.",
        "most": "The {nth} {name} is {most}.",
        "none": "There is no {name} in the picture.",
        "answer": "Answer: the {name} at {box}.",
        "answer nth": "Answer: the {nth} {name} at {box}.",
        "answer side": "Answer: {side} the {b}, at {box}.",
        "answer none": "Answer: none.",
    },
    side={"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"},
    direction={side: side for side in ("left", "right", "above", "below")},
    more={**_MORE, "nearer": "nearer to the {c}"},
    most={
        "left": "furthest left",
        "right": "furthest right",
        "above": "furthest up",
        "below": "furthest down",
        "larger": "the largest",
        "nearer": "nearest to the {c}",
    },
    which=_MORE,
    nth=("first", "second", "third", "fourth"),
)

ENGLISH = Phrases(
    language="en",
    numbers=NUMBERS,
    colours={c: c for c in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")},
    places={cell: cell for cell in CELLS},
    at={cell: _SIDES.get(cell, f"at the {cell}") for cell in CELLS},
    hints={
        "short": (STANDARD["short"], "Answer with a word or two.", "Answer in a word or two."),
        "full": (STANDARD["full"], "Answer in a sentence.", "Please answer in one sentence."),
        "boxes": (STANDARD["boxes"], "Answer in a sentence with boxes."),
        "sentence with boxes": ("Answer in a sentence with boxes.", "Answer in a sentence, with boxes."),
        "boxes only": (STANDARD["boxes"], "Give only the boxes."),
        "names and boxes": (STANDARD["boxes"],),
        "briefly": (STANDARD["short"],),
        "yes or no": (STANDARD["short"], "Answer with yes or no.", "Yes or no?"),
    },
    questions={
        "naming": ("What is in the picture?", "What does the picture show?", "Which object is this?"),
        "naming at": ("What is {at}?", "Which object is {at}?", "What can you see {at}?"),
        "naming box": ("What is in the box {box}?", "Which object is inside {box}?"),
        "colour": ("What colour is the {name}?", "Which colour is the {name}?", "What is the colour of the {name}?"),
        "count": (
            "How many {names} are there?",
            "How many {names} can you see?",
            "How many {names} are in the picture?",
        ),
        "count all": ("How many objects are there?", "How many objects are in the picture?"),
        "place": (
            "Where is the {name}?",
            "In which part of the picture is the {name}?",
            "Where can you see the {name}?",
        ),
        "box": ("Where {is_or_are} the {name_or_names}?", "Find the {name_or_names}.", "Mark the {name_or_names}."),
        "presence": ("Is there {a_name} in the picture?", "Can you see {a_name}?", "Is there {a_name}?"),
        "caption": ("Describe the picture.", "What can you see in the picture?", "Say what the picture shows."),
        "detect": (
            "List every object with its box.",
            "Name all objects and give the box of each.",
            "Which objects are there, and what is the box of each?",
        ),
        "detect class": ("Find every {name}.", "Give the box of every {name}.", "Mark every {name} there is."),
    },
    answers={
        ("naming", "short"): "{name}",
        ("naming", "full"): "It is {a_name}.",
        ("naming", "boxes"): "It is {a_name} at {box}.",
        ("colour", "short"): "{colour}",
        ("colour", "full"): "The {name} is {colour}.",
        ("colour", "boxes"): "The {name} at {box} is {colour}.",
        ("count", "short"): "{number}",
        ("count", "full"): "There {is_or_are} {counted}.",
        ("count", "boxes"): "There {is_or_are} {counted}: {boxes}.",
        ("place", "short"): "{place}",
        ("place", "full"): "The {name} is {at}.",
        ("place", "boxes"): "The {name} is {at}: {box}.",
        ("box", "boxes"): "The {name_or_names} {is_or_are} at {boxes}.",
        ("absent", "short"): "none",
        ("absent", "full"): "There is no {name} in the picture.",
        ("absent", "boxes"): "There is none.",
        ("absent", "boxes only"): "none",
        ("yes", "short"): "yes",
        ("yes", "full"): "Yes, there is {a_name} in the picture.",
        ("yes", "boxes"): "Yes, at {boxes}.",
        ("no", "short"): "no",
        ("no", "full"): "No, there is no {name} in the picture.",
        ("no", "boxes"): "No, there is none.",
        ("caption", "short"): "{things}",
        ("caption", "full"): "The picture shows {things}.",
        ("caption", "boxes"): "The picture shows {things}.",
        ("caption item", "boxes"): "{thing} at {box}",
        ("detect item", "boxes"): "{name} {box}",
    },
    space=" ",
    separator="; ",
    join=join,
    fields=_fields,
    thing=_thing,
    object="object",
    stepwise=STEPWISE,
)
