"""The starter graft: a combination chosen by successive halving, trained at length, and put into the package.

    python benchmarks/starter.py --data                            # the pictures, before several processes begin
    python benchmarks/starter.py --only lite0-224:1 lite0-320:1    # combination:round, each kept when it is finished
    python benchmarks/starter.py                                   # the table of all that are finished
    python benchmarks/starter.py --final lite0-320 --hours 3       # the chosen one at length; again: continued
    python benchmarks/starter.py --commit lite0-320                # its graft into src/tsugiki/starter

Every combination has the same pictures, order and number of steps, `STEPS`; the minutes are in the table. A clock would
give fewer steps to what runs beside other work, and another result to a run that was continued.

The figure that ranks: the mean over naming, boxes, yes/no and counting of (right - chance) / (1 - chance). Each kind
counts the same, since a start has to serve all of them; guessing is 0 and all right is 1 in each, so that a kind with
few options does not weigh more than one with fifty.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import RESULTS, write
from _starter_data import NAMES, OPTIONS, QUESTIONS, TASKS, answered, ask, by_turns, learn, probe, questions, score

from tsugiki import assets, starter, store
from tsugiki.cli._models import new_model
from tsugiki.data.files import atomic_folder, atomic_write
from tsugiki.evals import proof as proofs
from tsugiki.evals import stats
from tsugiki.evals import task as tasks
from tsugiki.evals.tables import markdown, records
from tsugiki.studies._build import fetch_tower, load_graft
from tsugiki.studies._training import encode
from tsugiki.synth.pictograms import ATTRIBUTION
from tsugiki.training import recipe as recipes
from tsugiki.training.trainer import StepReport, train

RECIPE = "demo/starter"
STEPS = {1: (60, 40), 2: (160, 120)}
"""Of the two stages: names, everything."""
PICTURES = 1200
"""Of one object, and as many of one to three, in the rounds; the final training has `FINAL_PICTURES`."""
FINAL_PICTURES = 3000
ASKED, REPORTED = 120, 240
"""Pictures of each kind that choose, and those that are reported on; they are different ones."""
CHOOSE, REPORT = 1, 2  # their seeds
LITE0 = ["model.vision=efficientnet-lite0"]
WINGS = "train.graft.wings=3.0e-4"
COMBINATIONS: dict[str, list[str]] = {
    "lite0-224": [*LITE0, "model.input_size=224"],
    "lite0-320": [*LITE0, "model.input_size=320"],
    "lite0-448": [*LITE0, "model.input_size=448"],
    "lite2-320": ["model.vision=efficientnet-lite2", "model.input_size=320"],
    "lite0-320-rate": [*LITE0, "model.input_size=320", "train.projector=6.0e-4"],
    "lite0-320-wings16": [
        *LITE0, "model.input_size=320", "model.grafts=[wings]", "model.options.rank=16", WINGS,
    ],
    "lite0-320-wings32": [
        *LITE0, "model.input_size=320", "model.grafts=[wings]", "model.options.rank=32", WINGS,
    ],
    "lite0-320-cross": [
        *LITE0, "model.input_size=320", "model.grafts=[cross_attention, projector]", "model.options.every=8",
        "model.options.ffn_ratio=0.0", "train.graft.cross_attention=3.0e-4",
    ],
}  # fmt: skip
"""All with three places in the front-end and boxes as four numbers of two digits, without which none of them learns
boxes (results/boxes.md). Cross-attention stands beside a projector, which brings the places into the prompt, and has
few blocks; IAA and LynX, better at boxes (results/grounding.md), would take more than 40 MB."""
LARGEST = 40_000_000
"""Bytes of the weights in the package."""
FINISHED = RESULTS / "starter"


def folder() -> Path:
    return assets.cache_dir() / "runs" / "starter"


def plan_of(name: str, steps: Sequence[int]) -> recipes.Recipe:
    """The recipe of a combination; what the base says to the texts is made once for all of them."""
    common = ["precision=bf16", "stages.eyes.data.text.answers=given"]
    common += [f"stages.{stage}.steps={n}" for stage, n in zip(("names", "eyes"), steps, strict=True)]
    return recipes.load(RECIPE, [*COMBINATIONS[name], *common])


def prepared(name: str, steps: Sequence[int], n: int) -> tuple[recipes.Recipe, Any, dict[str, Any]]:
    """Recipe, new model and training samples."""
    plan = plan_of(name, steps)
    assert plan.model.base is not None and isinstance(plan.model.vision, str)
    assets.fetch(plan.model.base)
    fetch_tower(plan.model.vision)
    torch.manual_seed(plan.seed)
    model = new_model(plan.model, None, None, device="cpu")
    data = learn(folder() / "data", n)
    tokens = plan.stages[-1].data["text"].answer_tokens
    data["text"] = answered(model, data["text"], folder() / "data" / "text.jsonl", tokens)
    return plan, model, data


def run(name: str, number: int) -> None:
    """One combination in one round, unless it is finished."""
    file, settings = FINISHED / f"{name}-{number}.json", settings_of(name, number)
    if file.is_file():
        if json.loads(file.read_text())["settings"] != settings:
            raise SystemExit(f"{file}: of other settings than {settings}. Move it away to run this one again.")
        return
    plan, model, data = prepared(name, STEPS[number], PICTURES)
    asked = ask(folder() / "data", CHOOSE, ASKED)
    features = encode(model, [*data["scenes"], *data["words"], *asked], print)
    done = train(model, plan, folder() / file.stem, data=data, features=features, progress=False, on_step=tell(name))
    found = score(model, asked, features)
    result = {
        "combination": name,
        "round": number,
        "settings": settings,
        "steps": done.steps,
        "seconds": round(done.seconds, 1),
    }
    result |= {"parameters": parameters(model), "losses": [round(v, 4) for v in done.losses], **found}
    atomic_write(file, json.dumps(result))
    print(f"{file.stem}: {found['figure']:.3f} {found['shares']}, {done.seconds:.0f} s", flush=True)


def settings_of(name: str, number: int) -> dict[str, Any]:
    """What a result depends on, beside the versions."""
    recipe = hashlib.sha256(plan_of(name, STEPS[number]).to_yaml().encode()).hexdigest()
    return {"recipe": recipe, "pictures": PICTURES, "questions": QUESTIONS, "asked": ASKED}


def tell(name: str, every: int = 20) -> Any:
    """Says every so many steps how far it is."""

    def look(report: StepReport) -> None:
        if report.step % every == 0:
            print(f"{name}: step {report.step}, {report.seconds:.0f} s, loss {report.loss:.3f}", flush=True)

    return look


def parameters(model: Any) -> int:
    """Numbers in a saved graft."""
    from tsugiki.store import trained_state

    return sum(v.numel() for v in trained_state(model).values())


def table() -> None:
    """All finished combinations, the best of each round first."""
    found = [json.loads(file.read_text()) for file in sorted(FINISHED.glob("*-[12].json"))]
    rows = []
    for result in sorted(found, key=lambda r: (-r["round"], -r["figure"])):
        row: dict[str, Any] = {k: result[k] for k in ("round", "combination", "steps")}
        row |= {"minutes": round(result["seconds"] / 60, 1), "MB": round(result["parameters"] * 2 / 1e6, 1)}
        row["figure"] = round(result["figure"], 3)
        for task in TASKS:
            share = stats.mean([float(v) for v in result[task]["right"]])
            row[task] = f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
        rows.append(row)
    chance = ", ".join(f"{task} {value:.3f}" for task, value in found[0]["chance"].items())
    notes = [
        "Figure: the mean over the four kinds of (right - chance) / (1 - chance); defined before anything was run.",
        f"Chance: {chance}. {ASKED} pictures to name among 50 options by likelihood, {ASKED} of one to three objects"
        " with a question each for a box (first box right at IoU 0.5), presence and number; unseen renderings and"
        " backgrounds.",
        f"Steps of 8 names, then of 8 pictures; {PICTURES} of one object and {PICTURES} of one to three with"
        f" {QUESTIONS} questions each, {PICTURES // 8} of words, 160 questions about text after a picture. One seed,"
        " bf16.",
        "Minutes: of the steps, by the clock, beside other work. MB: of the graft's numbers in float16.",
        "Into round 2 go the two best by the figure, and the third, which has as many names in half the minutes; a row"
        " that is not there is not run yet. Intervals are over the pictures and do not cover the choice.",
    ]
    write("starter", "The starter graft: which combination", rows, notes)


def final(name: str, hours: float) -> None:
    """The chosen one at length, in as many steps as fit by the pace of its round 2; a run that is there keeps its
    own number."""
    out = folder() / f"{name}-final"
    chosen = out / "steps.json"
    if chosen.is_file():
        steps = json.loads(chosen.read_text())
        print(f"{name}: goes on to {steps} steps, whatever the hours", flush=True)
    else:
        times = hours * 3600 / json.loads((FINISHED / f"{name}-2.json").read_text())["seconds"]
        steps = [int(n * times) for n in STEPS[2]]
    plan, model, data = prepared(name, steps, FINAL_PICTURES)
    atomic_write(chosen, json.dumps(steps))
    features = encode(model, [*data["scenes"], *data["words"]], print)
    done = train(model, plan, out, data=data, features=features, progress=False, on_step=tell(name, 100))
    print(f"{name}: {done.steps} steps in {done.seconds:.0f} s, {done.graft}", flush=True)


def commit(name: str) -> None:
    """Its graft into the package in float16: scored in this form and as it was trained, with recipe, log and card."""
    out = folder() / f"{name}-final"
    if not (out / "result.json").is_file():
        raise SystemExit(f"{out}: not trained to its end. Run --final {name} again: it goes on.")
    plan = recipes.load(out / "recipe.yaml")
    trained = load_graft(out / "graft", plan.model.base)
    data, asked = learn(folder() / "data", FINAL_PICTURES), ask(folder() / "data", REPORT, REPORTED)
    features = encode(trained, [*data["scenes"], *data["words"], *asked], print)
    before = score(trained, asked, features)
    with atomic_folder(starter.FOLDER) as work:
        nameless(trained)
        store.save(trained, work, dtype=torch.float16)
        size = (work / store.WEIGHTS).stat().st_size
        if size > LARGEST:
            raise SystemExit(f"{size / 1e6:.1f} MB of weights; at most {LARGEST / 1e6:.0f}")
        model = load_graft(work, plan.model.base)
        proof = proofs.verify(model, answers=20)
        if not proof.holds:
            raise SystemExit(proofs.describe(proof))
        found = score(model, asked, features)
        taught = [s for of in by_turns(*questions(folder() / "data", FINAL_PICTURES)) for s in of]
        own = tasks.measure(model, ["decisions", "grounding"], asked, features=features, train=taught)
        scores = [s for result in own.values() for s in result.scores]
        lines = [f"`tsugiki verify` holds, {proof.prompts} prompts"]
        lines += sentences(found, before, probe(features, data["scenes"], asked))
        shutil.copy(out / "recipe.yaml", work / "recipe.yaml")
        shutil.copy(out / "log.jsonl", work / "log.jsonl")
        facts = {
            "seed": plan.seed,
            "steps": [stage.steps for stage in plan.stages],
            "pictures": [FINAL_PICTURES] * 2,
            "asked": REPORTED,
        }
        content = {**facts, "findings": lines, "right": found, "float32": before["shares"], "scores": records(scores)}
        (work / "scores.json").write_text(json.dumps(content, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        card = work / store.CARD
        card.write_text(card.read_text(encoding="utf-8") + about(lines, markdown(scores)), encoding="utf-8")
        for file in work.iterdir():  # a place on this machine says nothing to others
            if file.suffix != ".safetensors" and str(assets.cache_dir()) in file.read_text(encoding="utf-8"):
                raise SystemExit(f"{file.name} names {assets.cache_dir()}")
    print("\n".join(lines))


def nameless(model: Any) -> None:
    """No paths of this machine in what is saved: the base is found by its asset's name."""
    model.config.name_or_path = ""
    model.base_identity["source"] = model.config.text_config._name_or_path = model.base_identity["asset"]


