"""`tsugiki fit`: from 20 to 200 own pictures to a graft, a proof, scores beside yardsticks, and a report.

    <out>/  graft/  proof.json  report.html  scores.json  data/train.jsonl  data/test.jsonl
            the training's own files, and choose/, the training that chose the step count

The same call continues a run that was stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tsugiki import build, extras
from tsugiki.data import schema
from tsugiki.data.files import atomic_write
from tsugiki.evals import proof as proofs
from tsugiki.evals import report as reports
from tsugiki.evals import task as tasks
from tsugiki.evals.tables import records, table
from tsugiki.studies import _own
from tsugiki.studies._build import VISION, build_model, quiet_bars
from tsugiki.studies._divide import Parts, divide
from tsugiki.studies._training import Trained, encode, startable, train_chosen
from tsugiki.studies._words import sentences
from tsugiki.training import recipe as recipes
from tsugiki.training.recipe import Recipe
from tsugiki.types import Proof, Sample, Score

STEPS = 150
"""At most so many, where no recipe is given: a few hundred pictures teach no more after that."""
NEEDED = (("accelerate", "train"), ("sklearn", "eval"), ("scipy", "eval"), ("statsmodels", "eval"))


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What came out."""

    out: Path
    graft: Path
    """The saved graft, with the question that it was asked."""
    report: Path
    proof: Proof
    scores: list[Score]
    """On the held-out pictures, beside yardsticks and the bare LLM."""
    findings: tuple[str, ...]
    """What to know, in sentences; the unflattering ones too."""
    trained: Trained
    sizes: Mapping[str, int]
    """Samples: train, of these hold (the inner hold-out), test."""
    seconds: float
    model: Any

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
    refit: bool = True,
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
        data: one folder of pictures for each class, a CSV, COCO or LLaVA JSON, a JSONL, or samples.
        base: an asset, folder or hub id of an LLM, or the object.
        method: one of `tsugiki.methods()`, or several, stacked in their order.
        vision: an asset, folder, hub id or tower; None = efficientnet-lite0.
        out: the run's folder.
        recipe: a name, file, dict or Recipe with one data source; None = the method's own, with at most 150 steps.
        overrides: `steps=60`, `batch_size=8`: changes of the recipe.
        question: for data with labels or boxes only; in any language.
        test: share of the samples that is asked at the end, unless the data names its own split.
        refit: after the inner hold-out has chosen the step count, train once more on all training samples; False keeps
            the weights of the best mark, which takes about half the time.
        answers: whole answers that the proof compares.
        tokenizer: for a base given as an object.
        cache_limit: bytes of the folder of tower outputs; None = no limit.
        seed: of split, order of samples and yardsticks.
        progress: tell on standard error how far it is.
        say: is told the lines instead.
        options: settings of the front-end and of the first method, as for `tsugiki.attach`; those of a recipe that is
            for this method are the default.

    Raises:
        DataError, BoxError, ImageError: the data can't be used; one line says where.
        RecipeError: the recipe can't be run, or another run stands in `out`.
        InputError, UnknownNameError, UnsupportedError, AssetError, StoreError: as what is called.
    """
    started, folder, tell = time.monotonic(), Path(out), say or _teller(progress)
    for package, extra in NEEDED:  # not after half an hour of training
        extras.require(package, extra=extra)
    plan = _plan(recipe, method, seed, overrides)
    own = _own.read(data, question=question)
    parts = divide(own.samples, test=test, seed=seed)
    sizes = {"train": len(parts.train), "hold": len(parts.hold), "test": len(parts.test)}
    notes = [*_left_out(own), *parts.notes]
    tell(f"{own.kind}: {sizes['train']} samples to learn from, {sizes['test']} held out to be asked at the end")
    _tell_all(tell, notes)
    if plan.model.grafts == ((method,) if isinstance(method, str) else tuple(method)):
        options = {**plan.model.options, **options}
    model = build_model(base, method, vision or VISION, tokenizer=tokenizer, say=tell, **options)
    if model.frontend.places is None:  # places need no words, and are nothing without a warm start
        plan = startable(plan, parts.inner, tell)
    _keep_data(folder, parts)
    features = encode(model, [*parts.train, *parts.test], tell, cache_limit=cache_limit)
    done = train_chosen(model, plan, parts, folder, features=features, refit=refit, tell=tell, progress=progress)
    tell("Proof: the LLM with the graft against the LLM as it was")
    with quiet_bars():
        proof = proofs.verify(model, answers=answers, seed=seed, out=folder / "proof.json")
    results = judge(model, parts, features, seed=seed)
    scores = [s for r in results.values() for s in r.scores]
    found = [*sentences(scores, proof), _chosen(done, parts, refit)]
    if not scores:
        found.append("No question in the data has one right answer, so nothing was scored.")
    _tell_all(tell, found)
    facts = _facts(data, own, model, sizes, done, seed) | {"seconds": round(time.monotonic() - started)}
    report = reports.Report(
        title=f"{Path(data).name if isinstance(data, str | Path) else 'Own pictures'}: what was learned",
        findings=[*found, *notes],
        scores=scores,
        answers=[a for r in results.values() for a in r.answers],
        losses={name: list(enumerate(values, 1)) for name, values in done.losses.items()},
        proof=proof,
        facts=facts,
    )
    content = {"facts": facts, "findings": report.findings, "scores": records(scores)}
    content["marks"] = [asdict(mark) for mark in done.marks]
    atomic_write(folder / "scores.json", json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    return FitResult(
        out=folder,
        graft=done.graft,
        report=reports.write(report, folder / "report.html"),
        proof=proof,
        scores=scores,
        findings=tuple(report.findings),
        trained=done,
        sizes=sizes,
        seconds=time.monotonic() - started,
        model=model,
    )


def judge(model: Any, parts: Parts, features: Any, *, seed: int = 0, **settings: Any) -> dict[str, tasks.Result]:
    """Every task that can score the test samples, beside yardsticks that learned from the training samples.

    Args:
        features: a cache of tower outputs, or None.
        settings: further fields of `evals.task.Settings`.
    """
    names = tasks.scorable(parts.test)
    common = {"features": features, "train": parts.train, "holdout": parts.hold or 0.2, "seed": seed}
    return tasks.measure(model, names, parts.test, **{**common, **settings}) if names else {}


def _plan(recipe: Any, method: str | Sequence[str], seed: int, overrides: Sequence[str]) -> Recipe:
    """The recipe: the method's own is cut to what own pictures need."""
    if recipe is not None:
        return recipes.load(recipe, [f"seed={seed}", *overrides])
    own = build.preset(method if isinstance(method, str) else method[-1]).recipe
    return recipes.load(own, [f"seed={seed}", f"steps={STEPS}", *overrides])


