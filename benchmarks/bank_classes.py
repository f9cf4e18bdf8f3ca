"""Classes that no training has seen, named through a demo bank: by the graft, by a vote, or by the graft told in words.

    python benchmarks/bank_classes.py --steps 40 --asked 40

A graft learns old classes, once as always and once with demonstrations of them in front (plain tuning in context). Then
a bank gets the old classes, later the new ones too. Bank and queries use different renderings and backgrounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import write

from tsugiki import assets
from tsugiki.data.demos import Groups, answer_text
from tsugiki.evals import stats
from tsugiki.evals.options import OptionScorer
from tsugiki.studies import bank as banks
from tsugiki.studies._arms import as_pictures
from tsugiki.studies._build import build_model, fetch_tower
from tsugiki.studies._training import encode
from tsugiki.studies.neighbours import BankDemos, pooled
from tsugiki.synth import pictograms, scenes
from tsugiki.training.trainer import train
from tsugiki.types import Sample

VERSION = 2
"""Of what is measured."""
SHOWN = 4
"""Neighbours of a query."""
PICTURES = 45
"""Training pictures of each old class."""
ENTRIES = 10
"""Bank pictures of each class."""


def made(folder: Path, n: int, names: Sequence[str], split: str, seed: int) -> list[Sample]:
    """Scenes of one object with the question for its name."""
    common: dict[str, Any] = {"languages": ("en",), "objects": (1, 1), "options": None, "tasks": ["naming"]}
    return scenes.generate(n, out=folder, split=split, seed=seed, pictograms=list(names), forms=["short"], **common)


def grouped(samples: Sequence[Sample], features: Any, seed: int) -> list[Sample]:
    """Each sample with 0 to SHOWN of its nearest others in front, as the bank will show them."""
    vectors = np.stack([pooled(features(s.images[0])) for s in samples])
    groups = Groups(samples=samples, most=SHOWN, sampler="nearest", vectors=vectors, seed=seed)
    found = []
    for i in range(len(groups)):
        group = groups(i)
        found.append(as_pictures(group.query, group.demos))
    return found


def trained(samples: list[Sample], features: Any, steps: int, seed: int, out: Path) -> Any:
    """A projector graft after so many steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(
        "smollm2-135m-instruct", "projector", "efficientnet-lite0", input_size=224, device=device, seed=seed
    )
    stage = {
        "name": "old", "train": {"projector": 3e-4}, "data": {"old": 1}, "batch_size": 8, "steps": steps,
        "warmup": 0.03, "scheduler": "linear", "weight_decay": 0.01, "warm_start": {},
    }  # fmt: skip
    recipe = {"seed": seed, "stages": [stage]}
    train(model, recipe, out, data={"old": samples}, features=features, progress=False)
    return model


def right(model: Any, samples: Sequence[Sample], features: Any, demos: Any = None) -> list[int]:
    """1 where the likeliest option is the answer."""
    scorer = OptionScorer(model, features=features, demos=demos, batch_size=16, tolerance=7.0)
    return [int(o.best() == answer_text(s)) for s, o in zip(samples, scorer(samples), strict=True)]


def left_out(demos: BankDemos) -> Callable[[Sequence[Sample]], list[Sample]]:
    """Demonstrations as by a bank that has no entry of the true class."""

    def place(samples: Sequence[Sample]) -> list[Sample]:
        others = [replace(s, options=tuple(o for o in s.options if o != answer_text(s))) for s in samples]
        return [demos.placed(s, demos.neighbours(o)) for s, o in zip(samples, others, strict=True)]

    return place


def measured(model: Any, folder: Path, data: dict[str, list[Sample]], names: dict[str, list[str]]) -> dict[str, Any]:
    """Every arm's hits, query by query."""
    features = data["features"]
    everything = names["old"] + names["new"]
    queries = {kind: [replace(s, options=tuple(everything)) for s in data[f"{kind} asked"]] for kind in ("old", "new")}
    only_old = [replace(s, options=tuple(names["old"])) for s in queries["old"]]
    shutil.rmtree(folder, ignore_errors=True)
    banks.build(model, data["old bank"], folder, answers=names["old"], keep="reference")
    settings: dict[str, Any] = {"k": SHOWN, "apart": True, "features": features}
    before = BankDemos(model, folder, **settings)
    found: dict[str, Any] = {"old, before": right(model, only_old, features, before)}
    found["old alone, no bank"] = right(model, only_old, features)
    banks.add(model, folder, data["new bank"], new_classes=True, keep="reference")
    pictures, words = BankDemos(model, folder, **settings), BankDemos(model, folder, form="words", **settings)
    for kind, asked in queries.items():
        gold = [answer_text(s) for s in asked]
        found[f"{kind}, bank"] = right(model, asked, features, pictures)
        found[f"{kind}, left out"] = right(model, asked, features, left_out(pictures))
        found[f"{kind}, words"] = right(model, asked, features, words)
        found[f"{kind}, vote"] = [int(c == g) for c, g in zip(pictures.vote(asked), gold, strict=True)]
        near = [{n.entry.label for n in pictures.neighbours(s)} for s in asked]
        found[f"{kind}, present"] = [int(g in labels) for g, labels in zip(gold, near, strict=True)]
        found[f"{kind}, no bank"] = right(model, asked, features)
    return found


