"""English, about text on pictures: the words and sentences of `synth.ocr`."""

from __future__ import annotations

from tsugiki.data.detail import PHRASES
from tsugiki.synth.phrases.texts import Texts

_SHORT = (PHRASES["en"]["short"], "Answer with the text alone.")
_BOXES = (PHRASES["en"]["boxes"],)

ENGLISH_TEXTS = Texts(
    language="en",
    fields={
        "model": "Model",
        "serial": "Serial No.",
        "lot": "Lot",
        "date": "Date",
        "voltage": "Voltage",
        "power": "Power",
        "current": "Current",
        "weight": "Weight",
    },
    columns=("Length", "Price", "Stock", "Weight", "Order"),
    item="Item",
    date="{year}-{month:02d}-{day:02d}",
    questions={
        "read": ("What text is in the box {box}?", "Read what is written at {box}.", "What does it say at {box}?"),
        "read all": ("Read the text in the picture.", "What is written in the picture?"),
        "field": ("What is the {field}?", "Read the field {field}.", "What does the plate say for {field}?"),
        "gauge": ("What value does the gauge show?", "Read the gauge.", "Where does the needle point?"),
        "cell": (
            "What is the {column} of {row}?",
            "What stands in the row {row} under {column}?",
            "Read the cell of {row} and {column}.",
        ),
        "text box": ('Where is the text "{text}"?', 'Find the text "{text}".', 'Mark the text "{text}".'),
        "spotting": (
            "List every text with its box.",
            "Find all texts and give the box of each.",
            "Which texts are there, and what is the box of each?",
        ),
        "table": ("Write the table as Markdown.", "Turn the table into Markdown text."),
    },
    hints={
        "read": _SHORT,
        "field": _SHORT,
        "gauge": (PHRASES["en"]["short"], "Answer with the number and its unit."),
        "cell": _SHORT,
        "text box": _BOXES,
        "spotting": _BOXES,
        "table": (),
    },
)
