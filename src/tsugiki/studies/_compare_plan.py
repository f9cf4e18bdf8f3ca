"""The YAML of a comparison: what is compared, on what, for how long, and what is tested."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tsugiki import build
from tsugiki.data import schema
from tsugiki.errors import DataError, RecipeError, UnknownNameError
from tsugiki.evals import task as tasks
from tsugiki.evals.budget import SUITES
from tsugiki.training import recipe as recipes
from tsugiki.training._settings import read_yaml, told
from tsugiki.vision.config import FrontEndConfig

MOST_TESTS = 6
"""Comparisons that are tested: with more, Holm's correction leaves little to be seen."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _named_files(value: Any) -> Any:
    return {"": value} if isinstance(value, str | Path) else value


class Data(_Strict):
    """JSONL files, relative to the plan's file."""

    train: Path
    """What every arm learns from."""
    ask: Annotated[dict[str, Path], BeforeValidator(_named_files)]
    """Name -> held-out samples; a name stands before their scores, so that pictures of two kinds are scored apart."""
    text: Path | None = None
    """Text for the arms with `replay`; a sample of an assistant message alone is a document."""
    iit: Path | None = None
    """Conversations of `tsugiki synth iit`, whose last turns every arm is asked."""


class Shared(_Strict):
    """The first stage: the front-end alone, before the frozen LLM; trained once for a seed and a front-end."""

    steps: int = Field(default=100, ge=0)
    """Optimiser steps after the closed-form start; 0 = that start alone."""
    rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate of the projector."""
    warm_start: bool = True


class Budget(_Strict):
    """What each arm may use after the shared stage."""

    steps: int = Field(default=100, gt=0)
    batch_size: int = Field(default=16, gt=0)
    precision: Literal["model", "bf16"] = "model"
    """Of the shared stage and of the arms' trainings, as in a recipe."""


class Arm(_Strict):
    """One way to give the LLM eyes."""

    method: str | tuple[str, ...] = ""
    """One of `tsugiki.methods()`, or several, stacked in order. Empty = the arm's name."""
    base: str | None = None
    """Another LLM than the plan's."""
    vision: str | dict[str, Any] | list[Any] | None = None
    """Another front-end than the plan's."""
    options: dict[str, Any] = {}
    """Settings of the front-end and of the grafts."""
    train: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Part -> peak rate. Empty = as in the recipes of its methods."""
    stage: dict[str, Any] = {}
    """Other fields of the stage, such as `loss`, `settings` or `retention`."""
    source: dict[str, Any] = {}
    """Other fields of the data's source, such as `order`."""
    replay: float = Field(default=0.0, ge=0)
    """Share of packed text beside pictures of weight 1, in as many steps."""
    mix_of: str = ""
    """Not trained: the weights of that arm, mixed with its base."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """Weight of `mix_of`; the base has the rest."""
    published: bool = False
    """Only for readers: as its paper has it, not as we would."""

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method,) if isinstance(self.method, str) else self.method


class Asked(_Strict):
    """What every arm is asked."""

    tasks: tuple[str, ...] = ()
    """Of `tsugiki eval`; () = all that can score the data."""
    limit: int | None = Field(default=None, gt=0)
    """At most so many samples of a task."""
    retention: tuple[str, ...] = ("wiki",)
    """Suites of text that arms without a proof are read; () = none."""
    after_picture: bool = True
    """Read the suites behind an unrelated picture too; this all arms are read."""
    items: int = Field(default=64, gt=1)
    """Texts of a suite."""
    answers: int = Field(default=4, ge=0)
    """Whole greedy answers of a proof."""
    speed: bool = True
    """Time to the first token and tokens a second, beside the bare LLM's."""
    shown: int = Field(default=12, ge=0)
    """Pictures of the page."""


class Test(_Strict):
    """A comparison that is tested; all of a plan's are corrected together."""

    first: str
    second: str
    score: str = ""
    """Task and kind of question, such as `scenes: decisions/naming`; empty = all questions about pictures."""


def _test(value: Any) -> Any:
    named = isinstance(value, list) and len(value) in (2, 3)
    return dict(zip(("first", "second", "score"), value, strict=False)) if named else value