def run(given: argparse.Namespace, runs: Path) -> dict[str, Any]:
    """Both grafts, each measured or read from what a finished one wrote."""
    table = [p.en for p in pictograms.table()][: 2 * given.classes]
    names = {"old": table[0::2], "new": table[1::2]}
    data: dict[str, Any] = {}
    for kind, mine in names.items():
        data[f"{kind} bank"] = made(runs / f"{kind}-bank", ENTRIES * len(mine), mine, "train", given.seed + 1)
        data[f"{kind} asked"] = made(runs / f"{kind}-asked", given.asked, mine, "test", given.seed)
    learn = made(runs / "learn", PICTURES * given.classes, names["old"], "train", given.seed)
    plain = build_model("smollm2-135m-instruct", "projector", "efficientnet-lite0", input_size=224, seed=given.seed)
    features = encode(plain, [*learn, *(s for part in data.values() for s in part)], print)
    data["features"] = features
    found: dict[str, Any] = {}
    for arm, samples in (("plain", learn), ("in context", grouped(learn, features, given.seed))):
        name = f"{arm.replace(' ', '-')}-{given.steps}"
        file = runs / f"found-{VERSION}-{name}.json"
        if not file.is_file():
            model = trained(samples, features, given.steps, given.seed, runs / f"run-{name}")
            file.write_text(json.dumps(measured(model, runs / f"bank-{name}", data, names)))
        found[arm] = json.loads(file.read_text())
    return found


def shown(hits: Sequence[int]) -> str:
    """Share and Wilson's interval."""
    value = stats.proportion(sum(hits), len(hits))
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def row(arm: str, kind: str, found: dict[str, list[int]]) -> dict[str, Any]:
    """What the bank does for one kind of classes, in paired differences."""
    bank, present = found[f"{kind}, bank"], found[f"{kind}, present"]
    absent = [b for b, p in zip(bank, present, strict=True) if not p]

    def share(name: str) -> str:
        return shown(found[f"{kind}, {name}"])

    def minus(name: str) -> str:
        value = stats.paired(bank, found[f"{kind}, {name}"])
        return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"

    return {
        "graft tuned": arm,
        "classes": kind,
        "bank + graft": share("bank"),
        "k-NN vote": share("vote"),
        "words + graft": share("words"),
        "no bank": share("no bank"),
        "minus vote": minus("vote"),
        "minus words": minus("words"),
        "true class absent": f"{shown(absent)} of {len(absent)}" if absent else "never",
        "true class left out": share("left out"),
        "minus no bank": minus("no bank"),
        "change by the new classes": minus("before") if kind == "old" else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--asked", type=int, default=40, help="Queries of old classes, and of new ones.")
    parser.add_argument("--classes", type=int, default=10, help="Old classes, and as many new ones.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in ("smollm2-135m-instruct", "openmoji", "fabric"):
        assets.fetch(name)
    fetch_tower("efficientnet-lite0")
    runs = Path(os.environ.get("OUT") or assets.cache_dir() / "runs" / "bank-classes")
    runs /= f"{given.classes}-{given.asked}-{given.seed}"
    runs.mkdir(parents=True, exist_ok=True)
    found = run(given, runs)
    rows = [row(arm, kind, found[arm]) for arm in found for kind in ("new", "old")]
    notes = [
        f"{given.classes} old classes, {PICTURES} training pictures each, {given.steps} steps of 8; {given.classes} new"
        f" ones that no training saw; {ENTRIES} bank pictures of each; {given.asked} queries of either kind.",
        f"The {SHOWN} nearest entries; the options are all {2 * given.classes} names; chance is"
        f" {1 / (2 * given.classes):.3f}. Entries that show nearly the same as a query are left out.",
        'The "change by the new classes" begins with the old names alone as options: what an operator has before new'
        " classes come.",
        '"True class absent": among the entries shown, of the queries where it happened, the hard ones. "Left out": all'
        " queries, asked with a bank that has no entry of the true class.",
        "Differences are paired over queries, with 95 % intervals.",
    ]
    write("bank_classes", "Classes that were never trained, by a demo bank", rows, notes, found=found)


if __name__ == "__main__":
    main()