def sentences(found: dict[str, Any], before: dict[str, Any], probed: list[int]) -> list[str]:
    """What the four kinds and the probe say."""
    lines = []
    for kind in TASKS:
        share = stats.mean([float(v) for v in found[kind]["right"]])
        change = stats.paired(found[kind]["right"], before[kind]["right"])
        lines.append(
            f"{kind}: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}] right of {share.n}, chance"
            f" {found['chance'][kind]:.3f}; float16 minus float32 {change.value:+.3f}"
            f" [{change.low:+.3f}, {change.high:+.3f}]"
        )
    sizes = found["box"]["sizes"]
    for size in dict.fromkeys(sizes):
        hits = stats.mean([float(v) for v, s in zip(found["box"]["right"], sizes, strict=True) if s == size])
        lines.append(f"box, {size}: {hits.value:.3f} [{hits.low:.3f}, {hits.high:.3f}] of {hits.n}")
    linear, gap = stats.mean([float(v) for v in probed]), stats.paired(found["naming"]["right"], probed)
    share = ratio(found["naming"]["right"], probed)
    lines.append(
        f"naming: a linear probe on the same features has {linear.value:.3f} [{linear.low:.3f}, {linear.high:.3f}], the"
        f" graft {share} of it; difference {gap.value:+.3f}"
        f" [{gap.low:+.3f}, {gap.high:+.3f}]"
    )
    return lines


