"""Fabric decisions under seven conditions at three strengths: one tower or two, adapted to the site or not.

    python benchmarks/conditions.py

A linear probe on the tower's features (the yardstick of `decisions`) is fitted on labelled photographs as they are. For
each condition and strength the same test photographs are altered; the tower is adapted on other altered photographs
without labels, and the same probe reads its new features. At the middle strength the probe is also fitted anew, on the
adapted tower's features of the same labelled photographs. Beside it stand the second tower alone, and a probe on the
features of both. Everything is paired by photograph.
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

Floats = npt.NDArray[np.float32]
CHUNK = 32
MIDDLE = STRENGTHS[1]


class Setup:
    """The photographs of one draw, and a probe for each set of towers."""

    def __init__(self, seed: int, labels: int, test: int, unlabelled: int, towers: Sequence[str]) -> None:
        self.learn, rest = fabric.draw(seed, labels)
        order = np.random.default_rng(seed).permutation(len(rest))
        self.test = [rest[i] for i in order[:test]]
        self.site = [rest[i] for i in order[test : test + unlabelled]]
        self.names, self.seed = tuple(towers), seed
        self.towers = [build_tower(name) for name in towers]
        self.gold = [short_answer(s) for s in self.test]
        self.options = [s.options for s in self.test]
        each = [features(tower, self.seen(self.learn, "", 0)) for tower in self.towers]
        self.probes = [self.fitted(x) for x in each]
        self.both = self.fitted(np.concatenate(each, axis=1))

    def fitted(self, x: Floats) -> Probe:
        return Probe.fit(x, [short_answer(s) for s in self.learn], holdout=0.2, seed=self.seed)

    def right(self, probe: Probe, x: Floats) -> list[float]:
        """Which test photographs, with features x [n, d], the probe gets right."""
        return [float(c == g) for c, g in zip(probe.choose(x, self.options), self.gold, strict=True)]

    def seen(self, samples: Sequence[Sample], condition: str, strength: int) -> list[Image.Image]:
        """The photographs under a condition; strength 0 = as they are."""
        if strength == 0:
            return [open_image(s.images[0]) for s in samples]
        return [altered_picture(s.images[0], condition, strength, s.id, self.seed) for s in samples]


def features(tower: Tower, pictures: Sequence[Image.Image]) -> Floats:
    """Mean and maximum over the positions, [n, 2 V]."""
    found = []
    for start in range(0, len(pictures), CHUNK):
        f = tower.encode(torch.stack([tower.transform(p) for p in pictures[start : start + CHUNK]])).float()
        found.append(np.concatenate([f.mean(1).numpy(), f.amax(1).numpy()], axis=1))
    return np.concatenate(found).astype(np.float32)


Right = dict[str, list[float]]
"""Which test photographs are answered right, by who answers."""


def answered(setup: Setup, condition: str, strength: int, blends: Sequence[float]) -> Right:
    """Everybody's answers under a condition."""
    pictures = setup.seen(setup.test, condition, strength)
    unlabelled = setup.seen(setup.site, condition, strength)
    each = [features(tower, pictures) for tower in setup.towers]
    found = {name: setup.right(probe, x) for name, probe, x in zip(setup.names, setup.probes, each, strict=True)}
    found["both"] = setup.right(setup.both, np.concatenate(each, axis=1))
    for blend in blends:
        tower = build_tower(setup.names[0])
        site.adapt(tower, unlabelled, blend)
        adapted = features(tower, pictures)
        found[f"adapted {blend:g}"] = setup.right(setup.probes[0], adapted)
        if strength in (0, MIDDLE):
            probe = setup.fitted(features(tower, setup.seen(setup.learn, "", 0)))
            found[f"adapted {blend:g}, probe anew"] = setup.right(probe, adapted)
    print(condition, strength, {k: round(float(np.mean(v)), 3) for k, v in found.items()}, flush=True)
    return found


def row(setup: Setup, condition: str, strength: int, found: Right, plain: Right) -> dict[str, Any]:
    """Accuracy and drop of each tower and of both; what both gain on the better one, and what adaptation gains."""
    first = setup.names[0]
    result: dict[str, Any] = {"condition": condition, "strength": strength or "as they are"}
    for name in (*setup.names, "both"):
        result[name] = round(float(np.mean(found[name])), 3)
        result[f"{name}, drop"] = _interval(stats.paired(plain[name], found[name])) if strength else ""
    better = max(setup.names, key=lambda name: sum(plain[name]))
    result[f"both - {better}"] = _interval(stats.paired(found["both"], found[better]))
    for name in found:
        if name.startswith("adapted"):
            result[f"{name} - {first}"] = _interval(stats.paired(found[name], found[first]))
    return result


def overall(setup: Setup, runs: dict[tuple[str, int], Right], plain: Right) -> list[str]:
    """Over all conditions at a strength, photographs together."""
    first, better = setup.names[0], max(setup.names, key=lambda name: sum(plain[name]))
    ids, lines = [s.id for s in setup.test], []
    for strength in sorted({s for _, s in runs if s}):
        rows = [found for (_, s), found in runs.items() if s == strength]
        pairs = [("both", better), *((n, first) for n in rows[0] if n.startswith("adapted"))]
        told = []
        for name, rival in pairs:
            a, b = ([v for found in rows for v in found[x]] for x in (name, rival))
            told.append(f"{name} - {rival} {_interval(stats.paired(a, b, groups=ids * len(rows)))}")
        lines.append(f"All conditions at strength {strength}: {'; '.join(told)}.")
    return lines


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
    parser.add_argument(
        "--tower", nargs="*", default=["efficientnet-lite0", "efficientnet-lite2"], help="The first is adapted."
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    assets.fetch("fabric")
    for tower in given.tower:
        fetch_tower(tower)
    setup = Setup(given.seed, given.labels, given.test, given.site, given.tower)
    wanted = [("none", 0), *((c, s) for c in given.condition for s in given.strength)]
    runs = {(c, s): answered(setup, c, s, given.blend) for c, s in wanted}
    plain = runs["none", 0]
    rows = [row(setup, c, s, found, plain) for (c, s), found in runs.items()]
    columns = dict.fromkeys(key for found in rows for key in found)
    rows = [{key: found.get(key, "") for key in columns} for found in rows]
    notes = [
        *overall(setup, runs, plain),
        "drop = accuracy on the photographs as they are minus that on the altered ones; differences are of the same"
        " altered photographs; 95 % intervals, paired by photograph. One draw of labels: the intervals are of"
        " photographs. The better tower is the one that is better on the photographs as they are.",
        f"{given.labels} labelled photographs fit the probe, {given.test} others are asked, {given.site} more without"
        f" labels, under the same condition, adapt {given.tower[0]}; the number behind 'adapted' is the blend.",
        "'probe anew': fitted on the adapted tower's features of the labelled photographs as they are; else the probe"
        " reads a tower that it was not fitted on.",
    ]
    write(
        "conditions", "Conditions of pictures: one tower or two, adapted or not; fabric decisions, probe", rows, notes
    )


if __name__ == "__main__":
    main()
