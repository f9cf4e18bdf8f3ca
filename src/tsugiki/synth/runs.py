"""What generators have in common: weights from arguments, and a folder that holds one run of a generator."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.files import atomic_write
from tsugiki.errors import DataError, StoreError, UnknownNameError
from tsugiki.types import Sample

Weights = Mapping[str, float] | Sequence[str]
"""Names with weights, or names of equal weight."""


def known_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise UnknownNameError for the first of `names` that is not among `known`."""
    known = list(known)
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, known)


def refuse(checks: Iterable[tuple[bool, str, str, str]]) -> None:
    """Raise DataError for the first check that does not hold: (holds, what was found, what is expected, where)."""
    for holds, found, expected, where in checks:
        if not holds:
            raise DataError(found, expected=expected, where=where)


def weights_of(kind: str, given: Weights, known: Iterable[str]) -> dict[str, float]:
    """Weights by name, without those of weight 0.

    Raises:
        UnknownNameError: a name that is not among `known`.
        DataError: no name, or weights that can't be.
    """
    weights = (
        dict(given) if isinstance(given, Mapping) else dict.fromkeys([given] if isinstance(given, str) else given, 1.0)
    )
    known_names(kind, weights, known)
    if not all(np.isfinite(w) and w >= 0 for w in weights.values()) or not any(weights.values()):
        raise DataError(f"weights {weights}", expected="numbers from 0 up, one of them above 0", where=kind)
    return {name: float(weight) for name, weight in weights.items() if weight > 0}


def write_picture(image: Image.Image, file: Path) -> None:
    """Write a picture of a run, as JPEG (quality 92) or PNG by its suffix.

    Raises:
        StoreError: the folder can't be written.
    """
    buffer = io.BytesIO()
    if file.suffix == ".jpg":
        image.save(buffer, "JPEG", quality=92)
    else:
        image.save(buffer, "PNG", compress_level=1)
    try:
        file.write_bytes(buffer.getvalue())
    except OSError as error:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        raise StoreError(
            f"can't write a picture ({error.strerror})",
            fix="Free some space or choose another folder.",
            where=str(file),
        ) from error


def prepared(folder: Path, stamp: str, pictures: int, attribution: str, beside: Sequence[str] = ()) -> bool:
    """True if `folder` holds this very run, whole. Else it is made ready for it: an earlier run goes.

    Args:
        folder: will hold `synth.json` (the stamp), `images/` and, written last by the caller, `samples.jsonl`.
        stamp: JSON that says all that the run depends on.
        pictures: how many there are in the end.
        attribution: for `ATTRIBUTION.txt`.
        beside: other folders of files that belong to the pictures.

    Raises:
        DataError: the folder holds something else.
        StoreError: it can't be written.
    """
    card, lines, images = folder / "synth.json", folder / "samples.jsonl", folder / "images"
    others = [folder / name for name in beside]
    if card.is_file():
        same = lines.is_file() and card.read_text(encoding="utf-8") == stamp
        if same and sum(1 for _ in images.glob("*")) == pictures:
            return True
        lines.unlink(missing_ok=True)
        for inner in (images, *others):
            shutil.rmtree(inner, ignore_errors=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            "other files in the folder", expected="a new or empty one", fix="Choose another.", where=str(folder)
        )
    atomic_write(card, stamp)
    atomic_write(folder / "ATTRIBUTION.txt", attribution + "\n")
    for inner in (images, *others):
        inner.mkdir(exist_ok=True)
    return False


def written(
    folder: Path, n: int, picture: Callable[[int], list[Sample]], progress: Callable[[int, int], None] | None
) -> list[Sample]:
    """The samples of `n` pictures, in `samples.jsonl`: written last and whole, so that where it is, the pictures are.

    Args:
        picture: makes and writes the picture of a number; its samples.
        progress: called with (pictures made, n).
    """
    samples: list[Sample] = []
    for index in range(n):
        samples += picture(index)
        if progress is not None:
            progress(index + 1, n)
    schema.write(folder / "samples.jsonl", samples)
    return samples