def ratio(right: Sequence[int], rival: Sequence[int], draws: int = 5000) -> str:
    """How many times as many are right, with its 95 % interval (paired bootstrap over pictures)."""
    pairs = np.array([right, rival], np.float64)
    drawn = pairs[:, np.random.default_rng(0).integers(0, pairs.shape[1], (draws, pairs.shape[1]))].sum(2)
    low, high = np.quantile(drawn[0] / np.maximum(drawn[1], 1), [0.025, 0.975])
    return f"{pairs[0].sum() / max(pairs[1].sum(), 1):.2f} [{low:.2f}, {high:.2f}]"


def about(lines: list[str], scores: str) -> str:
    """What the card says of training and scores."""
    made = [
        f"drawings of {NAMES} OpenMoji pictograms (CC BY-SA 4.0) on plain and textured backgrounds, and drawn words in"
        " Noto Sans (OFL-1.1) and IPAexGothic (IPA Font License)",
        "titles of Wikipedia articles (CC BY-SA 4.0) in questions, with the base's own answers",
        ATTRIBUTION,
        "no photograph, no label of the fabric set; the graft's own weights are Apache-2.0, as the package",
    ]
    learned = "\n".join(f"* {line}" for line in made)
    told = "\n".join(f"* {line}" for line in lines)
    return f"""
## What it learned from

{learned}

`recipe.yaml` and `log.jsonl` say how; `python benchmarks/starter.py` makes it again.

## Scores

Unseen renderings on unseen backgrounds, {REPORTED} pictures of each kind; naming among {OPTIONS} names by likelihood.
In English: Japanese, a fifth of what it learned from, is not scored.

{told}

{scores}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="store_true", help="make the pictures of the rounds, and the base's answers")
    parser.add_argument("--only", nargs="+", help="combination:round of what to run; no table")
    parser.add_argument("--final", choices=list(COMBINATIONS), help="train this one at length")
    parser.add_argument("--hours", type=float, default=3.0, help="of the final training, at the pace of its round 2")
    parser.add_argument("--commit", choices=list(COMBINATIONS), help="put its final graft into the package")
    given = parser.parse_args()
    if given.data:
        prepared("lite0-224", (1, 1), PICTURES)
        ask(folder() / "data", CHOOSE, ASKED)
    for one in given.only or ():
        name, _, number = one.rpartition(":")
        run(name, int(number))
    if given.final:
        final(given.final, given.hours)
    if given.commit:
        commit(given.commit)
    if not (given.data or given.only or given.final or given.commit):
        table()


if __name__ == "__main__":
    main()
