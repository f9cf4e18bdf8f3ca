"""`tsugiki.train`: stage after stage of a recipe, continued exactly where a killed run stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tsugiki import extras
from tsugiki.data.files import atomic_write
from tsugiki.training import _checks, checkpoints, feed, gating, parallel, parts, processes, sources, warming
from tsugiki.training import recipe as recipes
from tsugiki.training.checkpoints import Checkpoint
from tsugiki.training.processes import Processes
from tsugiki.training.recipe import Recipe, Stage, stage_name
from tsugiki.training.report import Board, Display, Log
from tsugiki.training.retained import Watch
from tsugiki.training.run import Run
from tsugiki.types import Sample

if TYPE_CHECKING:
    from tsugiki.model import TsugikiForConditionalGeneration
    from tsugiki.vision.cache import FeatureCache


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What `on_step` is told after each step."""

    stage: str
    step: int
    loss: float
    """Of the step, as the stage's `loss` defines it; `per_token`: nats per label token."""
    seconds: float
    """Of this stage."""
    progress: float
    """Share of the stage that is done, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came out of a run."""

    steps: int
    """Optimiser steps of all stages."""
    losses: tuple[float, ...]
    """Each step's, as in `StepReport`, those before an interruption included."""
    seconds: float
    """Time in the training loops of all stages, without encoding pictures."""
    out: Path
    graft: Path
    """The saved graft."""
    resumed: bool = False
    """Whether it continued from a checkpoint."""
    reports: Mapping[str, Any]
    """What warm starts reported, by stage; under `gate`, what a gate says to questions that were held out; under
    `text`, the share of loss-bearing tokens that are text; under `retention`, what was measured of it."""


def train(
    model: TsugikiForConditionalGeneration,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    data: sources.Given | Sequence[Sample] | str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = True,
    progress: bool = True,
    features: FeatureCache | None = None,
    cache_limit: int | None = None,
    on_step: Callable[[StepReport], bool | None] | None = None,
) -> TrainResult:
    """Train `model` in place, and save the graft in `out/graft`.

    Started by torchrun or accelerate launch, the processes divide each batch; the first one writes, and all of them
    have to see `out`. Under `parallel: fsdp` leave the LLM on the CPU: only pieces of it go to the GPUs, and `model`
    itself gets what was learned at the end of each stage.

    Args:
        recipe: a shipped recipe's name, a YAML file, a dict, or a Recipe.
        out: the run's folder; if a run stopped there, it is continued.
        data: source name -> samples or JSONL file; a bare list or file for a recipe with one source.
        overrides: `steps=100`, `stages.scenes.train.projector=1e-3`.
        resume: False refuses a folder in which a run has begun.
        progress: tell on standard error how far it is; of several processes the first one does.
        features: the cache of tower outputs; None = the one in Tsugiki's cache folder.
        cache_limit: bytes of that folder; the least recently used pictures go first. None = no limit.
        on_step: called after each step, in every process; True ends the stage there.

    Raises:
        RecipeError: the recipe can't be run, or differs from the one that the run in `out` began with.
        UnknownNameError: an unknown recipe, loss or data source.
        UnsupportedError: started by a launcher's engine other than DDP.
        DataError, PromptError, ImageError: a sample can't be read.
        StoreError: the disk is full; the last checkpoint is intact, the same call continues from it.
    """
    extras.require("accelerate", extra="train")
    plan = recipes.load(recipe, overrides)
    here = processes.join(plan, Path(out))
    given = sources.named(data, plan.stages)
    data_of = _checks.checked(model, plan, given)
    hashes = {
        stage_name(plan, i): {name: sources.digest(given.get(name, source.path)) for name, source in stage.data.items()}  # type: ignore[arg-type]
        for i, stage in enumerate(plan.stages)
    }
    base = {k: v for k, v in model.base_identity.items() if k in ("name", "dtype") or k.endswith("sha256")}
    content = {"data": hashes, "base": base, "grafts": _checks.as_begun(model, plan)}
    here.refuse_difference("base, graft or data", content)
    run = Run(Path(out), plan, content)
    with ExitStack() as stack:
        here.tell(lambda: stack.enter_context(run.locked()))
        start = here.tell(lambda: run.open(resume=resume))
        session = _Session(model, plan, run, data_of, features, Console(stderr=True), progress, on_step)
        session.cache_limit, session.here = cache_limit, here
        return session.go(start)


