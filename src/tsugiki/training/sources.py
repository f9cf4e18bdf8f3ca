"""A stage's data: from paths and names to lists of samples, checked, and from there to an endless stream of batches."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsugiki.data import schema
from tsugiki.data.branch import branch_in
from tsugiki.data.files import sha256_file
from tsugiki.data.images import content_key
from tsugiki.data.mixture import levels
from tsugiki.errors import DataError, RecipeError, UnknownNameError
from tsugiki.training import packed
from tsugiki.training.recipe import Source, Stage
from tsugiki.types import FOR_LOSSES, ImagePart, ImageSource, Message, Sample, TextPart

Given = Mapping[str, Sequence[Sample] | str | Path]


def named(data: Given | Sequence[Sample] | str | Path | None, stages: Sequence[Stage]) -> Given:
    """`train(data=...)` as a mapping; a bare list or path belongs to the recipe's only source.

    Raises:
        RecipeError: a bare list, and the recipe has several sources.
        UnknownNameError: a name that no stage asks for.
    """
    wanted = sorted({name for stage in stages for name in stage.data})
    if data is None:
        return {}
    if isinstance(data, Mapping):
        for name in data:
            if name not in wanted:
                raise UnknownNameError("data source", str(name), wanted, where="train(data=)")
        return data
    if len(wanted) != 1:
        raise RecipeError(
            "one list of samples",
            expected=f"one for each of the recipe's sources: {', '.join(wanted)}",
            fix="Pass data={name: samples}",
            where="train(data=)",
        )
    return {wanted[0]: data}


def load(stage: Stage, given: Given, *, where: str) -> dict[str, list[Sample]]:
    """The samples of each source.

    Raises:
        RecipeError: a source that is neither given nor has a path.
        DataError: an empty source, a line that is wrong, a sample without an answer, or without a level where the
            source goes by levels.
    """
    found = {}
    for name, source in stage.data.items():
        content = given.get(name, source.path)
        if content is None:
            raise RecipeError(
                f"the data source {name!r} is not given",
                expected="a path in the recipe, or samples by that name",
                fix=f"Pass data={{{name!r}: samples}}, or --data {name}=file.jsonl",
                where=f"{where}.data.{name}",
            )
        samples = schema.load(content) if isinstance(content, (str, Path)) else list(content)
        if not samples:
            raise DataError("no samples", expected="at least one", where=f"{where}.data.{name}")
        for sample in samples:
            if not any(message.role == "assistant" for message in sample.messages):
                raise DataError(
                    f"sample {sample.id!r} has no answer to learn from",
                    expected="an assistant message",
                    fix="Add one, or leave the sample out.",
                    where=sample.where or f"{where}.data.{name}",
                )
        if source.order == "staged":
            levels(samples)
        found[name] = samples
    return found


def digest(content: Sequence[Sample] | str | Path) -> str:
    """SHA-256 of a file, or of samples in memory (their words, and the pictures' paths or pixels)."""
    if isinstance(content, (str, Path)):
        return sha256_file(content)
    total = hashlib.sha256()
    for sample in content:
        names = {i: str(s) if isinstance(s, (str, Path)) else content_key(s) for i, s in enumerate(sample.images)}
        record = schema.to_record(sample, names)
        total.update(json.dumps(record, ensure_ascii=False, sort_keys=True, default=str).encode())
    return total.hexdigest()


def refuse_idle_branches(
    samples: Mapping[str, Sequence[Sample]],
    stage: Stage,
    known: Sequence[str],
    taught: frozenset[str],
    *,
    where: str,
) -> None:
    """A sample of a branch that does not train has no gradient.

    Args:
        known: the branches that the model tells apart.
        taught: those that train.

    Raises:
        RecipeError: there is one.
    """
    for name, content in samples.items():
        for sample in content:
            branch = branch_in(sample, known)
            pictured = sample.images or stage.data[name].replay == "in_picture"
            if pictured and branch not in taught:
                raise RecipeError(
                    f"sample {sample.id!r} is of the branch {branch!r}, which does not train here",
                    expected=f"samples of {' or '.join(sorted(taught))}",
                    fix="Leave it out, train that branch too, or say what it is for: meta: {branch: ...}.",
                    where=sample.where or f"{where}.data.{name}",
                )


def refuse_idle_text(samples: Mapping[str, Sequence[Sample]], stage: Stage, *, where: str) -> None:
    """A text-only sample on a frozen text path has no gradient.

    Raises:
        RecipeError: there is one; names `replay: in_picture`.
    """
    for name, content in samples.items():
        idle = [s for s in content if not s.images]
        if idle and stage.data[name].replay != "in_picture":
            raise RecipeError(
                f"{len(idle)} of {len(content)} samples are text only (the first: {idle[0].id!r}), and the text path is"
                " frozen, so they teach nothing",
                expected="samples with a picture",
                fix=f"Set `data: {{{name}: {{replay: in_picture}}}}` to ask them after an unrelated picture.",
                where=f"{where}.data.{name}",
            )


def in_picture(
    samples: Sequence[Sample],
    pictures: Sequence[ImageSource],
    *,
    seed: int,
    answer: Callable[[Sample], str] | None,
) -> list[Sample]:
    """Text-only samples asked after an unrelated picture; with a picture they stay as they are, documents are left out.

    Args:
        pictures: to choose from.
        answer: the base LLM's own answer to a text-only sample, or None to keep the sample's.
    """
    rng = random.Random(f"in_picture {seed}")
    out = []
    for sample in samples:
        if sample.images:
            out.append(sample)
            continue
        turns = list(sample.messages if answer is None else sample.prompt)
        first = next((i for i, m in enumerate(turns) if m.role == "user"), None)
        if first is None:
            continue
        turns[first] = Message("user", (ImagePart(rng.choice(pictures)), *turns[first].parts))
        meta = sample.meta
        if answer is not None:
            turns.append(Message("assistant", (TextPart(answer(sample)),)))
            meta = {k: v for k, v in meta.items() if k not in FOR_LOSSES}  # marks of the other answer's steps
        out.append(replace(sample, messages=tuple(turns), meta=meta))
    return out


def replayed(
    samples: Mapping[str, Sequence[Sample]], stage: Stage, model: Any, *, seed: int, folder: Path, where: str
) -> dict[str, list[Sample]]:
    """The sources with their `replay` carried out; the base's answers are kept in `folder`.

    Raises:
        RecipeError: no source of the stage has a picture.
    """
    pictures = [image for content in samples.values() for s in content for image in s.images]
    out: dict[str, list[Sample]] = {}
    for name, content in samples.items():
        source = stage.data[name]
        if source.replay == "packed":
            out[name] = list(packed.rows(model, content, source.pack_length, seed=seed, where=f"{where}.data.{name}"))
            continue
        if source.replay == "none" or all(s.images for s in content):
            out[name] = list(content)
            continue
        if not pictures:
            raise RecipeError(
                "no picture in any source of the stage",
                expected="another source with pictures, to ask the text-only questions after",
                fix="Add one",
                where=f"{where}.data.{name}.replay",
            )
        answer = _remembered(model, content, source, folder / f"{name}.json") if source.answers == "base" else None
        out[name] = in_picture(content, pictures, seed=seed, answer=answer)
    return out


def _remembered(model: Any, samples: Sequence[Sample], source: Source, file: Path) -> Callable[[Sample], str]:
    """The base's greedy answers by the sample's id and question, generated once and stored."""
    from tsugiki.data.files import atomic_write

    def key(sample: Sample) -> str:
        return hashlib.sha256(repr((sample.prompt, source.answer_tokens)).encode()).hexdigest()

    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    missing = [s for s in samples if s.prompt and not s.images and key(s) not in known]  # a document asks nothing
    for sample in missing:
        *history, question = sample.prompt
        text = "".join(p.text for p in question.parts if isinstance(p, TextPart))
        limit = source.answer_tokens
        known[key(sample)] = model.chat(text, history=tuple(history), do_sample=False, max_new_tokens=limit)
    if missing:
        atomic_write(file, json.dumps(known, ensure_ascii=False, indent=1))
    return lambda sample: known[key(sample)]
