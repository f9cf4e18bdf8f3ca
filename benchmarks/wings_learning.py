"""What WINGS learns beside a projector alone: at equal steps, at equal time, and without one of its parts.

    python benchmarks/wings_learning.py --only scenes:wings:0    # run arms, in a process of their own
    python benchmarks/wings_learning.py                          # the table of all finished arms

Both train the same projector from the same warm start, at the same rate, on the same samples in the same order; the LLM
stays frozen. The rate is constant, so that the projector's run simply goes on until it has had WINGS' time.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from _commands import arms
from _results import RESULTS, write

from tsugiki import assets
from tsugiki.data import schema
from tsugiki.evals import stats, yardsticks
from tsugiki.evals import task as tasks
from tsugiki.studies._build import build_model
from tsugiki.studies._training import encode
from tsugiki.synth import fabric
from tsugiki.training import parts
from tsugiki.training.trainer import StepReport, train
from tsugiki.types import Sample

NAMES, PICTURES, ASKED = 60, 1200, 120
LABELS, PHOTOGRAPHS = 200, 500
STEPS = {"scenes": 100, "fabric": 150}
LONGER = 1.4  # WINGS' step in projector steps; measured as 1.41 (results/wings_cost.md)
RANK, RATES = 16, {"projector": 3e-4, "graft.wings": 3e-4}
ARMS: dict[str, dict[str, Any] | None] = {
    "projector": None,
    "wings": {},
    "visual learners only": {"learners": "visual"},
    "textual learners only": {"learners": "textual"},
    "no router": {"router": "none"},
    "router by segments": {"router": "segments"},
    "rank 64": {"rank": 64},
    "every third layer": {"layers": tuple(range(0, 30, 3))},
    "learners at 1e-3": {"rate": 1e-3},
}
FINISHED = RESULTS / "wings_learning"


def data(task: str, seed: int, folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Training and test samples: one object a picture and 60 names, or fabric photographs."""
    if task == "fabric":
        learn, rest = fabric.draw(seed, LABELS)
        return learn, random.Random(seed).sample(rest, PHOTOGRAPHS)  # the pool is in the order of its labels
    files = [folder / split / "samples.jsonl" for split in ("train", "test")]
    if not all(f.is_file() for f in files):
        from tsugiki.synth import scenes

        assets.fetch("openmoji"), assets.fetch("fabric")
        common: dict[str, Any] = {"pictograms": NAMES, "languages": ("en",), "objects": (1, 1), "options": None}
        common |= {"tasks": ["naming"], "forms": ["short"]}
        scenes.generate(PICTURES, out=folder / "train", **common)
        scenes.generate(ASKED, out=folder / "test", split="test", **common)
    return schema.load(files[0]), schema.load(files[1])


def asked(model: Any, samples: list[Sample], features: Any, free: bool) -> dict[str, list[int]]:
    """Which samples are answered right: the most likely option, and with `free` the generated answer."""
    kinds = ["decisions", "vqa"] if free else ["decisions"]
    found = tasks.measure(model, kinds, samples, features=features, train=(), max_new_tokens=8, batch_size=16)
    right = {kind: {a.sample.id: a.correct for a in found[kind].answers} for kind in kinds}
    named = {"decisions": "closed", "vqa": "free"}
    return {named[kind]: [int(right[kind][s.id]) for s in samples] for kind in kinds}


