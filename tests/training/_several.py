"""Started by test_distributed.py, once for each process: trains what a case says and leaves what came of it.

python -m tests.training._several FOLDER CASES, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; FOLDER/CASES is
a JSON list of cases.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.training._tiny import cache, model, recipe, samples

from tsugiki.training.trainer import StepReport, train
from tsugiki.types import Message, Sample

STEPS = 6


class Stop(Exception):
    """Stands for whatever ends a run too early."""


def text(n: int) -> list[Sample]:
    """Samples without a picture, of different lengths."""
    said = [(Message.of("user", f"What is {i} + 1" + "?" * (i % 4)), Message.of("assistant", f"{i}!")) for i in range(n)]
    return [Sample(id=f"t{i}", messages=messages) for i, messages in enumerate(said)]


def mixed() -> list[Sample]:
    """Every third sample has a picture: in batches of four some have one, some none, and some have it in one share."""
    seen, unseen = samples(12), text(24)
    return [s for i in range(12) for s in (seen[i], *unseen[2 * i : 2 * i + 2])]


def run(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """One case in this process: losses and, in the first one, weights in `<folder>/<name>.safetensors`."""
    rank = int(os.environ.get("RANK", 0))
    # Another start in every process: all of them have to train the first one's.
    built = model(case["graft"], dropout=case.get("dropout", 0.0), seed=rank, **case.get("options", {}))
    if case.get("dtype"):
        built.language_model.to(getattr(torch, case["dtype"]))
    trained = ["projector", f"graft.{case['graft']}"] if case["graft"] != "projector" else ["projector"]
    fields = recipe(*trained, *case.get("also", ()), **{"steps": STEPS, **case.get("stage", {})})
    fields |= {"parallel": case["parallel"], "save_steps": 2, **case.get("recipe", {})}
    data = mixed() if case.get("mixed") else samples()
    reports: list[StepReport] = []

    def on_step(report: StepReport) -> None:
        reports.append(report)
        if report.step == case.get("stop"):
            raise Stop

    options: dict[str, Any] = {"data": data, "progress": False, "on_step": on_step}
    if not case.get("options", {}).get("train_tower"):
        options["features"] = cache(built, folder)
    try:
        result = train(built, fields, folder / case["run"], **options)
    except Stop:
        return {"losses": [r.loss for r in reports], "stopped": True}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if rank == 0:
        state = {name: p.detach().clone() for name, p in built.named_parameters() if p.requires_grad or changed(name, case)}
        save_file(state, folder / f"{case['name']}.safetensors")
    rows = [json.loads(line) for line in (result.out / "log.jsonl").read_text().splitlines()]
    return {
        "losses": list(result.losses),
        "norms": [row["grad_norm"] for row in rows],
        "tokens": [(row["tokens"], row["label_tokens"]) for row in rows],
        "reported": [r.loss for r in reports],
        "resumed": result.resumed,
        "modes": any(m.training for m in built.modules()),
        "kind": type(built).__name__,
    }


def changed(name: str, case: dict[str, Any]) -> bool:
    """Whether a parameter may have trained."""
    return not name.startswith("language_model.") or "llm" in case.get("also", ())


def main(folder: Path, cases: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {case["name"]: run(folder, case) for case in json.loads((folder / cases).read_text())}
    (folder / f"{Path(cases).stem}.{os.environ.get('RANK', 0)}.result").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
