"""Few labels: what 10 and 50 labelled pictures are good for, on photographs of fabric and on classes never trained.

    python benchmarks/fewshot.py --sizes 10 50 --folds 3 --steps 60 --test 150

Finished cells are kept; the same command continues.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from _results import write

from tsugiki import assets
from tsugiki.evals.tables import between, number
from tsugiki.studies import _draws, _start
from tsugiki.studies._arms import ARMS, MMICT
from tsugiki.studies._build import fetch_tower
from tsugiki.studies.fewshot import FewshotResult, fewshot

BASE, VISION = "smollm2-135m-instruct", "efficientnet-lite0"


def measured(on: str, given: argparse.Namespace, runs: Path) -> FewshotResult:
    """One kind of pictures; both begin with the same weights, and `mmict` with others, which have a hub."""
    few = _draws.MADE[on](
        runs / on / "pictures", pool=given.folds * max(100, *given.sizes), test=given.test, seed=given.seed
    )
    options: dict[str, Any] = {"base": BASE, "vision": VISION, "input_size": 224}
    options |= {"steps": given.start, "seed": given.seed}
    start = _start.made(runs / "start", **options)
    hub = _start.made(runs / "start-mmict", method=_start.HUB, **options) if MMICT in given.arms else None
    changes = ["warm_start=false", f"precision={given.precision}"]
    plan = _start.plan_of("projector", given.steps, given.seed, *changes)
    return fewshot(
        few, start, hub=hub, out=runs / on, recipe=plan, sizes=given.sizes, folds=given.folds, arms=given.arms,
        seed=given.seed,
    )  # fmt: skip


def rows(on: str, result: FewshotResult) -> list[dict[str, Any]]:
    """A row an arm and size, and one for each difference."""
    return [
        {
            "pictures": on,
            "labelled": score.task.removeprefix("fewshot/").removesuffix(" pictures"),
            "figure": score.metric,
            "value [95 %]": f"{number(score.value, sign=signed)} {between(score.low, score.high, sign=signed)}",
            "folds": score.note.removeprefix("folds "),
            "bare LLM": number(score.base),
        }
        for score in result.scores
        for signed in [" minus " in score.metric]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="Of every training, in batches of 8.")
    parser.add_argument("--test", type=int, default=150, help="Pictures that are asked about.")
    parser.add_argument("--start", type=int, default=100, help="Steps of the start, on other pictograms.")
    parser.add_argument("--on", nargs="+", default=list(_draws.MADE), choices=list(_draws.MADE))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--precision", default="bf16", choices=("model", "bf16"), help="Of trainings after the start.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in (BASE, "openmoji", "fabric"):
        assets.fetch(name)
    fetch_tower(VISION)
    runs = Path(os.environ.get("OUT") or assets.cache_dir() / "runs" / f"fewshot-{given.seed}")
    results = {on: measured(on, given, runs) for on in given.on}
    notes = [
        f"Every arm begins with the same graft, which learned to name {_draws.LEARNED} pictograms in {given.start}"
        f" steps of 8, with and without demonstrations; the {_draws.HELD_OUT} asked about are others. Trainings take"
        f" {given.steps} steps of 8{' in bf16' if given.precision == 'bf16' else ''}.",
        "mmict begins with another graft, which has a hub, and learned from the same pictures in as many steps: of a"
        " demonstration the LLM reads its text after that has seen the picture, and no picture token. It trains by the"
        " recipe mmict-demo, on the labelled pictures that every arm has, in as many steps of 8.",
        "Test drawings have a rendering and backgrounds that the labelled ones have not.",
        "The interval is over test pictures, with what was learned as it is; the variance of the folds is what another"
        " draw of labelled pictures changes. Chance: "
        + ", ".join(f"{on} {1 / n:.3f}" for on, n in (("fabric", 3), ("pictograms", _draws.HELD_OUT)))
        + ".",
        "Differences are paired over test pictures.",
    ]
    write("fewshot", "Few labels", [row for on, found in results.items() for row in rows(on, found)], notes)


if __name__ == "__main__":
    main()