def run(task: str, name: str, seed: int, runs: Path) -> None:
    """One arm, unless it is finished."""
    file = FINISHED / f"{task}-{name.replace(' ', '-')}-{seed}.json"
    if file.is_file():
        return
    learn, ask = data(task, seed, runs / "scenes")
    chosen = ARMS[name]
    options = None if chosen is None else {k: v for k, v in chosen.items() if k != "rate"}
    rate = (chosen or {}).get("rate", RATES["graft.wings"])
    torch.manual_seed(seed)
    grafts = {"method": "projector"} if options is None else {"method": "wings", "rank": RANK, **options}
    model = build_model("smollm2-135m-instruct", input_size=224, device="cpu", **grafts)
    features = encode(model, [*learn, *ask], print)
    steps, free = STEPS[task], task == "scenes" and name in ("projector", "wings")
    rates = {"projector": RATES["projector"]} | ({"graft.wings": rate} if options is not None else {})
    stage: dict[str, Any] = {
        "name": task, "train": rates, "data": {task: 1}, "batch_size": 8, "warm_start": True,
        "steps": steps if options is not None else round(LONGER * steps), "scheduler": "constant",
    }  # fmt: skip
    stage["warmup"] = 3 / stage["steps"]
    kept: dict[str, torch.Tensor] = {}

    def keep(report: StepReport) -> None:
        if report.step == steps:
            kept.update({n: t.detach().clone() for n, t in parts.trained_tensors(model, rates).items()})

    done = train(
        model,
        {"seed": seed, "stages": [stage]},
        runs / file.stem,
        data={task: learn},
        features=features,
        progress=False,
        on_step=keep,
    )
    result: dict[str, Any] = {"task": task, "arm": name, "seed": seed, "ids": [s.id for s in ask]}
    if options is None:
        result["longer"] = {"steps": done.steps, "seconds": done.seconds, **asked(model, ask, features, free)}
        gold = [tasks.short_answer(s) for s in ask]
        settings = tasks.Settings(features=features, train=learn, seed=seed)
        rivals = yardsticks.choices("decision" if task == "fabric" else "naming", ask, settings, model)
        result |= {k: [int(c == g) for c, g in zip(v, gold, strict=True)] for k, v in rivals.items()}
        for n, tensor in parts.trained_tensors(model, rates).items() if kept else ():
            tensor.data.copy_(kept[n])
    result |= {"steps": steps, "losses": [round(v, 4) for v in done.losses]}
    if options is not None or kept:  # a run that was finished before has no weights of its middle any more
        result |= asked(model, ask, features, free)
    FINISHED.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    print(f"{file.stem}: closed {sum(result.get('closed', [])) / len(ask):.3f}", flush=True)


def compared(own: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, str]:
    """Closed and free accuracy of `own`, and its paired difference to `other`, over all seeds; a picture is a group."""
    row = {}
    groups = [i for f in own for i in f["ids"]]
    for kind in ("closed", "free"):
        if any(kind not in f for f in (*own, *other)):
            row |= {kind: "", f"{kind}: difference": ""}
            continue
        mine, theirs = ([v for f in found for v in f[kind]] for found in (own, other))
        score, gap = stats.mean(mine, groups=groups), stats.paired(mine, theirs, groups=groups)
        row[kind] = f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
        row[f"{kind}: difference"] = "" if own is other else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
    return row


def table() -> None:
    """What all finished arms found; differences are to the projector at equal steps, of the ablations to WINGS."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for file in sorted(FINISHED.glob("*.json")):
        result = json.loads(file.read_text())
        found.setdefault((result["task"], result["arm"]), {})[result["seed"]] = result
    rows, notes = [], []
    for task in STEPS:
        for name in ARMS:
            runs = found.get((task, name), {})
            rival = "projector" if name in ("projector", "wings") else "wings"
            seeds = sorted(set(runs) & set(found.get((task, rival), {})))
            if not seeds:
                continue
            own, other = [runs[s] for s in seeds], [found[task, rival][s] for s in seeds]
            head = {"task": task, "arm": name, "seeds": len(seeds), "steps": own[0]["steps"], "compared with": rival}
            if all("closed" in f for f in (*own, *other)):
                rows.append(head | compared(own, own if name == rival else other))
            if name == "wings":
                longer = [f["longer"] | {"ids": f["ids"]} for f in other]
                more = {"arm": "wings", "steps": own[0]["steps"], "compared with": "projector at equal time"}
                rows.append(head | more | compared(own, longer))
            if name == "projector":
                longer = [f["longer"] | {"ids": f["ids"]} for f in own]
                more = {"arm": "projector, longer", "steps": longer[0]["steps"]}
                rows.append(head | more | compared(longer, own if "closed" in own[0] else longer))
                probe = [v for f in own for v in f["probe"]]
                notes.append(
                    f"{task}: the linear probe on the same pictures is right for {sum(probe) / len(probe):.3f}."
                )
    notes += [
        f"scenes: one object, {NAMES} names, {ASKED} pictures of unseen renderings on unseen backgrounds; fabric:"
        f" {LABELS} labels, {PHOTOGRAPHS} other photographs. Batch 8, constant rates {RATES}, rank {RANK} unless said.",
        "Intervals: bootstrap over pictures, all seeds of a picture together; they do not cover the choice of seeds.",
        f"Equal time: the projector's run continued to {LONGER} times the steps, WINGS' step in projector steps.",
    ]
    write("wings_learning", "WINGS against the projector: what is learned", rows, notes)


if __name__ == "__main__":
    arms(__doc__, "task:arm:seed", run, table, "wings_learning")
