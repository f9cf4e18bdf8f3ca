"""What an LLM forgets while it learns to see: fine-tuned on pictures, with text replay, and mixed with its base.

    python benchmarks/forgetting.py --only alone:0 replay:0    # arm:seed, each kept when it is finished
    python benchmarks/forgetting.py                            # the table of all finished arms

Both arms train the projector and all of the LLM at the same rates; `replay` adds packed articles, one batch to two of
pictures, in as many more steps. Then the LLM's weights are beta theta + (1 - beta) theta_base, and the projector stays
as it is: beta is found on pictures and texts of its own, and judged on others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _commands import arms
from _results import RESULTS, write
from safetensors.torch import save_file
from scipy.stats import bootstrap
from wings_learning import asked, data

from tsugiki import assets
from tsugiki.evals import stats
from tsugiki.evals._sides import bare_rows
from tsugiki.evals.text_items import articles, passages
from tsugiki.studies._build import build_model
from tsugiki.studies._training import encode
from tsugiki.training import parts, retained
from tsugiki.training.trainer import train
from tsugiki.types import Message, Sample

STEPS, BATCH, PACK = 40, 8, 64  # PACK tokens: about a picture's row
RATES = {"projector": 3e-4, "llm": 1e-4}
ARMS = {"alone": 0, "replay": 1}  # weight of the text, to 2 of the pictures
SEARCH, ASKED = 60, 150  # pictures
TEXTS = 24, 64
BETAS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
RECOVERED = 0.8
"""beta is the largest that takes back this share of the rise on the texts of the search."""
FINISHED = RESULTS / "forgetting"


def documents(n: int) -> list[Sample]:
    """Articles of the split for training, bare."""
    return [Sample(id=a.title, messages=(Message.of("assistant", a.text),)) for a in articles("train")[:n]]


def judged(model: Any, samples: list[Sample], rows: list[list[int]], features: Any) -> dict[str, list[float]]:
    """Right answers to the pictures, and the loss of each text, nats."""
    return {
        "right": [float(x) for x in asked(model, samples, features, free=False)["closed"]],
        "nats": retained.nats(model, rows, model),
    }


def found(search: dict[float, dict[str, list[float]]]) -> float:
    """The largest beta that takes back enough of the rise on the texts of the search; 1 where nothing rose."""
    losses = {beta: sum(result["nats"]) for beta, result in search.items()}
    rise = losses[1.0] - losses[0.0]
    if rise <= 0:
        return 1.0
    return max(beta for beta, loss in losses.items() if loss - losses[0.0] <= (1 - RECOVERED) * rise)


def run(name: str, seed: int, runs: Path) -> None:
    """One arm, unless it is finished."""
    file = FINISHED / f"{name}-{seed}.json"
    if file.is_file():
        return
    assets.fetch("wiki"), assets.fetch("fabric")
    learn, rest = data("fabric", seed, runs)
    look, ask = rest[:SEARCH], rest[SEARCH : SEARCH + ASKED]
    torch.manual_seed(seed)
    model = build_model("smollm2-135m-instruct", "projector", input_size=224, device="cpu")
    features = encode(model, [*learn, *look, *ask], print)
    held = bare_rows(model, passages(sum(TEXTS), seed=seed))
    rows = held[: TEXTS[0]], held[TEXTS[0] :]
    text = ARMS[name]
    sources: dict[str, Any] = {"pictures": 2}
    if text:
        sources["text"] = {"weight": text, "replay": "packed", "pack_length": PACK}
    steps = STEPS * (2 + text) // 2
    stage = {
        "name": "fabric", "train": RATES, "data": sources, "batch_size": BATCH, "steps": steps, "warm_start": True,
        "scheduler": "constant_decay", "decay": 0.3, "warmup": 5 / steps,
    }  # fmt: skip
    given = {"pictures": learn} | ({"text": documents(2000)} if text else {})
    done = train(
        model, {"seed": seed, "stages": [stage]}, runs / file.stem, data=given, features=features, progress=False
    )
    theta = runs / file.stem / "theta.safetensors"
    save_file({n: p.detach() for n, p in parts.parts_of(model)["llm"].items()}, theta)
    search = {}
    for beta in BETAS:
        retained.blend(model, theta, beta)
        search[beta] = judged(model, look, rows[0], features)
        print(f"{file.stem}: beta {beta:g}, right {np.mean(search[beta]['right']):.3f}", flush=True)
    best = found(search)
    scores = {}
    for beta in sorted({0.0, best, 1.0}):
        retained.blend(model, theta, beta)
        scores[str(beta)] = judged(model, ask, rows[1], features)
    theta.unlink()
    result = {
        "arm": name, "seed": seed, "steps": steps, "seconds": done.seconds, "reports": dict(done.reports),
        "losses": [round(v, 4) for v in done.losses], "beta": best, "ids": [s.id for s in ask],
        "tokens": [len(r) - 1 for r in rows[1]], "scores": scores,
        "search": {str(b): {k: float(np.mean(v)) for k, v in r.items()} for b, r in search.items()},
    }  # fmt: skip
    FINISHED.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, default=str))
    print(f"{file.stem}: beta {best:g}, {done.seconds:.0f} s of training", flush=True)


def share(base: list[float], mixed: list[float], tuned: list[float]) -> str:
    """(mixed - base) / (tuned - base) of sums over the same items, with its 95 % bootstrap interval."""

    def ratio(b: Any, m: Any, t: Any, axis: int = -1) -> Any:
        return (m - b).sum(axis) / (t - b).sum(axis)

    items = tuple(np.asarray(v) for v in (base, mixed, tuned))
    value = float(ratio(*items))
    interval = bootstrap(
        items, ratio, paired=True, method="percentile", n_resamples=2000, rng=np.random.default_rng(0)
    ).confidence_interval
    return f"{value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def lines(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An arm's three rows over its seeds: the base with the trained projector, as trained, and mixed."""
    forms = {
        "the base's LLM": lambda r: "0.0",
        "as trained": lambda r: "1.0",
        "mixed": lambda r: str(r["beta"]),
    }
    of = {
        form: {k: [v for r in results for v in r["scores"][beta(r)][k]] for k in ("right", "nats")}
        for form, beta in forms.items()
    }
    tokens = [n for r in results for n in r["tokens"]]
    groups = [i for r in results for i in r["ids"]]
    base, tuned = of["the base's LLM"], of["as trained"]
    rows = []
    for form, own in of.items():
        vision = stats.mean(own["right"], groups=groups)
        gain = stats.paired(own["right"], base["right"], groups=groups)
        each = [[v / n for v, n in zip(x["nats"], tokens, strict=True)] for x in (own, base)]
        rise = stats.paired(each[0], each[1], weights=tokens)
        mixed = form == "mixed" and any(r["beta"] < 1 for r in results)  # beta = 1 is what was trained
        rows.append(
            {
                "arm": results[0]["arm"],
                "LLM": form,
                "beta": ", ".join(f"{float(forms[form](r)):g}" for r in results),
                "seeds": len(results),
                "right": f"{vision.value:.3f} [{vision.low:.3f}, {vision.high:.3f}]",
                "gain": f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
                "text loss, rise": f"{rise.value:+.4f} [{rise.low:+.4f}, {rise.high:+.4f}]",
                "gain kept": share(base["right"], own["right"], tuned["right"]) if mixed else "",
                "rise left": share(base["nats"], own["nats"], tuned["nats"]) if mixed else "",
            }
        )
    return rows


