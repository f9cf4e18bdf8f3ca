"""Cases of training that run the same alone and in several processes; test_distributed.py starts one of each.

python -m tests.training._several FOLDER, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, runs the cases of
FOLDER/cases.json one after the other.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.training._tiny import cache, marked, model, recipe, samples

from tsugiki.testing import TinyTower
from tsugiki.training.trainer import StepReport, train
from tsugiki.types import Message, Sample

STEPS = 6


class Stop(Exception):
    """Stands for whatever ends a run too early."""


def text(n: int) -> list[Sample]:
    """Samples without a picture, of different lengths."""
    said = [
        (Message.of("user", f"What is {i} + 1" + "?" * (i % 4)), Message.of("assistant", f"{i}!")) for i in range(n)
    ]
    return [Sample(id=f"t{i}", messages=messages) for i, messages in enumerate(said)]


def mixed() -> list[Sample]:
    """Of 19 samples 6 have a picture: all, some or none of a batch of four, or of one process's two rows."""
    seen, unseen = samples(6), text(13)
    return [*seen, *unseen]


def run(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """One case in this process; the first one leaves the weights in `<folder>/<name>.safetensors`."""
    rank = int(os.environ.get("RANK", 0))
    graft, attached = case["graft"], case.get("attach", {})
    if attached.get("vision") == "two towers":
        attached = {**attached, "vision": [TinyTower(seed=1), TinyTower(seed=2)], "views": "global+2x2"}
    # Another start in every process: all of them have to train the first one's.
    built = model(graft, dropout=case.get("dropout", 0.0), seed=rank, **attached)
    trained = ["projector"] if graft == "projector" else ["projector", f"graft.{graft}"]
    fields = recipe(*trained, *case.get("also", ()), **{"steps": STEPS, **case.get("stage", {})})
    fields |= {"parallel": case["parallel"], "save_steps": case.get("save"), **case.get("recipe", {})}
    reports: list[StepReport] = []

    def on_step(report: StepReport) -> None:
        reports.append(report)
        if report.step == case.get("stop"):
            raise Stop

    data = mixed() if case.get("mixed") else marked() if case.get("marked") else samples()
    options: dict[str, Any] = {"data": data[rank:] if case.get("differ") else data, "progress": False}
    if not attached.get("train_tower"):
        options["features"] = cache(built, folder)
    try:
        result = train(built, fields, folder / case.get("run", case["name"]), on_step=on_step, **options)
    except Stop:
        return {"reported": [r.loss for r in reports]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if rank == 0:
        state = {name: p.detach().clone() for name, p in built.named_parameters()}
        save_file(state, folder / f"{case['name']}.safetensors")
    rows = [json.loads(line) for line in (result.out / "log.jsonl").read_text().splitlines()]
    return {
        "losses": list(result.losses),
        "norms": [row["grad_norm"] for row in rows],
        "tokens": [(row["tokens"], row["label_tokens"]) for row in rows],
        "reported": [r.loss for r in reports],
        "resumed": result.resumed,
        "sum": [float(p.detach().double().sum()) for p in built.parameters()],
    }


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage at each start: a quarter of a second for what the imports made
    found = {case["name"]: run(folder, case) for case in json.loads((folder / "cases.json").read_text())}
    (folder / f"result-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
