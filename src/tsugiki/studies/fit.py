"""`tsugiki fit`: from 20 to 200 own pictures to a graft, a proof, scores beside yardsticks, and a report.

    <out>/  graft/  proof.json  report.html  scores.json  data/train.jsonl  data/test.jsonl
            the training's own files, and choose/, the training that chose the step count
            folds/ (k-fold scores, see `_cells`)  methods/ (the choice between methods, see `_choice`)
            bank/ (with demos: the training pictures)

The same call continues a run that was stopped.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tsugiki.data import schema
from tsugiki.data.files import atomic_write
from tsugiki.evals import proof as proofs
from tsugiki.evals import report as reports
from tsugiki.evals import task as tasks
from tsugiki.evals._pace import paced
from tsugiki.evals.prompts import bundled
from tsugiki.evals.tables import records, table
from tsugiki.studies import _choice, _in_context, _own
from tsugiki.studies._asked import asked_of
from tsugiki.studies._build import quiet_bars
from tsugiki.studies._cells import TASKS, Cell, answers_of, by_class, scores_of
from tsugiki.studies._choice import Choice
from tsugiki.studies._divide import Parts
from tsugiki.studies._in_context import BANK
from tsugiki.studies._making import Maker, need, tell_all, teller
from tsugiki.studies._plan import Plan
from tsugiki.studies._steps import PATIENCE
from tsugiki.studies._training import Trained
from tsugiki.studies._words import sentences, trained
from tsugiki.training.limits import Retention
from tsugiki.training.recipe import Recipe
from tsugiki.types import Proof, Sample, Score

BUDGET = 0.05
"""Nats a token."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What came out."""

    out: Path
    graft: Path
    """The saved graft, with the question that it was asked."""
    report: Path
    proof: Proof
    scores: list[Score]
    """On the held-out pictures, beside yardsticks and the bare LLM; with folds, on all of them."""
    findings: tuple[str, ...]
    """What to know, in sentences; the unflattering ones too."""
    trained: Trained
    sizes: Mapping[str, int]
    """Samples: train, of these hold (the inner hold-out), test (with folds, all that were asked)."""
    seconds: float
    model: Any
    choice: Choice | None = None
    """Of the method, where there were several."""
    bank: Path | None = None
    """Of the training pictures, where they stood in front of questions."""

    @property
    def holds(self) -> bool:
        """Whether the guarantee was proven."""
        return self.proof.holds

    @property
    def table(self) -> Table:
        """The scores for a rich console."""
        return table(self.scores, f"{self.sizes['test']} held-out samples, after {self.trained.steps} steps")


