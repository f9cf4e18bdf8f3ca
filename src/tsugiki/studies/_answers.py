"""Samples to predictions: the likeliest option, or a free answer with its boxes; one that fails stops no other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsugiki.data.boxes import PaddedSquare
from tsugiki.data.images import content_key, image_size
from tsugiki.data.schema import message_text
from tsugiki.errors import ImageError, InputError
from tsugiki.evals.contextual import Calibrated
from tsugiki.evals.free import FreeAnswerer
from tsugiki.evals.options import OptionScorer
from tsugiki.studies.neighbours import BankDemos, Shown
from tsugiki.types import Box, ImageSource, Sample


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer, or why there is none."""

    id: str
    """Path below the folder, or the sample's id."""
    image: str
    """Path of the (first) picture as it was given: below the folder, or beside the JSONL."""
    question: str
    answer: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """Of each option, given that one of them is the answer; sums to 1, rounded to 6 digits."""
    boxes: tuple[Box, ...] = ()
    """In pixels of the upright original of the first picture, rounded to 0.1."""
    error: str = ""
    """Why there is no answer; then `answer` is empty."""
    picture: str = ""
    """SHA-256 of the picture's file."""
    neighbours: tuple[tuple[int, str, float], ...] = ()
    """With a demo bank: id, label and distance (1 - cosine) of the entries that were shown, nearest first."""

    @property
    def probability(self) -> float | None:
        """Of the answer; None for a free one."""
        return self.probabilities.get(self.answer)


class Answerer:
    """Batches of samples to predictions.

    Args:
        caught: the error that one sample may raise without stopping the others.
        demos: puts the entries of a bank in front of the questions.
        calibrate: closed-set answers without what these entries alone make likely.

    Raises:
        InputError: a calibration without demonstrations.
    """

    def __init__(
        self,
        model: Any,
        batch_size: int,
        max_new_tokens: int,
        caught: type[InputError],
        demos: BankDemos | None = None,
        calibrate: bool = False,
    ) -> None:
        self.caught, self.demos = caught, demos
        features = None if demos is None else demos.features
        self.choose = OptionScorer(model, batch_size=batch_size, features=features)
        self.calibrated = Calibrated(self.choose, demos) if calibrate else None
        self.say = FreeAnswerer(model, batch_size=batch_size, max_new_tokens=max_new_tokens, features=features)
        self.codec = model.processor.collator().codec

    def __call__(self, samples: Sequence[Sample]) -> list[Prediction]:
        closed, free = [s for s in samples if s.options], [s for s in samples if not s.options]
        found = {p.id: p for p in [*self._all(closed), *self._all(free)]}
        return [found[s.id] for s in samples]

    def _all(self, samples: Sequence[Sample]) -> list[Prediction]:
        """All at once; where one fails, each alone."""
        if not samples:
            return []
        try:
            return self._closed(samples) if samples[0].options else self._free(samples)
        except self.caught as error:
            if len(samples) == 1:
                return [_about(samples[0], error=str(error))]
        return [p for sample in samples for p in self._all([sample])]

    def _closed(self, samples: Sequence[Sample]) -> list[Prediction]:
        shown = self._shown(samples)
        if self.calibrated is None:
            scores = self.choose([x.sample for x in shown])
        else:
            scores = self.calibrated.score(samples, [x.neighbours for x in shown])
        rows = zip(samples, shown, scores, strict=True)
        return [
            _about(s, answer=o.best(), probabilities=_rounded(o.probabilities()), neighbours=_plain(x))
            for s, x, o in rows
        ]

    def _free(self, samples: Sequence[Sample]) -> list[Prediction]:
        shown = self._shown(samples)
        rows = zip(samples, shown, self.say([x.sample for x in shown]), strict=True)
        return [_about(s, answer=text, boxes=self._boxes(s, text), neighbours=_plain(x)) for s, x, text in rows]

    def _shown(self, samples: Sequence[Sample]) -> list[Shown]:
        return [Shown(sample=s) for s in samples] if self.demos is None else self.demos.show(samples)

    def _boxes(self, sample: Sample, text: str) -> tuple[Box, ...]:
        if not sample.images:
            return ()
        found = self.codec.parse(text, PaddedSquare(*image_size(sample.images[0])))
        return tuple(Box(*(round(v, 1) for v in (b.x1, b.y1, b.x2, b.y2))) for b in found)


def _plain(shown: Shown) -> tuple[tuple[int, str, float], ...]:
    return tuple((n.entry.id, n.entry.label, round(n.distance, 6)) for n in shown.neighbours)


def _rounded(probabilities: Mapping[str, float]) -> dict[str, float]:
    return {option: round(value, 6) for option, value in probabilities.items()}


def _about(sample: Sample, **fields: Any) -> Prediction:
    return Prediction(
        id=sample.id, image=_shown(sample), question=question_of(sample), picture=picture_of(sample), **fields
    )


def question_of(sample: Sample) -> str:
    last = next((m for m in reversed(sample.prompt) if m.role == "user"), None)
    return "" if last is None else message_text(last)


def _shown(sample: Sample) -> str:
    """The first picture's path: below the folder (the id is just that), or as the sample has it."""
    source: ImageSource | None = sample.images[0] if sample.images else None
    if not isinstance(source, str | Path):
        return ""
    return sample.id if Path(source).as_posix().endswith(f"/{sample.id}") else str(source)


def picture_of(sample: Sample) -> str:
    """SHA-256 of the picture's file, or over those of several; empty where one can't be read."""
    try:
        keys = [content_key(source) for source in sample.images]
    except ImageError:
        return ""
    return keys[0] if len(keys) == 1 else hashlib.sha256("".join(keys).encode()).hexdigest()
