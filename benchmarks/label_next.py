"""Whether the pictures that `label-next` chooses teach more than as many at random: fabric photographs, three classes.

    python benchmarks/label_next.py --draws 3 --labels 40 --more 40

A graft that learned from the first labels ranks the pool; then one learns anew from these and the chosen ones, and one
from these and as many at random. Both are asked about the same photographs, which are in neither. A finished draw is
kept.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from typing import Any

import torch
from _results import write

from tsugiki import assets
from tsugiki.data.files import atomic_write
from tsugiki.evals import stats, yardsticks
from tsugiki.evals.options import OptionScorer
from tsugiki.evals.task import Settings, short_answer
from tsugiki.studies._build import build_model, fetch_tower
from tsugiki.studies._training import encode
from tsugiki.studies.label_next import label_next
from tsugiki.synth import fabric
from tsugiki.training.trainer import train
from tsugiki.types import Sample

BASE, TOWER, SIZE = "smollm2-135m-instruct", "efficientnet-lite0", 224
STEPS, POOL, ASKED = 60, 500, 300
ARMS = ("first labels", "chosen", "random")
RUNS = "label-next"


def learned(samples: Sequence[Sample], seed: int, name: str) -> Any:
    """A new graft that learned from the samples, and the tower outputs."""
    torch.manual_seed(seed)
    model = build_model(BASE, "projector", TOWER, input_size=SIZE)
    features = encode(model, samples, print)
    changes = ["minutes=null", f"steps={STEPS}", f"seed={seed}", "precision=bf16"]
    train(
        model,
        "demo/fabric",
        assets.cache_dir() / "runs" / RUNS / name,
        data=list(samples),
        overrides=changes,
        features=features,
        progress=False,
    )
    return model


def draw(seed: int, labels: int, more: int) -> dict[str, Any]:
    """Which photographs each arm's graft and probe have right; kept."""
    file = assets.cache_dir() / "runs" / RUNS / f"{seed}-{labels}-{more}-{STEPS}-{POOL}-{ASKED}.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    known, rest = fabric.draw(seed, labels)
    rest = random.Random(seed).sample(rest, POOL + ASKED)
    pool, asked = rest[:POOL], rest[POOL:]
    first = learned(known, seed, f"{seed}-first labels-{labels}-{more}")
    # Fabric before a fixed camera: nearly all photographs look alike.
    found = label_next(first, [s.images[0] for s in pool], train=known, n=more, near=None, seed=seed)
    by_picture = {s.images[0]: s for s in pool}
    chosen = [by_picture[w.sample.images[0]] for w in found.chosen]
    given = {"first labels": known, "chosen": [*known, *chosen], "random": [*known, *pool[:more]]}
    result: dict[str, Any] = {"seed": seed, "asked": [s.id for s in asked], "graft": {}, "probe": {}}
    for arm, samples in given.items():
        model = first if arm == "first labels" else learned(samples, seed, f"{seed}-{arm}-{labels}-{more}")
        features = encode(model, asked, print)
        answers = [o.best() for o in OptionScorer(model, features=features, tolerance=0.0)(asked)]
        settings = Settings(features=features, train=samples, seed=seed)
        probed = yardsticks.choices("decision", asked, settings, model)["probe"]
        for side, said in (("graft", answers), ("probe", probed)):
            result[side][arm] = [int(a == short_answer(s)) for a, s in zip(said, asked, strict=True)]
        print(seed, arm, sum(result["graft"][arm]), sum(result["probe"][arm]), flush=True)
    result["classes"] = {arm: [short_answer(s) for s in samples[labels:]] for arm, samples in given.items()}
    atomic_write(file, json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--more", type=int, default=40)
    given = parser.parse_args()
    for name in (BASE, "fabric"):
        assets.fetch(name)
    fetch_tower(TOWER)
    found = [draw(seed, given.labels, given.more) for seed in range(given.draws)]
    photographs = [p for f in found for p in f["asked"]]
    rows = []
    for side in ("graft", "probe"):
        right = {arm: [v for f in found for v in f[side][arm]] for arm in ARMS}
        for arm in ARMS:
            share = stats.mean([float(v) for v in right[arm]], groups=photographs)
            change = stats.paired(right[arm], right["random"], groups=photographs)
            rows.append(
                {
                    "learner": side,
                    "labels": f"{arm}, {given.labels + (0 if arm == ARMS[0] else given.more)}",
                    "right [95 %]": f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]",
                    "minus random": f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
                    "by draw": ", ".join(f"{sum(f[side][arm]) / len(f[side][arm]):.3f}" for f in found),
                }
            )
    counts = {arm: [c for f in found for c in f["classes"][arm]] for arm in ARMS[1:]}
    notes = [
        f"{given.draws} draws of first labels; {POOL} photographs to choose from, {ASKED} others asked; {STEPS} steps"
        " of a new projector in every arm.",
        *(
            f"Classes of the further labels, {arm}: {', '.join(f'{c} {own.count(c)}' for c in sorted(set(own)))}."
            for arm, own in counts.items()
        ),
        "Intervals are of photographs, with the draws as they are.",
    ]
    write("label_next", "Which pictures to label next: chosen against random", rows, notes)


if __name__ == "__main__":
    main()
