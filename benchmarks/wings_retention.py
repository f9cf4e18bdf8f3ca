"""What the published form of WINGS costs the text, beside ordinary fine-tuning of the LLM and the frozen form.

    python benchmarks/wings_retention.py --steps 40 --items 50

All arms train on the same pictures (naming of pictograms, no text replay) for the same steps; then the retention suites
ask on text requests and after an unrelated picture, against the base on the same items.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from _results import RESULTS, write
from wings_learning import asked, data

from tsugiki import assets
from tsugiki.evals.proof import verify
from tsugiki.evals.retention import retention
from tsugiki.evals.stats import mean
from tsugiki.studies._build import build_model, fetch_tower
from tsugiki.studies._training import encode
from tsugiki.training.trainer import train

RATES = {"projector": 3e-4, "graft.wings": 3e-4, "llm": 2e-5}
ARMS: dict[str, dict[str, Any]] = {
    "wings, LLM frozen": {"method": "wings", "rank": 16},
    "wings, LLM trained (published)": {"method": "wings", "rank": 16, "llm": "trainable"},
    "projector, LLM trained": {"method": "projector"},
}
FINISHED = RESULTS / "wings_retention"


def run(name: str, steps: int, items: int, runs: Path) -> dict[str, Any]:
    """One arm, or what a finished one wrote."""
    file = FINISHED / f"{name.replace(' ', '-').replace(',', '')}-{steps}.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    learn, ask = data("scenes", 0, runs.with_name("wings_learning") / "scenes")
    model = build_model("smollm2-135m-instruct", input_size=224, device="cpu", **ARMS[name])
    features = encode(model, [*learn, *ask], print)
    parts = {"projector", *([f"graft.{ARMS[name]['method']}"] if ARMS[name]["method"] == "wings" else [])}
    parts |= {"llm"} if "trained" in name else set()
    stage: dict[str, Any] = {
        "name": "scenes", "train": {k: v for k, v in RATES.items() if k in parts}, "data": {"scenes": 1},
        "steps": steps, "batch_size": 8, "warm_start": True, "warmup": 0.1, "scheduler": "constant",
    }  # fmt: skip
    train(model, {"stages": [stage]}, runs / file.stem, data={"scenes": learn}, features=features, progress=False)
    seen = asked(model, ask[:60], features, free=False)["closed"]
    result: dict[str, Any] = {"arm": name, "guarantee": model.guarantee, "naming": seen, "scores": []}
    if model.guarantee == "exact":
        proof = verify(model)
        result["proof"] = {"holds": proof.holds, "prompts": proof.prompts, "answers": proof.answers}
    for score in retention(model, n=items, measure_exact=False, progress=print):
        keys = (
            "task",
            "metric",
            "value",
            "base",
            "difference",
            "difference_low",
            "difference_high",
            "n",
            "informative",
        )
        result["scores"].append({k: getattr(score, k) for k in keys})
    FINISHED.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    given = parser.parse_args()
    for name in ("smollm2-135m-instruct", "wiki"):
        assets.fetch(name)
    fetch_tower("efficientnet-lite0")
    found = [
        run(name, given.steps, given.items, assets.cache_dir() / "runs" / "wings_retention") for name in given.arms
    ]
    rows = []
    for arm in found:
        naming = mean(arm["naming"])
        for s in arm["scores"]:
            gap = f"{s['difference']:+.3f} [{s['difference_low']:+.3f}, {s['difference_high']:+.3f}]"
            rows.append(
                {
                    "arm": arm["arm"],
                    "guarantee": arm["guarantee"],
                    "naming, closed": f"{naming.value:.2f} [{naming.low:.2f}, {naming.high:.2f}]",
                    "suite": f"{s['task']} {s['metric']}",
                    "value": round(s["value"], 3),
                    "base": round(s["base"], 3),
                    "difference": gap if s["informative"] else f"({gap})",
                }
            )
    notes = [
        f"{given.steps} steps of 8 on pictures of one object, rates {RATES}, no replay; {given.items} items a suite at"
        " most, 95 % intervals over items, one seed. @picture: asked after an unrelated picture.",
        "In brackets: the base is not clearly above chance on it, or n is too small to judge.",
        "Exact on text requests: the base's own figures, which the proof of the same run shows to be equal.",
        *(f"{arm['arm']}: verify {arm['proof']}." for arm in found if "proof" in arm),
    ]
    write("wings_retention", "What is lost of the text", rows, notes)


if __name__ == "__main__":
    main()
