"""A demo bank at work: pictures into it, and labelled neighbours in front of a question, so that an operator adds a
class without training.

    bank = build(model, "photos/", "bank/")         # one folder for each class
    add(model, "bank/", "new/", new_classes=True)   # a class that was never trained
    predict(model, "line/", bank="bank/")

Shapes: n pictures, V width of the tower.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tsugiki.data.bank import Bank, Neighbour, NewEntry
from tsugiki.data.files import atomic_folder, atomic_write
from tsugiki.data.images import SUFFIXES, image_files, open_image
from tsugiki.data.looks import look
from tsugiki.data.splits import near_duplicate_groups
from tsugiki.errors import DataError, StoreError
from tsugiki.evals.task import short_answer
from tsugiki.studies import _own
from tsugiki.studies.neighbours import BankDemos, Recent, open_bank, pooled, single_tower
from tsugiki.types import ImageSource, Message, Sample
from tsugiki.vision.cache import FeatureCache

__all__ = ["BankDemos", "Change", "add", "build", "open_bank", "query"]

Keep = Literal["copy", "thumbnail", "reference"]
ALIKE = 0.9
"""Cosine from which an entry is looked at for a near duplicate."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What `build` or `add` did."""

    added: int
    known: int
    """Pictures that were in the bank already, with the same label."""
    alike: tuple[tuple[str, ...], ...]
    """Sets of pictures that show nearly the same, one of them new."""
    left_out: tuple[str, ...]
    """Pictures that can't be read, each with the reason."""


