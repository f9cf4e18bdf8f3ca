"""Grounding by number of pictures: k-fold runs of one method, ridge regression beside it.

    python benchmarks/grounding_curve.py --sizes 20 100 --folds 3 --steps 200 --method projector
    python benchmarks/grounding_curve.py --data own.jsonl --sizes 20 50 100 200 --folds 5 --method wings

Finished runs are kept in --out and not repeated. Questions and answers are English.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch
from _results import by_size, write
from boxes import SHORT

from tsugiki import assets, build
from tsugiki.data import schema
from tsugiki.studies._build import VISION, build_model, fetch_tower
from tsugiki.studies.grounding_curve import grounding_curve
from tsugiki.training import recipe as recipes
from tsugiki.types import Sample

BASE = "smollm2-135m-instruct"
MADE = {
    "scenes": {"objects": (1, 1), "pictograms": 25, "size": 224},
    "defects": {"defects": (1, 1), "negatives": 0.0, "size": 224},
}
"""One object or defect a picture: the ridge regression sees no question."""


def data(name: str, n: int, seed: int) -> list[Sample]:
    """Pictures with a box question each: made, or a JSONL's."""
    if name not in MADE:
        return schema.load(name)
    for asset in ("openmoji", "fabric"):
        assets.fetch(asset)
    generator = importlib.import_module(f"tsugiki.synth.{name}")
    out = assets.cache_dir() / "runs" / f"curve-{name}-{n}-{seed}"
    samples: list[Sample] = generator.generate(
        n, out=out, seed=seed, tasks=["box"], forms=["boxes"], languages=["en"], **MADE[name]
    )
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes", help="scenes, defects or a JSONL with boxes.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--method", default="projector")
    parser.add_argument("--recipe", default=None, help="None: the method's own.")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="Changes of the recipe.")
    parser.add_argument(
        "--places", type=int, default=1, help="Boxes that the reader finds; 0: none, and plain box text."
    )
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    assets.llm_folder(BASE)
    fetch_tower(VISION)
    plan = recipes.load(given.recipe or build.preset(given.method).recipe)
    options: dict[str, Any] = plan.model.options if plan.model.grafts == (given.method,) else {}
    seeing = {"places": given.places, "box_text": SHORT} if given.places else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def fresh() -> Any:
        torch.manual_seed(given.seed)
        return build_model(BASE, given.method, VISION, input_size=given.input_size, device=device, **seeing, **options)

    name = f"grounding-curve-{Path(given.data).stem}-{given.method}"
    result = grounding_curve(
        data(given.data, max(given.sizes), given.seed),
        fresh,
        out=given.out or assets.cache_dir() / "runs" / name,
        recipe=plan,
        overrides=[f"steps={given.steps}", f"batch_size={given.batch_size}", *given.set],
        sizes=given.sizes,
        folds=given.folds,
        # Drawings on one of few backgrounds are alike, but not where the boxes are.
        near=None,
        seed=given.seed,
        batch_size=16,
    )
    notes = [
        f"{given.data}; {given.method}, {given.steps} steps of {given.batch_size}, {given.folds} folds,"
        f" {given.places} places: every picture is asked about once,"
        f" by a graft that learned from the other folds; {device}.",
        "The interval is over pictures, with the grafts as trained; the folds' own figures and their standard deviation"
        " have what another draw of training pictures changes.",
    ]
    write(name, "Grounding by number of pictures", by_size(result.scores, ["ridge", "constant"]), notes)


if __name__ == "__main__":
    main()
