"""The simple learners behind the yardsticks; each chooses its one setting on an inner hold-out.

Shapes: n pictures, P positions, V width of the tower, c classes, r rank of the training pictures. Boxes are relative to
the padded square, in [0, 1].
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tsugiki.errors import DataError
from tsugiki.evals._boxes import iou
from tsugiki.extras import require
from tsugiki.types import Box

Floats = npt.NDArray[np.float32]
Holdout = Sequence[int] | float

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALPHA_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Relative to the total variance of the training features."""
K_GRID = (1, 3, 5, 9, 15)


@dataclass(frozen=True)
class Constant:
    """Always the commonest training answer among the options."""

    counts: Counter[str]

    @classmethod
    def fit(cls, answers: Sequence[str]) -> Constant:
        return cls(Counter(answers))

    def choose(self, allowed: Sequence[Sequence[str]]) -> list[str]:
        return [max(options, key=lambda o: self.counts[o]) for options in allowed]


class _Classifier:
    """A fitted scikit-learn classifier that chooses among given options."""

    GRID: tuple[float, ...] = ()

    def __init__(self, estimator: Any, setting: float, holdout_accuracy: float) -> None:
        self.estimator, self.setting, self.holdout_accuracy = estimator, setting, holdout_accuracy

    @classmethod
    def build(cls, setting: float, n: int) -> Any:
        raise NotImplementedError("abstract")

    @classmethod
    def fit(
        cls,
        x: Floats,
        y: Sequence[str],
        *,
        holdout: Holdout = 0.2,
        groups: Sequence[object] | None = None,
        seed: int = 0,
    ) -> Any:
        """Choose the setting by accuracy on the hold-out (the smallest of equals), then fit on everything.

        Args:
            x: pooled features [n, 2 V].
            holdout: a share, or the indices, of the samples to choose on.
            groups: samples of one picture stay on one side.
        """
        labels = np.asarray(y)
        inner, outer = split(len(y), holdout, groups, seed)
        if len(set(labels[inner])) < 2:  # nothing to tell apart
            return cls(_fitted(require("sklearn.dummy", extra="eval").DummyClassifier(), x, labels), 0.0, 0.0)
        found = []
        for setting in cls.GRID:
            estimator = _fitted(cls.build(setting, len(inner)), x[inner], labels[inner])
            found.append(float((estimator.predict(x[outer]) == labels[outer]).mean()))
        best = int(np.argmax(found))
        return cls(_fitted(cls.build(cls.GRID[best], len(y)), x, labels), cls.GRID[best], found[best])

    def choose(self, x: Floats, allowed: Sequence[Sequence[str]]) -> list[str]:
        """The likeliest option of each row [n]; an option that never occurred in training has probability 0."""
        column = {name: i for i, name in enumerate(self.estimator.classes_)}
        rows = self.estimator.predict_proba(x)  # [n, c]
        return [
            max(options, key=lambda o, p=p: p[column[o]] if o in column else 0.0)  # type: ignore[misc]
            for p, options in zip(rows, allowed, strict=True)
        ]

    def probabilities(self, x: Floats, options: Sequence[str]) -> npt.NDArray[np.float64]:
        """Of the options, given that one of them is the answer: [n, c], rows sum to 1; 0 for one that never occurred
        in training. At least one has to have occurred."""
        column = {name: i for i, name in enumerate(self.estimator.classes_)}
        found = self.estimator.predict_proba(x).astype(np.float64)
        rows = np.stack([found[:, column[o]] if o in column else np.zeros(len(x)) for o in options], axis=1)
        return np.asarray(rows / rows.sum(1, keepdims=True))


class Probe(_Classifier):
    """Logistic regression on standardised features; `setting` is C."""

    GRID = C_GRID

    @classmethod
    def build(cls, setting: float, n: int) -> Any:
        linear = require("sklearn.linear_model", extra="eval").LogisticRegression(C=setting, max_iter=300, tol=1e-3)
        scaler = require("sklearn.preprocessing", extra="eval").StandardScaler()
        return require("sklearn.pipeline", extra="eval").make_pipeline(scaler, linear)


class Neighbours(_Classifier):
    """Vote of the k nearest training pictures by cosine; `setting` is k."""

    GRID = tuple(map(float, K_GRID))

    @classmethod
    def build(cls, setting: float, n: int) -> Any:
        neighbors = require("sklearn.neighbors", extra="eval")
        return neighbors.KNeighborsClassifier(n_neighbors=min(int(setting), n), metric="cosine", algorithm="brute")


