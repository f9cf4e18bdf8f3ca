"""Does the proof hold after training, on a real LLM? Every graft is trained for some steps, saved, loaded and verified.

python benchmarks/proof.py --steps 8
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from _results import write
from wings_learning import data

import tsugiki
from tsugiki import assets, grafts
from tsugiki.evals.proof import verify
from tsugiki.studies._build import build_model, fetch_tower
from tsugiki.studies._training import encode
from tsugiki.training import parts
from tsugiki.training.trainer import train

OPTIONS: dict[str, dict[str, Any]] = {"wings": {"rank": 16}, "cross_attention": {"every": 6}}


def proven(graft: str, steps: int, folder: Path) -> dict[str, Any]:
    """One row: what trained, and what the proof says of the loaded graft."""
    learn, _ = data("scenes", 0, assets.cache_dir() / "runs" / "wings_learning" / "scenes")
    learn = learn[:200]
    model = build_model("smollm2-135m-instruct", graft, input_size=224, device="cpu", **OPTIONS.get(graft, {}))
    features = encode(model, learn, print)
    own = f"graft.{graft}"
    rates = {"projector": 3e-4} | ({own: 3e-4} if parts.parts_of(model)[own] else {})
    stage = {"name": "scenes", "train": rates, "data": {"scenes": 1}, "batch_size": 4, "steps": steps}
    done = train(model, {"stages": [stage]}, folder / graft, data={"scenes": learn}, features=features, progress=False)
    proof = verify(tsugiki.load(done.graft))
    return {
        "graft": graft,
        "steps": done.steps,
        "loss": f"{done.losses[0]:.2f} -> {done.losses[-1]:.2f}",
        "holds": proof.holds,
        "guarantee": f"{proof.guarantee} ({proof.how}), prefix exact: {'yes' if proof.prefix_exact else 'no'}",
        "prompts": proof.prompts,
        "answers": proof.answers,
        "checks": ", ".join(c.name for c in proof.checks if c.holds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    assets.fetch("smollm2-135m-instruct")
    fetch_tower("efficientnet-lite0")
    with tempfile.TemporaryDirectory() as name:
        rows = [proven(graft, given.steps, Path(name)) for graft in grafts.available()]
    notes = ["Batch 4, one object a picture; the graft is saved, loaded onto its base, and proven as a user would."]
    write("proof", "The proof after training", rows, notes)


if __name__ == "__main__":
    main()