class Plan(_Strict):
    """A whole comparison."""

    name: str = ""
    description: str = ""
    base: str
    """Asset name, hub id or folder of the LLM."""
    vision: str | dict[str, Any] | list[Any] = "efficientnet-lite0"
    options: dict[str, Any] = {}
    """Settings of every arm's front-end."""
    data: Data
    shared: Shared = Shared()
    budget: Budget = Budget()
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    arms: dict[str, Arm] = Field(min_length=1)
    comparisons: Annotated[tuple[Annotated[Test, BeforeValidator(_test)], ...], Field(max_length=MOST_TESTS)] = ()
    asked: Asked = Asked()
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the LLM; None = float32 on a CPU."""

    @model_validator(mode="after")
    def _known(self) -> Plan:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: one stands twice")
        for name in self.arms:
            if not name or set(name) & set("/\\:"):
                raise ValueError(f"the arm {name!r}: a name becomes a file's, without / \\ or :")
        for test in self.comparisons:
            for name in (test.first, test.second):
                if name not in self.arms:
                    raise ValueError(f"comparisons name the arm {name!r}; arms are {', '.join(self.arms)}")
        for name, arm in self.arms.items():
            if arm.mix_of and (arm.mix_of not in self.arms or self.arms[arm.mix_of].mix_of):
                raise ValueError(f"arm {name!r} mixes {arm.mix_of!r}, which is no arm that is trained")
            own = arm.model_fields_set & {"method", "base", "vision", "options", "train", "stage", "source", "replay"}
            if arm.mix_of and own:
                raise ValueError(f"arm {name!r} mixes {arm.mix_of!r} and has {min(own)} of its own, which nothing uses")
            if arm.replay and self.data.text is None:
                raise ValueError(f"arm {name!r} has replay, and data.text is not given")
        return self

    def arm(self, name: str) -> Arm:
        """An arm with its method, base and front-end filled in."""
        arm = self.arms[name]
        whole = self.arms[arm.mix_of] if arm.mix_of else arm
        method = whole.method or (arm.mix_of or name)
        return arm.model_copy(
            update={
                "method": method,
                "base": whole.base or self.base,
                "vision": whole.vision if whole.vision is not None else self.vision,
                "options": {**self.options, **preset_options(method), **whole.options},
            }
        )


def preset_options(method: str | tuple[str, ...]) -> dict[str, Any]:
    """Settings of the presets, later ones over earlier ones."""
    found: dict[str, Any] = {}
    for name in (method,) if isinstance(method, str) else method:
        found |= dict(build.preset(name).options)
    return found


def frontend_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are fields of a front-end; the others are the grafts'."""
    known = {f.name for f in dataclasses.fields(FrontEndConfig)}
    return {k: v for k, v in options.items() if k in known}


def rates(arm: Arm) -> dict[str, float]:
    """Part -> peak rate: the arm's own, else those of its methods' recipes, over all of their stages."""
    if arm.train:
        return dict(arm.train)
    found: dict[str, float] = {}
    for name in arm.methods:
        for stage in recipes.load(build.preset(name).recipe).stages:
            found |= {k: v for k, v in stage.train.items() if v > 0}
    return found


def load(source: str | Path | Mapping[str, Any] | Plan) -> Plan:
    """A plan from a YAML file, a dict, or as it is.

    Raises:
        RecipeError: no such file, not YAML, an unknown key or a wrong value; with file and field.
        DataError: a file to ask with nothing to ask, or one id twice.
        UnknownNameError: a method, task or suite that does not exist; names the nearest.
    """
    if isinstance(source, Plan):
        return source
    where, folder = "plan", Path()
    if isinstance(source, Mapping):
        fields = dict(source)
    else:
        path = Path(source)
        if not path.is_file():
            raise RecipeError("there is no such file", expected="a comparison's YAML file", where=str(path))
        where, folder, fields = str(path), path.parent, read_yaml(path)
        fields.setdefault("name", path.stem)
    try:
        plan = Plan.model_validate(fields)
    except ValidationError as error:
        raise told(error, where, Plan) from None
    for name in plan.arms:
        for method in plan.arm(name).methods:
            if method not in build.methods():
                raise UnknownNameError("method", method, build.methods(), where=f"{where}: arms.{name}")
    for task in plan.asked.tasks:
        if task not in tasks.available():
            raise UnknownNameError("task", task, tasks.available(), where=f"{where}: asked.tasks")
    for suite in plan.asked.retention:
        if suite not in SUITES:
            raise UnknownNameError("retention suite", suite, SUITES, where=f"{where}: asked.retention")
    data = _anchored(plan.data, folder)
    given = [path for path in (data.text, data.iit) if path is not None]
    for file in (data.train, *data.ask.values(), *given):
        if not file.is_file():
            raise RecipeError("there is no such file", expected="JSONL", where=f"{where}: data: {file}")
    _check_asked(plan, data, where)
    return plan.model_copy(update={"data": data})


def _check_asked(plan: Plan, data: Data, where: str) -> None:
    """Whether every file can be asked, and every task has enough to ask, before anything is trained."""
    if not data.ask:
        raise RecipeError("nothing to ask", expected="a JSONL file or several by name", where=f"{where}: data.ask")
    counts = dict.fromkeys(plan.asked.tasks, 0)
    for file in data.ask.values():
        samples = schema.load(file)
        ids = Counter(sample.id for sample in samples)
        if not samples or ids.most_common(1)[0][1] > 1:
            found = f"the id {ids.most_common(1)[0][0]!r} twice" if samples else "no samples"
            raise DataError(found, expected="samples, each with an id of its own", where=str(file))
        for name in counts:
            counts[name] = max(counts[name], len(tasks.load(name).select(samples)[: plan.asked.limit]))
    for name, count in counts.items():
        needed = getattr(tasks.load(name), "NEEDED", 1)
        if count < needed and getattr(tasks.load(name), "NEEDS_SAMPLES", True):
            raise DataError(
                f"{count} samples for {name}", expected=f"at least {needed} in one file", where=f"{where}: asked.tasks"
            )


def _anchored(data: Data, folder: Path) -> Data:
    """Paths relative to the plan's file."""
    folder = folder.resolve()
    ask = {name: folder / path for name, path in data.ask.items()}
    text, iit = (None if path is None else folder / path for path in (data.text, data.iit))
    return Data(train=folder / data.train, ask=ask, text=text, iit=iit)
