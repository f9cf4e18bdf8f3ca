"""How many steps? A training is asked about its hold-out at a few marks, and the best mark is the step count."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tsugiki import store
from tsugiki.data.files import atomic_write
from tsugiki.data.schema import message_text
from tsugiki.evals.options import OptionScorer
from tsugiki.training.trainer import StepReport
from tsugiki.types import Sample

MARKS = 6
PATIENCE = 3
"""Marks in a row without a better one, after which a training is ended."""


@dataclass(frozen=True)
class Mark:
    """What the hold-out said after so many steps; larger is better in both."""

    step: int
    accuracy: float | None
    """Share of right decisions; None where not all hold-out samples have options."""
    loglikelihood: float
    """Nats, mean: of a whole right answer among all texts where `accuracy` is given, else per label token. It tells
    marks of equal accuracy apart: an option that wins with a tiny share of all words is not an answer yet."""

    @property
    def rank(self) -> tuple[float, float, int]:
        """Larger is better; of equals the one with fewer steps."""
        return (self.accuracy or 0.0, self.loglikelihood, -self.step)


def marks_of(steps: int, count: int = MARKS) -> list[int]:
    """`count` steps at equal distances, the last one at the end."""
    return sorted({math.ceil(steps * i / count) for i in range(1, count + 1)})


class HoldOut:
    """Pass it as `on_step` of `train`: it measures at its marks, and keeps what it found in a file, so that a training
    that is continued does not lose it.

    Args:
        samples: the hold-out; not trained on.
        features: cached tower outputs, or None.
        marks: steps of the stage.
        folder: for `marks.json`, and for `best`, the saved graft of the best mark so far.
        keep: save the graft of the best mark.
        patience: marks in a row that are no better than the best before, after which the training ends; None = never.
        demos: samples -> the samples with demonstrations in front, which are asked; None = as they are.
    """

    def __init__(
        self,
        model: Any,
        samples: Sequence[Sample],
        features: Any,
        marks: Sequence[int],
        folder: Path,
        *,
        keep: bool = False,
        patience: int | None = None,
        demos: Any = None,
        batch_size: int = 8,
    ) -> None:
        self.model, self.samples, self.features, self.keep = model, samples, features, keep
        self.marks, self.folder, self.patience, self.batch_size = set(marks), folder, patience, batch_size
        self.demos = demos

    def __call__(self, report: StepReport) -> bool:
        """Whether it is enough."""
        if report.step not in self.marks:
            return False
        training = self.model.training
        self.model.eval()
        mark = self.measure(report.step)
        if self.keep and mark.rank >= max((m.rank for m in self.found() if m.step < mark.step), default=mark.rank):
            self.model.save(self.folder / "best")
        self.model.train(training)
        found = {m.step: m for m in [*self.found(), mark]}  # a continued training passes a mark once more
        ordered = [asdict(found[step]) for step in sorted(found)]
        atomic_write(self.folder / "marks.json", json.dumps(ordered, indent=1) + "\n")
        return self.enough(report.step)

    def enough(self, step: int) -> bool:
        """Were the last `patience` marks up to `step` no better than the best one before them?"""
        behind = [m for m in self.found() if m.step <= step]
        best = max(behind, key=lambda m: m.rank, default=None)
        return best is not None and self.patience is not None and behind.index(best) + self.patience < len(behind)

    def found(self) -> list[Mark]:
        """All marks so far, in order."""
        file = self.folder / "marks.json"
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        return [m for m in (Mark(**entry) for entry in content) if m.step in self.marks]

    def best(self) -> Mark | None:
        """The mark to stop at."""
        return max(self.found(), key=lambda m: m.rank, default=None)

    def restore(self) -> None:
        """Put the weights of the best mark into the model; needs `keep`.

        Raises:
            StoreError: they were not kept.
        """
        _, tensors = store.read_state(self.folder / "best")
        own = store.trained_state(self.model)
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    @torch.inference_mode()
    def measure(self, step: int) -> Mark:
        """Ask the hold-out now."""
        if not all(s.options for s in self.samples):
            return Mark(step, None, -self._loss())
        scorer = OptionScorer(self.model, features=self.features, demos=self.demos, batch_size=self.batch_size)
        right, total = 0, 0.0
        for sample, scores in zip(self.samples, scorer(self.samples), strict=True):
            gold = message_text(sample.messages[-1]).strip()
            right += scores.best() == gold
            total += scores.logprobs[scores.options.index(gold)]
        return Mark(step, right / len(self.samples), total / len(self.samples))

    def _loss(self) -> float:
        """Nats per label token."""
        total, tokens = 0.0, 0
        for start in range(0, len(self.samples), self.batch_size):
            part = self.samples[start : start + self.batch_size]
            batch = self.model.encode_samples(part, labels=True, features=self.features)
            output = self.model(**batch.inputs())
            count = int(output.label_ids.numel())
            total, tokens = total + float(output.loss) * count, tokens + count
        return total / max(tokens, 1)
