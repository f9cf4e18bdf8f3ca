"""`tsugiki demo`: eyes for SmolLM2-135M in minutes on two cores, the proof that its text is untouched, and one report.

The starter graft of the package is asked about scenes as it is, then adapted to 200 fabric photographs, beside a graft
of the same make that begins with them. Where the package has none, a projector and WINGS learn from the same scenes,
half of the time each, and a projector from the photographs. Training goes by the clock. Each graft is proven, then
asked about pictures that it never saw, until a time limit; n tells how many it was.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

from tsugiki import assets, starter
from tsugiki.data.files import atomic_write
from tsugiki.evals import proof as proofs
from tsugiki.evals import report as reports
from tsugiki.evals import task as tasks
from tsugiki.evals.tables import markdown, records, table
from tsugiki.studies._build import build_model, fetch_tower, load_graft, quiet_bars
from tsugiki.studies._demo_plan import Part, Plan, plans
from tsugiki.studies._training import encode
from tsugiki.studies._words import beside, sentences
from tsugiki.training.trainer import train
from tsugiki.types import Sample, Score

BASE = "smollm2-135m-instruct"
ASSETS = (BASE, "fabric", "openmoji")
PICTOGRAMS = 25
INPUT_SIZE = 224
TRAIN_SCENES, TEST_SCENES = 900, 200
PHOTOGRAPHS, TEST_PHOTOGRAPHS = 200, 400
TEST_TASKS: Mapping[str, float] = {"naming": 3, "box": 1}
HEADLINES = ("decisions/naming", "vqa/naming", "grounding/box", "decisions/decision", "Text")
"""What the top of the report speaks of; the table has everything."""
PROOF_ANSWERS = 10
"""Whole answers of each of the three proofs."""
OTHERS = 0.4
"""Time for each further kind of question, in that for choosing among given answers."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found."""

    out: Path
    report: Path
    parts: tuple[Part, ...]
    steps: Mapping[str, float]
    """Seconds of each step, in order."""

    @property
    def holds(self) -> bool:
        """Whether all proofs hold."""
        return all(part.proof.holds for part in self.parts)

    @property
    def scores(self) -> list[Score]:
        """Tasks with their graft's name; of one task the grafts stand one below the other."""
        found: dict[tuple[str, str], list[Score]] = {}
        for part in self.parts:
            for score in part.scores:
                named = replace(score, task=f"{score.task} ({part.plan.told})")
                found.setdefault((part.plan.data, score.task), []).append(named)
        return [score for scores in found.values() for score in scores]

    @property
    def table(self) -> Table:
        """The scores for a rich console."""
        return table(self.scores, f"Demo, {sum(self.steps.values()) / 60:.1f} minutes")


