"""Labelled pictures in front of a question: in the training by the recipe's `demos`, when asked by a bank.

What is shown is of the training pictures alone: a bank holds no picture that is asked about, and leaves out what shows
nearly the same; where a fixed camera makes most pictures alike, only equal ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tsugiki.data import splits
from tsugiki.data.files import temporary_folder
from tsugiki.data.looks import look
from tsugiki.errors import DataError
from tsugiki.evals.task import short_answer
from tsugiki.studies import _draws
from tsugiki.studies import bank as banks
from tsugiki.studies._asked import asked_of
from tsugiki.studies._divide import Parts
from tsugiki.studies.neighbours import BankDemos, Form
from tsugiki.training._demos import Demos
from tsugiki.training.recipe import Recipe
from tsugiki.types import Sample

BANK = "bank"
"""Folder beside the saved graft."""
SHOWN = "shown"
"""In the name of the folder of a bank that is there while questions are asked."""


def check(samples: Sequence[Sample], demos: int, where: str) -> None:
    """What `fit(demos=)` refuses of the data, before anything is trained; 0 refuses nothing.

    Args:
        where: the data's place.

    Raises:
        DataError: not one closed question that is asked about every picture once, in one message behind the picture, or
            equal pictures with two labels.
    """
    if not demos:
        return
    left = {s.id for s in _draws.usable(samples, where)}
    other = next((s for s in samples if s.id not in left), None)
    formed = next((s for s in samples if asked_of([s]) is None), None)
    if other is None and formed is not None:
        raise DataError(
            "a question that is not one message with the picture first",
            expected="the picture, then the question's words, and no system message or earlier turn",
            fix="Bring the samples into this form, or fit without demos.",
            where=formed.where or formed.id,
        )
    if other is not None or asked_of(samples) is None:
        raise DataError(
            "other questions than a closed one about one picture" if other else "several questions or option orders",
            expected="one question with options, the same about every picture, which a bank can show labels for",
            fix="Fit the others by themselves, or without demos.",
            where=where if other is None else other.where or other.id,
        )
    labels: dict[str, str] = {}
    for sample in samples:
        label = short_answer(sample)
        if (known := labels.setdefault(look(sample.images[0]).key, label)) != label:
            raise DataError(
                f"a picture labelled {label!r} has the same pixels as one labelled {known!r}",
                expected="one label for a picture that stands in front of others",
                fix="Correct one of them.",
                where=sample.where or sample.id,
            )


def enough(trainings: Sequence[Parts], demos: int) -> None:
    """Whether every training has `demos` pictures to show with each of its own.

    Raises:
        DataError: one has fewer.
    """
    for parts in trainings:
        found = len(splits.sample_groups(parts.inner, parts.near))
        if found <= demos:
            raise DataError(
                f"{found} different pictures to learn from, and demos {demos}",
                expected=f"{demos + 1} or more, for {demos} in front of each",
                fix="Add pictures, or show fewer.",
                where="demos",
            )


def drawn(plan: Recipe, most: int, near: int | None) -> Recipe:
    """The recipe whose pictures come with 0 to `most` of their nearest others in front, drawn anew each time.

    Args:
        near: bits up to which pictures are too much alike to be shown with each other, see `Parts.near`.
    """
    demos = Demos(most=most, sampler="nearest", near=near)
    stages = []
    for stage in plan.stages:
        data = {
            name: source if source.replay != "none" else source.model_copy(update={"demos": demos})
            for name, source in stage.data.items()
        }
        stages.append(stage.model_copy(update={"data": data}))
    return plan.model_copy(update={"stages": tuple(stages)})


@contextmanager
def shown_from(
    model: Any,
    samples: Sequence[Sample],
    folder: Path,
    k: int,
    *,
    features: Any,
    form: Form = "pictures",
    answers: Sequence[str] | None = None,
    apart: bool = False,
) -> Iterator[BankDemos]:
    """What puts the k nearest of these samples in front of questions, for as long as the block runs.

    Args:
        folder: of their bank, made anew.
        features: cached tower outputs, or None.
        form, apart: as for `BankDemos`.
        answers: as for `bank.build`.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was stopped
    banks.build(model, samples, folder, answers=answers, keep="reference", features=features)
    demos = BankDemos(model, folder, k=k, form=form, apart=apart, features=features)
    with closing(demos.bank):
        yield demos


@contextmanager
def asked_with(
    model: Any, parts: Parts, folder: Path, demos: int, features: Any, *, inner: bool = False
) -> Iterator[BankDemos | None]:
    """What stands in front of questions about other pictures than the training's; None where demos is 0.

    Args:
        folder: the training's; nothing is left in it.
        inner: show none of the hold-out, which is asked.

    Raises:
        StoreError: the folder can't be written.
    """
    if not demos:
        yield None
        return
    learned = parts.inner if inner else parts.train
    # Where a fixed camera makes most pictures alike, only the same one is kept away.
    apart = parts.near is not None
    with (
        temporary_folder(folder, SHOWN) as place,
        shown_from(model, learned, place / BANK, demos, features=features, apart=apart) as shown,
    ):
        yield shown


def sentences(demos: int, folder: Path) -> list[str]:
    """What a report says of it; nothing where demos is 0."""
    if not demos:
        return []
    return [
        f"Every held-out picture was asked with the {demos} nearest training pictures, and their labels, in front; "
        "what the graft answers without them was not measured.",
        "To ask about new pictures, also with what shows nearly the same in front: tsugiki predict "
        f"{folder / 'graft'} PICTURES --bank {folder / BANK} --neighbours {demos}",
    ]


def keep(model: Any, samples: Sequence[Sample], folder: Path, features: Any) -> Path:
    """The bank beside a graft, with copies of the pictures. One that is there stays: pictures may have been added.

    Raises:
        StoreError: it can't be written, or what is there is no bank.
        BaseMismatchError: a bank of another tower is there.
    """
    if folder.exists():
        banks.open_bank(model, folder).close()
    else:
        options = sorted({o for s in samples for o in s.options})
        banks.build(model, samples, folder, answers=options, features=features)
    return folder