@dataclass(frozen=True)
class RidgeBoxes:
    """Ridge regression from all features of a picture [P * V] to its box.

    There are fewer pictures than features, so it runs in the span of the pictures: an exact rotation.
    """

    estimator: Any
    mean: Floats  # [P * V]
    basis: Floats  # [P * V, r], r <= n
    alpha: float
    holdout_iou: float

    @classmethod
    def fit(
        cls,
        x: Floats,
        boxes: Sequence[Box],
        *,
        holdout: Holdout = 0.2,
        groups: Sequence[object] | None = None,
        seed: int = 0,
    ) -> RidgeBoxes:
        """Choose alpha by mean IoU on the hold-out, then fit on everything. Boxes relative to the padded square."""
        ridge = require("sklearn.linear_model", extra="eval").Ridge
        y = np.array([[b.x1, b.y1, b.x2, b.y2] for b in boxes], dtype=np.float32)
        inner, outer = split(len(boxes), holdout, groups, seed)
        mean, basis, variance = _span(x)
        z = (x - mean) @ basis  # [n, r]
        found = []
        for alpha in ALPHA_GRID:
            guess = _to_boxes(ridge(alpha=alpha * variance).fit(z[inner], y[inner]).predict(z[outer]))
            found.append(float(np.mean([iou(g, boxes[i]) for g, i in zip(guess, outer, strict=True)])))
        best = int(np.argmax(found))
        estimator = ridge(alpha=ALPHA_GRID[best] * variance).fit(z, y)
        return cls(estimator, mean, basis, ALPHA_GRID[best], found[best])

    def predict(self, x: Floats) -> list[Box]:
        """Boxes of pictures [n, P * V]."""
        return _to_boxes(self.estimator.predict((x - self.mean) @ self.basis))


def constant_box(boxes: Sequence[Box], *, candidates: int = 200, seed: int = 0) -> Box:
    """Of the training boxes the one that reaches IoU 0.5 with most others (then the highest mean IoU)."""
    if not boxes:
        raise DataError("no boxes", expected="at least one")
    rng = random.Random(seed)
    others = rng.sample(list(boxes), min(len(boxes), 1000))

    def worth(box: Box) -> tuple[int, float]:
        values = [iou(box, other) for other in others]
        return sum(v >= 0.5 for v in values), sum(values)

    return max(others[:candidates], key=worth)


def split(
    n: int, holdout: Holdout, groups: Sequence[object] | None, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices to fit on and to choose on.

    Raises:
        DataError: one of the two would be empty, or an index does not exist.
    """
    if isinstance(holdout, float | int):
        selection = require("sklearn.model_selection", extra="eval")
        number: dict[object, int] = {}  # by first appearance: a hash would differ from run to run
        keys = [number.setdefault(g, len(number)) for g in (range(n) if groups is None else groups)]
        if len(set(keys)) < 2:
            raise DataError(f"{len(set(keys))} training pictures", expected="at least 2, to choose a setting on one")
        splitter = selection.GroupShuffleSplit(n_splits=1, test_size=float(holdout), random_state=seed)
        inner, outer = next(splitter.split(np.zeros(n), groups=keys))
        return inner, outer
    outer = np.array(sorted(set(holdout)), dtype=np.intp)
    if not 0 < len(outer) < n or outer[0] < 0 or outer[-1] >= n:
        raise DataError(f"{len(outer)} hold-out indices for {n} samples", expected="some of 0 to n - 1, not all")
    return np.setdiff1d(np.arange(n), outer), outer


def _fitted(estimator: Any, x: Floats, y: npt.NDArray[Any]) -> Any:
    # A probe that stops at max_iter is still a fair yardstick: C is chosen with the same limit.
    with warnings.catch_warnings(action="ignore"):
        return estimator.fit(x, y)


def _span(x: Floats) -> tuple[Floats, Floats, float]:
    """Mean, an orthonormal basis of the centred rows, and their total variance: [n, d] -> [d], [d, r], number."""
    mean = x.mean(0)
    centred = x - mean
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    values = values.clip(1e-12)  # equal pictures span nothing
    kept = values >= values[-1] * 1e-7
    basis = centred.T @ (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
    return mean, basis, float(values.sum())


def _to_boxes(rows: npt.NDArray[Any]) -> list[Box]:
    """[n, 4] -> boxes inside the square, of at least a pixel's size."""
    boxes = []
    for x1, y1, x2, y2 in np.clip(rows, 0.0, 1.0).tolist():
        left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        boxes.append(Box(left, top, max(right, left + 1e-3), max(bottom, top + 1e-3)))
    return boxes
