"""The fabric photographs: 2,000 of 250x250, labelled nominal, local or global defect, with one closed-set question.

150 nominal ones are backgrounds of the scenes and in no split here. Of the other 1,850 a draw takes n as the labelled
set that a company might have; the rest is for measuring. Nothing is copied: samples point into the asset's folder.

Source: the package conformal-clip-data (MIT); the defects are simulated and have no boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsugiki import assets
from tsugiki.errors import AssetError, DataError, UnknownNameError
from tsugiki.synth import backgrounds
from tsugiki.types import Message, Sample

LABELS = ("nominal", "local", "global")
"""The folders of the asset, and `meta["label"]`."""

QUESTIONS = {
    "en": "Is this fabric normal, or does it have a local or a global defect? Answer with normal, local or global.",
    "ja": "この布は正常ですか、それとも局所的か全体的な欠陥がありますか？正常、局所、全体のどれかで答えてください。",
}
ANSWERS = {
    "en": {"nominal": "normal", "local": "local", "global": "global"},
    "ja": {"nominal": "正常", "local": "局所", "global": "全体"},
}


@dataclass(frozen=True, slots=True)
class FabricPhoto:
    """One photograph."""

    path: Path
    label: str
    """One of LABELS."""
    index: int
    """Its number among all, in the order of LABELS and file names."""

    @property
    def name(self) -> str:
        """Its name in manifests, such as "nominal/textile_0001.jpg"."""
        return f"{self.label}/{self.path.name}"


def photographs(folder: Path | None = None) -> list[FabricPhoto]:
    """All photographs: those of `folder` (one folder per label), or of the asset "fabric".

    Raises:
        AssetError: the asset is not fetched, or a label has no photograph.
    """
    folder = folder or assets.path("fabric") / backgrounds.FABRIC
    found: list[FabricPhoto] = []
    for label in LABELS:
        files = sorted((folder / label).glob("*.jpg"))
        if not files:
            raise AssetError(
                f"no photograph in {label!r}",
                expected=f"*.jpg in the folders {', '.join(LABELS)}",
                fix="Run: tsugiki assets fetch fabric",
                where=str(folder),
            )
        found += [FabricPhoto(file, label, len(found) + i) for i, file in enumerate(files)]
    return found


def pools(folder: Path | None = None) -> dict[str, list[FabricPhoto]]:
    """All photographs by use: "backgrounds" (the fixed list) and "decisions" (what `draw` draws from); no photograph in
    both.

    Raises:
        AssetError: as `photographs`.
    """
    listed = {name for names in backgrounds.listed().values() for name in names}
    uses: dict[str, list[FabricPhoto]] = {"backgrounds": [], "decisions": []}
    for photo in photographs(folder):
        uses["backgrounds" if photo.name in listed else "decisions"].append(photo)
    return uses


def draw(
    seed: int, n: int = 200, *, balanced: bool = True, language: str = "en", folder: Path | None = None
) -> tuple[list[Sample], list[Sample]]:
    """`n` labelled samples in random order, and all the others of the pool. A smaller draw of a seed is part of a
    larger one.

    Args:
        seed: of the draw, not negative.
        n: how many.
        balanced: the same number of each label (the first ones get what is left over); else as in the pool.
        language: "en" or "ja".
        folder: as in `photographs`.

    Returns:
        Samples of task "decision" with three options; meta: label, language, photo (its name), index.

    Raises:
        DataError: a negative seed, or more than there are.
        UnknownNameError: an unknown language.
        AssetError: as `photographs`.
    """
    if language not in QUESTIONS:
        raise UnknownNameError("language", language, QUESTIONS)
    if seed < 0 or n < 0:
        raise DataError(f"seed {seed}, n {n}", expected="0 or more", where="draw")
    pool = pools(folder)["decisions"]
    rng = np.random.default_rng((seed, 2))
    order = [pool[i] for i in rng.permutation(len(pool))]
    if balanced:
        # The k-th of its label, label by label: every beginning of the list is balanced.
        ranks: dict[int, int] = {}
        for label in LABELS:
            ranks |= {photo.index: rank for rank, photo in enumerate(p for p in order if p.label == label)}
        order.sort(key=lambda p: (ranks[p.index], LABELS.index(p.label)))
    most = 3 * min(sum(p.label == label for p in pool) for label in LABELS) if balanced else len(pool)
    if n > most:
        raise DataError(f"{n} photographs", expected=f"up to {most}", fix="Draw fewer.", where="draw(n=)")
    train = [order[i] for i in rng.permutation(n)]
    drawn = {photo.index for photo in train}
    rest = [photo for photo in pool if photo.index not in drawn]
    return [_sample(p, language) for p in train], [_sample(p, language) for p in rest]


def _sample(photo: FabricPhoto, language: str) -> Sample:
    answers = ANSWERS[language]
    return Sample(
        id=f"fabric-{photo.label}-{photo.path.stem}",
        messages=(
            Message.of("user", QUESTIONS[language], (photo.path,)),
            Message.of("assistant", answers[photo.label]),
        ),
        task="decision",
        options=tuple(answers[label] for label in LABELS),
        meta={"label": photo.label, "language": language, "photo": photo.name, "index": photo.index},
    )
