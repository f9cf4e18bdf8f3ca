"""A comparison whose arms' files are written by hand: what its page, its numbers and the README are made of."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.studies._pictures import folder as pictures

from tsugiki.data import schema
from tsugiki.data.convert import imagefolder
from tsugiki.studies import _compare_arm as arms
from tsugiki.studies import _compare_plan as plans
from tsugiki.studies._compare_arm import Place

ARMS: Mapping[str, Mapping[str, Any]] = {
    "projector": {},
    "wings as published": {"method": "wings", "published": True},
    "full fine-tune 接ぎ木": {"method": "full_finetune", "train": {"projector": 1e-3, "llm": 1e-4}},
    "iaa": {"options": {"layers": "iaa-8"}},
}
"""The third costs text; the last is not finished under every seed."""
SEEDS = (0, 1, 2)
RIGHT = (0.5, 0.6, 0.7, 0.8)


def plan(folder: Path, **changes: Any) -> Path:
    """A plan beside its pictures; nothing of it is trained."""
    samples = imagefolder.convert(pictures(folder / "pictures", (12, 12)))
    schema.write(folder / "train.jsonl", samples[::2])
    schema.write(folder / "ask.jsonl", samples[1::2])
    content = {
        "description": "Methods <side by side> on drawn squares",
        "base": "smollm2-135m-instruct",
        "vision": "efficientnet-lite0",
        "data": {"train": "train.jsonl", "ask": {"squares": "ask.jsonl"}},
        "seeds": list(SEEDS),
        "arms": {name: dict(fields) for name, fields in ARMS.items()},
        "comparisons": [["iaa", "projector"], ["full fine-tune 接ぎ木", "projector", "squares: decisions"]],
        **changes,
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return folder / "plan.yaml"


def finished(folder: Path, out: Path, **changes: Any) -> Path:
    """The plan, and in `out` the files of its arms."""
    file = plan(folder, **changes)
    loaded = plans.load(file)
    for i, name in enumerate(loaded.arms):
        for seed in loaded.seeds:
            if (name, seed) != ("iaa", 2):
                write(loaded, Place(out=out, name=name, seed=seed), share=RIGHT[i % len(RIGHT)])
    return file


def write(loaded: plans.Plan, place: Place, *, share: float = 0.5, **fields: Any) -> None:
    """An arm's file."""
    place.file.parent.mkdir(parents=True, exist_ok=True)
    content = {**run(loaded, place, share), "key": arms.key(loaded, place.name, place.seed), **fields}
    place.file.write_text(json.dumps(content), encoding="utf-8")


def run(loaded: plans.Plan, place: Place, share: float) -> dict[str, Any]:
    """What an arm's file holds, without the key."""
    rng = random.Random(f"{place.name} {place.seed}")
    samples = [s for file in loaded.data.ask.values() for s in schema.load(file)]
    exact = "llm" not in loaded.arms[place.name].train
    kinds = ["defect" if i % 2 else "part" for i in range(len(samples))]
    right = [int(rng.random() < share) for _ in samples]
    root = next(iter(loaded.data.ask.values())).parent
    shown = [
        {"task": "squares: decisions", "id": s.id, "text": "a <stain>", "gold": "穴", "right": bool(r),
         "question": "What is wrong here?", "boxes": [[2, 2, 9, 9]], "gold_boxes": [[3, 3, 9, 9]],
         "picture": Path(str(s.images[0])).resolve().relative_to(root).as_posix()}
        for s, r in zip(samples[:3], right, strict=False)
    ]  # fmt: skip
    shown[-1]["picture"] = "gone.png"
    lost = 0.0 if exact else 0.3 + 0.01 * place.seed
    ends = {"difference": lost, "difference_low": lost - 0.0 if exact else lost - 0.1,
            "difference_high": lost if exact else lost + 0.1}  # fmt: skip
    turns = [("T", i, rng.random() < 0.9) for i in range(9)] + [("VT", i, rng.random() < share) for i in range(9)]
    said = {"ids": [i for _, i, _ in turns], "pictures": [i for _, i, _ in turns],
            "kinds": [kind for kind, _, _ in turns], "right": [int(r) for _, _, r in turns]}  # fmt: skip
    return {
        "version": arms.VERSION, "arm": place.name, "seed": place.seed, "base": loaded.base,
        "methods": ["projector"], "steps": 100, "seconds": 240.0 + place.seed, "losses": [2.0, 1.0],
        "trainable": 1_234_567, "reports": {}, "peak_mb": 812.0, "tokens_per_image": 16, "stored_mb": 4.9,
        "proof": {"holds": True, "guarantee": "exact" if exact else "bounded", "how": "untouched", "prompts": 16,
                  "sha256": "ab"},
        "items": {"squares: decisions": {"ids": [s.id for s in samples], "pictures": list(range(len(samples))),
                                         "kinds": kinds, "right": right}},
        "scores": [],
        "iit": {"items": said, "scores": []},
        "shown": shown,
        "text": [{"task": task, "metric": "loss", "n": 64, "value": 3.0, **ends} for task in ("wiki", "wiki@picture")],
        "speed": {key: {"seconds": 0.3, "ratio": 1.05, "low": 1.0, "high": 1.1} for key in ("first", "token")},
        "environment": {"tsugiki": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0", "python": "3.11.7",
                        "device": "cpu", "date": "2026-01-02T03:04:05+00:00"},
    }  # fmt: skip
