"""Fabric decisions under seven conditions at three strengths, with and without site adaptation of the frozen tower.

    python benchmarks/conditions.py

A linear probe on the tower's features (the yardstick of `decisions`) is fitted once, on labelled photographs as they
are. For each condition and strength the same test photographs are altered; the tower is adapted on other altered
photographs without labels, and the same probe reads its new features. Everything is paired by photograph.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _results import write
from PIL import Image

from tsugiki import assets
from tsugiki.data.images import open_image
from tsugiki.evals import stats
from tsugiki.evals._learners import Probe
from tsugiki.evals.alterations import CONDITIONS, STRENGTHS, altered_picture
from tsugiki.evals.task import short_answer
from tsugiki.studies._build import fetch_tower
from tsugiki.synth import fabric
from tsugiki.types import Sample
from tsugiki.vision import site
from tsugiki.vision.tower import Tower, build_tower

CHUNK = 32


class Setup:
    """The photographs of one draw, the probe, and what it says of the test photographs as they are."""

    def __init__(self, seed: int, labels: int, test: int, unlabelled: int, tower: str) -> None:
        learn, rest = fabric.draw(seed, labels)
        order = np.random.default_rng(seed).permutation(len(rest))
        self.test = [rest[i] for i in order[:test]]
        self.site = [rest[i] for i in order[test : test + unlabelled]]
        self.tower, self.seed = tower, seed
        self.gold = [short_answer(s) for s in self.test]
        x = features(build_tower(tower), [open_image(s.images[0]) for s in learn])
        self.probe = Probe.fit(x, [short_answer(s) for s in learn], holdout=0.2, seed=seed)
        self.options = [s.options for s in self.test]

    def right(self, tower: Tower, pictures: Sequence[Image.Image]) -> list[float]:
        """Which test photographs, shown as `pictures`, the probe gets right."""
        chosen = self.probe.choose(features(tower, pictures), self.options)
        return [float(c == g) for c, g in zip(chosen, self.gold, strict=True)]

    def seen(self, samples: Sequence[Sample], condition: str, strength: int) -> list[Image.Image]:
        """The photographs under a condition; strength 0 = as they are."""
        if strength == 0:
            return [open_image(s.images[0]) for s in samples]
        return [altered_picture(s.images[0], condition, strength, s.id, self.seed) for s in samples]


def features(tower: Tower, pictures: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
    """Mean and maximum over the positions, [n, 2 V]."""
    found = []
    for start in range(0, len(pictures), CHUNK):
        f = tower.encode(torch.stack([tower.transform(p) for p in pictures[start : start + CHUNK]])).float()
        found.append(np.concatenate([f.mean(1).numpy(), f.amax(1).numpy()], axis=1))
    return np.concatenate(found).astype(np.float32)


def row(setup: Setup, condition: str, strength: int, plain: Sequence[float], blends: Sequence[float]) -> dict[str, Any]:
    """Accuracy, drop, and what each blend gains on the same photographs."""
    pictures = setup.seen(setup.test, condition, strength)
    unlabelled = setup.seen(setup.site, condition, strength)
    found = setup.right(build_tower(setup.tower), pictures) if strength else list(plain)
    drop = stats.paired(plain, found)
    result: dict[str, Any] = {
        "condition": condition,
        "strength": strength or "as they are",
        "accuracy": round(float(np.mean(found)), 3),
        "drop": _interval(drop),
    }
    for blend in blends:
        tower = build_tower(setup.tower)
        site.adapt(tower, unlabelled, blend)
        adapted = setup.right(tower, pictures)
        result[f"adapted {blend:g}"] = round(float(np.mean(adapted)), 3)
        result[f"gain {blend:g}"] = _interval(stats.paired(adapted, found))
    print(result, flush=True)
    return result


def _interval(found: stats.Interval) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--test", type=int, default=120)
    parser.add_argument("--site", type=int, default=48, help="Unlabelled photographs that the tower is adapted on.")
    parser.add_argument("--blend", type=float, nargs="*", default=[0.3, 1.0])
    parser.add_argument("--condition", nargs="*", default=list(CONDITIONS))
    parser.add_argument("--strength", type=int, nargs="*", default=list(STRENGTHS))
    parser.add_argument("--tower", default="efficientnet-lite0")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    assets.fetch("fabric")
    fetch_tower(given.tower)
    setup = Setup(given.seed, given.labels, given.test, given.site, given.tower)
    plain = setup.right(build_tower(given.tower), setup.seen(setup.test, "", 0))
    rows = [row(setup, "none", 0, plain, given.blend)]
    rows += [row(setup, c, s, plain, given.blend) for c in given.condition for s in given.strength]
    notes = [
        "drop = accuracy on the photographs as they are minus that on the altered ones; gain = accuracy with the"
        " adapted tower minus that with the tower as it was, both on the altered photographs; 95 % intervals, paired by"
        " photograph. One draw of labels: the intervals are of photographs.",
        f"{given.labels} labelled photographs fit the probe, {given.test} others are asked, {given.site} more without"
        " labels adapt the tower; the number behind 'adapted' is the blend.",
        "The probe is not fitted again: it reads features of a tower that it was not fitted on.",
    ]
    write("conditions", "Conditions of pictures, and site adaptation: fabric decisions, linear probe", rows, notes)


if __name__ == "__main__":
    main()
