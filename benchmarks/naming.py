"""What the warm start does for naming: arms that differ in one thing, at equal steps.

    python benchmarks/naming.py --steps 60 --longer 180    # 100 names; the first two arms also for more steps
    python benchmarks/naming.py --steps 60 --names 25

Test pictures show renderings and backgrounds that training never shows.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from _results import write

from tsugiki import assets
from tsugiki.data import schema
from tsugiki.evals import stats, yardsticks
from tsugiki.evals import task as tasks
from tsugiki.studies._build import build_model, fetch_tower
from tsugiki.studies._training import encode
from tsugiki.training.trainer import train

PICTURES, ASKED = 900, 120
ARMS: dict[str, dict[str, Any]] = {
    "warm start, rate 3e-4": {"warm": {}, "rate": 3e-4},
    "no warm start, rate 3e-4": {"warm": None, "rate": 3e-4},
    "no warm start, rate 1e-3": {"warm": None, "rate": 1e-3},
    "warm start, rate 1e-3": {"warm": {}, "rate": 1e-3},
    "warm start, norm as it falls, rate 3e-4": {"warm": {"norm": None}, "rate": 3e-4},
    "warm start, norm x 3, rate 3e-4": {"warm": {"norm": 3.0}, "rate": 3e-4},
    "random directions, norm alone, rate 3e-4": {"warm": {"match": False}, "rate": 3e-4},
}


def data(folder: Path, names: int) -> tuple[list[Any], list[Any]]:
    """Scenes; made once (a folder that holds them already needs no drawings)."""
    files = [folder / split / "samples.jsonl" for split in ("train", "test")]
    if not all(f.is_file() for f in files):
        from tsugiki.synth import scenes

        assets.fetch("openmoji"), assets.fetch("fabric")
        common: dict[str, Any] = {"pictograms": names, "languages": ("en",), "objects": (1, 1), "options": None}
        common |= {"tasks": ["naming"], "forms": ["short"]}
        scenes.generate(PICTURES, out=folder / "train", **common)
        scenes.generate(ASKED, out=folder / "test", split="test", **common)
    return schema.load(files[0]), schema.load(files[1])


def arm(name: str, steps: int, seed: int, learn: list[Any], ask: list[Any], runs: Path) -> dict[str, Any]:
    """One arm, or what a finished one wrote."""
    file = runs / f"{name.replace(' ', '-').replace(',', '')}-{steps}-{seed}.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(
        "smollm2-135m-instruct", "projector", "efficientnet-lite0", input_size=224, device=device, seed=seed
    )
    features = encode(model, [*learn, *ask], print)
    stage: dict[str, Any] = {
        "name": "scenes", "train": {"projector": ARMS[name]["rate"]}, "data": {"scenes": 1}, "batch_size": 8,
        "steps": steps, "warmup": 0.03, "scheduler": "linear", "weight_decay": 0.01,
    }  # fmt: skip
    if ARMS[name]["warm"] is not None:
        stage["warm_start"] = {"options": ARMS[name]["warm"]}
    recipe = {"seed": seed, "stages": [stage]}
    done = train(model, recipe, runs / file.stem, data={"scenes": learn}, features=features, progress=False)
    found = tasks.measure(
        model, ["decisions", "vqa"], ask, features=features, train=learn, max_new_tokens=8, seed=seed, batch_size=16
    )
    closed = {a.sample.id: a.correct for a in found["decisions"].answers}
    free = {a.sample.id: a.correct for a in found["vqa"].answers}
    settings = tasks.Settings(features=features, train=learn, seed=seed)
    rivals = yardsticks.choices("naming", ask, settings, model)
    gold = [tasks.short_answer(s) for s in ask]
    result = {
        "arm": name,
        "seed": seed,
        "steps": done.steps,
        "seconds": done.seconds,
        "last loss": sum(done.losses[-10:]) / 10,
        "closed": [int(closed[s.id]) for s in ask],
        "free": [int(free[s.id]) for s in ask],
        **{k: [int(c == g) for c, g in zip(v, gold, strict=True)] for k, v in rivals.items()},
        "device": device,
    }
    runs.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--longer", type=int, default=None, help="Run the first two arms for so many steps as well.")
    parser.add_argument("--names", type=int, default=100, help="Pictograms, each an option of every question.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--data", type=Path, default=None, help="Where the scenes are, or will be made.")
    parser.add_argument("--no-table", action="store_true", help="Only run the arms, in a process of their own.")
    given = parser.parse_args()
    assets.fetch("smollm2-135m-instruct")
    fetch_tower("efficientnet-lite0")
    learn, ask = data(given.data or assets.cache_dir() / "runs" / f"naming-scenes-{given.names}", given.names)
    runs = Path(os.environ.get("OUT") or assets.cache_dir() / "runs" / f"naming-{given.names}")
    rows = []
    jobs = [(name, given.steps) for name in given.arms]
    if given.longer is not None:
        jobs += [(name, given.longer) for name in list(ARMS)[:2] if name in given.arms]
    if given.no_table:
        for name, steps in jobs:
            for seed in range(given.seeds):
                arm(name, steps, seed, learn, ask, runs)
        return
    for name, steps in jobs:
        found = [arm(name, steps, seed, learn, ask, runs) for seed in range(given.seeds)]
        groups = [s.id for _ in found for s in ask]
        closed, free, probe = ([v for f in found for v in f.get(k, [])] for k in ("closed", "free", "probe"))
        own, open_ = stats.mean(closed, groups=groups), stats.mean(free, groups=groups)
        difference = stats.paired(closed, probe, groups=groups)
        rows.append(
            {
                "arm": name,
                "steps": steps,
                "closed": f"{own.value:.3f} [{own.low:.3f}, {own.high:.3f}]",
                "free": f"{open_.value:.3f} [{open_.low:.3f}, {open_.high:.3f}]",
                "probe": round(sum(probe) / len(probe), 3),
                "k-NN": round(sum(found[0]["k-NN"]) / len(ask), 3),
                "constant": round(sum(found[0]["constant"]) / len(ask), 3),
                "closed - probe": f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
                "last loss": round(sum(f["last loss"] for f in found) / len(found), 3),
            }
        )
    notes = [
        f"{len(ask)} pictures of one object, {given.names} names to choose from (chance {1 / given.names:.3f}),"
        f" rotated drawings on new backgrounds; {PICTURES} pictures to learn from, in batches"
        f" of 8; {given.seeds} seed(s); {found[0]['device']}.",
        "Closed: the most likely of all names. Free: generated, exact match. The probe learned from the same pictures.",
    ]
    write("naming", "Naming with and without the warm start", rows, notes)


if __name__ == "__main__":
    main()
