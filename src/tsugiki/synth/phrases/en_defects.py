"""English, about defects: the words and sentences of `synth.defects`."""

from __future__ import annotations

from dataclasses import replace

from tsugiki.synth.phrases.en import ENGLISH

ENGLISH_DEFECTS = replace(
    ENGLISH,
    words={
        "scratch": "scratch",
        "hole": "hole",
        "stain": "stain",
        "missing thread": "missing thread",
        "low": "slight",
        "medium": "moderate",
        "high": "severe",
    },
    object="defect",
    questions={
        "type": ("What is wrong?", "Which defect is there?", "What kind of defect does the picture show?"),
        "type box": ("What is wrong in the box {box}?", "Which defect is in the box {box}?"),
        "severity": ("How bad is the {name}?", "How severe is the {name}?"),
        "box": ("Where {is_or_are} the {name_or_names}?", "Find the {name_or_names}.", "Mark the {name_or_names}."),
        "presence": ("Is there {a_name} in the picture?", "Can you see {a_name}?", "Is there {a_name}?"),
        "caption": ("Describe the defects.", "Report all defects.", "What does an inspection find?"),
    },
    answers={
        ("type", "short"): "{name}",
        ("type", "full"): "It is {a_name}.",
        ("type", "boxes"): "It is {a_name} at {box}.",
        ("severity", "short"): "{severity}",
        ("severity", "full"): "The {name} is {severity}.",
        ("severity", "boxes"): "The {name} at {box} is {severity}.",
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
        ("clean", "short"): "no defect",
        ("clean", "full"): "The picture shows no defect.",
        ("clean", "boxes"): "The picture shows no defect.",
    },
)
