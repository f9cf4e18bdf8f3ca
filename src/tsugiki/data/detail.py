"""How much an answer should say, asked for in the question's own language.

Training data and `chat` use the same words, so that what was learned is what is asked. More languages are more entries.
"""

from __future__ import annotations

import re

from tsugiki.errors import UnknownNameError

PHRASES: dict[str, dict[str, str]] = {
    "en": {
        "short": "Answer briefly.",
        "full": "Answer in a full sentence.",
        "boxes": "Answer with boxes.",
    },
    "ja": {
        "short": "短く答えてください。",
        "full": "一文で答えてください。",
        "boxes": "枠で答えてください。",
    },
}
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def language(text: str) -> str:
    """The language of `PHRASES` that a question is in, by its script."""
    return "ja" if _JAPANESE.search(text) else "en"


def instruct(text: str, detail: str) -> str:
    """The question with the form of its answer asked for.

    Raises:
        UnknownNameError: no such form.
    """
    forms = PHRASES[language(text)]
    if detail not in forms:
        raise UnknownNameError("detail", detail, forms, where="chat(detail=)")
    joiner = "" if language(text) == "ja" else " "
    return text.rstrip() + joiner + forms[detail]