def _teller(progress: bool) -> Callable[[str], None]:
    console = Console(stderr=True, quiet=not progress)
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def _tell_all(tell: Callable[[str], None], lines: Sequence[str]) -> None:
    for line in lines:
        tell(line)


def _left_out(own: _own.Own) -> list[str]:
    if not own.left_out:
        return []
    shown = "; ".join(str(error) for error in own.left_out[:3])
    return [f"{len(own.left_out)} pictures can't be read and are left out: {shown}"]


def _keep_data(folder: Path, parts: Parts) -> None:
    """The split as JSONL, for `tsugiki eval` and to repeat it; not where a run has begun, which may be another one."""
    if (folder / "run.json").exists() or (folder / "choose" / "run.json").exists():
        return
    schema.write(folder / "data" / "train.jsonl", parts.train)
    schema.write(folder / "data" / "test.jsonl", parts.test)


def _chosen(done: Trained, parts: Parts, refit: bool) -> str:
    if not done.marks:
        return f"Trained for {done.steps} steps, as the recipe says; nothing chose the number."
    tried = ", ".join(str(mark.step) for mark in done.marks)
    again = f"then trained again on all {len(parts.train)}" if refit else "with those weights"
    return f"Trained for {done.steps} steps: {len(parts.hold)} inner held-out samples chose it of {tried}, {again}."


def _facts(
    data: Any, own: _own.Own, model: Any, sizes: Mapping[str, int], done: Trained, seed: int
) -> dict[str, object]:
    base, towers = model.base_identity, model.frontend.towers
    return {
        "data": f"{data if isinstance(data, str | Path) else 'samples'} ({own.kind})",
        **{f"samples, {name}": n for name, n in sizes.items()},
        "base LLM": f"{base.get('name', '?')} ({base.get('licence') or 'licence: see its card'})",
        "vision tower": ", ".join(f"{t.name} ({t.licence or 'licence: see its card'})" for t in towers),
        "grafts": ", ".join(str(graft.name) for graft in model.grafts),
        "steps": done.steps,
        "seconds of training": round(done.seconds),
        "seed": seed,
    }
