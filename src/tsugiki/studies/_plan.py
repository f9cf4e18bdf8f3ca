"""Who learns, who chooses and who is asked: one split, or folds with the choice between methods inside each of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tsugiki.studies import _choice, _divide, _in_context
from tsugiki.studies._cells import Cell, Cells
from tsugiki.studies._choice import Choice
from tsugiki.studies._divide import Kin, Parts
from tsugiki.studies._making import Maker, Method, tell_all
from tsugiki.training import sources
from tsugiki.training.limits import Retention
from tsugiki.types import Sample


@dataclass(kw_only=True)
class Plan:
    """The trainings of one call of `fit`, in their folders."""

    maker: Maker
    methods: list[Method]
    limits: Retention
    inner: int
    folder: Path
    parts: Parts = field(init=False)
    """Of the graft that is saved."""
    folded: list[Parts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kin: Kin = field(default_factory=dict)

    def divide(self, samples: Sequence[Sample], *, test: float, folds: int) -> None:
        """Raises DataError where there is too little."""
        seed = self.maker.seed
        if not folds:
            self.parts = _divide.divide(samples, test=test, seed=seed)
            self.notes = list(self.parts.notes)
            if len(self.methods) > 1:
                self.kin = _divide.alike(self.parts.train, [])
        else:
            self._fold(samples, folds)
        if self.maker.demos:
            _in_context.enough(list(self._trainings()), self.maker.demos)

    def _fold(self, samples: Sequence[Sample], folds: int) -> None:
        seed = self.maker.seed
        _divide.refuse_too_little(samples)
        self.notes = _divide.about(samples)
        self.kin = _divide.alike(samples, self.notes)
        self.folded = _divide.fold(samples, folds, self.kin, seed=seed)
        self.notes += _divide.about_folds(samples, self.folded)
        self.parts = _divide.whole(samples, self.kin, seed=seed)

    def _trainings(self) -> Iterator[Parts]:
        """Of all that will be trained, those of the choice between methods among them."""
        for parts in (self.parts, *self.folded):
            yield parts
            if len(self.methods) > 1:
                yield from _divide.fold(parts.train, self.inner, self.kin, seed=self.maker.seed)

    @property
    def sizes(self) -> dict[str, int]:
        """Samples by part."""
        asked = sum(len(parts.test) for parts in self.folded) if self.folded else len(self.parts.test)
        return {"train": len(self.parts.train), "hold": len(self.parts.hold), "test": asked}

    def folds(self, samples: Sequence[Sample]) -> list[Cell]:
        """Every fold asked by a graft that learned from the others; methods are chosen inside them."""
        if not self.folded:
            return []
        content = {**self.maker.content(self.methods), "data": sources.digest(samples), "folds": len(self.folded),
                   "inner": self.inner, "seed": self.maker.seed, "budget": self.limits.budget,
                   "texts": _choice.digest(self.limits.texts)}  # fmt: skip
        cells = Cells(self.folder / "folds", content, len(self.folded), self.maker.tell)
        for i, parts in enumerate(self.folded):

            def make(run: Path, parts: Parts = parts, i: int = i) -> Cell:
                self.maker.tell(f"Fold {i + 1} of {len(self.folded)}: learning from {len(parts.train)} samples")
                began = time.monotonic()
                method, _ = self.choose(parts.train, run / "methods")
                cell = self.maker.cell(method, parts, run)
                return {**cell, "seconds": round(time.monotonic() - began, 1)}

            cells(str(i), make, fold=i)
        return cells.done

    def choose(self, samples: Sequence[Sample], folder: Path) -> tuple[Method, Choice | None]:
        """The one method, or the best of several on inner folds of the samples."""
        if len(self.methods) == 1:
            return self.methods[0], None
        choice = _choice.choose(
            self.maker, samples, self.methods, folder, inner=self.inner, kin=self.kin, limits=self.limits
        )
        tell_all(self.maker.tell, choice.sentences)
        return choice.method, choice