def fit(
    data: str | Path | Sequence[Sample],
    *,
    base: Any = "smollm2-135m-instruct",
    method: str | Sequence[str] = "projector",
    vision: Any = None,
    out: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    overrides: Sequence[str] = (),
    question: str | None = None,
    test: float = 0.25,
    folds: int = 0,
    inner: int = 3,
    refit: bool = True,
    patience: int | None = PATIENCE,
    demos: int = 0,
    budget: float = BUDGET,
    texts: str | Path | None = None,
    answers: int = 20,
    tokenizer: Any = None,
    cache_limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> FitResult:
    """Split, train, prove, score, report.

    Args:
        data: one folder of pictures for each class, a CSV, COCO, LLaVA or Label Studio JSON, a folder of VOC or YOLO, a
            JSONL, or samples.
        base: an asset, folder or hub id of an LLM, or the object.
        method: one of `tsugiki.methods()`, or several, stacked in their order. To choose: names with commas between
            ("projector,wings"; stacks as "wings+lynx"), or "auto".
        vision: an asset, folder, hub id or tower; None = efficientnet-lite0.
        out: the run's folder.
        recipe: a name, file, dict or Recipe with one data source; None = the method's own, with at most 150 steps.
        overrides: `steps=60`, `batch_size=8`: changes of the recipe.
        question: for data with labels or boxes only; in any language.
        test: share of the samples that is asked at the end, unless the data names its own split or there are folds.
        folds: of k folds each is asked by a graft that learned from the others, so that every picture is asked once;
            the graft that is saved learned from all. 0 = one split.
        inner: folds of the training samples on which methods are compared.
        refit: after the inner hold-out has chosen the step count, train once more on all training samples; False keeps
            the weights of the best mark, which takes about half the time.
        patience: marks in a row without a better one on the inner hold-out, after which a training ends; None = never
            before the recipe's last step.
        demos: learn with 0 to so many of the nearest other pictures and their labels in front of each, and ask with so
            many of the training pictures; they are kept as a demo bank beside the graft. 0 = pictures alone.
        budget: of methods to choose from that train the LLM: how far its text loss may rise, in nats a token, by the
            upper end of the 95 % interval.
        texts: a file of texts to measure that on, with blank lines between them; None = articles of the asset `wiki`.
        answers: whole answers that the proof compares.
        tokenizer: for a base given as an object. With folds or several methods, trainings use copies of the object.
        cache_limit: bytes of the folder of tower outputs; None = no limit.
        seed: of split, order of samples and yardsticks.
        progress: tell on standard error how far it is.
        say: is told the lines instead.
        options: settings of the front-end and of the first method, as for `tsugiki.attach`; those of a recipe that is
            for this method are the default.

    Raises:
        DataError, BoxError, ImageError: the data can't be used; one line says where. Demos need one closed question
            about one picture each, and more pictures than demos in every training.
        RecipeError: the recipe can't be run, another run stands in `out`, or no method keeps to the budget.
        InputError, UnknownNameError, UnsupportedError, AssetError, StoreError: as what is called.
    """
    started, tell = time.monotonic(), say or teller(progress)
    need()
    maker = Maker(
        base=base, vision=vision, tokenizer=tokenizer, recipe=recipe, overrides=overrides, options=options, refit=refit,
        patience=patience, demos=demos, cache_limit=cache_limit, seed=seed, progress=progress, tell=tell,
    )  # fmt: skip
    found, limits = _choice.candidates(method), Retention(budget=budget, texts=None if texts is None else Path(texts))
    _choice.check(maker, found, limits)
    plan = Plan(maker=maker, methods=found, limits=limits, inner=inner, folder=Path(out))
    own = _own.read(data, question=question)
    tell(own.found)
    _in_context.check(own.samples, demos, str(data) if isinstance(data, str | Path) else "data")
    plan.divide(own.samples, test=test, folds=folds)
    tell_all(tell, notes := [*own.notes, *plan.notes])
    if not folds:
        tell(f"{len(plan.parts.train)} samples to learn from, {len(plan.parts.test)} held out to be asked at the end")
    cells = plan.folds(own.samples)
    chosen, choice = plan.choose(plan.parts.train, plan.folder / "methods")
    made = maker.train(chosen, plan.parts, plan.folder, last=True)
    schema.write(plan.folder / "data" / "train.jsonl", plan.parts.train)
    if plan.parts.test:
        schema.write(plan.folder / "data" / "test.jsonl", plan.parts.test)
    asked = (
        f", on {len(bundled())} prompts and up to {answers} whole answers" if made.model.guarantee == "exact" else ""
    )
    tell(f"Proof: the LLM with the graft against the LLM as it was{asked}")
    told, file = paced(lambda line: tell(f"Proof: {line}")), plan.folder / "proof.json"
    with quiet_bars():
        proof = proofs.verify(made.model, answers=answers, seed=seed, out=file, progress=told)
    bank = _in_context.keep(made.model, plan.parts.train, plan.folder / BANK, made.features) if demos else None
    scores, said = _scored(made.model, made.features, plan, cells, own.samples)
    result = FitResult(
        out=plan.folder,
        graft=made.done.graft,
        report=plan.folder / "report.html",
        proof=proof,
        scores=scores,
        findings=(*_findings(plan, scores, proof, cells, choice, made.done, refit), *notes),
        trained=made.done,
        sizes=plan.sizes,
        seconds=time.monotonic() - started,
        model=made.model,
        choice=choice,
        bank=bank,
    )
    tell_all(tell, result.findings[: len(result.findings) - len(notes)])
    title = f"{Path(data).name if isinstance(data, str | Path) else 'Own pictures'}: what was learned"
    _write(result, title, said, _facts(data, own, result, folds, demos, seed))
    return result


def _scored(
    model: Any, features: Any, plan: Plan, cells: Sequence[Cell], samples: Sequence[Sample]
) -> tuple[list[Score], list[tasks.Answer]]:
    """Scores and answers: of the folds where there are some, else of the saved graft on the test samples."""
    if cells:
        rows = [row for cell in cells for row in cell["rows"]]
        return [*scores_of(cells), *by_class(cells, samples)], answers_of(rows, samples)
    with _in_context.asked_with(model, plan.parts, plan.folder, plan.maker.demos, features) as shown:
        results = judge(model, plan.parts, features, seed=plan.maker.seed, demos=shown)
    return [s for r in results.values() for s in r.scores], [a for r in results.values() for a in r.answers]


def judge(model: Any, parts: Parts, features: Any, *, seed: int = 0, **settings: Any) -> dict[str, tasks.Result]:
    """Every task that can score the test samples, beside yardsticks that learned from the training samples.

    Args:
        features: a cache of tower outputs, or None.
        settings: further fields of `evals.task.Settings`.
    """
    names = tasks.scorable(parts.test)
    common = {"features": features, "train": parts.train, "holdout": parts.hold or 0.2, "seed": seed}
    return tasks.measure(model, names, parts.test, **{**common, **settings}) if names else {}


def _findings(
    plan: Plan, scores: Sequence[Score], proof: Proof, cells: Sequence[Cell], choice: Choice | None, done: Trained,
    refit: bool,
) -> list[str]:  # fmt: skip
    found = sentences(scores, proof)
    if cells:
        found += _about_folds(plan, cells)
    found += choice.sentences if choice is not None else ()
    found.append(trained(done, len(plan.parts.hold), len(plan.parts.train), refit))
    if not scores:
        found.append("No question in the data has one right answer, so nothing was scored.")
    found += _in_context.sentences(plan.maker.demos, plan.folder)
    if (asked := asked_of(plan.parts.train)) is not None and asked.options:
        learned = plan.folder / "data" / "train.jsonl"
        found.append(f"What to label next: tsugiki label-next {plan.folder / 'graft'} PICTURES --train {learned}")
    return found


def _about_folds(plan: Plan, cells: Sequence[Cell]) -> list[str]:
    asked = plan.sizes["test"]
    found = [
        f"{len(cells)} folds: {asked} samples were asked once, each by a graft that had not learned from it; the saved "
        f"graft learned from all {plan.sizes['train']} and is not scored itself."
    ]
    if len(plan.methods) > 1:
        counts = Counter("+".join(cell["method"]) for cell in cells)
        listed = ", ".join(f"{name} {n}" for name, n in counts.most_common())
        found.append(f"The method was chosen anew in each fold, from its training samples alone: {listed}.")
    others = [n for n in tasks.scorable([s for p in plan.folded for s in p.test]) if n not in TASKS]
    if others:
        found.append(f"Not scored fold by fold: {', '.join(others)}.")
    return found


def _facts(data: Any, own: _own.Own, result: FitResult, folds: int, demos: int, seed: int) -> dict[str, object]:
    base, towers = result.model.base_identity, result.model.frontend.towers
    return {
        "data": f"{data if isinstance(data, str | Path) else 'samples'} ({own.kind})",
        **{f"samples, {name}": n for name, n in result.sizes.items()},
        **({"folds": folds} if folds else {}),
        **({"pictures in front of a question": demos} if demos else {}),
        "base LLM": f"{base.get('name', '?')} ({base.get('licence') or 'licence: see its card'})",
        "vision tower": ", ".join(f"{t.name} ({t.licence or 'licence: see its card'})" for t in towers),
        "grafts": ", ".join(str(graft.name) for graft in result.model.grafts),
        "steps": result.trained.steps,
        "seconds of training": round(result.trained.seconds),
        "seed": seed,
        "seconds": round(result.seconds),
    }


def _write(result: FitResult, title: str, answers: Sequence[tasks.Answer], facts: Mapping[str, object]) -> None:
    """scores.json and report.html."""
    choice = result.choice.scores if result.choice is not None else ()
    report = reports.Report(
        title=title,
        findings=result.findings,
        scores=[*result.scores, *choice],
        answers=answers,
        losses={name: list(enumerate(values, 1)) for name, values in result.trained.losses.items()},
        proof=result.proof,
        facts=facts,
    )
    content = {"facts": facts, "findings": report.findings, "scores": records(report.scores)}
    content["marks"] = [asdict(mark) for mark in result.trained.marks]
    atomic_write(result.out / "scores.json", json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    reports.write(report, result.report)
