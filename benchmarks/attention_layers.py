"""Does it help to put WINGS' learners where attention has moved? The same number of layers, chosen in three ways.

    python benchmarks/attention_layers.py --only projector:0            # first: its attention chooses the layers
    python benchmarks/attention_layers.py --only suggested:0 spread:0 opposite:0
    python benchmarks/attention_layers.py                               # the table of all finished arms
    python benchmarks/attention_layers.py --steps 2 --pictures 8 --only ...   # a smoke run, in a folder of its own

All arms train the same projector from the same warm start, at the same rate, on the same samples in the same order; the
LLM stays frozen. `suggested` are the layers that `tsugiki diagnose attention` names for the projector's model, on
training pictures; `opposite` those whose attention moved least; `spread` every third. An arm takes 4 to 8 minutes on
one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import RESULTS, write
from wings_learning import RANK, RATES, asked, compared, data

from tsugiki import assets
from tsugiki.evals import laws
from tsugiki.studies._build import build_model, fetch_tower
from tsugiki.studies._training import encode
from tsugiki.training.trainer import train

ARMS = ("projector", "suggested", "spread", "opposite")
STEPS, CONVERSATIONS, SHARE = 100, 48, 3


def layers_of(name: str, moved: list[float]) -> tuple[int, ...]:
    """A third of the layers, by what each adds to the shift."""
    depth = len(moved)
    k = -(-depth // SHARE)
    if name == "spread":
        return tuple(range(0, depth, SHARE))
    order = np.argsort([-m if name == "suggested" else m for m in moved], kind="stable")
    return tuple(sorted(order[:k].tolist()))


def run(name: str, seed: int, folder: Path, runs: Path, steps: int, pictures: int | None) -> None:
    """One arm, unless it is finished."""
    file = folder / f"{name}-{seed}.json"
    if file.is_file():
        return
    learn, ask = data("scenes", seed, assets.cache_dir() / "runs" / "wings_learning" / "scenes")
    learn, ask = learn[:pictures], ask[:pictures]
    options: dict[str, Any] = {"method": "projector"}
    if name != "projector":
        parent = folder / f"projector-{seed}.json"
        if not parent.is_file():
            raise SystemExit(f"{parent} is missing: run projector:{seed} first")
        options = {"method": "wings", "rank": RANK, "layers": layers_of(name, json.loads(parent.read_text())["moved"])}
    torch.manual_seed(seed)
    model = build_model("smollm2-135m-instruct", input_size=224, device="cpu", **options)
    features = encode(model, [*learn, *ask], print)
    rates = {"projector": RATES["projector"]} | ({} if name == "projector" else {"graft.wings": RATES["graft.wings"]})
    stage: dict[str, Any] = {
        "name": "scenes", "train": rates, "data": {"scenes": 1}, "batch_size": 8, "warm_start": True, "steps": steps,
        "scheduler": "constant", "warmup": 3 / steps if steps > 3 else 0.0,
    }  # fmt: skip
    done = train(
        model, {"seed": seed, "stages": [stage]}, runs / file.stem, data={"scenes": learn}, features=features,
        progress=False,
    )  # fmt: skip
    result: dict[str, Any] = {"arm": name, "seed": seed, "steps": steps, "ids": [s.id for s in ask]}
    result |= {"layers": list(options.get("layers", ())), "losses": [round(v, 4) for v in done.losses]}
    if name == "projector":
        found = laws.measure(model, learn[:CONVERSATIONS])
        result["moved"] = [m.value for m in laws.suggest(found).moved]
    result |= asked(model, ask, features, free=True)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    print(f"{file.stem}: closed {sum(result['closed']) / len(ask):.3f}", flush=True)


def table(folder: Path) -> None:
    """What all finished arms found; differences are to the learners that are spread evenly."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        found.setdefault(result["arm"], {})[result["seed"]] = result
    rows = []
    for name in ARMS:
        seeds = sorted(set(found.get(name, {})) & set(found.get("spread", {})))
        if seeds:
            own, other = ([found[n][s] for s in seeds] for n in (name, "spread"))
            head = {"arm": name, "seeds": len(seeds), "steps": own[0]["steps"]}
            head |= {"layers": " ".join(map(str, own[0]["layers"]))}
            rows.append(head | compared(own, own if name == "spread" else other))
    notes = [
        f"WINGS of rank {RANK} at a third of the layers, batch 8, constant rates {RATES}; differences to `spread`.",
        "Intervals: bootstrap over pictures, all seeds of a picture together; they do not cover the choice of seeds.",
    ]
    write("attention_layers", "Learners where attention has moved", rows, notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="arm:seed of the arms to run; no table")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pictures", type=int, help="at most so many to train and to ask about")
    given = parser.parse_args()
    smoke = given.steps != STEPS or given.pictures is not None
    runs = assets.cache_dir() / "runs" / ("attention_layers_smoke" if smoke else "attention_layers")
    finished = runs / "finished" if smoke else RESULTS / "attention_layers"
    if given.only is None:
        table(finished)
    else:
        assets.fetch("smollm2-135m-instruct")
        fetch_tower("efficientnet-lite0")
        for one in given.only:
            arm, number = one.split(":")
            run(arm, int(number), finished, runs, given.steps, given.pictures)
