"""What a graft has to beat: simple learners on the same cached features and the same training pictures.

Decisions: logistic regression (C chosen on an inner hold-out), k-NN vote, the commonest answer. Places: ridge
regression of the box, the best constant box. They see the picture and the kind of question, not its words: where one
picture is asked about several things (scenes of several objects), they are a lower mark than where it has one answer.

Shapes: n pictures, P positions, V width of the tower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsugiki.data.boxes import PaddedSquare
from tsugiki.data.images import image_size, open_image
from tsugiki.evals._learners import Constant, Floats, Neighbours, Probe, RidgeBoxes, constant_box
from tsugiki.evals.task import Settings, picture_groups, short_answer
from tsugiki.types import Box, BoxPart, ImageSource, Sample

MAX_PICTURES = 3000
"""More training pictures than this are not used: the learners would take longer than the graft."""
MAX_VALUES = 60_000_000
"""n * P * V of the ridge regression (240 MB)."""
FEWEST = 5
"""Fewer training pictures have no hold-out: only the constant answer is left."""
CHUNK = 256
"""Pictures whose features are in memory at once."""


def choices(kind: str, samples: Sequence[Sample], settings: Settings, model: Any = None) -> dict[str, list[str]]:
    """Yardstick -> its choice among the options of each sample: of what learns from training samples of that kind,
    where there are any, and the vote of the demo bank, where there is one.

    Args:
        kind: `Sample.task`; a yardstick learns from training samples of that kind whose short answer is an option
            somewhere, whatever the form of the whole answer.
    """
    found = {} if settings.demos is None else {"bank vote": settings.demos.vote(samples)}
    options = {o for s in samples for o in s.options}
    train = [s for s in settings.train if s.task == kind and short_answer(s) in options]
    if not train:
        return found
    answers = [short_answer(s) for s in train]
    allowed = [s.options for s in samples]
    found["constant"] = Constant.fit(answers).choose(allowed)
    seeing = [s for s in train if s.images][:MAX_PICTURES]
    features, groups = _features(settings, model), picture_groups(seeing)
    if features is None or _pictures(seeing) < FEWEST or not all(s.images for s in samples):
        return found
    x = pooled(features, [s.images[0] for s in seeing])
    x_test = pooled(features, [s.images[0] for s in samples])
    y = [short_answer(s) for s in seeing]
    holdout = settings.holdout if len(seeing) == len(settings.train) else _share(settings)
    found["probe"] = Probe.fit(x, y, holdout=holdout, groups=groups, seed=settings.seed).choose(x_test, allowed)
    found["k-NN"] = Neighbours.fit(x, y, holdout=holdout, groups=groups, seed=settings.seed).choose(x_test, allowed)
    return found


def places(
    kind: str,
    samples: Sequence[Sample],
    settings: Settings,
    model: Any = None,
    *,
    keep: Callable[[Sample], bool] = lambda _: True,
) -> dict[str, list[Box]]:
    """Yardstick -> its box in each sample's picture, in pixels; {} without training samples of that kind with boxes.

    Args:
        keep: which training samples of that kind to learn from.
    """
    train = [s for s in settings.train if s.task == kind and s.images and _boxes(s) and keep(s)]
    if not train or not samples:
        return {}
    targets = [_square(s).to_square(_boxes(s)[0]) for s in train]
    constant = constant_box(targets, seed=settings.seed)
    found = {"constant": [_square(s).to_pixels(constant) for s in samples]}
    features = _features(settings, model)
    if features is None:
        return found
    first = gather(features, [train[0].images[0]])
    few = train[: max(FEWEST, min(MAX_PICTURES, MAX_VALUES // first[0].numel()))]
    groups = picture_groups(few)
    if _pictures(few) < FEWEST:
        return found
    x = gather(features, [s.images[0] for s in few]).flatten(1).float().numpy()
    holdout = settings.holdout if len(few) == len(settings.train) else _share(settings)
    ridge = RidgeBoxes.fit(x, targets[: len(few)], holdout=holdout, groups=groups, seed=settings.seed)
    predicted = []
    for start in range(0, len(samples), CHUNK):
        rows = gather(features, [s.images[0] for s in samples[start : start + CHUNK]])
        predicted += ridge.predict(rows.flatten(1).float().numpy())
    return found | {"ridge": [_square(s).to_pixels(box) for s, box in zip(samples, predicted, strict=True)]}


def bank_vote(neighbours: Sequence[Sequence[tuple[str, float]]], allowed: Sequence[Sequence[str]]) -> list[str]:
    """The commonest label among the neighbours of each query, the one with the nearest neighbour of equals.

    Args:
        neighbours: (label, distance) of the entries of a demo bank that a query gets, nearest first.
        allowed: options of each query; () = all labels.
    """
    chosen = []
    for near, options in zip(neighbours, allowed, strict=True):
        labels = [label for label, _ in near if not options or label in options]
        chosen.append(commonest(labels) or (options[0] if options else ""))
    return chosen


def commonest(answers: Iterable[str]) -> str | None:
    """The most frequent answer, the first one of equals; None without any."""
    counts = Counter(answers)
    return max(counts, key=counts.__getitem__) if counts else None


def gather(features: Any, sources: Sequence[ImageSource]) -> Tensor:
    """Cached features [n, P, V] of pictures, from a cache (`.cells`, `.get`) or from a function of one picture."""
    get = getattr(features, "cells", None) or getattr(features, "get", None)
    return get(sources) if get is not None else torch.stack([features(source) for source in sources])


def pooled(features: Any, sources: Sequence[ImageSource], chunk: int = CHUNK) -> Floats:
    """Mean and maximum over the positions of each picture, [n, 2 V]."""
    parts = []
    for start in range(0, len(sources), chunk):
        f = gather(features, sources[start : start + chunk]).float()  # [chunk, P, V]
        parts.append(np.concatenate([f.mean(1).numpy(), f.amax(1).numpy()], axis=1))
    return np.concatenate(parts).astype(np.float32)


def _features(settings: Settings, model: Any) -> Any:
    """The given features, else the model's front-end at work."""
    if settings.features is not None or getattr(model, "frontend", None) is None:
        return settings.features
    frontend = model.frontend

    def live(source: ImageSource) -> Tensor:
        encoded: Tensor = frontend.cells(frontend.encode(frontend.transform(open_image(source))[None]))[0]
        return encoded.cpu()

    return live


def _share(settings: Settings) -> float:
    """Given indices count the training samples as they came; where only some are used, a share stands for them."""
    return settings.holdout if isinstance(settings.holdout, float) else len(settings.holdout) / len(settings.train)


def _pictures(samples: Sequence[Sample]) -> int:
    groups = picture_groups(samples)
    return len(samples) if groups is None else len(set(groups))


def _square(sample: Sample) -> PaddedSquare:
    return PaddedSquare(*image_size(sample.images[0]))


def _boxes(sample: Sample) -> list[Box]:
    parts = sample.answer.parts if sample.answer else ()
    return [p.box for p in parts if isinstance(p, BoxPart)]
