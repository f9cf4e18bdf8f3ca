"""Fabric decisions from 200 labels: the projector graft against a linear probe, 5 draws, all other photographs asked.

    python benchmarks/fabric.py --draws 5 --steps 150

An inner hold-out of 40 of the 200 chooses the probe's C and the graft's step count; one training a draw.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import write
from scipy.stats import sem
from scipy.stats import t as student

from tsugiki import assets
from tsugiki.evals import stats, yardsticks
from tsugiki.evals import task as tasks
from tsugiki.studies._build import build_model, fetch_tower
from tsugiki.studies._divide import Parts
from tsugiki.studies._training import encode, train_chosen
from tsugiki.synth import fabric
from tsugiki.training import recipe as recipes

LABELS, HOLD = 200, 40


def draw(seed: int, steps: int, runs: Path) -> dict[str, Any]:
    """One draw, or what a finished one wrote."""
    file = runs / f"draw-{seed}-{steps}.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    learn, rest = fabric.draw(seed, LABELS)
    # The draw is balanced at every beginning of its order, and shuffled: its first 40 are as good as any.
    parts = Parts(train=learn, hold=tuple(range(HOLD)), test=rest)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model("smollm2-135m-instruct", "projector", "efficientnet-lite0", input_size=224, device=device)
    features = encode(model, [*learn, *rest], print)
    plan = recipes.load("demo/fabric", ["minutes=null", f"steps={steps}"])
    done = train_chosen(
        model, plan, parts, runs / f"run-{seed}-{steps}", features=features, refit=False, tell=print, progress=False
    )
    settings = tasks.Settings(features=features, train=learn, holdout=tuple(range(HOLD)), seed=seed, batch_size=16)
    answers = tasks.measure(model, ["decisions"], rest, features=features, train=(), seed=seed, batch_size=16)[
        "decisions"
    ].answers
    right = {a.sample.id: a.correct for a in answers}
    rivals = yardsticks.choices("decision", rest, settings, model)
    gold = [tasks.short_answer(s) for s in rest]
    result = {
        "seed": seed,
        "photographs": [s.id for s in rest],
        "graft": [int(right[s.id]) for s in rest],
        **{name: [int(c == g) for c, g in zip(choice, gold, strict=True)] for name, choice in rivals.items()},
        "steps": done.steps,
        "marks": [[m.step, m.accuracy] for m in done.marks],
        "seconds": done.seconds,
        "device": device,
    }
    runs.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    return result


def row(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy and difference to the probe; a photograph that several draws asked is one group."""
    photographs = [p for f in found for p in f["photographs"]]
    graft, probe, knn = ([v for f in found for v in f[k]] for k in ("graft", "probe", "k-NN"))
    own = stats.mean(graft, groups=photographs)
    rival = stats.mean(probe, groups=photographs)
    difference = stats.paired(graft, probe, groups=photographs)
    return {
        "draw": name,
        "asked": len(graft),
        "graft": f"{own.value:.3f} [{own.low:.3f}, {own.high:.3f}]",
        "probe": f"{rival.value:.3f} [{rival.low:.3f}, {rival.high:.3f}]",
        "k-NN": round(sum(knn) / len(knn), 3),
        "graft - probe": f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
        "steps chosen": ", ".join(str(f["steps"]) for f in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", type=int, nargs="*", help="Run these draws, in a process of their own; no table.")
    given = parser.parse_args()
    for name in ("smollm2-135m-instruct", "fabric"):
        assets.fetch(name)
    fetch_tower("efficientnet-lite0")
    runs = Path(os.environ.get("OUT") or assets.cache_dir() / "runs" / "fabric")
    if given.only is not None:
        for seed in given.only:
            draw(seed, given.steps, runs)
        return
    found = [draw(seed, given.steps, runs) for seed in range(given.draws)]
    rows = [row(str(f["seed"]), [f]) for f in found] + [row("all", found)]
    each = np.array([np.mean(f["graft"]) - np.mean(f["probe"]) for f in found])
    # A t interval: so few draws are too few for a bootstrap.
    low, high = student.interval(0.95, len(each) - 1, loc=each.mean(), scale=sem(each))
    notes = [
        "Intervals are of photographs: one asked by several draws counts as one group.",
        f"Over the {len(found)} draws the mean difference is {each.mean():+.3f} [{low:+.3f}, {high:+.3f}], a t interval"
        " of draws: this one holds for another 200 labels.",
        "The probe is fitted again on all 200 with its chosen C; the graft keeps the weights it had at the chosen step,"
        " from 160.",
        f"At most {given.steps} steps of 8; at six marks the hold-out is asked; {found[0]['device']}.",
    ]
    write("fabric", "Fabric, 3 classes, 200 labelled photographs: projector graft against linear probe", rows, notes)


if __name__ == "__main__":
    main()