def table() -> None:
    """What all finished arms found."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(FINISHED.glob("*.json")):
        result = json.loads(file.read_text())
        runs.setdefault(result["arm"], []).append(result)
    rows = [row for name in ARMS if name in runs for row in lines(runs[name])]
    shares = [r["reports"]["fabric"]["text"]["share"] for r in runs.get("replay", [])]
    notes = [
        f"Fabric: 200 photographs to learn from, {SEARCH} to look for beta, {ASKED} others asked. {STEPS} steps of"
        f" {BATCH} pictures, rates {RATES}; {TEXTS[1]} articles of Wikipedia, none of them trained on, {TEXTS[0]}"
        " others for beta.",
        f"beta: of {BETAS}, the largest that takes back {RECOVERED:.0%} of the rise of the text loss on the search's"
        " texts. `the base's LLM` is beta = 0: the projector that was trained with the LLM, before the LLM as it was.",
        *([f"Share of text in replay's loss-bearing tokens: {np.mean(shares):.0%}."] if shares else []),
        "gain kept, rise left: (mixed - base) / (as trained - base). Intervals: bootstrap over pictures or texts.",
    ]
    write("forgetting", "Forgetting: fine-tuned, with replay, and mixed with the base", rows, notes)


if __name__ == "__main__":
    arms(__doc__, "arm:seed", run, table, "forgetting")
