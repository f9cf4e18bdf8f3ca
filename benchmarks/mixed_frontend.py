"""Two towers mixed, and views, against the better single tower: fabric decisions, names on scenes, words; equal budget.

    python benchmarks/mixed_frontend.py --only fabric:lite0:0 fabric:mix:0 ocr:lite0-views:0       # task:arm:seed, kept
    python benchmarks/mixed_frontend.py                                   # the table of all finished arms

Every arm: the same pictures, questions, batches, steps and rates, warm start, a frozen LLM and 16 visual tokens a view.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from _commands import arms
from _results import RESULTS, write

from tsugiki import assets
from tsugiki.data import schema
from tsugiki.evals import stats, yardsticks
from tsugiki.evals import task as tasks
from tsugiki.evals.alterations import CONDITIONS, altered
from tsugiki.studies._build import build_model
from tsugiki.studies._training import encode
from tsugiki.training.trainer import train
from tsugiki.types import Sample

SIZE = 256  # 8 x 8 cells of both towers, which were trained at 224 and 260 px
LITE = [{"tower": f"efficientnet-lite{n}", "input_size": SIZE} for n in (0, 2)]
ARMS: dict[str, dict[str, Any]] = {
    "lite0": LITE[0],
    "lite2": LITE[1],
    "mix": {"towers": LITE, "marks": False},
    "lite0-views": {**LITE[0], "views": "global+2x2"},
    "lite2-views": {**LITE[1], "views": "global+2x2"},
    "mix-views": {"towers": LITE, "views": "global+2x2"},
}
"""Front-ends; a view's tokens are 16 of 2 x 2 cells, and with views a start and an end vector."""
SINGLE = ("lite0", "lite2")
STEPS = {"fabric": 48, "scenes": 80, "ocr": 80}
BATCH, RATE = 8, 3e-4
LABELS, ASKED = 200, 300  # fabric: labelled photographs, and those of the rest that are asked
ALTERED, STRENGTH = 80, 2  # fabric: those of the asked that are shown under each condition
PICTURES, NAMES = 640, 50  # scenes and ocr: pictures to learn from; pictograms
WORDS = 10  # options of a word on a picture
FINISHED = RESULTS / "mixed_frontend"


