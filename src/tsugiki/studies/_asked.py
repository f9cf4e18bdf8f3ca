"""What a graft was asked in training, kept beside it, so that `predict` asks the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsugiki.data.files import atomic_write
from tsugiki.data.schema import message_text
from tsugiki.types import ImagePart, Sample, TextPart

FILE = "asked.json"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question, and its closed set of answers if it has one."""

    question: str
    """Whole, with the words that ask for a form of answer."""
    options: tuple[str, ...] = ()


def asked_of(samples: Sequence[Sample]) -> Asked | None:
    """The question that all samples ask about one picture; None where they ask several."""
    found = {_question(sample) for sample in samples}
    return found.pop() if len(found) == 1 else None


def _question(sample: Sample) -> Asked | None:
    if len(sample.prompt) != 1 or sample.prompt[0].role != "user":
        return None
    parts = sample.prompt[0].parts
    if not parts or not isinstance(parts[0], ImagePart) or not all(isinstance(p, TextPart) for p in parts[1:]):
        return None
    return Asked(question=message_text(sample.prompt[0]), options=sample.options)


def write(folder: Path, asked: Asked) -> None:
    """Keep it beside a saved graft.

    Raises:
        StoreError: the folder can't be written.
    """
    atomic_write(folder / FILE, json.dumps(asdict(asked), ensure_ascii=False, indent=1) + "\n")


def read(folder: str | Path | None) -> Asked | None:
    """What stands beside a saved graft; None where there is nothing, or nothing usable."""
    if not folder:
        return None
    try:
        content: Any = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        return Asked(question=str(content["question"]), options=tuple(map(str, content["options"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None
