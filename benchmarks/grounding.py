"""Boxes by the grafts that ground: the projector alone, IAA and LynX, on held-out scenes and synthetic defects.

    python benchmarks/grounding.py --only projector:0 iaa:0 lynx:0    # arm:seed, each kept when it is finished
    python benchmarks/grounding.py                                    # the table of all finished arms

Every arm: the same pictures, batches, steps, projector rate and start; the LLM stays frozen. What makes boxes learnable
at all (results/boxes.md: places and short text) is the same in all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from _commands import arms
from _results import RESULTS, write
from boxes import SHORT, asked, scored

import tsugiki
from tsugiki import assets
from tsugiki.data import schema
from tsugiki.evals import stats, yardsticks
from tsugiki.evals import task as tasks
from tsugiki.evals.tasks import grounding
from tsugiki.studies._build import build_model
from tsugiki.studies._training import encode
from tsugiki.training.trainer import train
from tsugiki.types import Sample

STEPS, BATCH, RATE = 100, 8, 3e-4
LEARN, ASKED = 1000, 120  # pictures of each kind
PLACES = 3
ARMS: dict[str, tuple[str, dict[str, Any], float]] = {
    "projector": ("projector", {}, 0.0),
    "iaa": ("iaa", {"layers": "iaa-8"}, 1e-4),
    "lynx": ("lynx", {"experts": 2, "every": 6, "gate": "task"}, RATE),
    "lora": ("lora", {"rank": 16, "alpha": 32}, 2e-4),
}
"""Graft, its settings, its rate: those of the demo recipes."""
FINISHED = RESULTS / "grounding"


def data(folder: Path) -> tuple[list[Sample], dict[str, list[Sample]]]:
    """Training samples of both kinds, and test samples by kind; every question asks for a box."""
    from tsugiki.synth import defects, scenes

    assets.fetch("openmoji"), assets.fetch("fabric")
    learn: list[Sample] = []
    ask: dict[str, list[Sample]] = {}
    for split, n in (("train", LEARN), ("test", ASKED)):
        drawn = folder / f"scenes-{split}", folder / f"defects-{split}"
        scenes.generate(
            n, out=drawn[0], split=split, pictograms=60, languages=("en",), objects=(1, PLACES), options=None,
            tasks=["box"], forms=["boxes"],
        )  # fmt: skip
        defects.generate(
            n, out=drawn[1], split=split, tasks=["box"], forms=["boxes"], languages=("en",), negatives=0.0,
            severities=["medium", "high"], sizes=["medium", "large"],
        )  # fmt: skip
        found = [[s for s in schema.load(d / "samples.jsonl") if grounding.gold(s)] for d in drawn]
        if split == "train":
            learn = found[0] + found[1]
        else:
            ask = {"scenes": found[0], "defects": found[1]}
    return learn, ask


def run(name: str, seed: int, runs: Path) -> None:
    """One arm, unless it is finished."""
    file = FINISHED / f"{name}-{seed}.json"
    if file.is_file():
        return
    learn, ask = data(runs)
    method, settings, rate = ARMS[name]
    torch.manual_seed(seed)
    model = build_model(
        "smollm2-135m-instruct", method, input_size=224, device="cpu", places=PLACES, box_text=SHORT, **settings
    )
    features = encode(model, [*learn, *ask["scenes"], *ask["defects"]], print)
    rates = {"projector": RATE} | ({f"graft.{method}": rate} if rate else {})
    stage = {
        "name": "boxes", "train": rates, "data": {"boxes": 1}, "batch_size": BATCH, "steps": STEPS,
        "warm_start": True, "scheduler": "constant", "warmup": 5 / STEPS,
    }  # fmt: skip
    done = train(
        model, {"seed": seed, "stages": [stage]}, runs / file.stem, data={"boxes": learn}, features=features,
        progress=False,
    )  # fmt: skip
    result: dict[str, Any] = {"arm": name, "seed": seed, "steps": STEPS, "seconds": done.seconds}
    result["losses"] = [round(v, 4) for v in done.losses]
    for kind, samples in ask.items():
        rivals = yardsticks.places("box", samples, tasks.Settings(features=features, train=learn, seed=seed), model)
        result[kind] = {
            "ids": [s.id for s in samples],
            "sizes": [grounding.size_class(s, grounding.gold(s)[0]) for s in samples],
            **asked(model, samples, features),
            **{rival: scored([(b,) for b in boxes], samples) for rival, boxes in rivals.items()},
        }
    proof = tsugiki.verify(model, answers=5)
    result["verify"] = {"holds": proof.holds, "guarantee": proof.guarantee, "prompts": proof.prompts}
    FINISHED.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    rates_ = {k: sum(result[k]["graft"]["hit"]) / len(result[k]["ids"]) for k in ask}
    print(f"{file.stem}: Acc@0.5 {rates_}, {done.seconds:.0f} s, proof {proof.holds}", flush=True)


def row(kind: str, found: list[dict[str, Any]], base: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """One line of the table, over the seeds."""
    groups = [i for f in found for i in f[kind]["ids"]]
    values = {k: [v for f in found for v in f[kind]["graft"][k]] for k in ("hit", "centre", "iou")}
    score, gap = stats.mean(values["hit"], groups=groups), ""
    if found[0]["arm"] != "projector" and all(f["seed"] in base for f in found):
        other = [v for f in found for v in base[f["seed"]][kind]["graft"]["hit"]]
        pair = stats.paired(values["hit"], other, groups=groups)
        gap = f"{pair.value:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
    sizes = [size for f in found for size in f[kind]["sizes"]]
    by_size = {
        size: sum(v for v, s in zip(values["hit"], sizes, strict=True) if s == size) / sizes.count(size)
        for size in dict.fromkeys(sorted(sizes))
    }
    marks = {k: sum(v for f in found for v in f[kind][k]["hit"]) / len(groups) for k in ("constant", "ridge")}
    return {
        "pictures": kind,
        "arm": found[0]["arm"],
        "seeds": len(found),
        "Acc@0.5": f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]",
        "minus projector": gap,
        "by size": ", ".join(f"{k} {v:.2f}" for k, v in by_size.items()),
        "centre hit": round(sum(values["centre"]) / len(groups), 3),
        "mean IoU": round(sum(values["iou"]) / len(groups), 3),
        "constant box": round(marks["constant"], 3),
        "ridge": round(marks["ridge"], 3),
        "verify": "holds" if all(f["verify"]["holds"] for f in found) else "FAILS",
    }


def table() -> None:
    """What all finished arms found."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(FINISHED.glob("*.json")):
        result = json.loads(file.read_text())
        runs.setdefault(result["arm"], {})[result["seed"]] = result
    base = runs.get("projector", {})
    rows = [row(k, list(runs[a].values()), base) for k in ("scenes", "defects") for a in ARMS if a in runs]
    rates = {name: rate for name, (_, _, rate) in ARMS.items() if rate}
    notes = [
        f"Scenes of 1 to {PLACES} pictograms (unseen renderings and backgrounds) and fabric with 1 or 2 synthetic"
        f" defects (unseen photographs; medium and high severity, longer side above 1/8): {LEARN} pictures of each to"
        f" learn from, mixed, {ASKED} of each asked. Every question asks for the box of one kind of thing.",
        f"{STEPS} steps of {BATCH}, constant rates {rates}, projector {RATE};"
        f" frozen LLM, warm start, {PLACES} places, boxes as four numbers of two digits.",
        "Ridge: regression of one box from the same features; it knows the picture, not the question.",
        "Intervals: bootstrap over pictures, all seeds of a picture together; they do not cover the choice of seeds.",
    ]
    write("grounding", "Boxes: projector, IAA, LynX", rows, notes)


if __name__ == "__main__":
    arms(__doc__, "arm:seed", run, table, "grounding")