@dataclass
class _Clock:
    """Names and times the steps, and tells them."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def done(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step] = now - self.started
        self.started = now
        self.say(f"{step}: {self.seconds[step]:.0f} s")


def run(
    *,
    out: str | Path = "runs/demo",
    minutes: float = 3.0,
    limit_seconds: float = 20.0,
    seed: int = 0,
    progress: bool = True,
    say: Say = print,
) -> DemoResult:
    """Fetch, train, prove, ask, report. A run that stopped is continued by the same call.

    Args:
        out: the report and the grafts go there.
        minutes: training time of each graft; without a starter, two grafts share that of the scenes.
        limit_seconds: of choosing among given answers, and 0.4 of it of each further kind of question, for each graft;
            what was asked until then is what counts.
        seed: of data, order and yardsticks.
        progress: show the training's progress.
        say: is told what was done.

    Raises:
        AssetError: an asset can't be fetched.
        StoreError: the disk is full, or `out` can't be written.
    """
    folder, clock, chosen = Path(out), _Clock(say), plans()
    for name in ASSETS:
        assets.fetch(name, say)
    assets.llm_folder(BASE, say)
    for tower in dict.fromkeys(str(p.made.model.vision) for p in chosen):
        fetch_tower(tower, say)
    clock.done("fetch")
    data = {"scenes": _scenes(folder, seed), "fabric": _fabric(seed)}
    clock.done("make data")
    parts = [_part(p, *data[p.data], folder / p.name, minutes, limit_seconds, seed, progress, clock) for p in chosen]
    facts = {f"minutes of training, {p.name}": p.share * minutes for p in chosen if p.recipe}
    return _report(folder, parts, clock, {"seed": seed, **facts})


def _scenes(folder: Path, seed: int) -> tuple[list[Sample], list[Sample]]:
    from tsugiki.synth import scenes

    common: dict[str, Any] = {"seed": seed, "size": INPUT_SIZE, "pictograms": PICTOGRAMS, "languages": ("en",)}
    # Minutes are enough to learn names; the other questions are there to show what is not learned in minutes.
    names = scenes.generate(
        TRAIN_SCENES, out=folder / "data" / "train", objects=(1, 1), tasks=["naming"], forms=["short"], **common
    )
    others = scenes.generate(TRAIN_SCENES // 4, out=folder / "data" / "train-mixed", **common)
    ask = scenes.generate(
        TEST_SCENES,
        out=folder / "data" / "test",
        split="test",
        objects=(1, 2),
        tasks=TEST_TASKS,
        forms={"short": 6, "boxes": 1},
        options=PICTOGRAMS,
        **common,
    )
    learn = [*names, *others]
    return learn, ask


def _fabric(seed: int) -> tuple[list[Sample], list[Sample]]:
    from tsugiki.synth import fabric

    learn, rest = fabric.draw(seed, PHOTOGRAPHS)
    return learn, random.Random(seed).sample(rest, TEST_PHOTOGRAPHS)


def _model(plan: Plan, say: Say) -> Any:
    """The saved graft, or a new one of the same make."""
    if plan.start:
        return load_graft(plan.start, say=say)
    spec = plan.made.model
    # Photographs without boxes have nothing to fit places from.
    options = {k: v for k, v in spec.options.items() if k not in ("places", "box_text")}
    return build_model(BASE, spec.grafts, spec.vision, input_size=spec.input_size, **options)


def _part(
    plan: Plan,
    learn: Sequence[Sample],
    ask: Sequence[Sample],
    folder: Path,
    minutes: float,
    limit_seconds: float,
    seed: int,
    progress: bool,
    clock: _Clock,
) -> Part:
    """One graft: train by the clock, prove, ask."""
    name = plan.name
    model = _model(plan, clock.say)
    features = encode(model, [*learn, *ask], clock.say)
    clock.done(f"{name}: encode pictures")
    training = None
    if plan.recipe:
        changes = [f"minutes={plan.share * minutes}", f"train={dict(plan.made.stages[-1].train)}"]
        changes += ["warm_start=false"] if plan.start else []
        training = train(
            model, plan.recipe, folder, data=list(learn), overrides=changes, features=features, progress=progress
        )
        clock.done(f"{name}: train {training.steps} steps")
    with quiet_bars():
        proof = proofs.verify(model, answers=PROOF_ANSWERS, seed=seed, out=folder / "proof.json")
    clock.say(proofs.describe(proof))
    clock.done(f"{name}: prove")
    names = tasks.scorable(ask)
    results: dict[str, tasks.Result] = {}
    for task in names:
        seconds = limit_seconds * (1 if task == "decisions" else OTHERS)
        results |= tasks.measure(model, task, ask, features=features, train=learn, seconds=seconds, seed=seed)
        clock.done(f"{name}: ask about held-out pictures, {task}")
    graft = starter.FOLDER if training is None else training.graft
    return Part(plan=plan, graft=graft, training=training, proof=proof, results=results)


def _compared(one: Part, other: Part) -> Iterator[str]:
    """What two grafts of the same data answered, in the same time, in sentences."""
    for task in ("decisions", "vqa"):
        answers = [tasks.by_kind(p.results[task].answers) if task in p.results else {} for p in (other, one)]
        for kind in (k for k in answers[0] if k in answers[1]):
            named = [(p.told, a[kind]) for p, a in zip((other, one), answers, strict=True)]
            said = beside(f"{task}/{kind} in equal time", *named)
            if said is not None:
                yield said


def _report(folder: Path, parts: Sequence[Part], clock: _Clock, facts: Mapping[str, object]) -> DemoResult:
    findings = [
        f"{part.name}: {said}"
        for part in parts
        for said in sentences(part.scores, part.proof)
        if said.startswith(HEADLINES)
    ]
    findings += [
        f"{a.plan.data}: {said}" for a, b in pairwise(parts) if a.plan.data == b.plan.data for said in _compared(a, b)
    ]
    steps = {step: round(seconds) for step, seconds in clock.seconds.items()}
    result = DemoResult(out=folder, report=folder / "report.html", parts=tuple(parts), steps=clock.seconds)
    report = reports.Report(
        title="Tsugiki: eyes for SmolLM2-135M, and its words kept",
        findings=findings,
        scores=result.scores,
        answers=[
            replace(a, task=f"{a.task} ({part.plan.told})")
            for part in parts
            for r in part.results.values()
            for a in r.answers
        ],
        losses={p.name: list(enumerate(p.training.losses, 1)) for p in parts if p.training is not None},
        proofs={part.name: part.proof for part in parts},
        facts={
            "base": BASE,
            "towers": ", ".join(dict.fromkeys(p.plan.eyes for p in parts)),
            **facts,
            **{f"seconds, {k}": v for k, v in steps.items()},
        },
    )
    content = {"findings": findings, "scores": records(result.scores), "seconds": steps, "facts": dict(facts)}
    atomic_write(folder / "scores.json", json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    lines = [f"# Demo, {sum(steps.values()) / 60:.1f} minutes", "", *(f"* {said}" for said in findings), ""]
    atomic_write(folder / "scores.md", "\n".join([*lines, markdown(result.scores), ""]))
    reports.write(report, result.report)
    return result
