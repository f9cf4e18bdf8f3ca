"""Step-by-step grounding data (SCouT): with and without its steps, by difficulty or shuffled, more of it or less.

    python benchmarks/scout.py --only steps:0 shuffled:0 answers:0    # arm:seed, each kept when it is finished
    python benchmarks/scout.py                                        # the table of all finished arms

All arms: the same questions about the same pictures, rate and start; the LLM stays frozen, boxes come with places and
short text (results/boxes.md). Asked is what the answer comes to: the last box against the last gold box.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _commands import arms
from _results import RESULTS, write
from boxes import SHORT

import tsugiki
from tsugiki import assets
from tsugiki.data import steps as answers
from tsugiki.data.boxes import PaddedSquare
from tsugiki.data.images import image_size
from tsugiki.evals import experts, stats
from tsugiki.evals.free import FreeAnswerer
from tsugiki.evals.tasks import grounding
from tsugiki.studies._build import build_model
from tsugiki.studies._training import encode
from tsugiki.training.trainer import train
from tsugiki.types import Message, Sample

STEPS, BATCH, RATE = 100, 8, 3e-4
LEARN, ASKED, PLACES = 1000, 120, 4
ARMS: dict[str, dict[str, Any]] = {
    "steps": {},
    "shuffled": {"order": "shuffled"},
    "per token": {"loss": "per_token"},
    "answers": {"cut": True, "loss": "per_token"},
    "quarter": {"pictures": LEARN // 4},
    "lynx": {"method": "lynx"},
    "lynx, no terms": {"method": "lynx", "balance": 0.0, "gate_sparsity": 0.0},
    "lynx on wings": {"method": "lynx", "under": "wings"},
}
"""What differs from `steps`: staged levels, a loss per step, all pictures, the projector alone."""
EXPERTS = {"experts": 4, "top_k": 2, "expert": "low_rank", "rank": 32, "every": 6, "gate": "task"}
FINISHED = RESULTS / "scout"


def data(folder: Path) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """To learn from, to be asked, and captions of the asked pictures, for another task's use of the experts."""
    from tsugiki.data import schema
    from tsugiki.synth import scout

    assets.fetch("openmoji"), assets.fetch("fabric")
    found = []
    for split, n in (("train", LEARN), ("test", ASKED)):
        found.append(
            scout.generate(
                n, out=folder / f"data-{split}", split=split, languages=("en",), objects=(2, PLACES), pictograms=60,
                absent=0.0,
            )
        )  # fmt: skip
    plain = schema.load(folder / "data-test" / "samples.jsonl")
    return found[0], found[1], [s for s in plain if grounding.gold(s)]


def last_step(sample: Sample) -> Sample:
    """The sample with what its answer comes to alone."""
    count = answers.marked(sample)[-1]
    gold = sample.messages[-1]
    meta = {k: v for k, v in sample.meta.items() if k != "steps"}
    return replace(sample, messages=(*sample.messages[:-1], Message(gold.role, gold.parts[-count:])), meta=meta)


def tokens(model: Any, samples: Sequence[Sample], features: Any) -> float:
    """Mean length of samples, picture and all."""
    each = [model.encode_samples([s], labels=True, features=features).inputs()["input_ids"].shape[1] for s in samples]
    return sum(each) / len(each)


def build(chosen: dict[str, Any], seed: int) -> tuple[Any, dict[str, float]]:
    """A model, and the rates of its parts."""
    method, under = chosen.get("method", "projector"), chosen.get("under")
    torch.manual_seed(seed)
    seeing = {"input_size": 224, "device": "cpu", "places": PLACES, "box_text": SHORT}
    settings = EXPERTS | {k: chosen[k] for k in ("balance", "gate_sparsity") if k in chosen}
    if method == "projector":
        return build_model("smollm2-135m-instruct", method, **seeing), {"projector": RATE}
    if under is None:
        return build_model("smollm2-135m-instruct", method, **seeing, **settings), {
            "projector": RATE,
            f"graft.{method}": RATE,
        }
    model = build_model("smollm2-135m-instruct", under, rank=16, **seeing)
    return model, {"projector": RATE, f"graft.{under}": RATE}