def data(task: str, seed: int, folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Samples to learn from, and the ones asked, which all arms of a seed share."""
    from tsugiki.synth import fabric, scenes

    assets.fetch("fabric")
    if task == "fabric":
        learn, rest = fabric.draw(seed, LABELS)
        return learn, random.Random(seed).sample(rest, ASKED)
    if task == "ocr":
        return words("train", PICTURES, folder), words("test", ASKED, folder)
    assets.fetch("openmoji")
    common: dict[str, Any] = {"pictograms": NAMES, "languages": ("en",), "objects": (1, 1), "options": None}
    common |= {"tasks": ["naming"], "forms": ["short"], "size": 448}
    for split, n in (("train", PICTURES), ("test", ASKED)):
        scenes.generate(n, out=folder / f"scenes-{split}", split=split, **common)
    learn, rest = (schema.load(folder / f"scenes-{split}" / "samples.jsonl") for split in ("train", "test"))
    return learn, rest


def words(split: Literal["train", "test"], n: int, folder: Path) -> list[Sample]:
    """Pictures of one word each, with `WORDS` words of the split to choose from."""
    from tsugiki.synth import ocr

    out, common = folder / f"ocr-{split}", {"pages": ["words"], "tasks": ["read"], "languages": ("en",), "size": 448}
    drawn = ocr.generate(4 * n, out=out, split=split, **common)  # type: ignore[arg-type]
    alone = [s for s in drawn if s.meta["kind"] == "read all"][:n]
    known, rng = sorted({tasks.short_answer(s) for s in alone}), random.Random(0)
    found = []
    for sample in alone:
        answer = tasks.short_answer(sample)
        others = rng.sample([w for w in known if w != answer], WORDS - 1)
        found.append(replace(sample, options=tuple(sorted([answer, *others])), task="decision"))
    return found


def run(task: str, name: str, seed: int, runs: Path) -> None:
    """One arm, unless it is finished."""
    file = FINISHED / f"{task}-{name}-{seed}.json"
    if file.is_file():
        return
    learn, ask = data(task, seed, runs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    model = build_model("smollm2-135m-instruct", "projector", ARMS[name], device=device, seed=seed)
    features = encode(model, [*learn, *ask], print)
    stage = {
        "name": task, "train": {"projector": RATE}, "data": {task: 1}, "batch_size": BATCH, "steps": STEPS[task],
        "warm_start": True, "scheduler": "linear", "warmup": 0.03, "weight_decay": 0.01,
    }  # fmt: skip
    plan = {"seed": seed, "stages": [stage]}
    done = train(model, plan, runs / file.stem, data={task: learn}, features=features, progress=False)
    options = {"features": features, "train": (), "seed": seed, "batch_size": 16}
    answers = tasks.measure(model, ["decisions"], ask, **options)["decisions"].answers
    right = {a.sample.id: a.correct for a in answers}
    settings = tasks.Settings(features=features, train=learn, seed=seed, batch_size=16)
    kind = {"fabric": "decision", "scenes": "naming"}.get(task)
    rivals = yardsticks.choices(kind, ask, settings, model) if kind else {}
    gold = [tasks.short_answer(s) for s in ask]
    conditions = under_conditions(model, ask[:ALTERED]) if task == "fabric" else {}
    result = {
        "task": task,
        "arm": name,
        "seed": seed,
        "steps": done.steps,
        "seconds": done.seconds,
        "tokens": model.tokens_per_image,
        "pictures": [s.id for s in ask],
        "graft": [int(right[s.id]) for s in ask],
        **{rival: [int(c == g) for c, g in zip(choice, gold, strict=True)] for rival, choice in rivals.items()},
        "altered": conditions,
        "losses": [round(v, 4) for v in done.losses],
        "device": device,
    }
    FINISHED.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    print(f"{file.stem}: {sum(result['graft']) / len(ask):.3f}, {done.seconds:.0f} s", flush=True)


def under_conditions(model: Any, samples: list[Sample]) -> dict[str, list[int]]:
    """Which are answered right under each condition."""
    found = {}
    for condition in CONDITIONS:
        shown = [altered(s, condition, STRENGTH) for s in samples]
        answers = tasks.measure(model, ["decisions"], shown, train=(), batch_size=16)["decisions"].answers
        right = {a.sample.id: int(a.correct) for a in answers}
        found[condition] = [right[s.id] for s in samples]
    return found


def row(found: dict[int, dict[str, Any]], rival: dict[int, dict[str, Any]], rival_name: str) -> dict[str, Any]:
    """One arm over its seeds, against the better single tower on the seeds that both have."""
    one = next(iter(found.values()))
    ids = [i for f in found.values() for i in f["pictures"]]
    own = stats.mean([v for f in found.values() for v in f["graft"]], groups=ids)
    both, gap = [seed for seed in found if seed in rival], ""
    if one["arm"] != rival_name and both:
        pair = stats.paired(
            *([v for seed in both for v in side[seed]["graft"]] for side in (found, rival)),
            groups=[i for seed in both for i in found[seed]["pictures"]],
        )
        gap = f"{pair.value:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
    altered_gap = paired_altered(found, rival) if gap and one["altered"] else ""
    probe = [v for f in found.values() for v in f.get("probe", [])]
    return {
        "task": one["task"],
        "arm": one["arm"],
        "seeds": len(found),
        "tokens": one["tokens"],
        "accuracy": f"{own.value:.3f} [{own.low:.3f}, {own.high:.3f}]",
        "minus the better tower": gap,
        "under conditions": altered_mean(found) if one["altered"] else "",
        "under conditions, minus": altered_gap,
        "probe": round(sum(probe) / len(probe), 3) if probe else "",
        "seconds": round(sum(f["seconds"] for f in found.values()) / len(found)),
    }


def of_altered(found: dict[int, dict[str, Any]]) -> tuple[list[int], list[str]]:
    """Right answers of all seeds under all conditions, and the picture of each."""
    rows = [(row, f["pictures"][: len(row)]) for f in found.values() for row in f["altered"].values()]
    return [v for row, _ in rows for v in row], [i for _, ids in rows for i in ids]


def altered_mean(found: dict[int, dict[str, Any]]) -> str:
    values, ids = of_altered(found)
    score = stats.mean(values, groups=ids)
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def paired_altered(found: dict[int, dict[str, Any]], rival: dict[int, dict[str, Any]]) -> str:
    both = [seed for seed in found if seed in rival]
    own, ids = of_altered({seed: found[seed] for seed in both})
    pair = stats.paired(own, of_altered({seed: rival[seed] for seed in both})[0], groups=ids)
    return f"{pair.value:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"


def table() -> None:
    """What all finished arms found."""
    runs: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for file in sorted(FINISHED.glob("*.json")):
        result = json.loads(file.read_text())
        runs.setdefault(result["task"], {}).setdefault(result["arm"], {})[result["seed"]] = result

    def score(found: dict[int, dict[str, Any]]) -> float:
        right = [v for f in found.values() for v in f["graft"]]
        return sum(right) / len(right)

    rows = []
    for found in runs.values():
        better = max((name for name in SINGLE if name in found), key=lambda name: score(found[name]), default="")
        rows += [row(found[name], found.get(better, {}), better) for name in ARMS if name in found]
    notes = [
        f"Fabric: three classes, {LABELS} labels, {ASKED} other photographs asked. Scenes: one pictogram of {NAMES} on"
        f" 448 px, {PICTURES} pictures to learn from, {ASKED} in unseen renderings asked; the likeliest of all names.",
        f"Steps of {BATCH}: {STEPS}; rate {RATE}, warm start, LLM frozen; towers at {SIZE} px, views: the whole square"
        " and 2 x 2 crops. The better tower is the single one with the higher accuracy on the same questions, which"
        " favours it.",
        f"Words: one on a 448 px picture, {PICTURES} to learn from, {ASKED} others asked: other words, faces and"
        f" backgrounds; the likeliest of {WORDS}. Under conditions: {ALTERED} of the asked photographs under each of"
        f" {len(CONDITIONS)} conditions at strength {STRENGTH}.",
        "Probe: logistic regression on the same features of the whole square (all towers of the arm side by side).",
        "Intervals: bootstrap over pictures, all seeds of a picture together; they do not cover the choice of seeds.",
    ]
    write("mixed_frontend", "Mixed towers and views against the better single tower", rows, notes)


if __name__ == "__main__":
    arms(__doc__, "task:arm:seed", run, table, "mixed_frontend")