class _Session:
    """One call of `train`."""

    def __init__(
        self,
        model: Any,
        plan: Recipe,
        run: Run,
        data: Sequence[Mapping[str, list[Sample]]],
        features: FeatureCache | None,
        console: Console,
        progress: bool,
        on_step: Callable[[StepReport], bool | None] | None,
    ) -> None:
        self.model, self.plan, self.run, self.data = model, plan, run, data
        self.features, self.console, self.progress, self.on_step = features, console, progress, on_step
        self.here = Processes()
        self.cache_limit: int | None = None
        self.log = Log(run.out / "log.jsonl")
        self.reports: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def go(self, start: Checkpoint | None) -> TrainResult:
        """Run what is left."""
        first = 0
        done = (start.position.stage, start.position.step) if start is not None else (-1, 0)
        self.here.tell(lambda: self.log.cut(*done))
        if start is not None:
            self.reports, self.seconds = dict(start.state["reports"]), dict(start.state["stage_seconds"])
            keeps = self._keeps(start.position.stage)
            if parts.trains_llm(keeps):  # so that the model knows, and says, that its LLM is no longer the base
                self.model.freeze_llm(False)
                self.model.freeze_llm(True)
            checkpoints.restore_weights(self.model, start, parts.trained_tensors(self.model, keeps))
            first = start.position.stage + (1 if start.position.finished else 0)
            self._adjust(start.position.stage)
        tables = json.dumps(self._tables(), ensure_ascii=False, indent=1)
        self.here.tell(lambda: atomic_write(self.run.out / "parts.json", tables))
        try:
            for i in range(first, len(self.plan.stages)):
                here = start if start is not None and i == start.position.stage else None
                self._stage(i, here)
        finally:
            self.log.close()
        return self._finish(resumed=start is not None)

    def _keeps(self, stage: int) -> dict[str, float]:
        """Parts that have trained when a stage is at work, itself included."""
        keeps: dict[str, float] = {}
        for earlier in self.plan.stages[: stage + 1]:
            keeps |= {"projector": 0.0} if earlier.warm_start is not None else {}
            keeps |= earlier.parts
        return keeps

    def _adjust(self, stage: int) -> None:
        """The grafts' settings of a stage; a continued run begins with what earlier stages set."""
        for earlier in self.plan.stages[: stage + 1]:
            for graft, changes in earlier.settings.items():
                self.model.adjust(graft, **changes)

    def _tables(self) -> dict[str, Any]:
        return {stage_name(self.plan, i): parts.table(self.model, s.parts) for i, s in enumerate(self.plan.stages)}

    def _stage(self, index: int, start: Checkpoint | None) -> None:
        from tsugiki.training._work import Work, arguments
        from tsugiki.training.stage_trainer import StageTrainer

        stage, name, here = self.plan.stages[index], stage_name(self.plan, index), self.here
        self._adjust(index)
        display = Display(self.console, name, quiet=not (self.progress and here.first))
        display.say(parts.draw(parts.table(self.model, stage.parts), f"Stage {name}"))
        args = arguments(self.plan, index, self.run.out, here.world)
        sharded = here.several and self.plan.parallel == "fsdp"
        (self.model.frontend if sharded else self.model).to(args.device)
        everything = here.in_turn(lambda: self._samples(index))
        samples = gating.teaching(self.model, stage, everything)
        if idle := sum(map(len, everything.values())) - sum(map(len, samples.values())):
            display.say(f"{name}: {idle} samples are read by the gate alone: their branch does not train here")
        cache = self.features, self.cache_limit
        features = here.in_turn(lambda: feed.encode(self.model, stage, samples, *cache, display))
        if stage.warm_start is not None and start is None:
            self.reports[name] = here.tell(lambda: warming.warm(self.model, stage, samples, features))
            display.say(f"{name}: {warming.told(self.reports[name])}")
        if gating.fits(self.model, stage) is not None and start is None:
            gate = here.tell(lambda: gating.fit(self.model, stage, everything))
            self.reports[name] = {**self.reports.get(name, {}), "gate": gate}
            display.say(f"{name}: {gating.told(gate)}")
        if start is None:
            for graft in self.model.grafts:
                graft.begin_stage(stage.settings.get(graft.name, {}), parts.trained_parts(graft, stage.parts))
        keeps = self._keeps(index)
        here.align(parts.new_tensors(self.model, keeps).values())
        watch = here.in_turn(lambda: self._watch(stage, start))
        stream = feed.stream(self.model, stage, samples, features, seed=self.plan.seed, here=here)
        board = Board(self.run.out / "tensorboard" / name, start.position.step if start else 0) if here.first else None

        def record(row: dict[str, Any], share: float) -> bool:
            if board is not None:
                self.log.add(row)
                board.add(row["step"], {"loss": row["loss"], "lr": row["lr"], "grad_norm": row["grad_norm"] or 0.0})
            report = StepReport(stage=name, step=row["step"], loss=row["loss"], seconds=row["seconds"], progress=share)
            display.show(step=report.step, loss=report.loss, seconds=report.seconds, progress=share)
            return self.on_step is not None and self.on_step(report) is True

        work = Work(
            recipe=self.plan,
            index=index,
            stream=stream,
            keeps=keeps,
            folder=self.run.checkpoints,
            record=record,
            sync=self.log.sync,
            checkpoint=start,
            watch=watch,
            say=lambda text: display.say(f"{name}: {text}"),
            processes=here,
            state={"reports": self.reports, "stage_seconds": self.seconds},
        )
        display.start()
        try:
            with parts.training(self.model, stage.parts, gradient_checkpointing=stage.gradient_checkpointing):
                model = parallel.twin(self.model, here) if sharded else self.model
                trainer = StageTrainer(model, args, work)
                trainer.run()
                self.seconds[name] = here.told(trainer.clock.seconds)
                if found := here.tell(lambda: self._shares(index, display)):
                    self.reports[name] = {**self.reports.get(name, {}), **found}
                trainer.save(finished=True)
                if sharded:
                    parallel.put_back(model, self.model, stage.parts)
        finally:
            display.stop()
            if board is not None:
                board.close()

    def _watch(self, stage: Stage, start: Checkpoint | None) -> Watch | None:
        """What measures the loss of text, with the base's figures from the stage's beginning."""
        if stage.retention is None:
            return None
        if start is not None:
            return Watch.of(self.model, stage.retention, start.state["retention"])
        return Watch.begin(self.model, stage.retention)

    def _shares(self, index: int, display: Display) -> dict[str, Any]:
        """What of the loss-bearing tokens was text, and what retention was measured, from the log."""
        rows = [row for row in self.log.rows() if row["stage"] == index]
        text, every = (sum(row.get(key, 0) for row in rows) for key in ("text_label_tokens", "label_tokens"))
        found: dict[str, Any] = {}
        if text:
            found["text"] = {"label_tokens": every, "text_label_tokens": text, "share": text / every}
            name = stage_name(self.plan, index)
            display.say(f"{name}: {text:,} of {every:,} loss-bearing tokens are text ({text / every:.0%})")
        if lost := [{"step": row["step"], **row["retention"]} for row in rows if "retention" in row]:
            found["retention"] = lost
        return found

    def _samples(self, index: int) -> dict[str, list[Sample]]:
        folder = self.run.out / "replay" / stage_name(self.plan, index)
        where = f"stages.{index}"
        stage = self.plan.stages[index]
        return sources.replayed(self.data[index], stage, self.model, seed=self.plan.seed, folder=folder, where=where)

    def _finish(self, *, resumed: bool) -> TrainResult:
        return self.here.tell(lambda: self._written(resumed=resumed))

    def _written(self, *, resumed: bool) -> TrainResult:
        rows = list(self.log.rows())
        graft = self.run.out / "graft"
        self.model.save(graft)
        result = TrainResult(
            steps=len(rows),
            losses=tuple(row["loss"] for row in rows),
            seconds=sum(self.seconds.values()),
            out=self.run.out,
            graft=graft,
            resumed=resumed,
            reports=self.reports,
        )
        content = {k: v for k, v in asdict(result).items() if k not in {"out", "graft", "losses"}}
        content |= {"last_loss": result.losses[-1] if result.losses else None, "stage_seconds": self.seconds}
        atomic_write(self.run.out / "result.json", json.dumps(content, ensure_ascii=False, indent=1, default=str))
        return result
