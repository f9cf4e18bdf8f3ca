"""SPHINX's mix of weights from two domains: fabric photographs, synthetic defects, and the models between the two.

    python benchmarks/domains.py --only train sweep altered few      # each kept when it is finished
    python benchmarks/domains.py                                     # the table of what is finished

theta_real learns from photographs; theta_syn goes on from it with drawn defects (both train projector and LLM);
theta = beta theta_real + (1 - beta) theta_syn. All answer one question: is there a defect? Half of the answers are yes.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _results import RESULTS, write

import tsugiki
from tsugiki import assets
from tsugiki.data import schema
from tsugiki.evals import stats
from tsugiki.evals import task as tasks
from tsugiki.evals.alterations import CONDITIONS, STRENGTHS, altered
from tsugiki.evals.retention import retention
from tsugiki.mixing import linear
from tsugiki.studies._build import build_model, fetch_tower
from tsugiki.studies._training import encode
from tsugiki.synth import defects, fabric
from tsugiki.training.trainer import train
from tsugiki.types import ImagePart, Message, Sample, TextPart

QUESTION = "Is there a defect on this fabric? Answer yes or no."
LEARN, ASKED, SWEPT, FEW = 200, 200, 100, 40
ALTERED, MIDDLE = 50, 2  # pictures of each kind under a condition, and the strength at which all three models see them
STEPS, BATCH, RATES = 60, 8, {"projector": 3e-4, "llm": 2e-5}
TEXTS = 32
BETAS = [i / 10 for i in range(11)]
FINISHED = RESULTS / "domains"


def asked(identifier: str, picture: Any, broken: bool) -> Sample:
    """The common question about a picture."""
    answer = "yes" if broken else "no"
    return Sample(
        id=identifier,
        messages=(
            Message("user", (ImagePart(picture), TextPart(QUESTION))),
            Message.of("assistant", answer),
        ),
        task="decision",
        options=("yes", "no"),
        meta={"label": answer, "language": "en"},
    )


def balanced(samples: Sequence[Sample], n: int) -> list[Sample]:
    """n / 2 of each answer, in random order; the tail is what the rarer answer has left."""
    left = {"yes": n // 2, "no": n // 2}
    chosen = []
    for sample in random.Random(0).sample(samples, len(samples)):
        label = sample.meta["label"]
        if left[label]:
            left[label] -= 1
            chosen.append(sample)
    return chosen


def data(folder: Path) -> dict[str, list[Sample]]:
    """Photographs and drawings to learn from, and others to ask about."""
    learn, rest = (
        [asked(s.id, s.images[0], s.meta["label"] != "nominal") for s in part] for part in fabric.draw(0, 2 * LEARN)
    )
    found = {"real": balanced(learn, LEARN), "real test": balanced(rest, ASKED)}
    for split, n in (("train", 2 * LEARN), ("test", ASKED)):
        out = folder / f"defects-{split}"
        options: dict[str, Any] = {"languages": ("en",), "severities": ["medium", "high"], "sizes": ["medium", "large"]}
        defects.generate(2 * n, out=out, split=split, negatives=0.5, tasks=["presence"], **options)  # type: ignore[arg-type]
        drawn = [asked(s.id, s.images[0], bool(s.meta["defects"])) for s in schema.load(out / "samples.jsonl")]
        found["synthetic" if split == "train" else "synthetic test"] = balanced(drawn, n)
    return found


def learned(model: Any, samples: list[Sample], runs: Path, name: str, features: Any, fresh: bool) -> Path:
    """The model after another training, saved."""
    stage = {
        "name": name, "train": RATES, "data": {name: 1}, "batch_size": BATCH, "steps": STEPS, "warm_start": fresh,
        "scheduler": "constant", "warmup": 5 / STEPS,
    }  # fmt: skip
    train(model, {"stages": [stage]}, runs / f"run-{name}", data={name: samples}, features=features, progress=False)
    folder: Path = model.save(runs / f"theta-{name}") or runs / f"theta-{name}"
    return folder


def scores(model: Any, asked_about: dict[str, list[Sample]], features: Any, texts: int) -> dict[str, Any]:
    """Which pictures are answered right, and what the text lost: nats a token on passages, against the base."""
    found: dict[str, Any] = {}
    for name, samples in asked_about.items():
        answers = tasks.measure(model, ["decisions"], samples, features=features, train=(), batch_size=16)
        right = {a.sample.id: a.correct for a in answers["decisions"].answers}
        found[name] = {"ids": [s.id for s in samples], "right": [int(right[s.id]) for s in samples]}
    text = retention(model, suites=["wiki"], n=texts, after_picture=False)
    loss = next(s for s in text if "loss" in s.metric.lower() and s.difference is not None)
    found["text"] = {k: getattr(loss, k) for k in ("value", "base", "difference", "difference_low", "difference_high")}
    return found


def kept(name: str, made: Any) -> None:
    FINISHED.mkdir(parents=True, exist_ok=True)
    (FINISHED / f"{name}.json").write_text(json.dumps(made))
    print(name, "is finished", flush=True)


def seeing() -> Any:
    return build_model("smollm2-135m-instruct", input_size=224, device="cpu")


def trained(runs: Path) -> None:
    """theta_real, and theta_syn from it."""
    sets = data(runs)
    model = seeing()
    features = encode(model, [s for part in sets.values() for s in part], print)
    learned(model, sets["real"], runs, "real", features, True)
    learned(model, sets["synthetic"], runs, "syn", features, False)


def swept(runs: Path) -> None:
    """Every beta on a part of the pictures; the best one and both ends on all of them."""
    sets = data(runs)
    part = {k: sets[k][:SWEPT] for k in ("real test", "synthetic test")}
    points: dict[str, Any] = {}
    for beta in BETAS:
        model, features = at(beta, runs, sets)
        points[f"{beta:.1f}"] = scores(model, part, features, TEXTS)
        del model
        gc.collect()
        print(
            beta,
            {k: sum(v["right"]) / len(v["ids"]) for k, v in points[f"{beta:.1f}"].items() if k != "text"},
            flush=True,
        )

    def value(beta: str) -> float:
        return sum(sum(points[beta][k]["right"]) for k in part)

    best = max(points, key=value)
    whole = {k: sets[k][SWEPT:] for k in part}  # what the sweep has not seen
    full = {}
    for beta in dict.fromkeys(["0.0", best, "1.0"]):
        model, features = at(float(beta), runs, sets)
        full[beta] = scores(model, whole, features, 2 * TEXTS)
    kept("sweep", {"points": points, "best": best, "full": full})


def altered_pictures(runs: Path) -> None:
    """Both ends and the best beta under each condition at the middle strength, the best one at the others too."""
    sets = data(runs)
    swept_before = json.loads((FINISHED / "sweep.json").read_text())
    some = [s for k in ("real test", "synthetic test") for s in sets[k][SWEPT : SWEPT + ALTERED]]
    found: dict[str, Any] = {"ids": [s.id for s in some], "right": {}}
    for beta in swept_before["full"]:
        model, _ = at(float(beta), runs, sets)
        for strength in STRENGTHS if beta == swept_before["best"] else (MIDDLE,):
            for condition in CONDITIONS:
                shown = [altered(s, condition, strength) for s in some]
                answers = tasks.measure(model, ["decisions"], shown, train=(), batch_size=16)["decisions"].answers
                right = {a.sample.id: int(a.correct) for a in answers}
                found["right"][f"{beta} {condition} {strength}"] = [right[s.id] for s in some]
            print(beta, "strength", strength, flush=True)
        del model
        gc.collect()
    kept("altered", found)


def at(beta: float, runs: Path, sets: dict[str, list[Sample]]) -> tuple[Any, Any]:
    """The mixed model, and the features of all asked pictures."""
    out = runs / "mixed"
    linear.mix([runs / "theta-real", runs / "theta-syn"], [beta, 1 - beta], out)
    model = tsugiki.load(out)
    features = encode(model, [*sets["real test"], *sets["synthetic test"]], lambda text: None)
    return model, features


def few(runs: Path) -> None:
    """Drawings first, then few photographs; beside the few photographs alone."""
    sets = data(runs)
    some = balanced(sets["real"], FEW)
    test = {k: sets[k][SWEPT:] for k in ("real test", "synthetic test")}
    found = {}
    for name, first in (("few photographs alone", False), ("drawings, then few photographs", True)):
        model = seeing()
        features = encode(model, [s for part in sets.values() for s in part], print)
        stem = "first" if first else "alone"
        if first:
            learned(model, sets["synthetic"], runs, "drawn", features, True)
        learned(model, some, runs, f"few-{stem}", features, not first)
        found[name] = scores(model, test, features, 2 * TEXTS)
        del model
        gc.collect()
    kept("few", found)


def row(name: str, found: dict[str, Any], rival: dict[str, Any] | None) -> dict[str, Any]:
    cells: dict[str, Any] = {"model": name}
    for kind in ("real test", "synthetic test"):
        score = stats.mean(found[kind]["right"], groups=found[kind]["ids"])
        cells[kind] = f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
        cells[f"{kind}, minus the best beta"] = ""
        if rival is not None and rival is not found:
            pair = stats.paired(found[kind]["right"], rival[kind]["right"], groups=found[kind]["ids"])
            cells[f"{kind}, minus the best beta"] = f"{pair.value:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
    text = found["text"]
    cells["text loss, minus the base"] = (
        f"{text['difference']:+.3f} [{text['difference_low']:+.3f}, {text['difference_high']:+.3f}]"
    )
    return cells


def altered_notes(found: dict[str, Any], sweep: dict[str, Any]) -> list[str]:
    """Accuracy over both kinds of altered pictures, and the best beta's lead over the ends."""
    best, right, ids = sweep["best"], found["right"], found["ids"]

    def over(beta: str, strength: int) -> tuple[list[int], list[str]]:
        rows = [right[f"{beta} {c} {strength}"] for c in CONDITIONS]
        return [v for row in rows for v in row], ids * len(rows)

    notes = []
    for beta in sweep["full"]:
        each = ", ".join(f"{c} {sum(right[f'{beta} {c} {MIDDLE}']) / len(ids):.2f}" for c in CONDITIONS)
        values, groups = over(beta, MIDDLE)
        score = stats.mean(values, groups=groups)
        line = (
            f"Altered pictures, beta {beta}, strength {MIDDLE}: {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
        )
        if beta != best:
            pair = stats.paired(values, over(best, MIDDLE)[0], groups=groups)
            line += f", minus the best beta {pair.value:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
        notes.append(f"{line} ({each}).")
    others = (f"strength {s}: {sum(over(best, s)[0]) / len(over(best, s)[0]):.3f}" for s in STRENGTHS if s != MIDDLE)
    notes.append(f"The best beta at the other strengths: {', '.join(others)}.")
    return notes


