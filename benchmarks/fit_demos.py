"""Do labelled pictures in front help a graft that `fit` trains? Photographs of fabric, with and without.

    python benchmarks/fit_demos.py --labels 50 --steps 60 --test 100

Both learn from the same photographs, a fifth of which choose the step count and are not learned from, as in a cell of
`tsugiki curve`: `fit` itself would train once more on all of them. Both are asked about the same others. A finished
training is kept, a stopped one continued by the same call.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from functools import partial
from typing import Any

from _results import write

from tsugiki import assets
from tsugiki.evals import task as tasks
from tsugiki.evals.tables import between, number
from tsugiki.studies._build import fetch_tower
from tsugiki.studies._cells import Cell, Cells, pictures_of, right_of, scores_of
from tsugiki.studies._divide import alike, whole
from tsugiki.studies._in_context import enough
from tsugiki.studies._making import Maker
from tsugiki.synth import fabric
from tsugiki.types import Score

BASE, VISION = "smollm2-135m-instruct", "efficientnet-lite0"
METHOD = ("projector",)


def row(name: str, score: Score) -> dict[str, Any]:
    """One line of the table."""
    signed = " minus " in score.metric
    value = f"{number(score.value, sign=signed)} {between(score.low, score.high, sign=signed)}"
    return {"demos": name, "figure": score.metric, "value [95 %]": value, "n": score.n, "bare LLM": number(score.base)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60, help="At most, in batches of 8.")
    parser.add_argument("--test", type=int, default=100, help="Photographs that are asked about.")
    parser.add_argument("--demos", type=int, default=4)
    parser.add_argument("--projector", default="mlp", help="pixel_unshuffle: 16 tokens a picture in place of 49.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.demos < 1:
        parser.error("--demos: 1 or more; without any is the other training")
    for name in (BASE, "fabric"):
        assets.fetch(name)
    fetch_tower(VISION)
    runs = assets.cache_dir() / "runs" / f"fit-demos-{given.seed}"
    learn, rest = fabric.draw(given.seed, given.labels)
    asked = random.Random(given.seed).sample(rest, given.test)
    parts = replace(whole(learn, alike(learn, []), seed=given.seed), test=asked)
    found: dict[int, Cell] = {}
    for demos in (0, given.demos):
        maker = Maker(
            base=BASE, vision=VISION, overrides=[f"steps={given.steps}", "batch_size=8", "precision=bf16"],
            options={"input_size": 224, "projector": given.projector}, refit=False, demos=demos, seed=given.seed,
        )  # fmt: skip
        enough([parts], demos)
        content = {**maker.content([METHOD]), "labels": given.labels, "test": given.test, "seed": given.seed}
        cells = Cells(runs / f"demos-{demos}", content, 1, print)
        found[demos] = cells("fabric", partial(maker.cell, METHOD, parts))
    rows = [row(str(n), s) for n, cell in found.items() for s in scores_of([cell]) if s.metric.startswith("accuracy")]
    without, having = (right_of(cell["rows"]) for cell in found.values())
    gap = tasks.difference(
        "fit", f"{given.demos} minus 0", [having[key] for key in without], list(without.values()),
        groups=pictures_of(found[0]["rows"]),
    )  # fmt: skip
    notes = [
        f"demos {n}: {cell['steps']} steps of {given.steps} at most, {cell['seconds']:.0f} s with the asking."
        for n, cell in found.items()
    ]
    write("fit_demos", "fit with labelled pictures in front, fabric, 3 classes", [*rows, row("both", gap)], notes)


if __name__ == "__main__":
    main()
