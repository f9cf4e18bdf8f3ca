"""A row of a table (path, label, question, answer, text, split) -> one sample; for CSV and metadata files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tsugiki.data.convert._problems import picture
from tsugiki.errors import DataError, UnknownNameError
from tsugiki.types import Message, Sample, TextPart

PATH_NAMES = ("path", "file_name", "image")
_KNOWN = (*PATH_NAMES, "id", "label", "text", "question", "answer", "split", "options")


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Questions and answers for rows that have none of their own."""

    question: str = "What is shown in this picture?"
    """For labels; {options} becomes the list of classes."""
    answer: str = "{label}"
    """For labels; {label} becomes the class."""
    caption_question: str = "Describe this picture."
    """For rows with a text only."""
    task: str = "decision"
    """Task of rows with a label."""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Wording:
        """From keyword arguments.

        Raises:
            UnknownNameError: no such field.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownNameError("option", name, known, where="convert")
        return cls(**{name: str(value) for name, value in options.items()})


def sample_from_row(row: Mapping[str, Any], folder: Path, where: str, wording: Wording) -> Sample:
    """One sample; a label's options are added later by `with_options`, when all classes are known.

    Raises:
        DataError: no path, or neither label, answer nor text.
        ImageError: the picture does not exist.
    """
    values = {
        k: _text(v, f"{where} {k}") for k, v in row.items() if k in _KNOWN and k != "options" and v not in (None, "")
    }
    name = next((values[k] for k in PATH_NAMES if k in values), None)
    if name is None:
        raise DataError(
            "no path of a picture", expected=f"a column {PATH_NAMES[0]!r} that is filled", fix="Fill it.", where=where
        )
    source = picture(folder, name, where)
    meta = {k: v for k, v in row.items() if k not in _KNOWN and k is not None and v not in (None, "")}
    meta |= {k: values[k] for k in ("label", "split") if k in values}
    question, answer, task = _turns(values, where, wording)
    return Sample(
        id=values.get("id", name),
        messages=(Message.of("user", question, (source,)), Message("assistant", (TextPart(answer),))),
        task=task,
        options=tuple(_text(o, f"{where} options") for o in _options(row.get("options"), where)),
        meta=meta,
        where=where,
    )


def with_options(samples: Sequence[Sample], wording: Wording) -> list[Sample]:
    """The closed set of answers for all samples with a label: the classes, sorted."""
    labels = sorted({s.meta["label"] for s in samples if s.task == wording.task and "label" in s.meta})
    options = tuple(dict.fromkeys(wording.answer.replace("{label}", label) for label in labels))
    done = []
    for sample in samples:
        if sample.task == wording.task and "label" in sample.meta and not sample.options:
            question, *rest = sample.messages
            parts = tuple(
                TextPart(p.text.replace("{options}", ", ".join(options))) if isinstance(p, TextPart) else p
                for p in question.parts
            )
            sample = replace(sample, messages=(replace(question, parts=parts), *rest), options=options)
        done.append(sample)
    return done


def _turns(values: Mapping[str, str], where: str, wording: Wording) -> tuple[str, str, str]:
    """Question, answer, task."""
    if "answer" in values:
        if "question" not in values:
            raise DataError(
                "an answer without a question", expected="a question", fix="Fill it.", where=f"{where} question"
            )
        return values["question"], values["answer"], "vqa"
    if "label" in values:
        answer = wording.answer.replace("{label}", values["label"])
        return values.get("question", wording.question), answer, wording.task
    if "text" in values:
        return values.get("question", wording.caption_question), values["text"], "caption"
    raise DataError(
        "neither label, answer nor text",
        expected="a column 'label', 'text', or 'question' and 'answer', that is filled",
        fix="Fill one.",
        where=where,
    )


def _options(value: object, where: str) -> Sequence[object]:
    if value in (None, ""):
        return ()
    if isinstance(value, str):
        return [o.strip() for o in value.split("|")]
    if isinstance(value, list):
        return value
    raise DataError(f"options {value!r}", expected="a list, or texts between |", fix="Correct it.", where=where)


def _text(value: object, where: str) -> str:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{value!r}", expected="a text or a number", fix="Correct it.", where=where)