def table() -> None:
    """What is finished."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    if (FINISHED / "sweep.json").is_file():
        found = json.loads((FINISHED / "sweep.json").read_text())
        best = found["best"]
        for beta, scored in found["full"].items():
            what = {"0.0": " (theta_syn)", "1.0": " (theta_real)"}.get(beta, " (best)")
            rows.append(row(f"beta {beta}{what}", scored, found["full"][best]))
        line = ", ".join(
            f"{beta}: {sum(p['real test']['right']) / SWEPT:.2f} / {sum(p['synthetic test']['right']) / SWEPT:.2f}"
            f" / {p['text']['difference']:+.3f}"
            for beta, p in found["points"].items()
        )
        notes.append(f"The sweep, beta: real / synthetic accuracy / text loss minus the base's: {line}.")
        if (FINISHED / "altered.json").is_file():
            notes += altered_notes(json.loads((FINISHED / "altered.json").read_text()), found)
    if (FINISHED / "few.json").is_file():
        found = json.loads((FINISHED / "few.json").read_text())
        rows += [row(name, scored, None) for name, scored in found.items()]
    notes += [
        f"Each training {STEPS} steps of {BATCH}, rates {RATES}, one seed: theta_real from {LEARN} photographs,"
        f" theta_syn goes on from it with {2 * LEARN} drawings; few: {FEW} photographs. The sweep asks {SWEPT} of each"
        f" kind, and {TEXTS} passages; the rows ask the other {ASKED - SWEPT} of each and {2 * TEXTS} passages.",
        "Best: the most right answers over both kinds in the sweep. Intervals: bootstrap over pictures, or passages.",
    ]
    write("domains", "Is there a defect? Weights mixed from photographs and drawings", rows, notes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["train", "sweep", "altered", "few"])
    given = parser.parse_args()
    for asset in ("smollm2-135m-instruct", "fabric", "wiki"):
        assets.fetch(asset)
    fetch_tower("efficientnet-lite0")
    for step in given.only or ():
        step_of = {"train": trained, "sweep": swept, "altered": altered_pictures, "few": few}
        step_of[step](assets.cache_dir() / "runs" / "domains")
    if given.only is None:
        table()
