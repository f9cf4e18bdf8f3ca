"""English, about any picture with named boxes: the words and sentences of `synth.formats`."""

from __future__ import annotations

from dataclasses import replace

from tsugiki.synth.phrases.en import ENGLISH

ENGLISH_FORMATS = replace(
    ENGLISH,
    hints={
        **ENGLISH.hints,
        "letter": ("Answer with the letter.", "Answer with the letter of the right one."),
        "names and boxes": (*ENGLISH.hints["names and boxes"], "Give a name and a box for each."),
    },
    questions={
        "caption": ENGLISH.questions["caption"],
        "count": ENGLISH.questions["count"],
        "choice": ("Which of these is in the picture? {choices}", "What can you see in the picture? {choices}"),
        "box": ENGLISH.questions["box"],
        "naming box": ENGLISH.questions["naming box"],
        "detect": ENGLISH.questions["detect"],
        "detect class": ENGLISH.questions["detect class"],
        "keypoints": (
            "Where are the key points of the {name} in the box {box}?",
            "Find the key points of the {name} at {box}.",
            "Name the key points of the {name} in {box}, with a box for each.",
        ),
    },
    words={"choice": "{letter}) {name}"},
)
