"""LLaVA's training files: a JSON list (or JSONL) of conversations with `<image>` markers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsugiki.data import _fields
from tsugiki.data.convert._problems import Problems, picture
from tsugiki.data.prompt import PLACEHOLDER, parts_from_text
from tsugiki.errors import DataError, InputError
from tsugiki.types import Message, Role, Sample

DESCRIPTION = "LLaVA JSON: image (a path or a list), conversations of from (human, gpt, system) and value with <image>"
ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"
}  # fmt: skip


def convert(
    path: str | Path,
    *,
    images: str | Path | None = None,
    task: str = "chat",
    problems: list[InputError] | None = None,
) -> list[Sample]:
    """Samples of a LLaVA file; every marker becomes the next picture, the text around it stays as it is.

    Args:
        images: folder that the paths are relative to; the file's own folder by default.
        task: of all samples.
        problems: a list that takes the errors of wrong entries, which are then left out.

    Raises:
        DataError: not JSON, an unknown speaker, or another number of markers than of pictures; names the entry's index.
        ImageError: a picture does not exist.
    """
    path = Path(path)
    folder = Path(images) if images is not None else path.parent
    found, wrong = [], Problems(problems)
    for index, (where, entry) in enumerate(_entries(path)):
        with wrong.caught():
            if isinstance(entry, DataError):
                raise entry
            found.append(_sample(entry, index, folder, where, task))
    return wrong.close(found, str(path))


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix.lower() == ".jsonl":
        for number, record in _fields.jsonl_records(path):
            yield f"{path}:{number}", record
        return
    for index, entry in enumerate(_fields.sequence(_fields.json_file(path), str(path))):
        yield f"{path}[{index}]", entry


def _sample(entry: object, index: int, folder: Path, where: str, task: str) -> Sample:
    values = _fields.mapping(entry, where)
    given = values.get("image")
    names = [] if given is None else [given] if isinstance(given, str) else _fields.sequence(given, f"{where} image")
    sources = [picture(folder, _fields.text(n, f"{where} image"), f"{where} image") for n in names]
    turns = _fields.sequence(values.get("conversations"), f"{where} conversations")
    if not turns:
        raise DataError("no turn", expected="at least one", fix="Leave it out.", where=f"{where} conversations")
    texts = [_turn(turn, f"{where} conversations[{i}]") for i, turn in enumerate(turns)]
    # One count over the whole conversation: pictures are numbered through it.
    parts_from_text("".join(text for _, text in texts), sources, where=where, error=DataError)
    messages, used = [], 0
    for role, text in texts:
        count = text.count(PLACEHOLDER)
        messages.append(Message(role, parts_from_text(text, sources[used : used + count], where=where)))
        used += count
    return Sample(
        id=str(values.get("id", index)),
        messages=tuple(messages),
        task=task,
        meta={k: v for k, v in values.items() if k not in ("id", "image", "conversations")},
        where=where,
    )


def _turn(value: object, where: str) -> tuple[Role, str]:
    turn = _fields.mapping(value, where)
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise DataError(
            f"unknown speaker {speaker!r}",
            expected=f"one of {', '.join(ROLES)}",
            fix=_fields.nearest(speaker, ROLES),
            where=f"{where}.from",
        )
    return ROLES[speaker], _fields.text(turn.get("value"), f"{where}.value")