def build(
    model: Any,
    data: str | Path | Sequence[Sample],
    folder: str | Path,
    *,
    answers: Sequence[str] | None = None,
    keep: Keep = "copy",
    note: str = "",
    features: Any = None,
    progress: Progress | None = None,
) -> Change:
    """A new bank from labelled pictures, in any form that `fit` takes.

    Args:
        answers: the labels that entries may have; None = those of the data.
        keep: "copy" keeps each picture's file, "thumbnail" a JPEG as small as the tower's view, "reference" its path
            alone; what can't be found later is left out of answers.
        features: tower outputs, picture -> [P, V]; None = of the feature cache, where the tower is frozen.

    Raises:
        DataError: no labelled picture, a label that is no answer, or a picture with two labels.
        StoreError: a bank is there, or the folder can't be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(
            "something is there already",
            expected="a new folder",
            fix="Add to a bank, or choose another.",
            where=str(folder),
        )
    own = _labelled(data)
    labels = [short_answer(s) for s in own.samples]
    tower = single_tower(model)
    allowed = sorted(set(labels)) if answers is None else list(answers)
    vectors = _vectors(model, [s.images[0] for s in own.samples], progress, features)
    facts = {"tower": tower.name, "fingerprint": tower.fingerprint(), "width": tower.width}
    with atomic_folder(folder) as new, Bank.create(new, answers=allowed, **facts) as bank:
        return _put(model, bank, own, vectors, keep=keep, note=note, new_classes=False)


def add(
    model: Any,
    folder: str | Path,
    data: str | Path | Sequence[Sample],
    *,
    label: str | None = None,
    new_classes: bool = False,
    keep: Keep = "copy",
    note: str = "",
    progress: Progress | None = None,
) -> Change:
    """Add labelled pictures, all or none.

    Args:
        data: as `build`; with `label`, a picture or a folder of pictures.
        new_classes: labels that the bank has not had yet become answers.

    Raises:
        DataError: as `build`.
        BaseMismatchError: a bank of another tower.
        StoreError: no bank there, or it can't be written.
    """
    with open_bank(model, folder) as bank:
        own = _labelled(data, label)
        vectors = _vectors(model, [s.images[0] for s in own.samples], progress)
        return _put(model, bank, own, vectors, keep=keep, note=note, new_classes=new_classes)


def query(model: Any, folder: str | Path, picture: ImageSource, k: int = 10) -> list[Neighbour]:
    """The k entries that are nearest to a picture, itself among them where it is in the bank.

    Raises:
        ImageError: it can't be read.
        DataError: an empty bank.
        BaseMismatchError, StoreError: as `open_bank`.
    """
    with open_bank(model, folder) as bank:
        return bank.search(pooled(Recent(model, 1)(picture)), k)


def questions(
    data: str | Path | Sequence[Sample],
    bank: Bank,
    *,
    question: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Sample]:
    """Closed questions with their answers, whose options are theirs and the bank's labels.

    Args:
        data: labelled pictures, in any form that `fit` takes.
        question: for data without their own.
        limit: at most so many, drawn by `seed`.

    Raises:
        DataError: no picture there, or a wrong label.
    """
    samples = _own.read(data, question=question).samples
    random.Random(seed).shuffle(samples)
    return [replace(s, options=tuple(dict.fromkeys((*s.options, *bank.answers)))) for s in samples[:limit]]


def _labelled(data: str | Path | Sequence[Sample], label: str | None = None) -> _own.Own:
    """Samples with one picture and an answer.

    Raises:
        DataError: others among them, or none.
    """
    if label is None:
        own = _own.read(data)
    else:
        path = Path(str(data))
        files = (
            [path] if path.suffix.lower() in SUFFIXES and path.is_file() else image_files(path) if path.is_dir() else []
        )
        if not files:
            raise DataError(
                "no picture", expected="a picture or a folder of them", fix="Correct the path.", where=str(path)
            )
        messages = [(Message.of("user", "", (f,)), Message.of("assistant", label)) for f in files]
        samples = [Sample(id=f.name, messages=m, where=str(f)) for f, m in zip(files, messages, strict=True)]
        own = _own.read(samples)
    for sample in own.samples:
        if len(sample.images) != 1 or not short_answer(sample):
            raise DataError(
                f"{len(sample.images)} pictures, answer {short_answer(sample)!r}",
                expected="one picture and a label",
                fix="Leave it out.",
                where=sample.where or sample.id,
            )
    return own


def _vectors(
    model: Any, sources: Sequence[ImageSource], progress: Progress | None, features: Any = None
) -> npt.NDArray[np.float32]:
    """[n, V]; where the tower is frozen its outputs are kept in the feature cache."""
    encode = features
    if encode is None:
        encode = FeatureCache(model.frontend) if model.frontend.tower.frozen else Recent(model, 1)
    rows = []
    for done, source in enumerate(sources, 1):
        rows.append(pooled(encode(source)))
        if progress is not None:
            progress(done, len(sources))
    return np.stack(rows)


def _put(
    model: Any,
    bank: Bank,
    own: _own.Own,
    vectors: npt.NDArray[np.float32],
    *,
    keep: Keep,
    note: str,
    new_classes: bool,
) -> Change:
    """Pictures first, then the entries in one transaction: what is killed between leaves a file that nothing names."""
    pictures = [s.images[0] for s in own.samples]
    alike = _alike(bank, pictures, vectors)
    new = []
    for sample, picture, vector in zip(own.samples, pictures, vectors, strict=True):
        key = look(picture).key
        source = str(picture) if isinstance(picture, str | Path) else sample.id
        image = _kept(bank.folder, picture, key, keep, model.frontend.tower.view_size)
        entry = {"picture": key, "label": short_answer(sample), "vector": vector, "note": note}
        new.append(NewEntry(source=source, image=image, **entry))
    added = bank.add(new, extend=new_classes)
    return Change(added=len(added.ids), known=len(added.known), alike=alike, left_out=tuple(map(str, own.left_out)))


def _alike(
    bank: Bank, pictures: Sequence[ImageSource], vectors: npt.NDArray[np.float32]
) -> tuple[tuple[str, ...], ...]:
    """Sets of new pictures and entries that show nearly the same; equal ones are no notice."""
    own = {look(p).key: p for p in pictures}
    keys, shown = list(own), list(own.values())
    for vector in vectors if len(bank) else ():
        for n in bank.search(vector, 3):
            path = bank.picture(n.entry)
            if n.distance <= 1 - ALIKE and path is not None and n.entry.picture not in keys:
                keys.append(n.entry.picture)
                shown.append(path)
    groups = near_duplicate_groups(shown)
    names = [p if isinstance(p, str | Path) else "an open picture" for p in shown]
    return tuple(tuple(str(names[i]) for i in g) for g in groups if len(g) > 1 and g[0] < len(own))


def _kept(folder: Path, picture: ImageSource, key: str, keep: Keep, side: int) -> str:
    """Where the entry's picture is: its path, or that of a copy below the bank's folder."""
    is_file = isinstance(picture, str | Path)
    if keep == "reference" and is_file:
        return str(Path(str(picture)).absolute())
    if keep == "copy" and is_file:
        content, suffix = Path(str(picture)).read_bytes(), Path(str(picture)).suffix.lower()
    else:
        small, buffer = open_image(picture), io.BytesIO()
        if keep == "thumbnail":
            small.thumbnail((side, side))
        suffix = ".jpg" if keep == "thumbnail" else ".png"
        small.save(buffer, "JPEG" if keep == "thumbnail" else "PNG", **({"quality": 92} if keep == "thumbnail" else {}))
        content = buffer.getvalue()
    name = f"pictures/{key[:2]}/{key}{suffix}"
    if not (folder / name).is_file():
        atomic_write(folder / name, content)
    return name