def run(name: str, seed: int, runs: Path) -> None:
    """One arm, unless it is finished."""
    file = FINISHED / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    if file.is_file():
        return
    chosen = ARMS[name]
    learn, ask, others = data(runs)
    model, rates = build(chosen, seed)
    features = encode(model, [*learn, *ask, *others], print)
    used = learn[: chosen.get("pictures", LEARN)]
    length = STEPS
    if chosen.get("cut"):
        cut = [last_step(s) for s in used]
        length = round(STEPS * tokens(model, used[:100], features) / tokens(model, cut[:100], features))
        used = cut
    stage = {
        "name": "scout", "train": rates, "data": {"scout": {"weight": 1, "order": chosen.get("order", "staged")}},
        "batch_size": BATCH, "steps": length, "loss": chosen.get("loss", "per_step"), "warm_start": True,
        "scheduler": "constant", "warmup": 5 / length,
    }  # fmt: skip
    result: dict[str, Any] = {"arm": name, "seed": seed, "steps": length, "pictures": len(used)}
    common: dict[str, Any] = {"data": {"scout": used}, "features": features, "progress": False}
    done = train(model, {"seed": seed, "stages": [stage]}, runs / file.stem, **common)
    proofs = {"base": tsugiki.verify(model, answers=5)}
    if chosen.get("under"):  # the parent has learned to see; now the experts, and nothing of the parent
        parent = runs / f"{file.stem}-parent"
        model.save(parent)
        model = tsugiki.attach(model, "lynx", **EXPERTS)
        second = stage | {"train": {"graft.lynx": RATE}, "warm_start": False, "steps": STEPS // 3,
                          "data": {"scout": 1}, "warmup": 0.1}  # fmt: skip
        train(model, {"seed": seed, "stages": [second]}, runs / f"{file.stem}-lynx", **common)
        proofs = {"base": tsugiki.verify(model, answers=5), "parent": tsugiki.verify(model, against=parent, answers=5)}
    if "method" in chosen:
        result["use"] = experts.use(model, [*ask[:40], *others[:40]])
    texts = FreeAnswerer(model, features=features, batch_size=16, max_new_tokens=120)(ask)
    squares = [PaddedSquare(*image_size(s.images[0])) for s in ask]
    found = [tuple(model.processor.codec.parse(t, q)) for t, q in zip(texts, squares, strict=True)]
    gold = [tuple(grounding.gold(s)) for s in ask]
    measures = {"last": grounding.answer_hit, "first": lambda f, g: grounding.hit(f[:1], g[:1])}
    result |= {k: [float(m(f, g)) for f, g in zip(found, gold, strict=True)] for k, m in measures.items()}
    result |= {
        "seconds": done.seconds, "losses": [round(v, 4) for v in done.losses], "ids": [s.id for s in ask],
        "levels": [s.meta["level"] for s in ask], "texts": texts,
        "verify": {k: {"holds": p.holds, "guarantee": p.guarantee} for k, p in proofs.items()},
    }  # fmt: skip
    FINISHED.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, ensure_ascii=False))
    print(
        f"{file.stem}: last box {sum(result['last']) / len(ask):.3f}, {done.seconds:.0f} s, {result['verify']}",
        flush=True,
    )


def row(found: dict[str, Any], base: dict[str, Any] | None) -> dict[str, Any]:
    """One line of the table."""
    score, gap = stats.mean(found["last"], groups=found["ids"]), ""
    if base is not None and found is not base:
        pair = stats.paired(found["last"], base["last"], groups=found["ids"])
        gap = f"{pair.value:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
    levels = {
        level: sum(v for v, n in zip(found["last"], found["levels"], strict=True) if n == level)
        / found["levels"].count(level)
        for level in sorted(set(found["levels"]))
    }
    return {
        "arm": found["arm"],
        "pictures": found["pictures"],
        "steps": found["steps"],
        "minutes": round(found["seconds"] / 60, 1),
        "last box, Acc@0.5": f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]",
        "minus steps": gap,
        "by level": ", ".join(f"{k}: {v:.2f}" for k, v in levels.items()),
        "verify": ", ".join(f"{k} {'holds' if v['holds'] else 'FAILS'}" for k, v in found["verify"].items()),
    }


def table() -> None:
    """What all finished arms found; one seed each."""
    runs = {}
    for file in sorted(FINISHED.glob("*.json")):
        result = json.loads(file.read_text())
        runs.setdefault(result["arm"], result)
    rows = [row(runs[a], runs.get("steps")) for a in ARMS if a in runs]
    notes = [
        f"Scenes of 2 to {PLACES} pictograms, English, levels 1 to 3 (one thing; two and their relation; three or a"
        f" chain); {ASKED} questions about unseen renderings on unseen backgrounds; one seed.",
        f"Batches of {BATCH}, rate {RATE}, frozen LLM, warm start, {PLACES} places. `steps`: the projector alone,"
        " levels in order, a loss per step. `answers`: the last line of each answer alone, as many tokens in all,"
        " of picture, question and answer, as `steps`. `quarter`: a quarter of the pictures, as many steps.",
        f"lynx: {EXPERTS}; `no terms` without the balance and sparsity terms. On wings: first WINGS (rank 16), then"
        f" {STEPS // 3} steps of the experts alone; verify against the base and against the WINGS it was put on.",
        *(
            f"Use of the experts, {name}: "
            + "; ".join(
                f"{task}: {', '.join(f'{share:.2f}' for share in used.get('experts', ())) or 'frozen path'}"
                for task, used in runs[name]["use"].items()
            )
            for name in ARMS
            if name in runs and "use" in runs[name]
        ),
        "Intervals: bootstrap over questions; they do not cover the choice of seeds.",
    ]
    write("scout", "Step-by-step grounding data", rows, notes)


if __name__ == "__main__":
    arms(__doc__, "arm:seed", run, table, "scout")
